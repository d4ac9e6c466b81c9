// Python's view of the engine. The one place that checks what a caller passes in.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>
#include <vector>

#include "cpu.h"
#include "engine.h"
#include "errors.h"

namespace nb = nanobind;

namespace edgewright {
namespace {

constexpr size_t kMaxPorts = 64;

// A view of a Python buffer, given back at the end. Made and destroyed with the GIL held.
class View {
 public:
  View() = default;
  View(const View&) = delete;
  View& operator=(const View&) = delete;
  ~View() { release(); }

  void release() {
    if (held_) PyBuffer_Release(&view_);
    held_ = false;
  }

  // False, with no Python error set, where the object has no such buffer.
  bool take(nb::handle object, int flags) {
    held_ = PyObject_GetBuffer(object.ptr(), &view_, flags) == 0;
    if (!held_) PyErr_Clear();
    return held_;
  }
  const Py_buffer* operator->() const { return &view_; }
  const Py_buffer& operator*() const { return view_; }

 private:
  Py_buffer view_;  // means nothing until held
  bool held_ = false;
};

std::string shape_of(const Py_ssize_t* shape, int rank) {
  std::string text = "(";
  for (int i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (rank == 1 ? ",)" : ")");
}

std::string shape_wanted(const Tensor& tensor) {
  std::string text = "(N";
  for (const int64_t d : tensor.shape) text += ", " + std::to_string(d);
  return text + ")";
}

// Whether a buffer has the dtype of an input: float32, or int64, which C spells in two ways.
bool has_dtype(const Py_buffer& view, DType dtype) {
  std::string format = view.format == nullptr ? "B" : view.format;
  if (format.size() == 2 && (format[0] == '=' || format[0] == '@' || format[0] == '<')) format.erase(0, 1);
  if (dtype == DType::kInt64) return view.itemsize == 8 && (format == "l" || format == "q");
  return view.itemsize == 4 && format == "f";
}

class BoundEngine {
 public:
  BoundEngine(nb::handle plan, nb::handle weights, const std::string& cpu, int threads, double worthwhile) {
    View plan_view, weights_view;
    if (!plan_view.take(plan, PyBUF_SIMPLE)) throw nb::type_error("plan is not a contiguous buffer");
    if (!weights_view.take(weights, PyBUF_SIMPLE)) throw nb::type_error("weights is not a contiguous buffer");
    const Kernels& kernels = choose_path(cpu);
    {
      const nb::gil_scoped_release released;
      engine_ = std::make_unique<Engine>(
          static_cast<const uint8_t*>(plan_view->buf), static_cast<size_t>(plan_view->len),
          static_cast<const uint8_t*>(weights_view->buf), static_cast<size_t>(weights_view->len), kernels);
      engine_->set_threads(threads, worthwhile);
    }
    const Plan& read = engine_->plan();
    for (const auto* ports : {&read.inputs, &read.outputs}) {
      for (const uint32_t port : *ports) {
        const std::string& name = read.tensors[port].name;
        names_.push_back(nb::str(name.data(), name.size()));
      }
    }
    const nb::module_ numpy = nb::module_::import_("numpy");
    empty_ = numpy.attr("empty");
    array_ = numpy.attr("array");
    float32_ = numpy.attr("dtype")("float32");
  }

  nb::dict run(const nb::dict& inputs) const {
    return call(inputs, [this](const void* const* from, float* const* to, int64_t samples) {
      engine_->run(from, to, samples);
    });
  }

  std::vector<int64_t> profile(const nb::dict& inputs) const {
    std::vector<int64_t> nanoseconds(engine_->plan().ops.size());
    call(inputs, [&](const void* const* from, float* const* to, int64_t samples) {
      if (samples != 1) throw nb::value_error("a profile is of one sample");
      engine_->profile(from, to, nanoseconds.data());
    });
    return nanoseconds;
  }

  std::string cpu() const { return engine_->path(); }
  int threads() const { return engine_->threads(); }
  size_t arena_bytes() const { return engine_->arena_bytes(); }
  size_t packed_bytes() const { return engine_->packed_bytes(); }

 private:
  // Checks the inputs, makes the outputs, and hands both to `body`, without the GIL.
  template <typename Body>
  nb::dict call(const nb::dict& inputs, const Body& body) const {
    const Plan& plan = engine_->plan();
    const size_t n_inputs = plan.inputs.size(), n_outputs = plan.outputs.size();
    View input_views[kMaxPorts], output_views[kMaxPorts];
    const void* from[kMaxPorts];
    float* to[kMaxPorts];
    Py_ssize_t samples = -1;
    for (size_t i = 0; i < n_inputs; ++i) {
      take_input(inputs, i, input_views[i], samples);
      from[i] = input_views[i]->buf;
    }
    if (nb::len(inputs) != n_inputs) refuse_unknown(inputs);
    nb::dict outputs;
    for (size_t i = 0; i < n_outputs; ++i) {
      const Tensor& tensor = plan.tensors[plan.outputs[i]];
      const nb::object array = empty_(shape_tuple(samples, tensor), float32_);
      if (!output_views[i].take(array, PyBUF_CONTIG)) throw nb::type_error("numpy.empty gave no buffer");
      to[i] = static_cast<float*>(output_views[i]->buf);
      outputs[names_[n_inputs + i]] = array;
    }
    {
      const nb::gil_scoped_release released;
      body(from, to, samples);
    }
    return outputs;
  }

  // Fills `view` with input number `i`; a copy where the caller's array is not contiguous or not aligned.
  void take_input(const nb::dict& inputs, size_t i, View& view, Py_ssize_t& samples) const {
    const Plan& plan = engine_->plan();
    const Tensor& tensor = plan.tensors[plan.inputs[i]];
    const std::string where = "input '" + tensor.name + "'";
    const size_t alignment = tensor.dtype == DType::kInt64 ? alignof(int64_t) : alignof(float);
    const nb::object found = nb::borrow(PyDict_GetItemWithError(inputs.ptr(), names_[i].ptr()));
    if (!found.is_valid()) {
      if (PyErr_Occurred()) throw nb::python_error();
      throw nb::value_error((where + " is missing").c_str());
    }
    if (!view.take(found, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) ||
        reinterpret_cast<uintptr_t>(view->buf) % alignment != 0) {
      view.release();
      nb::object copy;
      try {
        copy = array_(found, nb::arg("order") = "C");
      } catch (const nb::python_error&) {
        refuse_type(where, tensor.dtype, found);
      }
      if (!view.take(copy, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)) refuse_type(where, tensor.dtype, found);
    }
    if (!has_dtype(*view, tensor.dtype)) refuse_type(where, tensor.dtype, found);
    const int rank = static_cast<int>(tensor.shape.size());
    bool same = view->ndim == rank + 1 && view->shape[0] >= 1;
    for (int d = 0; same && d < rank; ++d) same = view->shape[d + 1] == tensor.shape[static_cast<size_t>(d)];
    if (same && samples == -1) samples = view->shape[0];
    if (!same || view->shape[0] != samples) {
      throw nb::value_error((where + " has shape " + shape_of(view->shape, view->ndim) + ", " +
                             shape_wanted(tensor) + " with one N >= 1 is needed")
                                .c_str());
    }
  }

  [[noreturn]] static void refuse_type(const std::string& where, DType wanted, nb::handle found) {
    const nb::object described =
        nb::hasattr(found, "dtype") ? nb::object(found.attr("dtype")) : nb::borrow(found.type());
    const std::string needed = wanted == DType::kInt64 ? "an int64" : "a float32";
    throw nb::value_error(
        (where + " is " + nb::cast<std::string>(nb::str(described)) + ", " + needed + " array is needed")
            .c_str());
  }

  [[noreturn]] void refuse_unknown(const nb::dict& inputs) const {
    const Plan& plan = engine_->plan();
    std::string known;
    for (const uint32_t port : plan.inputs) {
      known += (known.empty() ? "'" : ", '") + plan.tensors[port].name + "'";
    }
    for (const auto& [name, value] : inputs) {
      bool found = false;
      for (size_t i = 0; i < plan.inputs.size(); ++i) found = found || names_[i].equal(name);
      if (!found) {
        const std::string shown = nb::cast<std::string>(nb::repr(name));
        throw nb::value_error(("unknown input " + shown + "; the plan has " + known).c_str());
      }
    }
    throw nb::value_error(("more inputs than the plan has: " + known).c_str());
  }

  static nb::object shape_tuple(Py_ssize_t samples, const Tensor& tensor) {
    nb::object tuple = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(tensor.shape.size()) + 1));
    if (!tuple.is_valid()) throw nb::python_error();
    PyTuple_SET_ITEM(tuple.ptr(), 0, PyLong_FromSsize_t(samples));
    for (size_t d = 0; d < tensor.shape.size(); ++d) {
      PyTuple_SET_ITEM(tuple.ptr(), static_cast<Py_ssize_t>(d) + 1, PyLong_FromLongLong(tensor.shape[d]));
    }
    return tuple;
  }

