// The way into the integers, 256 bits at a time.
#pragma once

#include "simd256.h"

namespace edgewright {
namespace {

// What no vector holds saturates: upwards before it is rounded, downwards as VCVTPS2DQ makes -2^31 of it.
[[maybe_unused]] inline void quantize(const float* x, int64_t count, float scale, int32_t zero_point,
                                      uint8_t* y) {
  const __m256 by = _mm256_set1_ps(scale), most = _mm256_set1_ps(1024.0f);
  const __m256i offset = _mm256_set1_epi16(static_cast<int16_t>(zero_point));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const auto eight = [&](const float* at) {
    __m256 steps = _mm256_div_ps(_mm256_loadu_ps(at), by);
    steps = _mm256_and_ps(steps, _mm256_cmp_ps(steps, steps, _CMP_ORD_Q));  // NaN becomes 0
    return _mm256_cvtps_epi32(_mm256_min_ps(steps, most));                  // half to even
  };
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m256i low = _mm256_packs_epi32(eight(x + i), eight(x + i + 8));
    const __m256i high = _mm256_packs_epi32(eight(x + i + 16), eight(x + i + 24));
    const __m256i bytes =
        _mm256_packus_epi16(_mm256_adds_epi16(low, offset), _mm256_adds_epi16(high, offset));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i), _mm256_permutevar8x32_epi32(bytes, order));
  }
  plain_quantize(x + i, count - i, scale, zero_point, y + i);
}

// Bytes 16 * Part .. 16 * Part + 15 of sixteen pixels of three bytes: where VPSHUFB finds those of one
// channel.
template <int Part, int Channel>
__m256i deal() {
  const auto from = [](int byte) -> char {
    const int at = 16 * Part + byte;
    return static_cast<char>(at % 3 == Channel ? at / 3 : -1);
  };
  return _mm256_broadcastsi128_si256(_mm_setr_epi8(from(0), from(1), from(2), from(3), from(4), from(5),
                                                   from(6), from(7), from(8), from(9), from(10), from(11),
                                                   from(12), from(13), from(14), from(15)));
}

template <int Part>
__m256i dealt(const __m256i (&x)[3]) {
  return _mm256_or_si256(
      _mm256_or_si256(_mm256_shuffle_epi8(x[0], deal<Part, 0>()), _mm256_shuffle_epi8(x[1], deal<Part, 1>())),
      _mm256_shuffle_epi8(x[2], deal<Part, 2>()));
}

// Sixteen pixels in the low halves, the next sixteen in the high ones.
[[maybe_unused]] inline void interleave(const uint8_t* x, int64_t count, uint8_t* y) {
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m256i planes[3] = {load(x + i), load(x + count + i), load(x + 2 * count + i)};
    const __m256i parts[3] = {dealt<0>(planes), dealt<1>(planes), dealt<2>(planes)};
#pragma GCC unroll 3
    for (int part = 0; part < 3; ++part) {
      store(y + 3 * i + 16 * part, _mm256_castsi256_si128(parts[part]), 16);
      store(y + 3 * i + 48 + 16 * part, _mm256_extracti128_si256(parts[part], 1), 16);
    }
  }
  plain_interleave(x, count, i, y);
}

}  // namespace
}  // namespace edgewright
