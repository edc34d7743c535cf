// SPDX-License-Identifier: Apache-2.0
#include "arguments.hpp"

#include <cstdint>
#include <cstring>

namespace hccomm::fast {

// The type of a struct format with one letter, or -1.
static int dtype_of(const Py_buffer& view) {
  const char* format = view.format != nullptr ? view.format : "B";
  if (format[0] == '@' || format[0] == '=') ++format;
  if (std::strcmp(format, "Zf") == 0) return HCCOMM_C64;
  if (std::strcmp(format, "Zd") == 0) return HCCOMM_C128;
  if (format[0] == '\0' || format[1] != '\0') return -1;
  switch (format[0]) {
    case 'f': return HCCOMM_F32;
    case 'd': return HCCOMM_F64;
    case 'e': return HCCOMM_F16;
    case '?': return HCCOMM_BOOL;
    case 'b': return HCCOMM_I8;
    case 'B': return HCCOMM_U8;
    case 'h': return HCCOMM_I16;
    case 'H': return HCCOMM_U16;
    case 'i': return HCCOMM_I32;
    case 'I': return HCCOMM_U32;
    case 'l':
    case 'q':
    case 'n': return view.itemsize == 8 ? HCCOMM_I64 : HCCOMM_I32;
    case 'L':
    case 'Q':
    case 'N': return view.itemsize == 8 ? HCCOMM_U64 : HCCOMM_U32;
    default: return -1;
  }
}

static hccomm_buffer buffer_of(const Py_buffer& view) {
  hccomm_buffer buffer{};
  buffer.data = view.buf;
  buffer.count = static_cast<std::uint64_t>(view.len / view.itemsize);
  return buffer;
}

bool describe(hccomm_call& call, int size, PyObject* input, PyObject* output, Held& in, Held& out) {
  if (call.collective == HCCOMM_BARRIER) {
    call.dtype = HCCOMM_U8;
    return true;
  }
  const bool one = input == output;
  const bool reads = input != Py_None;
  const bool writes = output != Py_None;
  if (!reads && !writes) return false;
  if (reads && !in.take(input, one && call.collective != HCCOMM_SEND)) return false;
  if (writes && !one && !out.take(output, true)) return false;
  call.dtype = dtype_of(reads ? in.view : out.view);
  if (call.dtype < 0 || (out.held && dtype_of(out.view) != call.dtype)) return false;
  if (reads) call.input = buffer_of(in.view);
  if (writes) call.output = one ? call.input : buffer_of(out.view);
  const bool by_output =
      call.collective == HCCOMM_REDUCE_SCATTER || call.collective == HCCOMM_SCATTER;
  call.count = by_output ? call.output.count : call.input.count;
  if (call.collective == HCCOMM_ALL_TO_ALL) {
    if (call.count % static_cast<std::uint64_t>(size) != 0) return false;
    call.count /= static_cast<std::uint64_t>(size);
  }
  return true;
}

static bool reduces(int collective) {
  return collective == HCCOMM_ALL_REDUCE || collective == HCCOMM_REDUCE ||
         collective == HCCOMM_REDUCE_SCATTER;
}

static bool is(PyObject* text, const char* word) {
  return PyUnicode_CompareWithASCIIString(text, word) == 0;
}

bool sort(Arguments& found, PyObject* const* args, Py_ssize_t nargs, PyObject* names) {
  if (nargs > 2) return false;
  if (nargs > 0) found.buffer = args[0];
  if (nargs > 1) found.second = args[1];
  const Py_ssize_t named = names != nullptr ? PyTuple_GET_SIZE(names) : 0;
  for (Py_ssize_t i = 0; i < named; ++i) {
    PyObject* name = PyTuple_GET_ITEM(names, i);
    PyObject* value = args[nargs + i];
    if (is(name, "out"))
      found.out = value;
    else if (is(name, "op"))
      found.op = value;
    else if (is(name, "root") || is(name, "dest") || is(name, "source"))
      found.root = value;
    else if (is(name, "timeout"))
      found.timeout = value;
    else if (is(name, "async_op") && PyBool_Check(value))
      found.async = value == Py_True;
    else if (value != Py_None)
      return false;  // counts, offsets, tag, factor
  }
  return true;
}

// The number of an operation by its name, or -1; PREMUL_SUM has a factor and is not for here.
static int op_of(PyObject* name) {
  static constexpr const char* kNames[] = {"sum", "avg",  "prod", "min",
                                           "max", "band", "bor",  "bxor"};
  if (name == nullptr) return HCCOMM_SUM;
  if (!PyUnicode_Check(name)) return -1;
  for (int op = HCCOMM_SUM; op < HCCOMM_PREMUL_SUM; ++op) {
    if (is(name, kNames[op])) return op;
  }
  return -1;
}

bool choose(hccomm_call& call, Arguments& found) {
  PyObject* op = found.op;
  PyObject* root = found.root;
  if (found.second != nullptr) {
    PyObject*& place = reduces(call.collective) ? op : root;
    if (place != nullptr) return false;  // given twice
    place = found.second;
  }
  call.op = reduces(call.collective) ? op_of(op) : op != nullptr ? -1 : 0;
  if (call.op < 0) return false;
  if (root != nullptr) {
    const long value = PyLong_Check(root) ? PyLong_AsLong(root) : -1;
    if (value < 0 || value > INT32_MAX) return PyErr_Clear(), false;
    call.root = static_cast<std::int32_t>(value);
  } else if (call.collective == HCCOMM_SEND || call.collective == HCCOMM_RECV) {
    return false;  // from any source, or forgotten
  }
  if (found.timeout == Py_None) return true;
  call.timeout = PyFloat_Check(found.timeout) ? PyFloat_AS_DOUBLE(found.timeout) : 0;
  return call.timeout > 0;
}

bool place(int collective, bool is_root, Arguments& found) {
  switch (collective) {
    case HCCOMM_ALL_REDUCE:
      if (found.out == Py_None) found.out = found.buffer;
      return true;
    case HCCOMM_REDUCE:
      if (found.out == Py_None) found.out = found.buffer;
      if (!is_root) found.out = Py_None;
      return true;
    case HCCOMM_GATHER:
      if (!is_root) found.out = Py_None;
      return !is_root || found.out != Py_None;
    case HCCOMM_SCATTER:
      if (!is_root) found.buffer = Py_None;
      return found.out != Py_None && (!is_root || found.buffer != Py_None);
    case HCCOMM_BROADCAST:
    case HCCOMM_SEND:
    case HCCOMM_RECV:
      if (found.out != Py_None) return false;
      found.out = found.buffer;
      return true;
    case HCCOMM_BARRIER: return found.buffer == Py_None && found.out == Py_None;
    default: return found.out != Py_None;
  }
}

bool describe(hccomm_call& call, int collective, PyObject* array, PyObject* peer, int size,
              Held& held) {
  const long rank = PyLong_Check(peer) ? PyLong_AsLong(peer) : -1;
  if (rank < 0 || rank >= size) return PyErr_Clear(), false;
  call.struct_size = sizeof call;
  call.collective = collective;
  call.root = static_cast<std::int32_t>(rank);
  return describe(call, size, array, array, held, held);
}

}  // namespace hccomm::fast
