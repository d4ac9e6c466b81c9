// Where the taps of a sliding window fall.
#pragma once

#include "kernels.h"

namespace edgewright {
namespace {

// The taps `first <= k < last` of one axis that lie inside the image for output number `o`.
struct Inside {
  int64_t start, first, last;  // tap k lies at start + k * dilation
};

[[maybe_unused]] inline Inside taps_inside(const Sliding& at, int axis, int64_t o) {
  const int64_t start = o * at.stride[axis] - at.before[axis];
  const int64_t step = at.dilation[axis], size = at.in[axis], count = at.kernel[axis];
  // Divisions are slow, and almost always by one.
  const auto over_step = [step](int64_t value) { return step == 1 ? value : value / step; };
  int64_t first = start < 0 ? over_step(-start + step - 1) : 0;
  int64_t last = start < size ? over_step(size - 1 - start) + 1 : 0;
  if (last > count) last = count;
  if (first > last) first = last;
  return {start, first, last};
}

}  // namespace
}  // namespace edgewright
