// Softmax, 256 bits at a time.
#pragma once

#include "plain_wide_rows.h"
#include "simd256.h"

namespace edgewright {
namespace {

constexpr int64_t kMostExponentials = 2048;  // of one row, kept on the stack

// Whether the vector loops may be used. e is at most 2^16 and the factor below 2^31, so with shifts of 32..54
// the sum with the half and the zero point, at most 2^47 + 2^53 + 255 * 2^54, stays in 64 bits, its high half
// holds all that is needed, and a result is at most 2^15 + 255.
[[maybe_unused]] inline bool fits_words(const Exponentials& op) {
  return op.count <= kMostExponentials && op.scaling.shift[0] >= 32 && op.scaling.shift[0] <= 54;
}

[[maybe_unused]] inline int32_t largest_byte(__m128i bytes) {
  bytes = _mm_max_epu8(bytes, _mm_srli_si128(bytes, 8));
  // The smallest of 255 less each, by words that hold one byte.
  const __m128i words = _mm_cvtepu8_epi16(_mm_subs_epu8(_mm_set1_epi8(-1), bytes));
  return 255 - _mm_extract_epi16(_mm_minpos_epu16(words), 0);
}

// The largest value that is kept, 0 where none is.
[[maybe_unused]] inline int32_t largest(const Exponentials& op, const uint8_t* x, const uint8_t* mask) {
  int64_t i = 0;
  int32_t top = 0;
  if (op.count >= 16) {
    const __m128i masked = _mm_set1_epi8(static_cast<char>(op.masked));
    __m128i best = _mm_setzero_si128();
    // The last sixteen values may be seen twice.
    for (; i < op.count; i += 16) {
      const int64_t at = smaller(i, op.count - 16);
      __m128i seen = load_half(x + at);
      if (mask != nullptr) seen = _mm_andnot_si128(_mm_cmpeq_epi8(load_half(mask + at), masked), seen);
      best = _mm_max_epu8(best, seen);
    }
    return largest_byte(best);
  }
  for (; i < op.count; ++i) {
    const bool kept = mask == nullptr || mask[i] != op.masked;
    top = kept && x[i] > top ? x[i] : top;
  }
  return top;
}

// At most 2^11 * 2^16.
[[maybe_unused]] inline int32_t total(const int32_t* e, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += e[i];
  return sum;
}

// Sixteen results, or `count` of them.
[[maybe_unused]] inline void share(const int32_t* e, __m256i factor, __m256i half, __m256i shift,
                                   const Bounds& bounds, int64_t count, uint8_t* y) {
  const auto eight = [&](const int32_t* low, const int32_t* high) {
    const __m256i seen = _mm256_set_m128i(load_half(high), load_half(low));
    const __m256i even = _mm256_add_epi64(_mm256_mul_epu32(seen, factor), half);
    const __m256i odd = _mm256_add_epi64(_mm256_mul_epu32(_mm256_srli_epi64(seen, 32), factor), half);
    return _mm256_srlv_epi32(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA), shift);
  };
  store(y, clamp(narrow(eight(e, e + 8), eight(e + 4, e + 12)), bounds), count);
}

[[maybe_unused]] inline void share_nothing(const Exponentials& op, uint8_t* y) {
  const Scaling& to = op.scaling;
  std::memset(y, saturate(to.zero_point, to.low, to.high), static_cast<size_t>(op.count));
}

// A row of results, from its exponentials.
[[maybe_unused]] inline void share_all(const Exponentials& op, const int32_t* e, uint8_t* y) {
  const Scaling& to = op.scaling;
  const int32_t sum = total(e, op.count);
  if (sum == 0) return share_nothing(op, y);
  const int64_t whole = (int64_t{to.multiplier[0]} << 16) / sum;
  const __m256i factor = _mm256_set1_epi32(static_cast<int32_t>(smaller(whole, 2147483647)));
  const __m256i half =
      _mm256_set1_epi64x((int64_t{1} << (to.shift[0] - 1)) + (int64_t{to.zero_point} << to.shift[0]));
  const __m256i shift = _mm256_set1_epi32(to.shift[0] - 32);
  const Bounds bounds = bounds_of(to);
  if (op.count < 16) {
    int32_t some[16] = {};
    std::memcpy(some, e, static_cast<size_t>(op.count) * sizeof(int32_t));
    return share(some, factor, half, shift, bounds, op.count, y);
  }
  // The last sixteen results may be made twice.
  for (int64_t i = 0; i < op.count; i += 16) {
    const int64_t at = smaller(i, op.count - 16);
    share(e + at, factor, half, shift, bounds, 16, y + at);
  }
}

[[maybe_unused]] inline void softmax(const Exponentials& op, const uint8_t* x, const uint8_t* mask,
                                     int64_t mask_step, uint8_t* y) {
  if (!fits_words(op)) return plain_softmax(op, x, mask, mask_step, y);
  if (mask != nullptr && mask_step == 0) {
    if (*mask == op.masked) return share_nothing(op, y);
    mask = nullptr;
  }
  const int32_t top = largest(op, x, mask);
  alignas(32) int32_t e[kMostExponentials];
  const int32_t* const table = op.table;
  if (mask == nullptr) {
    int64_t i = 0;
    for (; i + 8 <= op.count; i += 8) {
      uint64_t eight;
      std::memcpy(&eight, x + i, sizeof eight);
      const int32_t* const from = table + top;
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) e[i + j] = from[-static_cast<int64_t>(eight >> (8 * j) & 255)];
    }
    for (; i < op.count; ++i) e[i] = table[top - x[i]];
  } else {
    for (int64_t i = 0; i < op.count; ++i) {
      e[i] = table[(top - x[i]) & 255] & -static_cast<int32_t>(mask[i] != op.masked);
    }
  }
  share_all(op, e, y);
}

