// SPDX-License-Identifier: Apache-2.0
//
// The fast path of small Python calls: hccomm/_fast. An operation on objects with the buffer
// protocol goes straight from Python's argument array to the C ABI, without cffi's objects; one
// with async_op=True comes back as an hccomm.Work over a Started, the compiled twin of
// work.CHandle. What it does not take (other arrays, odd types, options, wrong calls) it hands to
// the method of hccomm/operations.py with the same arguments.
//
// The library is the one that the package has already loaded: its functions are looked up, never
// linked, so that a process holds one copy.
#include <Python.h>
#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <cstring>
#include <memory>

#include "arguments.hpp"
#include "capi/hccomm.h"

namespace py = pybind11;

using namespace hccomm::fast;

namespace {

// The functions of the loaded library. Constant after bind().
struct Functions {
  decltype(&hccomm_abi_version) abi_version = nullptr;
  decltype(&hccomm_start) start = nullptr;
  decltype(&hccomm_wait) wait = nullptr;
  decltype(&hccomm_test) test = nullptr;
  decltype(&hccomm_release) release = nullptr;
  decltype(&hccomm_source) source = nullptr;
  decltype(&hccomm_sequence) sequence = nullptr;
} functions;

PyObject* make_error = nullptr;  // hccomm.errors.from_code(code, text, rank)

constexpr int kSendrecv = 0;     // as a Method's collective: a send and a receive together
constexpr double kSlice = 0.25;  // seconds between looks at Python's signals

// One communicator as the fast path sees it.
//
// Thread: methods run on any; `inside` tells close() whether somebody still uses the handle.
struct State {
  std::atomic<hccomm_comm*> comm;
  int rank = 0;
  int size = 1;
  std::atomic<int> inside{0};
};

// One method of one communicator: which collective, and where to go when it is not for here.
struct Method {
  std::shared_ptr<State> state;
  int collective = 0;
  PyObject* general = nullptr;  // the bound method of hccomm/operations.py
  PyObject* owner = nullptr;    // the communicator
  PyObject* name = nullptr;     // of the operation
  PyObject* make = nullptr;     // hccomm.Work
};

// Runs `calls` at the same time, looking at Python's signals every kSlice, so that Ctrl-C ends the
// wait. Returns the first code that is not OK, or -1 with a Python error set. `busy`: operations
// are still using their buffers.
template <std::size_t kCalls>
int execute(State& state, hccomm_comm* comm, const hccomm_call (&calls)[kCalls],
            hccomm_error* error, bool& busy) {
  hccomm_work* works[kCalls] = {};
  int code = HCCOMM_OK;
  std::size_t over = 0;
  state.inside.fetch_add(1, std::memory_order_relaxed);
  do {
    Py_BEGIN_ALLOW_THREADS for (std::size_t i = 0; i < kCalls && code == HCCOMM_OK; ++i) {
      if (works[i] == nullptr) code = functions.start(comm, &calls[i], &works[i], error);
    }
    for (int done = 1; over < kCalls && code == HCCOMM_OK && done != 0; over += done != 0 ? 1 : 0) {
      code = functions.wait(works[over], kSlice, error);
      // Whose deadline was it?
      if (code == HCCOMM_TIMEOUT) code = functions.test(works[over], &done, error);
    }
    Py_END_ALLOW_THREADS if (over < kCalls && code == HCCOMM_OK && PyErr_CheckSignals() != 0) {
      code = -1;
    }
  } while (over < kCalls && code == HCCOMM_OK);
  for (hccomm_work* work : works) {
    if (work == nullptr) continue;
    int done = 1;
    if (code != HCCOMM_OK) functions.test(work, &done, nullptr);
    busy = busy || done == 0;
    functions.release(work);
  }
  state.inside.fetch_sub(1, std::memory_order_relaxed);
  return code;
}

// An operation in flight: what work.Handle describes. It holds the exports of its buffers.
//
// Thread: any, one at a time, with the GIL.
class Started {
 public:
  Started(std::shared_ptr<State> state, hccomm_work* work, Held& in, Held& out)
      : state_(std::move(state)), work_(work) {
    std::swap(in_.view, in.view);
    std::swap(in_.held, in.held);
    std::swap(out_.view, out.view);
    std::swap(out_.held, out.held);
  }
  ~Started() { release(); }

