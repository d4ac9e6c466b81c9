#include "step.h"

#include <algorithm>

namespace edgewright {
namespace {

// Packing pads, and a plan may pack one range over and over: so much is taken for the real thing.
constexpr size_t kPackedFactor = 16, kPackedSlack = size_t{64} << 20;
constexpr size_t kMaxScratchBytes = size_t{1} << 31;

}  // namespace

Scaling Setup::scaling() const {
  const Rescale& rescale = op().rescale;
  return {rescale.multiplier.data(), rescale.shift.data(), y().zero_point, rescale.low, rescale.high};
}

bool Setup::is_wide() const {
  bool wide = y().is_wide();
  for (const int32_t number : op().reads) wide = wide || plan.tensors[number].is_wide();
  return wide;
}

Axis Setup::axis(int number_of_three) const {
  const Window& window = op().window;
  const int own = number_of_three - (kMaxWindowAxes - window.axes);
  if (own < 0) return {};
  return {x().shape[static_cast<size_t>(own)],
          y().shape[static_cast<size_t>(own)],
          window.kernel[own],
          window.stride[own],
          window.dilation[own],
          window.before[own]};
}

Sliding Setup::sliding() const {
  Sliding at{};
  for (int i = 0; i < 2; ++i) {
    const Axis of = axis(i + 1);
    at.in[i] = of.in;
    at.out[i] = of.out;
    at.kernel[i] = of.kernel;
    at.stride[i] = of.stride;
    at.dilation[i] = of.dilation;
    at.before[i] = of.before;
  }
  at.in_channels = x().shape.back();
  at.out_channels = y().shape.back();
  return at;
}

Depth Setup::depth() const {
  const Axis of = axis(0);
  return {of.in, of.out, of.kernel, of.stride, of.dilation, of.before};
}

void Setup::need_scratch(size_t bytes) {
  if (bytes > kMaxScratchBytes) {
    throw PlanError(where() + ": would need " + std::to_string(bytes) + " bytes beside the arena, at most " +
                    std::to_string(kMaxScratchBytes) + " are allowed");
  }
  scratch_bytes = std::max(scratch_bytes, bytes);
}

std::shared_ptr<Bytes> Setup::take(size_t bytes) {
  packed_bytes_ += bytes;
  if (packed_bytes_ > kPackedFactor * plan.weights_bytes + kPackedSlack) {
    throw PlanError(where() + ": the plan uses the same weights too many times");
  }
  return std::make_shared<Bytes>(bytes);
}

}  // namespace edgewright
