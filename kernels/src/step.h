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
  uint8_t* scratch;  // of the thread
};

// An operator made ready. Its result is made of `units`, numbered from 0, of about equal work; no two write
// the same byte, and none reads what another wrote, so threads may share them. The bits never depend on how.
struct Step {
  // Computes the units in [begin, end), begin < end, and nothing else.
  std::function<void(const Call&, int64_t begin, int64_t end)> run;
  int64_t units;
  double work;  // of all units, as `cost` counts it
};

// Rough costs, in nanoseconds of one core of today. They decide whether threads are worth it, nothing else.
namespace cost {
constexpr double kProduct = 0.02;      // of a multiplication in a dense convolution or a matrix product
constexpr double kLooseProduct = 0.1;  // and in a depthwise or a transposed convolution
constexpr double kValue = 0.2;         // of a value that simple arithmetic makes
constexpr double kRowValue = 1.0;      // and of one in Softmax or LayerNorm
constexpr double kByte = 0.05;         // of a byte that is moved
}  // namespace cost

// A long array cut into units.
struct Blocks {
  static constexpr int64_t kSize = 2048;

  int64_t count, size = kSize;

  int64_t units() const { return (count + size - 1) / size; }
  int64_t start(int64_t unit) const { return unit * size < count ? unit * size : count; }
};

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
  // Whether the operator takes or gives int16, so that its kernel is one of `kernels.wide`.
  bool is_wide() const;
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
  size_t packed_bytes() const { return packed_bytes_; }

 private:
  size_t packed_bytes_ = 0;
};

// One function per kind, each beside its family.
Step prepare_quantize(Setup&);
Step prepare_dequantize(Setup&);
Step prepare_add(Setup&);
Step prepare_multiply(Setup&);
Step prepare_requantize(Setup&);
Step prepare_lookup(Setup&);

Step prepare_convolution(Setup&);
Step prepare_fully_connected(Setup&);
Step prepare_transposed_convolution(Setup&);
Step prepare_embedding(Setup&);

Step prepare_max_pool(Setup&);
Step prepare_average_pool(Setup&);
Step prepare_resize(Setup&);

Step prepare_transpose(Setup&);
Step prepare_reshape(Setup&);
Step prepare_concat(Setup&);
Step prepare_slice(Setup&);
Step prepare_constant(Setup&);

Step prepare_matmul(Setup&);
Step prepare_softmax(Setup&);
Step prepare_layer_norm(Setup&);

}  // namespace edgewright
