// The C interface of the engine. Checks what a caller passes in; no exception leaves this file.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "cpu.h"
#include "edgewright.h"
#include "engine.h"
#include "errors.h"

struct edgewright_model {
  edgewright::Engine engine;
};

namespace edgewright {
namespace {

constexpr uint64_t kMaxFileBytes = uint64_t{8} << 30;
constexpr size_t kMaxPorts = 64;

thread_local char last_error[1024];

[[gnu::format(printf, 2, 3)]] edgewright_status fail(edgewright_status status, const char* format, ...) {
  va_list values;
  va_start(values, format);
  const int written = std::vsnprintf(last_error, sizeof last_error, format, values);
  va_end(values);
  if (written >= static_cast<int>(sizeof last_error)) {  // cut short, but not inside a character
    size_t end = sizeof last_error - 1;
    while (end > 0 && (last_error[end - 1] & 0xC0) == 0x80) --end;
    if (end > 0 && (last_error[end - 1] & 0x80) != 0) --end;
    last_error[end] = '\0';
  }
  return status;
}

// Runs `body`, which gives a status, and turns what it throws into one.
template <typename Body>
edgewright_status guarded(const Body& body) noexcept {
  try {
    return body();
  } catch (const PlanError& error) {
    return fail(EDGEWRIGHT_DAMAGED, "%s", error.what());
  } catch (const InputError& error) {
    return fail(EDGEWRIGHT_INVALID, "%s", error.what());
  } catch (const UnsupportedError& error) {
    return fail(EDGEWRIGHT_UNSUPPORTED, "%s", error.what());
  } catch (const std::bad_alloc&) {
    return fail(EDGEWRIGHT_NO_MEMORY, "not enough memory");
  } catch (const std::exception& error) {
    return fail(EDGEWRIGHT_NO_MEMORY, "%s", error.what());
  }
}

// A whole file, mapped for reading.
class File {
 public:
  File() = default;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() {
    if (data_ != nullptr) munmap(data_, size_);
  }

  // A symbolic link, a pipe or a device in the place of the file is refused.
  edgewright_status open(const std::string& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (file < 0) return fail(EDGEWRIGHT_IO, "%s: %s", path.c_str(), std::strerror(errno));
    const edgewright_status status = map(path, file);
    ::close(file);
    return status;
  }
  const uint8_t* data() const { return static_cast<const uint8_t*>(data_); }
  size_t size() const { return size_; }

 private:
  edgewright_status map(const std::string& path, int file) {
    struct stat found;
    if (fstat(file, &found) != 0) return fail(EDGEWRIGHT_IO, "%s: %s", path.c_str(), std::strerror(errno));
    if (!S_ISREG(found.st_mode)) return fail(EDGEWRIGHT_IO, "%s: not a file", path.c_str());
    const uint64_t size = static_cast<uint64_t>(found.st_size);
    if (size > kMaxFileBytes || size > SIZE_MAX) {
      return fail(EDGEWRIGHT_DAMAGED, "%s: more than 8 GiB", path.c_str());
    }
    if (size == 0) return EDGEWRIGHT_OK;
    void* data = mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_PRIVATE, file, 0);
    if (data == MAP_FAILED) return fail(EDGEWRIGHT_IO, "%s: %s", path.c_str(), std::strerror(errno));
    data_ = data;
    size_ = static_cast<size_t>(size);
    return EDGEWRIGHT_OK;
  }

