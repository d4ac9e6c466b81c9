// Softmax and LayerNorm over rows of int16, and LayerNorm to int16. program.py states both.
#pragma once

#include "kernels.h"
#include "plain_rows.h"
#include "requantize.h"

namespace edgewright {
namespace {

// exp is that of the high byte of a difference times that of its low byte.
[[maybe_unused]] inline int32_t exponential(const int32_t* table, int32_t difference) {
  const uint32_t low = static_cast<uint32_t>(table[difference & 255]);          // at most 2^15
  const uint32_t high = static_cast<uint32_t>(table[256 + (difference >> 8)]);  // at most 2^16
  return static_cast<int32_t>((high * low + (1u << 14)) >> 15);
}

[[maybe_unused]] inline void wide_softmax(const Exponentials& op, const uint8_t* x_bytes, const uint8_t* mask,
                                          int64_t mask_step, uint8_t* y, int32_t* exponentials) {
  const int16_t* x = reinterpret_cast<const int16_t*>(x_bytes);
  const Scaling& to = op.scaling;
  const auto kept = [&](int64_t i) { return mask == nullptr || mask[i * mask_step] != op.masked; };
  int32_t top = -32768;
  if (mask == nullptr) {
    for (int64_t i = 0; i < op.count; ++i) top = x[i] > top ? x[i] : top;
    for (int64_t i = 0; i < op.count; ++i) exponentials[i] = exponential(op.table, top - x[i]);
  } else {
    for (int64_t i = 0; i < op.count; ++i) top = kept(i) && x[i] > top ? x[i] : top;
    for (int64_t i = 0; i < op.count; ++i) {
      exponentials[i] = kept(i) ? exponential(op.table, top - x[i]) : 0;
    }
  }
  int64_t sum = 0;
  for (int64_t i = 0; i < op.count; ++i) sum += exponentials[i];
  int32_t factor = 0;
  if (sum > 0) {
    const int64_t whole = (int64_t{to.multiplier[0]} << 16) / sum;
    factor = static_cast<int32_t>(whole < 2147483647 ? whole : 2147483647);
  }
  const int32_t shift = to.shift[0];
  const int64_t half = int64_t{1} << (shift - 1);
  for (int64_t i = 0; i < op.count; ++i) {
    const int64_t value = shifted(int64_t{exponentials[i]} * factor + half, shift);
    y[i] = narrowed<uint8_t>(value + to.zero_point, to.low, to.high);
  }
}

template <class X, class Y>
void wide_layer_norm(const Normalization& op, const uint8_t* x_bytes, int64_t rows, uint8_t* y_bytes) {
  const X* __restrict x = reinterpret_cast<const X*>(x_bytes);
  Y* __restrict y = reinterpret_cast<Y*>(y_bytes);
  const Scaling& to = op.scaling;
  const int32_t shift = to.shift[0], count = static_cast<int32_t>(op.count);
  for (int64_t row = 0; row < rows; ++row, x += count, y += count) {
    int32_t total = 0;    // at most 2^15 * 2^15
    int64_t squares = 0;  // at most 2^15 * 2^30
    for (int32_t i = 0; i < count; ++i) {
      const int32_t c = x[i] - op.zero_point;
      total += c;
      squares += c * c;
    }
    const int64_t spread = count * squares - int64_t{total} * total + op.epsilon;  // below 2^62
    const int32_t k = (__builtin_clzll(static_cast<uint64_t>(spread)) - 2) & ~1;
    const int64_t whole = (int64_t{1} << 61) / square_root(spread << k);
    const int32_t factor = static_cast<int32_t>(whole < 2147483647 ? whole : 2147483647), h = 46 - k / 2;
    const int64_t half = int64_t{1} << (h - 1), to_half = int64_t{1} << (shift - 1);
    for (int32_t i = 0; i < count; ++i) {
      const int32_t away = count * (x[i] - op.zero_point) - total;  // within 32 bits
      const int32_t normalized = static_cast<int32_t>(shifted(int64_t{away} * factor + half, h));
      const int64_t value = shifted(int64_t{normalized} * op.gain[i] + op.offset[i] + to_half, shift);
      y[i] = narrowed<Y>(value + to.zero_point, to.low, to.high);
    }
  }
}

}  // namespace
}  // namespace edgewright
