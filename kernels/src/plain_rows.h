// Operators over whole rows, in plain 64-bit integers: Softmax and LayerNorm. operators.py states both.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels.h"
#include "requantize.h"

namespace edgewright {
namespace {

[[maybe_unused]] inline void plain_softmax(const Exponentials& op, const uint8_t* x, const uint8_t* mask,
                                           int64_t mask_step, uint8_t* y) {
  const Scaling& to = op.scaling;
  const auto kept = [&](int64_t i) { return mask == nullptr || mask[i * mask_step] != op.masked; };
  int32_t top = 0;
  int64_t sum = 0;
  if (mask == nullptr) {
    for (int64_t i = 0; i < op.count; ++i) top = x[i] > top ? x[i] : top;
    for (int64_t i = 0; i < op.count; ++i) sum += op.table[top - x[i]];
  } else {
    for (int64_t i = 0; i < op.count; ++i) top = kept(i) && x[i] > top ? x[i] : top;
    for (int64_t i = 0; i < op.count; ++i) sum += kept(i) ? op.table[top - x[i]] : 0;
  }
  // Within a row a result depends on top - x alone: it is worked out once for each, until it is nothing.
  uint8_t results[256];
  std::memset(results, saturate(to.zero_point, to.low, to.high), sizeof results);
  const uint8_t nothing = results[255];
  if (sum > 0) {
    const int64_t whole = (int64_t{to.multiplier[0]} << 16) / sum;
    const int32_t factor = static_cast<int32_t>(whole < 2147483647 ? whole : 2147483647);
    for (int32_t d = 0; d <= top; ++d) {
      const int64_t value = requantize(op.table[d], factor, to.shift[0]);
      if (value == 0) break;
      results[d] = saturate(value + to.zero_point, to.low, to.high);
    }
  }
  if (mask == nullptr) {
    for (int64_t i = 0; i < op.count; ++i) y[i] = results[top - x[i]];
  } else {
    for (int64_t i = 0; i < op.count; ++i) y[i] = kept(i) ? results[top - x[i]] : nothing;
  }
}

// Whole part of the square root of 0 <= value < 2^62. The estimate may be one off; the integers decide.
[[maybe_unused]] inline int64_t square_root(int64_t value) {
  int64_t root = static_cast<int64_t>(std::sqrt(static_cast<double>(value)));
  if (root * root > value) --root;
  if ((root + 1) * (root + 1) <= value) ++root;
  return root;
}

// What the values of a row have in common: T = ((n * x - middle) * factor + 2^(shift-1)) >> shift.
struct NormalizedRow {
  int64_t middle;
  int32_t factor, shift;
};

// `plain` and `squares` are the sums over the row of x and of x^2, at most 255^2 * 2^15.
[[maybe_unused]] inline NormalizedRow normalized_row(const Normalization& op, int64_t plain,
                                                     int64_t squares) {
  const int64_t n = op.count, zero_point = op.zero_point, total = plain - n * zero_point;
  const int64_t centred = squares - 2 * zero_point * plain + n * zero_point * zero_point;
  const int64_t spread = n * centred - total * total + op.epsilon;
  const int32_t k = (__builtin_clzll(static_cast<uint64_t>(spread)) - 2) & ~1;
  const int64_t whole = (int64_t{1} << 61) / square_root(spread << k);
  return {n * zero_point + total, static_cast<int32_t>(whole < 2147483647 ? whole : 2147483647), 46 - k / 2};
}

[[maybe_unused]] inline int32_t normalized(const Normalization& op, const NormalizedRow& by, int32_t x) {
  return static_cast<int32_t>(requantize(op.count * x - by.middle, by.factor, by.shift));
}

// Value number i, from its T.
template <class Y = uint8_t>
Y gained(const Normalization& op, int32_t t, int64_t i) {
  const Scaling& to = op.scaling;
  const int32_t shift = to.shift[0];
  const int64_t value = int64_t{t} * op.gain[i] + op.offset[i] + (int64_t{1} << (shift - 1));
  return narrowed<Y>((value >> shift) + to.zero_point, to.low, to.high);
}

[[maybe_unused]] inline void plain_layer_norm(const Normalization& op, const uint8_t* x, int64_t rows,
                                              uint8_t* y) {
  for (int64_t row = 0; row < rows; ++row, x += op.count, y += op.count) {
    int32_t plain = 0, squares = 0, lowest = 255, highest = 0;
    for (int64_t i = 0; i < op.count; ++i) {
      const int32_t q = x[i];
      plain += q;
      squares += q * q;
      lowest = q < lowest ? q : lowest;
      highest = q > highest ? q : highest;
    }
    const NormalizedRow by = normalized_row(op, plain, squares);
    // Within a row T depends on x alone: it is worked out once for each.
    int32_t found[256];
    for (int32_t q = lowest; q <= highest; ++q) found[q] = normalized(op, by, q);
    for (int64_t i = 0; i < op.count; ++i) y[i] = gained(op, found[x[i]], i);
  }
}

}  // namespace
}  // namespace edgewright
