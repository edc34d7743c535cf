// SPDX-License-Identifier: Apache-2.0
//
// The fast path of small Python calls: hccomm/_fast. A blocking operation on objects with the
// buffer protocol goes straight from Python's argument array to the C ABI, without cffi's objects.
// What it does not take (other arrays, odd types, options) it declines, and hccomm/operations.py
// goes the general way, which also words the errors.
//
// The library is the one that the package has already loaded: its functions are looked up, never
// linked, so that a process holds one copy.
#include <Python.h>
#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <cstring>
#include <memory>

#include "capi/hccomm.h"

namespace py = pybind11;

namespace {

// The functions of the loaded library. Constant after bind().
struct Functions {
  decltype(&hccomm_abi_version) abi_version = nullptr;
  decltype(&hccomm_start) start = nullptr;
  decltype(&hccomm_wait) wait = nullptr;
  decltype(&hccomm_test) test = nullptr;
  decltype(&hccomm_release) release = nullptr;
} functions;

PyObject* make_error = nullptr;  // hccomm.errors.from_code(code, text, rank)

constexpr double kSlice = 0.25;  // seconds between looks at Python's signals

// One communicator as the fast path sees it.
//
// Thread: call() from any; `inside` tells close() whether somebody still uses the handle.
struct State {
  std::atomic<hccomm_comm*> comm;
  int size = 1;
  std::atomic<int> inside{0};
};

// Releases a Py_buffer, however the call ends.
struct Held {
  Py_buffer view{};
  bool held = false;
  ~Held() {
    if (held) PyBuffer_Release(&view);
  }
  bool take(PyObject* object, bool writable) {
    const int flags = PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0);
    held = PyObject_GetBuffer(object, &view, flags) == 0;
    if (!held) PyErr_Clear();
    return held;
  }
};

// The type of a struct format with one letter, or -1.
int dtype_of(const Py_buffer& view) {
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

hccomm_buffer buffer_of(const Py_buffer& view) {
  hccomm_buffer buffer{};
  buffer.data = view.buf;
  buffer.count = static_cast<std::uint64_t>(view.len / view.itemsize);
  return buffer;
}

// Fills the data of `call`; false where the general way must go.
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

// Runs `call`, looking at Python's signals every kSlice, so that Ctrl-C ends the wait. Returns the
// code, or -1 with a Python error set: then the operation is still using its buffers.
int execute(State& state, hccomm_comm* comm, const hccomm_call& call, hccomm_error* error) {
  hccomm_work* work = nullptr;
  int code = HCCOMM_OK;
  int done = 0;
  state.inside.fetch_add(1, std::memory_order_relaxed);
  do {
    Py_BEGIN_ALLOW_THREADS if (work == nullptr) code = functions.start(comm, &call, &work, error);
    if (code == HCCOMM_OK) code = functions.wait(work, kSlice, error);
    done = code != HCCOMM_TIMEOUT || work == nullptr;
    if (done == 0) code = functions.test(work, &done, error);  // whose deadline was it?
    done = done != 0 || code != HCCOMM_OK;
    Py_END_ALLOW_THREADS if (done == 0 && PyErr_CheckSignals() != 0) code = -1;
  } while (done == 0 && code == HCCOMM_OK);
  if (work != nullptr) functions.release(work);
  state.inside.fetch_sub(1, std::memory_order_relaxed);
  return code;
}

// Sets the exception for `error`, made by hccomm.errors.
PyObject* raise(int code, const hccomm_error& error) {
  PyObject* made = PyObject_CallFunction(make_error, "isi", code, error.text, error.rank);
  if (made != nullptr) {
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(made)), made);
    Py_DECREF(made);
  }
  return nullptr;
}

// call(collective, input, output, op, root, timeout) -> whether it was done here.
PyObject* call(PyObject* self, PyObject* const* args, Py_ssize_t nargs) {
  auto* state = static_cast<State*>(PyCapsule_GetPointer(self, nullptr));
  if (state == nullptr || nargs != 6) {
    if (state != nullptr) PyErr_SetString(PyExc_TypeError, "call takes 6 arguments");
    return nullptr;
  }
  hccomm_comm* comm = state->comm.load(std::memory_order_relaxed);
  hccomm_call request{};
  request.struct_size = sizeof request;
  request.collective = static_cast<std::int32_t>(PyLong_AsLong(args[0]));
  request.op = static_cast<std::int32_t>(PyLong_AsLong(args[3]));
  request.root = static_cast<std::int32_t>(PyLong_AsLong(args[4]));
  request.timeout = PyFloat_AsDouble(args[5]);
  Held in, out;
  const bool odd = PyErr_Occurred() != nullptr || !(request.timeout >= 0);
  if (odd) PyErr_Clear();
  if (comm == nullptr || odd || request.op == HCCOMM_PREMUL_SUM ||
      !describe(request, state->size, args[1], args[2], in, out)) {
    Py_RETURN_FALSE;
  }
  hccomm_error error;
  const int code = execute(*state, comm, request, &error);
  if (code == HCCOMM_OK) Py_RETURN_TRUE;
  if (code > 0) return raise(code, error);
  in.held = out.held = false;  // interrupted: the operation goes on, so its memory must stay
  return nullptr;
}

PyMethodDef call_method = {"call", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(call)),
                           METH_FASTCALL, "Run one operation; False: not here."};

void destroy(PyObject* capsule) {
  delete static_cast<State*>(PyCapsule_GetPointer(capsule, nullptr));
}

// One attached communicator: the callable and its life.
class Attached {
 public:
  Attached(std::uintptr_t comm, int size)
      : state_(new State{reinterpret_cast<hccomm_comm*>(comm), size}),
        capsule_(py::reinterpret_steal<py::object>(PyCapsule_New(state_, nullptr, destroy))),
        call_(py::reinterpret_steal<py::object>(PyCFunction_New(&call_method, capsule_.ptr()))) {}

  py::object call() const { return call_; }
  int inside() const { return state_->inside.load(); }
  void detach() { state_->comm.store(nullptr); }

 private:
  State* state_;  // owned by the capsule
  py::object capsule_, call_;
};

template <typename Function>
void look_up(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) throw py::import_error(std::string("libhccomm.so lacks ") + name);
}

void bind(const std::string& path, const py::object& from_code) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) throw py::import_error(path + " is not loaded");
  Functions found;
  look_up(library, "hccomm_abi_version", found.abi_version);
  look_up(library, "hccomm_start", found.start);
  look_up(library, "hccomm_wait", found.wait);
  look_up(library, "hccomm_test", found.test);
  look_up(library, "hccomm_release", found.release);
  if (found.abi_version() != HCCOMM_ABI_VERSION) {
    throw py::import_error("hccomm._fast was built for another version of the C ABI");
  }
  functions = found;
  make_error = from_code.inc_ref().ptr();
}

}  // namespace

PYBIND11_MODULE(_fast, module) {
  module.doc() = "The compiled fast path of small blocking calls; see bindings/fast/fast.cpp.";
  module.def("bind", &bind, "Look the library's functions up in the copy that is loaded.");
  py::class_<Attached>(module, "Attached")
      .def(py::init<std::uintptr_t, int>())
      .def_property_readonly("call", &Attached::call)
      .def("inside", &Attached::inside, "How many threads are inside the library.")
      .def("detach", &Attached::detach, "Decline every further call.");
}
