// How an operator is made ready: everything is found that can be found before the input is known, and a
// function is left that does the rest.
#pragma once

#include <functional>
#include <memory>
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

// `size` rounded up to whole cache lines.
inline size_t aligned(size_t size) {
  return (size + Bytes::kAlignment - 1) / Bytes::kAlignment * Bytes::kAlignment;
}

// What a step works on: one sample of the caller's arrays, and the memory of this call.
struct Call {
  const void* const* inputs;
  float* const* outputs;
  int64_t sample;
  uint8_t* arena;
  uint8_t* scratch;
};

using Run = std::function<void(const Call&)>;

// The indices of an input that an Embedding looks up.
struct IndexLimit {
  size_t port;
  int64_t count, rows;  // indices in one sample; each must lie in 0..rows-1
};

// One of three spatial axes of a window; those in front that it lacks have sizes of 1.
struct Axis {
  int64_t in = 1, out = 1, kernel = 1, stride = 1, dilation = 1, before = 0;
};

// What an operator is made ready from. The plan and the kernels outlive the step.
class Setup {
 public:
  Setup(const Plan& plan, const Kernels& kernels, const uint8_t* weights)
      : plan(plan), kernels(kernels), weights(weights) {}

  const Plan& plan;
  const Kernels& kernels;
  const uint8_t* weights;    // until the engine is made, not longer
  size_t number = 0;         // of the operator
  size_t scratch_bytes = 0;  // the most that any step so far needs
  std::vector<IndexLimit> index_limits;

  const Op& op() const { return plan.ops[number]; }
  const Tensor& x() const { return plan.tensors[op().x()]; }
  const Tensor& second() const { return plan.tensors[op().reads[1]]; }
  const Tensor& y() const { return plan.tensors[op().y]; }
  std::string where() const { return operator_name(number, op().kind); }

  // The way out of this operator's accumulators; it points into the plan.
  Scaling scaling() const;
  // The operator's window over an image: its last two axes. The first is the depth.
  Axis axis(int number_of_three) const;
  Sliding sliding() const;
  Depth depth() const;

  const uint8_t* bytes_of(int32_t range) const { return weights + plan.ranges[range].offset; }

  // Asks for scratch. Throws PlanError where it is unreasonably large.
  void need_scratch(size_t bytes);

  // Memory for packed weights. Throws PlanError where a plan takes unreasonably much in all.
  std::shared_ptr<Bytes> take(size_t bytes);

 private:
  size_t taken_ = 0;
};

// One function per kind, each beside its family.
Run prepare_quantize(Setup&);
Run prepare_dequantize(Setup&);
Run prepare_add(Setup&);
Run prepare_multiply(Setup&);
Run prepare_requantize(Setup&);
Run prepare_lookup(Setup&);

Run prepare_convolution(Setup&);
Run prepare_fully_connected(Setup&);
Run prepare_transposed_convolution(Setup&);
Run prepare_embedding(Setup&);

Run prepare_max_pool(Setup&);
Run prepare_average_pool(Setup&);
Run prepare_resize(Setup&);

Run prepare_transpose(Setup&);
Run prepare_reshape(Setup&);
Run prepare_concat(Setup&);
Run prepare_slice(Setup&);

Run prepare_matmul(Setup&);
Run prepare_softmax(Setup&);
Run prepare_layer_norm(Setup&);

}  // namespace edgewright
