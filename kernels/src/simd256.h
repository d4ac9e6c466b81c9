// What the 256-bit paths share: loads and stores, and the way out of an accumulator. A path's file includes
// this and compiles its own copies with its own CPU flags.
#pragma once

#include <immintrin.h>

#include "plain.h"

namespace edgewright {
namespace {

[[maybe_unused]] inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
[[maybe_unused]] inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

[[maybe_unused]] inline __m256i load(const void* at) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(at));
}
[[maybe_unused]] inline __m128i load_half(const void* at) {
  return _mm_loadu_si128(static_cast<const __m128i*>(at));
}

// ---- requantization ----

// Ways out of the accumulators of a panel, from the slowest to the fastest. All give the same bits.
//
// kHighHalf: products are 64-bit, so even and odd lanes go separate ways. With a shift of 32..54 the high 32
// bits of `acc * multiplier + half` hold all that is needed, and the zero point fits in `half`. The sum stays
// in 64 bits: (2^31 - 1)^2 + 255 * 2^54 + 2^53.
//
// kShort: where the factor is m / 2^s with s <= 15 and m < 2^s, float32 is exact where it matters. Results
// below 512 in magnitude are multiples of 2^-15 and have 24 bits, those of |acc| >= 2^24 are 512 and more,
// and rounding never goes past 512 from either side: all of those are clamped. One half is added and the
// fraction cut off; for negative values that is no floor, but they are clamped to 0 as well.
//
// kWords: kHighHalf, to int16, which has no zero point. There a factor is often a half and more, and its
// shift below 32. Then sums of 2^17 in magnitude saturate as larger ones do; so they are limited to that, and
// shifted left by the `lift` that the shift lacks.
enum class Way : int32_t { kAny, kWords, kHighHalf, kShort };

// The constants of `Lanes` output channels.
template <int Lanes>
struct Channels {
  int32_t bias[Lanes];
  union {
    float factor[Lanes];  // kShort: m / 2^s
    int32_t lift[Lanes];  // kWords
  };
  float offset[Lanes];           // kShort: zero point + 1/2
  int32_t multiplier[2][Lanes];  // the second with odd lanes moved to even ones
  int32_t shift[Lanes];          // less 32
  int64_t half[2][Lanes / 2];    // 2^(shift-1) + (zero point << shift)
};

// An equal multiplier and shift, the shift at least 32 where that can be.
struct Factor {
  int32_t multiplier, shift;
};

inline Factor raised(int32_t multiplier, int32_t shift) {
  if (multiplier == 0) return {0, 32};
  while (shift < 32 && multiplier < (1 << 30)) {
    multiplier *= 2;
    ++shift;
  }
  return {multiplier, shift};
}

// `extra` shifts more are to come off, as for accumulators that are 2^extra times too large.
[[maybe_unused]] inline bool fits_high_half(const Scaling& scaling, int64_t channel, int32_t extra = 0) {
  const Factor factor = raised(scaling.multiplier[channel], scaling.shift[channel]);
  return factor.shift + extra >= 32 && factor.shift + extra <= 54;
}

// What the shift lacks to be 32.
[[maybe_unused]] inline int32_t lift_of(int32_t shift) { return shift < 32 ? 32 - shift : 0; }

[[maybe_unused]] inline bool fits_lifted(const Scaling& scaling, int64_t channel) {
  const int32_t shift = raised(scaling.multiplier[channel], scaling.shift[channel]).shift;
  return lift_of(shift) <= 13 && shift <= 54;
}

// An equal multiplier and shift, as small as can be.
inline Factor lowered(int32_t multiplier, int32_t shift) {
  while (multiplier % 2 == 0 && shift > 0) {
    multiplier /= 2;
    --shift;
  }
  return {multiplier, shift};
}