  std::unique_ptr<Engine> engine_;
  std::vector<nb::str> names_;  // of the inputs, then of the outputs
  nb::object empty_, array_, float32_;
};

nb::tuple cpu_paths() {
  nb::list names;
  for (const Kernels* path : usable_paths()) names.append(path->name);
  return nb::tuple(names);
}

// Raises the error of this name from edgewright_kernels.errors.
void raise(const char* name, const char* what) {
  const nb::object type = nb::module_::import_("edgewright_kernels.errors").attr(name);
  PyErr_SetString(type.ptr(), what);
}

}  // namespace
}  // namespace edgewright

NB_MODULE(_native, module) {
  using namespace edgewright;
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const PlanError& error) {
      raise("PlanError", error.what());
    } catch (const UnsupportedError& error) {
      raise("UnsupportedError", error.what());
    }
  });
  module.def("cpu_paths", &cpu_paths);
  nb::class_<BoundEngine>(module, "Engine")
      .def(nb::init<nb::handle, nb::handle, const std::string&, int, double>(), nb::arg(), nb::arg(),
           nb::arg(), nb::arg(), nb::arg("worthwhile") = Engine::kWorthwhile)
      .def("run", &BoundEngine::run)
      .def("profile", &BoundEngine::profile)
      .def_prop_ro("cpu", &BoundEngine::cpu)
      .def_prop_ro("threads", &BoundEngine::threads)
      .def_prop_ro("arena_bytes", &BoundEngine::arena_bytes)
      .def_prop_ro("packed_bytes", &BoundEngine::packed_bytes);
}
