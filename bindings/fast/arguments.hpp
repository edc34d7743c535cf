// SPDX-License-Identifier: Apache-2.0
//
// What the arguments of a fast call say: buffers, options, and the hccomm_call they make. Whatever
// is not plain here goes the general way, whose words for errors are the only ones.
#pragma once

#include <Python.h>

#include "capi/hccomm.h"

namespace hccomm::fast {

// What a call says, as far as the fast path knows options.
struct Arguments {
  PyObject* buffer = Py_None;
  PyObject* second = nullptr;  // op of reductions; root, dest or source of the others
  PyObject* op = nullptr;
  PyObject* root = nullptr;
  PyObject* out = Py_None;
  PyObject* timeout = Py_None;
  bool async = false;
};

// Releases a Py_buffer, however the call ends.
struct Held {
  Py_buffer view{};
  bool held = false;
  ~Held() { drop(); }
  void drop() {
    if (held) PyBuffer_Release(&view);
    held = false;
  }
  bool take(PyObject* object, bool writable) {
    const int flags = PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0);
    held = PyObject_GetBuffer(object, &view, flags) == 0;
    if (!held) PyErr_Clear();
    return held;
  }
};

// Sorts the arguments; false where there is an option that only the general way knows.
bool sort(Arguments& found, PyObject* const* args, Py_ssize_t nargs, PyObject* names);
// Fills op, root and timeout; false where the general way must word the error.
bool choose(hccomm_call& call, Arguments& found);
// Who reads and who writes what; false where a result must be allocated.
bool place(int collective, bool is_root, Arguments& found);
// Fills the data of `call`; false where the general way must go.
bool describe(hccomm_call& call, int size, PyObject* input, PyObject* output, Held& in, Held& out);
// One half of sendrecv; false where the general way must go.
bool describe(hccomm_call& call, int collective, PyObject* array, PyObject* peer, int size,
              Held& held);

}  // namespace hccomm::fast