// The fastest way that all of `count` channels may take.
[[maybe_unused]] inline Way common_way(const Scaling& scaling, int64_t from, int64_t count,
                                       int64_t y_item = 1) {
  bool all_short = true, all_high = true, all_lifted = true;
  for (int64_t channel = from; channel < from + count; ++channel) {
    const Factor factor = lowered(scaling.multiplier[channel], scaling.shift[channel]);
    all_short &= factor.shift <= 15 && factor.multiplier < (1 << factor.shift);
    all_high &= fits_high_half(scaling, channel);
    all_lifted &= fits_lifted(scaling, channel);
  }
  if (y_item == 2) return all_lifted ? Way::kWords : Way::kAny;
  return all_short ? Way::kShort : all_high ? Way::kHighHalf : Way::kAny;
}

template <int Lanes>
void pack_channel(const Convolution& op, int64_t channel, int64_t lane, Channels<Lanes>& to,
                  int32_t extra = 0) {
  to.bias[lane] = op.bias[channel] * (1 << extra);
  const Factor low = lowered(op.scaling.multiplier[channel], op.scaling.shift[channel]);
  to.factor[lane] = static_cast<float>(low.multiplier) / static_cast<float>(int64_t{1} << low.shift);
  to.offset[lane] = static_cast<float>(op.scaling.zero_point) + 0.5f;
  Factor factor = raised(op.scaling.multiplier[channel], op.scaling.shift[channel]);
  factor.shift += extra;
  if (op.y_item == 2) {
    to.lift[lane] = lift_of(factor.shift);
    factor.shift += to.lift[lane];
  }
  if (factor.shift < 32 || factor.shift > 54) return;
  to.multiplier[0][lane] = factor.multiplier;
  if (lane % 2 == 1) to.multiplier[1][lane - 1] = factor.multiplier;
  to.shift[lane] = factor.shift - 32;
  to.half[lane % 2][lane / 2] =
      (int64_t{1} << (factor.shift - 1)) + (int64_t{op.scaling.zero_point} << factor.shift);
}

// int32 results with the zero point added, not yet clamped: kShort.
[[maybe_unused]] inline __m256i requantize_short(__m256i acc, const Channels<8>& by) {
  const __m256 scaled =
      _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc), _mm256_loadu_ps(by.factor), _mm256_loadu_ps(by.offset));
  return _mm256_cvttps_epi32(scaled);
}

// The same: kHighHalf.
[[maybe_unused]] inline __m256i requantize_lanes(__m256i acc, const Channels<8>& by) {
  __m256i even = _mm256_mul_epi32(acc, load(by.multiplier[0]));
  __m256i odd = _mm256_mul_epi32(_mm256_srli_epi64(acc, 32), load(by.multiplier[1]));
  even = _mm256_add_epi64(even, load(by.half[0]));
  odd = _mm256_add_epi64(odd, load(by.half[1]));
  return _mm256_srav_epi32(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA), load(by.shift));
}

// What comes before that for kWords.
[[maybe_unused]] inline __m256i lifted(__m256i acc, __m256i lift) {
  const __m256i none = _mm256_cmpeq_epi32(lift, _mm256_setzero_si256());
  const __m256i most = _mm256_or_si256(_mm256_srli_epi32(none, 1), _mm256_set1_epi32(1 << 17));
  const __m256i least = _mm256_xor_si256(most, _mm256_set1_epi32(-1));
  return _mm256_sllv_epi32(_mm256_max_epi32(_mm256_min_epi32(acc, most), least), lift);
}

// The same for any multiplier and shift, one value after the other.
[[maybe_unused]] inline uint8_t requantize_any(int32_t acc, const Scaling& to, int64_t channel) {
  const int64_t value = requantize(acc, to.multiplier[channel], to.shift[channel]);
  return saturate(value + to.zero_point, to.low, to.high);
}

// The same to `y`, number `at` there: a uint8 or, with items of two bytes, an int16.
[[maybe_unused]] inline void put_any(int32_t acc, const Scaling& to, int64_t channel, int64_t y_item,
                                     uint8_t* y, int64_t at) {
  if (y_item == 1) {
    y[at] = requantize_any(acc, to, channel);
  } else {
    const int64_t value = requantize(acc, to.multiplier[channel], to.shift[channel]);
    reinterpret_cast<int16_t*>(y)[at] = narrowed<int16_t>(value + to.zero_point, to.low, to.high);
  }
}