// ---- of int16 ----

// All ones in the words of masked values.
[[maybe_unused]] inline __m256i masked_words(const Exponentials& op, const uint8_t* mask) {
  const __m128i masked = _mm_set1_epi8(static_cast<char>(op.masked));
  return _mm256_cvtepi8_epi16(_mm_cmpeq_epi8(load_half(mask), masked));
}

// The largest value that is kept, -32768 where none is.
[[maybe_unused]] inline int32_t largest_word(const Exponentials& op, const int16_t* x, const uint8_t* mask) {
  int32_t top = -32768;
  if (op.count < 16) {
    for (int64_t i = 0; i < op.count; ++i) {
      const bool kept = mask == nullptr || mask[i] != op.masked;
      top = kept && x[i] > top ? x[i] : top;
    }
    return top;
  }
  const __m256i lowest = _mm256_set1_epi16(-32768);
  __m256i best = lowest;
  // The last sixteen values may be seen twice.
  for (int64_t i = 0; i < op.count; i += 16) {
    const int64_t at = smaller(i, op.count - 16);
    __m256i seen = load(x + at);
    if (mask != nullptr) seen = _mm256_blendv_epi8(seen, lowest, masked_words(op, mask + at));
    best = _mm256_max_epi16(best, seen);
  }
  int16_t all[16];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(all), best);
  for (int i = 0; i < 16; ++i) top = all[i] > top ? all[i] : top;
  return top;
}

// Each table is read value by value: gathers are slow on many CPUs.
[[maybe_unused]] inline void softmax_of_words(const Exponentials& op, const uint8_t* x_bytes,
                                              const uint8_t* mask, int64_t mask_step, uint8_t* y,
                                              int32_t* e) {
  if (!fits_words(op)) return scalar_kernels().wide.softmax(op, x_bytes, mask, mask_step, y, e);
  if (mask != nullptr && mask_step == 0) {
    if (*mask == op.masked) return share_nothing(op, y);
    mask = nullptr;
  }
  const int16_t* x = reinterpret_cast<const int16_t*>(x_bytes);
  const int32_t top = largest_word(op, x, mask);
  const auto of = [&](int32_t value) { return exponential(op.table, (top - value) & 65535); };
  int64_t i = 0;
  for (; i + 4 <= op.count; i += 4) {
    uint64_t four;
    std::memcpy(&four, x + i, sizeof four);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) e[i + j] = of(static_cast<int16_t>(four >> (16 * j)));
  }
  for (; i < op.count; ++i) e[i] = of(x[i]);
  for (i = 0; mask != nullptr && i < op.count; ++i) e[i] = mask[i] == op.masked ? 0 : e[i];
  share_all(op, e, y);
}

}  // namespace
}  // namespace edgewright
