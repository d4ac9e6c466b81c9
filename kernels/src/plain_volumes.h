// Plain loops over volumes: the average pool along three axes, and transposed convolutions.
#pragma once

#include "kernels.h"
#include "requantize.h"
#include "windows.h"

namespace edgewright {
namespace {

[[maybe_unused]] inline void plain_average_pool_volume(const Depth& depth, const Sliding& at,
                                                       int32_t zero_point, const Scaling& to,
                                                       const uint8_t* x, uint8_t* y) {
  constexpr int64_t kBlock = 64;  // channels summed at a time, on the stack
  const int64_t channels = at.in_channels;
  const Sliding deep = along_depth(depth);
  for (int64_t oz = 0; oz < depth.out; ++oz) {
    const Inside slices = taps_inside(deep, 0, oz);
    for (int64_t oy = 0; oy < at.out[0]; ++oy) {
      const Inside rows = taps_inside(at, 0, oy);
      for (int64_t ox = 0; ox < at.out[1]; ++ox, y += channels) {
        const Inside columns = taps_inside(at, 1, ox);
        const int64_t seen =
            (slices.last - slices.first) * (rows.last - rows.first) * (columns.last - columns.first);
        for (int64_t from = 0; from < channels; from += kBlock) {
          const int64_t count = channels - from < kBlock ? channels - from : kBlock;
          int32_t sum[kBlock] = {};
          for (int64_t s = slices.first; s < slices.last; ++s) {
            for (int64_t r = rows.first; r < rows.last; ++r) {
              for (int64_t c = columns.first; c < columns.last; ++c) {
                const int64_t iz = slices.start + s * depth.dilation;
                const int64_t iy = rows.start + r * at.dilation[0], ix = columns.start + c * at.dilation[1];
                const uint8_t* at_tap = x + ((iz * at.in[0] + iy) * at.in[1] + ix) * channels + from;
                for (int64_t i = 0; i < count; ++i) sum[i] += at_tap[i];
              }
            }
          }
          for (int64_t i = 0; i < count; ++i) {
            const int64_t value = requantize(sum[i] - seen * zero_point, to.multiplier[0], to.shift[0]);
            y[from + i] = saturate(value + to.zero_point, to.low, to.high);
          }
        }
      }
    }
  }
}

// The input that reaches output `o` of one axis through a tap, or -1.
[[maybe_unused]] inline int64_t source(const Spreading& op, int axis, int64_t o, int64_t tap) {
  const int64_t at = o + op.before[axis] - tap * op.dilation[axis];
  if (at < 0 || at % op.stride[axis] != 0) return -1;
  return at / op.stride[axis] < op.in[axis] ? at / op.stride[axis] : -1;
}

// All that one input pixel adds through one tap.
[[maybe_unused]] inline void spread_pixel(const Spreading& op, const int8_t* weight, const uint8_t* x,
                                          int32_t* sums) {
  const int64_t outputs = op.out_channels / op.groups, inputs = op.in_channels / op.groups;
  for (int64_t group = 0; group < op.groups; ++group, sums += outputs) {
    for (int64_t c = 0; c < inputs; ++c, ++x, weight += outputs) {
      const int32_t value = *x - op.zero_point;
      for (int64_t o = 0; o < outputs; ++o) sums[o] += value * weight[o];
    }
  }
}

[[maybe_unused]] inline void plain_spread(const Spreading& op, const int8_t* weight, const uint8_t* x,
                                          uint8_t* y, int32_t* sums) {
  const Scaling& to = op.scaling;
  const int64_t channels = op.in_channels, outputs = op.out_channels;
  const int64_t tap_bytes = channels * (outputs / op.groups);
  for (int64_t oz = 0; oz < op.out[0]; ++oz) {
    for (int64_t oy = 0; oy < op.out[1]; ++oy) {
      for (int64_t ox = 0; ox < op.out[2]; ++ox, y += outputs) {
        for (int64_t o = 0; o < outputs; ++o) sums[o] = op.bias[o];
        const int8_t* at_tap = weight;
        for (int64_t kz = 0; kz < op.kernel[0]; ++kz) {
          const int64_t iz = source(op, 0, oz, kz);
          for (int64_t ky = 0; ky < op.kernel[1]; ++ky) {
            const int64_t iy = source(op, 1, oy, ky);
            for (int64_t kx = 0; kx < op.kernel[2]; ++kx, at_tap += tap_bytes) {
              const int64_t ix = source(op, 2, ox, kx);
              if (iz < 0 || iy < 0 || ix < 0) continue;
              spread_pixel(op, at_tap, x + ((iz * op.in[1] + iy) * op.in[2] + ix) * channels, sums);
            }
          }
        }
        for (int64_t o = 0; o < outputs; ++o) {
          const int64_t value = requantize(sums[o], to.multiplier[o], to.shift[o]) + to.zero_point;
          y[o] = saturate(value, to.low, to.high);
        }
      }
    }
  }
}

}  // namespace
}  // namespace edgewright
