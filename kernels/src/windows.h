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

// ---- volumes ----

// The depth as the first axis of a window, so that taps_inside serves it too.
[[maybe_unused]] inline Sliding along_depth(const Depth& depth) {
  Sliding at{};
  at.in[0] = depth.in;
  at.kernel[0] = depth.kernel;
  at.stride[0] = depth.stride;
  at.dilation[0] = depth.dilation;
  at.before[0] = depth.before;
  return at;
}

// The taps of one window over a volume that lie inside it.
struct Place3 {
  Inside slices, rows, columns;
  int64_t dilation;  // along the depth
};

// Calls f(place) for every window over a volume, or with a depth of 1 an image, in the order of the result.
template <class F>
void for_each_window(const Depth& depth, const Sliding& at, F f) {
  const Sliding deep = along_depth(depth);
  for (int64_t oz = 0; oz < depth.out; ++oz) {
    const Inside slices = taps_inside(deep, 0, oz);
    for (int64_t oy = 0; oy < at.out[0]; ++oy) {
      const Inside rows = taps_inside(at, 0, oy);
      for (int64_t ox = 0; ox < at.out[1]; ++ox) {
        f(Place3{slices, rows, taps_inside(at, 1, ox), depth.dilation});
      }
    }
  }
}

// Calls f(number of the pixel) for all that a window sees.
template <class F>
void for_each_pixel(const Place3& place, const Sliding& at, F f) {
  for (int64_t s = place.slices.first; s < place.slices.last; ++s) {
    const int64_t iz = place.slices.start + s * place.dilation;
    for (int64_t r = place.rows.first; r < place.rows.last; ++r) {
      const int64_t iy = place.rows.start + r * at.dilation[0];
      for (int64_t c = place.columns.first; c < place.columns.last; ++c) {
        f((iz * at.in[0] + iy) * at.in[1] + place.columns.start + c * at.dilation[1]);
      }
    }
  }
}

}  // namespace
}  // namespace edgewright
