// A plan made ready for one CPU path: weights checked and packed, then run sample by sample.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "kernels.h"
#include "plan.h"

namespace edgewright {

// Bytes aligned to a cache line, not initialised.
class Bytes {
 public:
  static constexpr size_t kAlignment = 64;

  explicit Bytes(size_t size)
      : data_(static_cast<uint8_t*>(::operator new(size, std::align_val_t{kAlignment}))) {}
  uint8_t* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(uint8_t* data) const { ::operator delete(data, std::align_val_t{kAlignment}); }
  };
  std::unique_ptr<uint8_t, Free> data_;
};

class Engine {
 public:
  // Throws PlanError or UnsupportedError. Keeps no reference to the bytes it is given.
  Engine(const uint8_t* plan, size_t plan_size, const uint8_t* weights, size_t weights_size,
         const Kernels& kernels);

  // Runs `samples` samples. One pointer per input and output of the plan, each to that many samples of
  // float32. Safe from several threads at once.
  void run(const float* const* inputs, float* const* outputs, int64_t samples) const;

  const Plan& plan() const { return plan_; }
  const char* path() const { return kernels_.name; }
  size_t arena_bytes() const { return memory_bytes_; }

 private:
  // An operator with everything found that can be found before the input is known.
  struct Step {
    Kind kind;
    uint64_t x = 0, b = 0, y = 0;   // arena offsets
    size_t port = 0;                // which input Quantize reads, which output Dequantize writes
    int64_t count = 0;              // elements of x
    int64_t rows = 0, columns = 1;  // of x as a matrix that Quantize, Dequantize and Flatten transpose
    float scale = 0;
    int32_t zero_point = 0;
    Convolution convolution{};  // its `at` and `scaling` serve the pools too
    Addition addition{};
    const ConvolutionKernel* kernel = nullptr;
    std::vector<int32_t> bias, multiplier, shift;
    std::array<uint8_t, 256> table{};
    std::unique_ptr<Bytes> packed;
  };

  Step prepare(size_t number, const Op& op, const uint8_t* weights);
  void prepare_convolution(size_t number, const Op& op, const uint8_t* weights, Step& step);
  void run_step(const Step& step, const float* const* inputs, float* const* outputs, int64_t sample,
                uint8_t* memory) const;
  Bytes take_memory() const;

  Plan plan_;
  const Kernels& kernels_;
  std::vector<Step> steps_;
  size_t scratch_at_ = 0, memory_bytes_ = 0, packed_bytes_ = 0;
  mutable std::mutex mutex_;
  mutable std::vector<Bytes> spare_;  // working memories of calls that have ended
};

}  // namespace edgewright
