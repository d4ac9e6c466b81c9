// AVX2's way with the product of two activations: both as 16-bit words without their zero points, at most 255
// in magnitude, so that vpmaddwd is exact.
#pragma once

#include "product256.h"

namespace edgewright {
namespace {

struct ProductPairs : ProductTiles256<ProductPairs> {
  static constexpr int64_t kTerms = 2, kTermBytes = 2;

  static __m256i add(__m256i acc, __m256i x, __m256i w) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(x, w));
  }

  static __m256i centred(__m128i bytes, __m256i zero_point) {
    return _mm256_sub_epi16(_mm256_cvtepu8_epi16(bytes), zero_point);
  }

  static void pack_panel(const Product& op, const uint8_t* b, int64_t from, uint8_t* panel) {
    std::memset(panel, 0, kColumns * sizeof(int32_t));
    panel += kColumns * sizeof(int32_t);
    const uint8_t fill = static_cast<uint8_t>(op.zero_point[1]);
    const __m256i zero_point = _mm256_set1_epi16(static_cast<int16_t>(op.zero_point[1]));
    __m256i* to = reinterpret_cast<__m256i*>(panel);
    if (!op.transposed) {
      const int64_t used = smaller(op.columns - from, kColumns);
      const uint8_t* row = b + from;
      for (int64_t k = 0; k < op.terms; k += 2, row += 2 * op.columns, to += 2) {
        const __m256i even = centred(load_some(row, used, fill), zero_point);
        const __m256i odd =
            centred(load_some(row + op.columns, k + 1 < op.terms ? used : 0, fill), zero_point);
        _mm256_storeu_si256(to, _mm256_unpacklo_epi16(even, odd));
        _mm256_storeu_si256(to + 1, _mm256_unpackhi_epi16(even, odd));
      }
      return;
    }
    const int64_t pairs = (op.terms + 1) / 2;
    for (int64_t half = 0; half < 2; ++half) {
      for (int64_t k = 0; k < op.terms; k += 8) {
        __m256i x[4];
#pragma GCC unroll 4
        for (int64_t i = 0; i < 4; ++i) {
          const int64_t low = from + 4 * half + i, last = op.columns - 1;
          const __m128i first = eight(b + smaller(low, last) * op.terms + k, op.terms - k, fill);
          const __m128i second = eight(b + smaller(low + 8, last) * op.terms + k, op.terms - k, fill);
          x[i] = centred(_mm_unpacklo_epi64(first, second), zero_point);
        }
        transpose_lanes(x);
        for (int64_t i = 0; i < smaller(4, pairs - k / 2); ++i) {
          _mm256_storeu_si256(to + (k / 2 + i) * 2 + half, x[i]);
        }
      }
    }
  }

  static void lay_out(const Product& op, const uint8_t* a, int64_t rows, uint8_t* to,
                      ProductTile<ProductPairs>& tile) {
    const __m256i zero_point = _mm256_set1_epi16(static_cast<int16_t>(op.zero_point[0]));
    const uint8_t fill = static_cast<uint8_t>(op.zero_point[0]);
    tile.a = to;
    tile.stride = tile.bytes;
    for (int64_t r = 0; r < rows; ++r, to += tile.stride) {
      int64_t k = 0;
      for (; k + 16 <= op.terms; k += 16, a += 16) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * k), centred(load_half(a), zero_point));
      }
      if (k < op.terms) {
        uint8_t words[32];
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(words),
                            centred(load_some(a, op.terms - k, fill), zero_point));
        std::memcpy(to + 2 * k, words, static_cast<size_t>(tile.bytes - 2 * k));
        a += op.terms - k;
      }
    }
  }

 private:
  // `count` bytes, at most eight.
  static __m128i eight(const uint8_t* at, int64_t count, uint8_t fill) {
    return count >= 8 ? _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)) : load_some(at, count, fill);
  }
};

}  // namespace
}  // namespace edgewright