  void* data_ = nullptr;
  size_t size_ = 0;
};

// Whether an artifact has, in the place of plan.bin, parts for this engine and for ONNX Runtime.
bool is_in_parts(const std::string& folder) {
  struct stat found;
  return lstat((folder + "plan.bin").c_str(), &found) != 0 &&
         (lstat((folder + "part-0.bin").c_str(), &found) == 0 ||
          lstat((folder + "part-0.onnx").c_str(), &found) == 0);
}

edgewright_status describe(const edgewright_model* model, bool input, size_t index, edgewright_port* port) {
  const char* what = input ? "input" : "output";
  if (model == nullptr || port == nullptr) return fail(EDGEWRIGHT_INVALID, "%s: a pointer is NULL", what);
  const Plan& plan = model->engine.plan();
  const auto& ports = input ? plan.inputs : plan.outputs;
  if (index >= ports.size()) {
    return fail(EDGEWRIGHT_INVALID, "%s %zu: the model has %zu, counted from 0", what, index, ports.size());
  }
  const Tensor& tensor = plan.tensors[ports[index]];
  *port = {};
  port->name = tensor.name.c_str();
  port->name_size = tensor.name.size();
  port->dtype = tensor.dtype == DType::kInt64 ? EDGEWRIGHT_INT64 : EDGEWRIGHT_FLOAT32;
  port->rank = tensor.shape.size();
  for (size_t d = 0; d < port->rank; ++d) port->shape[d] = tensor.shape[d];
  port->sample_bytes = static_cast<size_t>(tensor.size_bytes());
  return EDGEWRIGHT_OK;
}

edgewright_status check_buffer(const char* what, size_t index, const Tensor& tensor, const void* data,
                               size_t size, int64_t samples) {
  const char* name = tensor.name.c_str();
  const size_t sample = static_cast<size_t>(tensor.size_bytes());
  if (data == nullptr) return fail(EDGEWRIGHT_INVALID, "%s %zu '%s': its data is NULL", what, index, name);
  const size_t alignment = tensor.dtype == DType::kInt64 ? alignof(int64_t) : alignof(float);
  if (reinterpret_cast<uintptr_t>(data) % alignment != 0) {
    return fail(EDGEWRIGHT_INVALID, "%s %zu '%s': its data is not aligned to %zu bytes", what, index, name,
                alignment);
  }
  if (size % sample != 0 || size / sample != static_cast<uint64_t>(samples)) {
    return fail(EDGEWRIGHT_INVALID, "%s %zu '%s': %zu bytes, %lld samples of %zu are needed", what, index,
                name, size, static_cast<long long>(samples), sample);
  }
  return EDGEWRIGHT_OK;
}

bool overlap(const void* a, size_t a_size, const void* b, size_t b_size) {
  const uintptr_t a_at = reinterpret_cast<uintptr_t>(a), b_at = reinterpret_cast<uintptr_t>(b);
  return a_at < b_at ? b_at - a_at < a_size : a_at - b_at < b_size;
}

edgewright_status run(const Engine& engine, const edgewright_input* inputs, size_t input_count,
                      const edgewright_output* outputs, size_t output_count, int64_t samples) {
  const Plan& plan = engine.plan();
  if (input_count != plan.inputs.size() || output_count != plan.outputs.size()) {
    return fail(EDGEWRIGHT_INVALID, "run: %zu inputs and %zu outputs, the model has %zu and %zu", input_count,
                output_count, plan.inputs.size(), plan.outputs.size());
  }
  if (samples < 1) {
    return fail(EDGEWRIGHT_INVALID, "run: %lld samples, 1 at least is needed",
                static_cast<long long>(samples));
  }
  const void* from[kMaxPorts];
  float* to[kMaxPorts];
  for (size_t i = 0; i < input_count; ++i) {
    const edgewright_input& input = inputs[i];
    const Tensor& tensor = plan.tensors[plan.inputs[i]];
    const edgewright_status good = check_buffer("input", i, tensor, input.data, input.size_bytes, samples);
    if (good != EDGEWRIGHT_OK) return good;
    from[i] = input.data;
  }
  for (size_t i = 0; i < output_count; ++i) {
    const edgewright_output& output = outputs[i];
    const Tensor& tensor = plan.tensors[plan.outputs[i]];
    const edgewright_status good = check_buffer("output", i, tensor, output.data, output.size_bytes, samples);
    if (good != EDGEWRIGHT_OK) return good;
    for (size_t k = 0; k < input_count; ++k) {
      if (overlap(output.data, output.size_bytes, inputs[k].data, inputs[k].size_bytes)) {
        return fail(EDGEWRIGHT_INVALID, "output %zu '%s': overlaps input %zu", i, tensor.name.c_str(), k);
      }
    }
    for (size_t k = 0; k < i; ++k) {
      if (overlap(output.data, output.size_bytes, outputs[k].data, outputs[k].size_bytes)) {
        return fail(EDGEWRIGHT_INVALID, "output %zu '%s': overlaps output %zu", i, tensor.name.c_str(), k);
      }
    }
    to[i] = static_cast<float*>(output.data);
  }
  engine.run(from, to, samples);
  return EDGEWRIGHT_OK;
}

}  // namespace
}  // namespace edgewright

