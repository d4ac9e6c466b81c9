// Operators on pairs of values, 256 bits at a time.
#pragma once

#include "simd256.h"

namespace edgewright {
namespace {

// ---- add ----

// A sum in 32 bits, its multipliers cut into 16-bit words: with m = 2^16 h + l, l signed,
//
//   (a m0 + b m1 + c) >> s = (a h0 + b h1 + ((a l0 + b l1 + low c) >> 16) + high c) >> (s - 16)
//
// c holds the half, the zero points of a and b and, as zero point << s, that of y. With s <= 38 its high part
// is at most 2^30 + 2^22 + 2^24, and what is added to that below 2^25; h fits a word for multipliers below
// 2^31 - 2^15.
inline bool words_suffice(const Addition& op) {
  constexpr int32_t kMost = 0x7FFF7FFF;
  return op.shift >= 16 && op.shift <= 38 && op.multiplier[0] <= kMost && op.multiplier[1] <= kMost;
}

struct AddWords {
  int32_t low_pair, high_pair, low_start, high_start, shift;
};

inline AddWords add_words(const Addition& op) {
  int64_t all = (int64_t{1} << (op.shift - 1)) + (int64_t{op.scaling.zero_point} << op.shift);
  uint32_t low[2], high[2];
  for (int i = 0; i < 2; ++i) {
    const int32_t m = op.multiplier[i];
    low[i] = static_cast<uint32_t>(m) & 65535;
    high[i] = static_cast<uint32_t>((m - static_cast<int16_t>(low[i])) >> 16) & 65535;
    all -= int64_t{op.zero_point[i]} * m;
  }
  return {static_cast<int32_t>(low[0] | low[1] << 16), static_cast<int32_t>(high[0] | high[1] << 16),
          static_cast<int32_t>(all & 65535), static_cast<int32_t>(all >> 16), op.shift - 16};
}

inline void add(const Addition& op, const uint8_t* a, const uint8_t* b, int64_t count, uint8_t* y) {
  int64_t done = 0;
  if (words_suffice(op)) {
    const AddWords by = add_words(op);
    const __m256i low_pair = _mm256_set1_epi32(by.low_pair), high_pair = _mm256_set1_epi32(by.high_pair);
    const __m256i low_start = _mm256_set1_epi32(by.low_start), high_start = _mm256_set1_epi32(by.high_start);
    const __m128i shift = _mm_cvtsi32_si128(by.shift);
    const __m256i zero = _mm256_setzero_si256();
    const Bounds bounds = bounds_of(op.scaling);
    const auto eight = [&](__m256i pairs) {
      const __m256i low = _mm256_add_epi32(_mm256_madd_epi16(pairs, low_pair), low_start);
      const __m256i high = _mm256_add_epi32(_mm256_madd_epi16(pairs, high_pair), high_start);
      return _mm256_sra_epi32(_mm256_add_epi32(high, _mm256_srai_epi32(low, 16)), shift);
    };
    for (; done + 32 <= count; done += 32) {
      const __m256i av = load(a + done), bv = load(b + done);
      const __m256i left = _mm256_unpacklo_epi8(av, bv), right = _mm256_unpackhi_epi8(av, bv);
      const __m256i first = _mm256_packs_epi32(eight(_mm256_unpacklo_epi8(left, zero)),
                                               eight(_mm256_unpackhi_epi8(left, zero)));
      const __m256i second = _mm256_packs_epi32(eight(_mm256_unpacklo_epi8(right, zero)),
                                                eight(_mm256_unpackhi_epi8(right, zero)));
      const __m256i bytes = clamp(_mm256_packus_epi16(first, second), bounds);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + done), bytes);
    }
  }
  plain_add(op, a + done, b + done, count - done, y + done);
}

// ---- multiply ----

inline void multiply(const Multiplication& op, const uint8_t* a, const uint8_t* b, int64_t count,
                     uint8_t* y) {
  int64_t done = 0;
  if (fits_high_half(op.scaling, 0)) {
    const Uniform256 by = uniform256(op.scaling);
    const __m256i za = _mm256_set1_epi32(op.zero_point[0]), zb = _mm256_set1_epi32(op.zero_point[1]);
    const auto eight = [&](int64_t i) {
      const auto wide = [&](const uint8_t* x) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x + i)));
      };
      const __m256i acc = _mm256_mullo_epi32(_mm256_sub_epi32(wide(a), za), _mm256_sub_epi32(wide(b), zb));
      return requantize_lanes(acc, by);
    };
    for (; done + 8 <= count; done += 8) {
      store(y + done, clamp(narrow(eight(done)), by.bounds), 8);
    }
  }
  plain_multiply(op, a + done, b + done, count - done, y + done);
}

}  // namespace
}  // namespace edgewright