// Sixteen channels lie in two vectors as vpunpck leaves and vpack takes them: 0-3 and 8-11 in the first, the
// others in the second.
[[maybe_unused]] inline int64_t vector_of(int64_t channel) { return channel / 4 % 2; }
[[maybe_unused]] inline int64_t lane_of(int64_t channel) { return channel / 8 * 4 + channel % 4; }

[[maybe_unused]] inline __m128i narrow(__m256i first, __m256i second) {
  const __m256i words = _mm256_packs_epi32(first, second);
  return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

// Eight uint8 in the low half, from one vector in order.
[[maybe_unused]] inline __m128i narrow(__m256i only) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(only), _mm256_extracti128_si256(only, 1));
  return _mm_packus_epi16(words, words);
}

// The clamps, ready before a loop whose stores could otherwise seem to change them.
struct Bounds {
  __m256i low, high;
};

[[maybe_unused]] inline Bounds bounds_of(const Scaling& to) {
  return {_mm256_set1_epi8(static_cast<char>(to.low)), _mm256_set1_epi8(static_cast<char>(to.high))};
}

[[maybe_unused]] inline __m128i clamp(__m128i bytes, const Bounds& to) {
  return _mm_min_epu8(_mm_max_epu8(bytes, _mm256_castsi256_si128(to.low)), _mm256_castsi256_si128(to.high));
}

[[maybe_unused]] inline __m256i clamp(__m256i bytes, const Bounds& to) {
  return _mm256_min_epu8(_mm256_max_epu8(bytes, to.low), to.high);
}

// One multiplier and shift for all lanes.
struct Uniform256 {
  __m256i multiplier, half, shift, lift;
  Bounds bounds;
};

[[maybe_unused]] inline Uniform256 uniform256(const Scaling& to) {
  Factor by = raised(to.multiplier[0], to.shift[0]);
  const int32_t lift = lift_of(by.shift);
  by.shift += lift;
  return {_mm256_set1_epi32(by.multiplier),
          _mm256_set1_epi64x((int64_t{1} << (by.shift - 1)) + (int64_t{to.zero_point} << by.shift)),
          _mm256_set1_epi32(by.shift - 32), _mm256_set1_epi32(lift), bounds_of(to)};
}

// As for the channels in simd256.h.
[[maybe_unused]] inline __m256i requantize_lanes(__m256i acc, const Uniform256& by) {
  const __m256i even = _mm256_add_epi64(_mm256_mul_epi32(acc, by.multiplier), by.half);
  const __m256i odd = _mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64(acc, 32), by.multiplier), by.half);
  return _mm256_srav_epi32(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA), by.shift);
}

// Out of line: it is rare, and would stand in each tile as often as a tile has rows.
[[maybe_unused, gnu::noinline]] inline void store_some(uint8_t* y, __m128i bytes, int64_t count) {
  uint8_t all[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(all), bytes);
  for (int64_t i = 0; i < count; ++i) y[i] = all[i];
}

[[maybe_unused]] inline void store(uint8_t* y, __m128i bytes, int64_t count) {
  if (count >= 16) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), bytes);
  } else if (count == 8) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(y), bytes);
  } else {
    store_some(y, bytes, count);
  }
}

// Sixteen results as int16, or the first `count` of them.
[[maybe_unused]] inline void store_words(uint8_t* y, __m256i words, const Scaling& to, int64_t count) {
  words = _mm256_max_epi16(words, _mm256_set1_epi16(static_cast<int16_t>(to.low)));
  words = _mm256_min_epi16(words, _mm256_set1_epi16(static_cast<int16_t>(to.high)));
  if (count == 16) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), words);
  int16_t all[16];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(all), words);
  std::memcpy(y, all, static_cast<size_t>(count) * sizeof(int16_t));
}

// Sixteen results, from words in order.
[[maybe_unused]] inline void store_sixteen(uint8_t* y, __m256i words, const Scaling&, const Bounds& bounds) {
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  store(y, clamp(bytes, bounds), 16);
}

[[maybe_unused]] inline void store_sixteen(int16_t* y, __m256i words, const Scaling& to, const Bounds&) {
  store_words(reinterpret_cast<uint8_t*>(y), words, to, 16);
}

}  // namespace
}  // namespace edgewright
