// LayerNorm and Add, 512 bits at a time.
#pragma once

#include "elementwise256.h"
#include "layer_norm256.h"

namespace edgewright {
namespace {

// As in layer_norm256.h, eight values to a vector.
inline __m512i eight_longs(const uint8_t* x) {
  return _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x)));
}

inline __m512i eight_longs(const int16_t* x) { return _mm512_cvtepi16_epi64(load_half(x)); }

template <class X, class Y>
void layer_norm512(const Normalization& op, const uint8_t* x_bytes, int64_t rows, uint8_t* y_bytes) {
  if (!op.results_fit) return any_layer_norm<X, Y>(op, x_bytes, rows, y_bytes);
  const X* x = reinterpret_cast<const X*>(x_bytes);
  Y* y = reinterpret_cast<Y*>(y_bytes);
  const Scaling& to = op.scaling;
  const __m512i out_half = _mm512_set1_epi64(int64_t{1} << (to.shift[0] - 1));
  const __m512i out_shift = _mm512_set1_epi64(to.shift[0]), count = _mm512_set1_epi64(op.count);
  const __m512i zero_point = _mm512_set1_epi32(to.zero_point);
  const __m512i even_halves = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const Bounds bounds = bounds_of(to);
  const int64_t vectors = op.count / 16 * 16;
  for (int64_t row = 0; row < rows; ++row, x += op.count, y += op.count) {
    const auto sums = row_sums(x, op.count);
    const NormalizedRow by = normalized_row(op, sums.plain, sums.squares);
    const __m512i middle = _mm512_set1_epi64(by.middle), factor = _mm512_set1_epi64(by.factor);
    const __m512i half = _mm512_set1_epi64(int64_t{1} << (by.shift - 1));
    const __m512i shift = _mm512_set1_epi64(by.shift);
    const auto eight = [&](int64_t i) {
      const __m512i centred = _mm512_sub_epi64(_mm512_mul_epi32(eight_longs(x + i), count), middle);
      const __m512i t = _mm512_srav_epi64(_mm512_add_epi64(_mm512_mul_epi32(centred, factor), half), shift);
      const __m512i gain = _mm512_cvtepi32_epi64(load(op.gain + i));
      const __m512i offset = _mm512_add_epi64(_mm512_loadu_si512(op.offset + i), out_half);
      return _mm512_srav_epi64(_mm512_add_epi64(_mm512_mul_epi32(t, gain), offset), out_shift);
    };
    for (int64_t i = 0; i < vectors; i += 16) {
      const __m512i both = _mm512_permutex2var_epi32(eight(i), even_halves, eight(i + 8));
      store_sixteen(y + i, _mm512_cvtsepi32_epi16(_mm512_add_epi32(both, zero_point)), to, bounds);
    }
    for (int64_t i = vectors; i < op.count; ++i) y[i] = gained<Y>(op, normalized(op, by, x[i]), i);
  }
}

inline void add512(const Addition& op, const uint8_t* a, const uint8_t* b, int64_t count, uint8_t* y) {
  int64_t done = 0;
  if (words_suffice(op)) {
    const AddWords by = add_words(op);
    const __m512i low_pair = _mm512_set1_epi32(by.low_pair), high_pair = _mm512_set1_epi32(by.high_pair);
    const __m512i low_start = _mm512_set1_epi32(by.low_start), high_start = _mm512_set1_epi32(by.high_start);
    const __m128i shift = _mm_cvtsi32_si128(by.shift);
    const __m512i zero = _mm512_setzero_si512();
    const __m512i lowest = _mm512_set1_epi8(static_cast<char>(op.scaling.low));
    const __m512i highest = _mm512_set1_epi8(static_cast<char>(op.scaling.high));
    const auto sixteen = [&](__m512i pairs) {
      const __m512i low = _mm512_srai_epi32(_mm512_dpwssd_epi32(low_start, pairs, low_pair), 16);
      return _mm512_sra_epi32(_mm512_dpwssd_epi32(_mm512_add_epi32(low, high_start), pairs, high_pair),
                              shift);
    };
    for (; done + 64 <= count; done += 64) {
      const __m512i av = _mm512_loadu_si512(a + done), bv = _mm512_loadu_si512(b + done);
      const __m512i left = _mm512_unpacklo_epi8(av, bv), right = _mm512_unpackhi_epi8(av, bv);
      const __m512i first = _mm512_packs_epi32(sixteen(_mm512_unpacklo_epi8(left, zero)),
                                               sixteen(_mm512_unpackhi_epi8(left, zero)));
      const __m512i second = _mm512_packs_epi32(sixteen(_mm512_unpacklo_epi8(right, zero)),
                                                sixteen(_mm512_unpackhi_epi8(right, zero)));
      const __m512i bytes = _mm512_packus_epi16(first, second);
      _mm512_storeu_si512(y + done, _mm512_min_epu8(_mm512_max_epu8(bytes, lowest), highest));
    }
  }
  add(op, a + done, b + done, count - done, y + done);
}

}  // namespace
}  // namespace edgewright
