// A table of 256 bytes, 32 values at a time.
#pragma once

#include "simd256.h"

namespace edgewright {
namespace {

// vpshufb picks from sixteen bytes by the low half of an index, and gives 0 where its highest bit is set. So
// the table goes by sixteens, each but the first of a half as what it differs from the one before (exclusive
// or): value x takes those up to its own. What is left of x after 16 was taken off so many times is below 0,
// and stays there, from the sixteen after its own on.
[[maybe_unused]] inline void lookup(const uint8_t* table, const uint8_t* x, int64_t count, uint8_t* y) {
  int64_t i = 0;
  if (count >= 32) {
    __m256i change[16];
    for (int t = 0; t < 16; ++t) {
      __m128i sixteen = load_half(table + 16 * t);
      if (t % 8 != 0) sixteen = _mm_xor_si128(sixteen, load_half(table + 16 * (t - 1)));
      change[t] = _mm256_broadcastsi128_si256(sixteen);
    }
    const __m256i step = _mm256_set1_epi8(16), top = _mm256_set1_epi8(static_cast<char>(0x80));
    // The last 32 values may be seen twice; y is not x, so that changes nothing.
    for (; i < count; i += 32) {
      const int64_t at = smaller(i, count - 32);
      __m256i low = load(x + at), high = _mm256_xor_si256(low, top);
      __m256i found = _mm256_shuffle_epi8(change[0], low), other = _mm256_shuffle_epi8(change[8], high);
#pragma GCC unroll 8
      for (int t = 1; t < 8; ++t) {
        low = _mm256_subs_epi8(low, step);
        high = _mm256_subs_epi8(high, step);
        found = _mm256_xor_si256(found, _mm256_shuffle_epi8(change[t], low));
        other = _mm256_xor_si256(other, _mm256_shuffle_epi8(change[8 + t], high));
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + at), _mm256_xor_si256(found, other));
    }
    return;
  }
  plain_lookup(table, x, count, y);
}

}  // namespace
}  // namespace edgewright