using namespace edgewright;

edgewright_status edgewright_open(const char* directory, const char* cpu, edgewright_model** model) {
  if (model != nullptr) *model = nullptr;
  if (directory == nullptr || model == nullptr) return fail(EDGEWRIGHT_INVALID, "open: a pointer is NULL");
  return guarded([&] {
    File plan, weights;
    const std::string folder = std::string(directory) + "/";
    if (is_in_parts(folder)) {
      return fail(
          EDGEWRIGHT_UNSUPPORTED,
          "%s: some of its operators need ONNX Runtime, which this interface does not use; run it from "
          "Python, or export it with fallback=False to see which they are",
          directory);
    }
    edgewright_status status = plan.open(folder + "plan.bin");
    if (status == EDGEWRIGHT_OK) status = weights.open(folder + "weights.safetensors");
    if (status != EDGEWRIGHT_OK) return status;
    const Kernels& kernels = choose_path(cpu == nullptr ? "" : cpu);
    *model = new edgewright_model{Engine(plan.data(), plan.size(), weights.data(), weights.size(), kernels)};
    return EDGEWRIGHT_OK;
  });
}

edgewright_status edgewright_open_bytes(const void* plan, size_t plan_bytes, const void* weights,
                                        size_t weights_bytes, const char* cpu, edgewright_model** model) {
  if (model != nullptr) *model = nullptr;
  if (model == nullptr || plan == nullptr || (weights == nullptr && weights_bytes != 0)) {
    return fail(EDGEWRIGHT_INVALID, "open: a pointer is NULL");
  }
  return guarded([&] {
    const Kernels& kernels = choose_path(cpu == nullptr ? "" : cpu);
    *model = new edgewright_model{Engine(static_cast<const uint8_t*>(plan), plan_bytes,
                                         static_cast<const uint8_t*>(weights), weights_bytes, kernels)};
    return EDGEWRIGHT_OK;
  });
}

edgewright_status edgewright_set_threads(edgewright_model* model, int threads) {
  if (model == nullptr) return fail(EDGEWRIGHT_INVALID, "set_threads: a pointer is NULL");
  return guarded([&] {
    model->engine.set_threads(threads);
    return EDGEWRIGHT_OK;
  });
}

void edgewright_close(edgewright_model* model) { delete model; }

size_t edgewright_input_count(const edgewright_model* model) {
  return model == nullptr ? 0 : model->engine.plan().inputs.size();
}

size_t edgewright_output_count(const edgewright_model* model) {
  return model == nullptr ? 0 : model->engine.plan().outputs.size();
}

edgewright_status edgewright_input_port(const edgewright_model* model, size_t index, edgewright_port* port) {
  return describe(model, true, index, port);
}

edgewright_status edgewright_output_port(const edgewright_model* model, size_t index, edgewright_port* port) {
  return describe(model, false, index, port);
}

edgewright_status edgewright_run(const edgewright_model* model, const edgewright_input* inputs,
                                 size_t input_count, const edgewright_output* outputs, size_t output_count,
                                 int64_t samples) {
  if (model == nullptr || inputs == nullptr || outputs == nullptr) {
    return fail(EDGEWRIGHT_INVALID, "run: a pointer is NULL");
  }
  return guarded([&] { return run(model->engine, inputs, input_count, outputs, output_count, samples); });
}

size_t edgewright_memory_bytes(const edgewright_model* model) {
  return model == nullptr ? 0 : model->engine.arena_bytes();
}

size_t edgewright_packed_bytes(const edgewright_model* model) {
  return model == nullptr ? 0 : model->engine.packed_bytes();
}

const char* edgewright_path(const edgewright_model* model) {
  return model == nullptr ? "" : model->engine.path();
}

const char* edgewright_usable_path(size_t index) {
  try {
    const auto& paths = usable_paths();
    return index < paths.size() ? paths[index]->name : nullptr;
  } catch (...) {
    return nullptr;
  }
}

const char* edgewright_error(void) { return last_error; }

const char* edgewright_version(void) { return EDGEWRIGHT_VERSION; }