  int wait(double seconds) {
    Inside inside(*state_);
    const py::gil_scoped_release unlocked;
    return functions.wait(work_, seconds, nullptr);
  }
  int test() {
    int done = 0;
    const int code = functions.test(work_, &done, nullptr);
    return code != HCCOMM_OK || done != 0 ? code : -1;
  }
  py::tuple failure() {
    hccomm_error error{};
    functions.wait(work_, 1e-6, &error);
    return py::make_tuple(std::string(error.text), error.rank);
  }
  int source() const { return functions.source(work_); }
  std::uint64_t sequence() const { return functions.sequence(work_); }
  void release() {
    if (work_ != nullptr) functions.release(work_);
    work_ = nullptr;
    in_.drop();
    out_.drop();
  }

 private:
  struct Inside {
    explicit Inside(State& state) : state(state) { state.inside.fetch_add(1); }
    ~Inside() { state.inside.fetch_sub(1); }
    State& state;
  };
  std::shared_ptr<State> state_;
  hccomm_work* work_;
  Held in_, out_;
};

// Sets the exception for `error`, made by hccomm.errors.
PyObject* raise(int code, const hccomm_error& error) {
  PyObject* made = PyObject_CallFunction(make_error, "isi", code, error.text, error.rank);
  if (made != nullptr) {
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(made)), made);
    Py_DECREF(made);
  }
  return nullptr;
}

PyObject* result(int collective, const hccomm_call& call, const Arguments& found) {
  if (collective == HCCOMM_RECV) return PyLong_FromLong(call.root);
  if (collective == HCCOMM_SEND) Py_RETURN_NONE;
  Py_INCREF(found.out);
  return found.out;
}

// Starts `call` and returns its Work.
PyObject* begin(const Method& method, hccomm_comm* comm, const hccomm_call& call,
                const Arguments& found, Held& in, Held& out) {
  hccomm_work* work = nullptr;
  hccomm_error error;
  method.state->inside.fetch_add(1, std::memory_order_relaxed);
  int code = HCCOMM_OK;
  Py_BEGIN_ALLOW_THREADS code = functions.start(comm, &call, &work, &error);
  Py_END_ALLOW_THREADS method.state->inside.fetch_sub(1, std::memory_order_relaxed);
  if (code != HCCOMM_OK) return raise(code, error);
  py::object handle;
  try {  // nothing may be thrown through Python's own frames
    handle = py::cast(std::make_unique<Started>(method.state, work, in, out));
  } catch (py::error_already_set& error_set) {
    error_set.restore();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
  PyObject* answer = call.collective == HCCOMM_SEND ? Py_None : found.out;
  PyObject* arguments[] = {method.owner, handle.ptr(), method.name, answer};
  return PyObject_Vectorcall(method.make, arguments, 4, nullptr);
}

// The method itself: like the general one in every way but time.
PyObject* invoke(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* names) {
  auto* method = static_cast<Method*>(PyCapsule_GetPointer(self, nullptr));
  if (method == nullptr) return nullptr;
  State& state = *method->state;
  hccomm_comm* comm = state.comm.load(std::memory_order_relaxed);
  hccomm_call call{};
  call.struct_size = sizeof call;
  call.collective = method->collective;
  Arguments found;
  Held in, out;
  if (comm == nullptr || !sort(found, args, nargs, names) || !choose(call, found) ||
      !place(call.collective, state.rank == call.root, found) ||
      !describe(call, state.size, found.buffer, found.out, in, out)) {
    return PyObject_Vectorcall(method->general, args, static_cast<std::size_t>(nargs), names);
  }
  if (found.async) return begin(*method, comm, call, found, in, out);
  hccomm_error error;
  bool busy = false;
  const int code = execute(state, comm, {call}, &error, busy);
  if (code == HCCOMM_OK) return result(call.collective, call, found);
  if (busy) in.held = out.held = false;  // the operation goes on, so its memory must stay
  return code > 0 ? raise(code, error) : nullptr;
}

// sendrecv(buffer, dest, out, source): two operations at the same time.
PyObject* exchange(PyObject* self, PyObject* const* args, Py_ssize_t nargs, PyObject* names) {
  auto* method = static_cast<Method*>(PyCapsule_GetPointer(self, nullptr));
  if (method == nullptr) return nullptr;
  State& state = *method->state;
  hccomm_comm* comm = state.comm.load(std::memory_order_relaxed);
  hccomm_call receiving{}, sending{};
  Held in, out;
  if (comm == nullptr || nargs != 4 || names != nullptr ||
      !describe(receiving, HCCOMM_RECV, args[2], args[3], state.size, out) ||
      !describe(sending, HCCOMM_SEND, args[0], args[1], state.size, in)) {
    return PyObject_Vectorcall(method->general, args, static_cast<std::size_t>(nargs), names);
  }
  hccomm_error error;
  bool busy = false;
  const int code = execute(state, comm, {receiving, sending}, &error, busy);
  if (code == HCCOMM_OK) return Py_NewRef(args[2]);
  if (busy) in.held = out.held = false;
  return code > 0 ? raise(code, error) : nullptr;
}

template <auto kFunction>
PyMethodDef definition = {
    "operation", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(kFunction)),
    METH_FASTCALL | METH_KEYWORDS, "An operation of hccomm.Communicator; see there."};

