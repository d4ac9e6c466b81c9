// Convolutions as plain loops over the integers they take and give: uint8 or int16.
#pragma once

#include <cstring>

#include "kernels.h"
#include "requantize.h"
#include "windows.h"

namespace edgewright {
namespace {

[[maybe_unused]] inline int64_t plain_terms(const Convolution& op) { return taps(op.at) * op.at.in_channels; }

// Dense weights lie as (out, row, column, in), the order in which a patch is read.
[[maybe_unused]] inline size_t plain_dense_packed_bytes(const Convolution& op) {
  return static_cast<size_t>(op.at.out_channels * plain_terms(op));
}

[[maybe_unused]] inline void plain_pack_dense(const Convolution& op, const int8_t* weight, uint8_t* packed) {
  const int64_t window = taps(op.at), channels = op.at.in_channels;
  for (int64_t o = 0; o < op.at.out_channels; ++o) {
    for (int64_t tap = 0; tap < window; ++tap) {
      for (int64_t c = 0; c < channels; ++c) {
        *packed++ = static_cast<uint8_t>(weight[(o * channels + c) * window + tap]);
      }
    }
  }
}

template <class X>
size_t plain_dense_scratch_bytes(const Convolution& op) {
  return static_cast<size_t>(plain_terms(op)) * sizeof(X);
}

// What one output sees, in the order (row, column, channel).
template <class X>
void copy_patch(const Convolution& op, const X* x, const Inside& rows, const Inside& columns, X* patch) {
  const Sliding& at = op.at;
  const int64_t channels = at.in_channels;
  for (int64_t r = 0; r < at.kernel[0]; ++r) {
    for (int64_t c = 0; c < at.kernel[1]; ++c, patch += channels) {
      if (r < rows.first || r >= rows.last || c < columns.first || c >= columns.last) {
        for (int64_t i = 0; i < channels; ++i) patch[i] = static_cast<X>(op.zero_point);
        continue;
      }
      const int64_t iy = rows.start + r * at.dilation[0], ix = columns.start + c * at.dilation[1];
      std::memcpy(patch, x + (iy * at.in[1] + ix) * channels, static_cast<size_t>(channels) * sizeof(X));
    }
  }
}

template <class X>
int32_t dot(const X* x, const int8_t* weight, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += x[i] * weight[i];
  return sum;
}

// A unit is a row of the result.
[[maybe_unused]] inline int64_t rows_out(const Convolution& op) { return op.at.out[0]; }

template <class X, class Y>
void plain_dense(const Convolution& op, const uint8_t* packed, const uint8_t* x_bytes, uint8_t* y_bytes,
                 uint8_t* scratch, int64_t begin, int64_t end) {
  const int64_t count = plain_terms(op);
  const Scaling& to = op.scaling;
  const X* x = reinterpret_cast<const X*>(x_bytes);
  X* patch = reinterpret_cast<X*>(scratch);
  Y* y = reinterpret_cast<Y*>(y_bytes) + begin * op.at.out[1] * op.at.out_channels;
  for (int64_t oy = begin; oy < end; ++oy) {
    const Inside rows = taps_inside(op.at, 0, oy);
    for (int64_t ox = 0; ox < op.at.out[1]; ++ox) {
      copy_patch(op, x, rows, taps_inside(op.at, 1, ox), patch);
      const int8_t* weight = reinterpret_cast<const int8_t*>(packed);
      for (int64_t o = 0; o < op.at.out_channels; ++o, weight += count) {
        const int32_t acc = op.bias[o] + dot(patch, weight, count);
        const int64_t value = requantize(acc, to.multiplier[o], to.shift[o]);
        *y++ = narrowed<Y>(value + to.zero_point, to.low, to.high);
      }
    }
  }
}

// Depthwise weights lie as (tap, channel).
[[maybe_unused]] inline size_t plain_depthwise_packed_bytes(const Convolution& op) {
  return static_cast<size_t>(taps(op.at) * op.at.out_channels);
}

[[maybe_unused]] inline void plain_pack_depthwise(const Convolution& op, const int8_t* weight,
                                                  uint8_t* packed) {
  for (int64_t tap = 0; tap < taps(op.at); ++tap) {
    for (int64_t c = 0; c < op.at.out_channels; ++c) {
      *packed++ = static_cast<uint8_t>(weight[c * taps(op.at) + tap]);
    }
  }
}

[[maybe_unused]] inline size_t no_scratch_bytes(const Convolution&) { return 0; }

template <class X, class Y>
void plain_depthwise(const Convolution& op, const uint8_t* packed, const uint8_t* x_bytes, uint8_t* y_bytes,
                     uint8_t*, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 64;  // channels summed at a time, on the stack
  const Sliding& at = op.at;
  const Scaling& to = op.scaling;
  const int64_t channels = at.in_channels;
  const X* x = reinterpret_cast<const X*>(x_bytes);
  const int8_t* weight = reinterpret_cast<const int8_t*>(packed);
  Y* y = reinterpret_cast<Y*>(y_bytes) + begin * at.out[1] * channels;
  for (int64_t oy = begin; oy < end; ++oy) {
    const Inside rows = taps_inside(at, 0, oy);
    for (int64_t ox = 0; ox < at.out[1]; ++ox, y += channels) {
      const Inside columns = taps_inside(at, 1, ox);
      for (int64_t from = 0; from < channels; from += kBlock) {
        const int64_t count = channels - from < kBlock ? channels - from : kBlock;
        int32_t acc[kBlock];
        for (int64_t i = 0; i < count; ++i) acc[i] = op.bias[from + i];
        for (int64_t r = 0; r < at.kernel[0]; ++r) {
          for (int64_t c = 0; c < at.kernel[1]; ++c) {
            const int8_t* w = weight + (r * at.kernel[1] + c) * channels + from;
            if (r < rows.first || r >= rows.last || c < columns.first || c >= columns.last) {
              for (int64_t i = 0; i < count; ++i) acc[i] += op.zero_point * w[i];
              continue;
            }
            const int64_t iy = rows.start + r * at.dilation[0], ix = columns.start + c * at.dilation[1];
            const X* seen = x + (iy * at.in[1] + ix) * channels + from;
            for (int64_t i = 0; i < count; ++i) acc[i] += seen[i] * w[i];
          }
        }
        for (int64_t i = 0; i < count; ++i) {
          const int64_t value = requantize(acc[i], to.multiplier[from + i], to.shift[from + i]);
          y[from + i] = narrowed<Y>(value + to.zero_point, to.low, to.high);
        }
      }
    }
  }
}

template <class X, class Y>
ConvolutionKernel plain_dense_kernel() {
  return {plain_dense_packed_bytes, plain_pack_dense, plain_dense_scratch_bytes<X>, rows_out,
          plain_dense<X, Y>};
}

template <class X, class Y>
ConvolutionKernel plain_depthwise_kernel() {
  return {plain_depthwise_packed_bytes, plain_pack_depthwise, no_scratch_bytes, rows_out,
          plain_depthwise<X, Y>};
}

}  // namespace
}  // namespace edgewright
