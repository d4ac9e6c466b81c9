// Operators without weights, 256 bits at a time.
#pragma once

#include "simd256.h"

namespace edgewright {
namespace {

inline void add(const Addition& op, const uint8_t* a, const uint8_t* b, int64_t count, uint8_t* y) {
  const int64_t ma = op.multiplier[0], mb = op.multiplier[1];
  int64_t done = 0;
  // The vector loop keeps the low 32 bits of a result.
  if ((255 * (ma + mb)) >> op.shift < int64_t{1} << 30) {
    const uint64_t half = (uint64_t{1} << (op.shift - 1)) + (uint64_t{1} << 63) -
                          static_cast<uint64_t>(op.zero_point[0] * ma + op.zero_point[1] * mb);
    const __m256i halves = _mm256_set1_epi64x(static_cast<int64_t>(half));
    const __m256i by_a = _mm256_set1_epi64x(ma), by_b = _mm256_set1_epi64x(mb);
    const __m128i shift = _mm_cvtsi32_si128(op.shift);
    const __m256i offset =
        _mm256_set1_epi32(static_cast<int32_t>(static_cast<uint32_t>(op.scaling.zero_point) -
                                               static_cast<uint32_t>(uint64_t{1} << (63 - op.shift))));
    const Bounds bounds = bounds_of(op.scaling);
    const auto eight = [&](__m128i a8, __m128i b8) {
      const __m256i av = _mm256_cvtepu8_epi32(a8), bv = _mm256_cvtepu8_epi32(b8);
      __m256i even = _mm256_add_epi64(_mm256_mul_epi32(av, by_a), _mm256_mul_epi32(bv, by_b));
      __m256i odd = _mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64(av, 32), by_a),
                                     _mm256_mul_epi32(_mm256_srli_epi64(bv, 32), by_b));
      even = _mm256_srl_epi64(_mm256_add_epi64(even, halves), shift);
      odd = _mm256_srl_epi64(_mm256_add_epi64(odd, halves), shift);
      return _mm256_add_epi32(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA), offset);
    };
    for (; done + 16 <= count; done += 16) {
      const __m128i av = load_half(a + done), bv = load_half(b + done);
      const __m256i first = eight(av, bv), second = eight(_mm_srli_si128(av, 8), _mm_srli_si128(bv, 8));
      const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xD8);
      const __m128i bytes =
          _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
      store(y + done, clamp(bytes, bounds), 16);
    }
  }
  plain_add(op, a + done, b + done, count - done, y + done);
}

}  // namespace
}  // namespace edgewright
