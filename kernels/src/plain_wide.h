// Operators where int16 comes in or goes out, as plain loops that the compiler vectorises. A path includes
// this and compiles its own copies (kernels.h says why).
//
// Each is one template over the integers it takes and gives; `plain_wide` has all of them.
#pragma once

#include "kernels.h"
#include "plain_convolution.h"
#include "plain_product.h"
#include "plain_wide_rows.h"
#include "requantize.h"
#include "windows.h"

namespace edgewright {
namespace {

[[maybe_unused]] inline void wide_quantize(const float* x, int64_t count, float scale, uint8_t* y) {
  int16_t* __restrict to = reinterpret_cast<int16_t*>(y);
  // Adding 1.5 * 2^23 leaves no fraction bits: the FPU itself rounds, half to even.
  constexpr float kRound = 12582912.0f;
  for (int64_t i = 0; i < count; ++i) {
    float steps = x[i] / scale;
    steps = steps == steps ? steps : 0.0f;
    steps = steps < -32768.0f ? -32768.0f : steps;
    steps = steps > 32767.0f ? 32767.0f : steps;
    to[i] = static_cast<int16_t>(static_cast<int32_t>((steps + kRound) - kRound));
  }
}

[[maybe_unused]] inline void wide_dequantize(const uint8_t* x, int64_t count, float scale, float* y) {
  const int16_t* from = reinterpret_cast<const int16_t*>(x);
  for (int64_t i = 0; i < count; ++i) y[i] = static_cast<float>(from[i]) * scale;
}

template <class X, class Y>
void wide_requantize(const Requantization& op, const uint8_t* x_bytes, int64_t rows, uint8_t* y_bytes) {
  const X* __restrict x = reinterpret_cast<const X*>(x_bytes);
  Y* __restrict y = reinterpret_cast<Y*>(y_bytes);
  const Scaling& to = op.scaling;
  const int32_t zero_point = op.zero_point, low = to.low, high = to.high;
  if (op.channels == 1) {
    const int32_t multiplier = to.multiplier[0], shift = to.shift[0];
    const int64_t half = int64_t{1} << (shift - 1);
    for (int64_t i = 0; i < rows; ++i) {
      const int32_t centred = x[i] - zero_point;
      const int64_t value = shifted(int64_t{centred} * multiplier + half, shift);
      y[i] = narrowed<Y>(value + to.zero_point, low, high);
    }
    return;
  }
  for (int64_t row = 0; row < rows; ++row, x += op.channels, y += op.channels) {
    for (int64_t i = 0; i < op.channels; ++i) {
      const int64_t value = requantize(x[i] - zero_point, to.multiplier[i], to.shift[i]);
      y[i] = narrowed<Y>(value + to.zero_point, low, high);
    }
  }
}

template <class A, class B, class Y>
void wide_add(const Addition& op, const uint8_t* a_bytes, const uint8_t* b_bytes, int64_t count,
              uint8_t* y_bytes) {
  const A* __restrict a = reinterpret_cast<const A*>(a_bytes);
  const B* __restrict b = reinterpret_cast<const B*>(b_bytes);
  Y* __restrict y = reinterpret_cast<Y*>(y_bytes);
  const int32_t ma = op.multiplier[0], mb = op.multiplier[1], shift = op.shift;
  const int32_t low = op.scaling.low, high = op.scaling.high, zero_point = op.scaling.zero_point;
  const int64_t half =
      (int64_t{1} << (shift - 1)) - int64_t{op.zero_point[0]} * ma - int64_t{op.zero_point[1]} * mb;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t left = a[i], right = b[i];
    const int64_t value = shifted(int64_t{left} * ma + int64_t{right} * mb + half, shift);
    y[i] = narrowed<Y>(value + zero_point, low, high);
  }
}

template <class A, class B, class Y>
void wide_multiply(const Multiplication& op, const uint8_t* a_bytes, const uint8_t* b_bytes, int64_t count,
                   uint8_t* y_bytes) {
  const A* __restrict a = reinterpret_cast<const A*>(a_bytes);
  const B* __restrict b = reinterpret_cast<const B*>(b_bytes);
  Y* __restrict y = reinterpret_cast<Y*>(y_bytes);
  const Scaling& to = op.scaling;
  const int32_t multiplier = to.multiplier[0], shift = to.shift[0], low = to.low, high = to.high;
  const int64_t half = int64_t{1} << (shift - 1);
  for (int64_t i = 0; i < count; ++i) {
    const int32_t product = (a[i] - op.zero_point[0]) * (b[i] - op.zero_point[1]);  // at most 2^30
    const int64_t value = shifted(int64_t{product} * multiplier + half, shift);
    y[i] = narrowed<Y>(value + to.zero_point, low, high);
  }
}

// A uint8 takes its entry. An int16 lies between two of 513 entries, 128 apart, which are in 128ths of a
// step.
template <class X, class Y>
void wide_lookup(const uint8_t* table, const uint8_t* x_bytes, int64_t count, uint8_t* y_bytes) {
  const X* __restrict x = reinterpret_cast<const X*>(x_bytes);
  Y* __restrict y = reinterpret_cast<Y*>(y_bytes);
  if constexpr (sizeof(X) == 1) {
    const Y* __restrict entries = reinterpret_cast<const Y*>(table);
    for (int64_t i = 0; i < count; ++i) y[i] = entries[x[i]];
  } else {
    const int32_t* __restrict entries = reinterpret_cast<const int32_t*>(table);
    for (int64_t i = 0; i < count; ++i) {
      const int32_t place = x[i] + 32768, fraction = place & 127;
      const int32_t* at = entries + (place >> 7);
      y[i] = static_cast<Y>((at[0] * (128 - fraction) + at[1] * fraction + 8192) >> 14);
    }
  }
}

// Over a volume or, with a depth of 1, an image.
[[maybe_unused]] inline void wide_max_pool(const Depth& depth, const Sliding& at, const uint8_t* x_bytes,
                                           uint8_t* y_bytes) {
  const int16_t* x = reinterpret_cast<const int16_t*>(x_bytes);
  int16_t* y = reinterpret_cast<int16_t*>(y_bytes);
  const int64_t channels = at.in_channels;
  for_each_window(depth, at, [&](const Place3& place) {
    for (int64_t i = 0; i < channels; ++i) y[i] = -32768;
    for_each_pixel(place, at, [&](int64_t pixel) {
      const int16_t* __restrict seen = x + pixel * channels;
      int16_t* __restrict best = y;
      for (int64_t i = 0; i < channels; ++i) best[i] = seen[i] > best[i] ? seen[i] : best[i];
    });
    y += channels;
  });
}

template <class X, class Y>
void wide_average_pool(const Depth& depth, const Sliding& at, int32_t zero_point, const Scaling& to,
                       const uint8_t* x_bytes, uint8_t* y_bytes) {
  constexpr int64_t kBlock = 64;  // channels summed at a time, on the stack
  const X* x = reinterpret_cast<const X*>(x_bytes);
  Y* y = reinterpret_cast<Y*>(y_bytes);
  const int64_t channels = at.in_channels;
  for_each_window(depth, at, [&](const Place3& place) {
    for (int64_t from = 0; from < channels; from += kBlock) {
      const int64_t count = channels - from < kBlock ? channels - from : kBlock;
      int32_t sum[kBlock] = {};
      int64_t pixels = 0;
      for_each_pixel(place, at, [&](int64_t pixel) {
        const X* __restrict seen = x + pixel * channels + from;
        for (int64_t i = 0; i < count; ++i) sum[i] += seen[i];
        ++pixels;
      });
      for (int64_t i = 0; i < count; ++i) {
        const int64_t value = requantize(sum[i] - pixels * zero_point, to.multiplier[0], to.shift[0]);
        y[from + i] = narrowed<Y>(value + to.zero_point, to.low, to.high);
      }
    }
    y += channels;
  });
}

// All of it, for a path to put its own in place.
[[maybe_unused]] inline Wide plain_wide() {
  using U8 = uint8_t;
  using I16 = int16_t;
  Wide table{};
  table.dense[0][1] = plain_dense_kernel<U8, I16>();
  table.dense[1][0] = plain_dense_kernel<I16, U8>();
  table.dense[1][1] = plain_dense_kernel<I16, I16>();
  table.depthwise[0][1] = plain_depthwise_kernel<U8, I16>();
  table.depthwise[1][0] = plain_depthwise_kernel<I16, U8>();
  table.depthwise[1][1] = plain_depthwise_kernel<I16, I16>();
  table.quantize = wide_quantize;
  table.dequantize = wide_dequantize;
  table.requantize[0][0] = wide_requantize<U8, U8>;
  table.requantize[0][1] = wide_requantize<U8, I16>;
  table.requantize[1][0] = wide_requantize<I16, U8>;
  table.requantize[1][1] = wide_requantize<I16, I16>;
  table.max_pool = wide_max_pool;
  table.average_pool[0][1] = wide_average_pool<U8, I16>;
  table.average_pool[1][0] = wide_average_pool<I16, U8>;
  table.average_pool[1][1] = wide_average_pool<I16, I16>;
  table.add[0][0][1] = wide_add<U8, U8, I16>;
  table.add[0][1][0] = wide_add<U8, I16, U8>;
  table.add[0][1][1] = wide_add<U8, I16, I16>;
  table.add[1][0][0] = wide_add<I16, U8, U8>;
  table.add[1][0][1] = wide_add<I16, U8, I16>;
  table.add[1][1][0] = wide_add<I16, I16, U8>;
  table.add[1][1][1] = wide_add<I16, I16, I16>;
  table.multiply[0][0][1] = wide_multiply<U8, U8, I16>;
  table.multiply[0][1][0] = wide_multiply<U8, I16, U8>;
  table.multiply[0][1][1] = wide_multiply<U8, I16, I16>;
  table.multiply[1][0][0] = wide_multiply<I16, U8, U8>;
  table.multiply[1][0][1] = wide_multiply<I16, U8, I16>;
  table.multiply[1][1][0] = wide_multiply<I16, I16, U8>;
  table.multiply[1][1][1] = wide_multiply<I16, I16, I16>;
  table.lookup[0][1] = wide_lookup<U8, I16>;
  table.lookup[1][0] = wide_lookup<I16, U8>;
  table.lookup[1][1] = wide_lookup<I16, I16>;
  table.softmax = wide_softmax;
  table.layer_norm[0][1] = wide_layer_norm<U8, I16>;
  table.layer_norm[1][0] = wide_layer_norm<I16, U8>;
  table.layer_norm[1][1] = wide_layer_norm<I16, I16>;
  table.product = {product_scratch_bytes, product<I16>};
  return table;
}

}  // namespace
}  // namespace edgewright