void destroy(PyObject* capsule) {
  auto* method = static_cast<Method*>(PyCapsule_GetPointer(capsule, nullptr));
  for (PyObject* each : {method->general, method->owner, method->name, method->make}) {
    Py_XDECREF(each);
  }
  delete method;
}

// One communicator: makes its methods and ends them.
class Attached {
 public:
  Attached(std::uintptr_t comm, int rank, int size) : state_(std::make_shared<State>()) {
    state_->comm = reinterpret_cast<hccomm_comm*>(comm);
    state_->rank = rank;
    state_->size = size;
  }

  py::object method(int collective, const py::object& general, const py::object& owner,
                    const py::object& name, const py::object& make) const {
    auto made = std::make_unique<Method>(Method{state_, collective});
    auto capsule = py::reinterpret_steal<py::object>(PyCapsule_New(made.get(), nullptr, destroy));
    if (!capsule) throw py::error_already_set();
    Method* held = made.release();
    held->general = general.inc_ref().ptr();
    held->owner = owner.inc_ref().ptr();
    held->name = name.inc_ref().ptr();
    held->make = make.inc_ref().ptr();
    PyMethodDef& called = collective == kSendrecv ? definition<exchange> : definition<invoke>;
    return py::reinterpret_steal<py::object>(PyCFunction_New(&called, capsule.ptr()));
  }
  int inside() const { return state_->inside.load(); }
  void detach() { state_->comm.store(nullptr); }

 private:
  std::shared_ptr<State> state_;
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
  look_up(library, "hccomm_source", found.source);
  look_up(library, "hccomm_sequence", found.sequence);
  if (found.abi_version() != HCCOMM_ABI_VERSION) {
    throw py::import_error("hccomm._fast was built for another version of the C ABI");
  }
  functions = found;
  make_error = from_code.inc_ref().ptr();
}

}  // namespace

PYBIND11_MODULE(_fast, module) {
  module.doc() = "The compiled fast path of small calls; see bindings/fast/fast.cpp.";
  module.def("bind", &bind, "Look the library's functions up in the copy that is loaded.");
  py::class_<Started>(module, "Started")
      .def("wait", &Started::wait)
      .def("test", &Started::test)
      .def("failure", &Started::failure)
      .def("source", &Started::source)
      .def("sequence", &Started::sequence)
      .def("release", &Started::release);
  py::class_<Attached>(module, "Attached")
      .def(py::init<std::uintptr_t, int, int>())
      .def("method", &Attached::method, "A fast method, in front of the general one.")
      .def("inside", &Attached::inside, "How many threads are inside the library.")
      .def("detach", &Attached::detach, "Hand every further call to the general methods.");
}
