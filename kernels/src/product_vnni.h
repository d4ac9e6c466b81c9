// The product of two activations with VNNI, which multiplies u8 by s8: b' = b - 128 takes the place of b, and
// with A the sum of a row of a, B that of a column of b', over K terms
//
//   sum (a - za) (b - zb) = sum a b' + (128 - zb) (A - K za) - za B
//
// Each part may leave 32 bits, which wrap; the whole is known to fit. Terms that pad have b' = 0.
#pragma once

#include "product256.h"

namespace edgewright {
namespace {

// Where a panel's vectors of eight columns have their first four columns and, so many columns on, the others;
// and of which fours of sixteen columns the first two vectors are made.
struct Order16 {  // as `narrow` takes them
  static constexpr int64_t kStep = 4, kApart = 8;
  static constexpr int kFirst[2] = {0, 2}, kSecond[2] = {1, 3};
};
struct Order32 {  // one after the other
  static constexpr int64_t kStep = 8, kApart = 4;
  static constexpr int kFirst[2] = {0, 1}, kSecond[2] = {2, 3};
};

// Packs panels of `Columns` columns for 4-byte lanes.
template <class Order, int64_t Columns>
struct FourByteColumns {
  static constexpr int64_t kTerms = 4, kTermBytes = 1;
  static constexpr int64_t kVectors = Columns / 8;

  static void pack_panel(const Product& op, const uint8_t* b, int64_t from, uint8_t* panel) {
    __m256i* const to = reinterpret_cast<__m256i*>(panel + Columns * sizeof(int32_t));
    __m256i sums[kVectors] = {};
    if (op.transposed) {
      for (int64_t v = 0; v < kVectors; ++v) sums[v] = columns(op, b, from, v, to);
    } else {
      for (int64_t v = 0; v < kVectors; v += 2) {
        const int64_t first = from + 8 * v, used = op.columns - first;
        if (used >= 16) {
          rows<true>(op, b + first, used, to + v, sums + v);
        } else if (used > 0) {
          rows<false>(op, b + first, used, to + v, sums + v);
        }
      }
    }
    const __m256i by = _mm256_set1_epi32(-op.zero_point[0]);
    for (int64_t v = 0; v < kVectors; ++v) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(panel) + v, _mm256_mullo_epi32(sums[v], by));
    }
  }

  // Rows of a, as they are where they fill whole lanes.
  template <class Tile>
  static void lay_out(const Product& op, const uint8_t* a, int64_t rows, uint8_t* to, Tile& tile) {
    const uint32_t lift = 128u - static_cast<uint32_t>(op.zero_point[1]);
    const uint32_t none = static_cast<uint32_t>(op.terms) * static_cast<uint32_t>(op.zero_point[0]);
    for (int64_t r = 0; r < rows && lift != 0; ++r) {
      tile.row_start[r] = static_cast<int32_t>(lift * (sum(a + r * op.terms, op.terms) - none));
    }
    const bool in_place = tile.bytes == op.terms;
    tile.a = in_place ? a : to;
    tile.stride = tile.bytes;
    for (int64_t r = 0; r < rows && !in_place; ++r, a += op.terms, to += tile.stride) {
      std::memset(to + tile.bytes - 4, 0, 4);
      std::memcpy(to, a, static_cast<size_t>(op.terms));
    }
  }

 private:
  static constexpr uint8_t kNone = 128;

  static uint32_t sum(const uint8_t* a, int64_t count) {
    const __m128i zero = _mm_setzero_si128();
    __m128i sums = zero;
    int64_t k = 0;
    for (; k + 16 <= count; k += 16) sums = _mm_add_epi64(sums, _mm_sad_epu8(load_half(a + k), zero));
    if (k < count) sums = _mm_add_epi64(sums, _mm_sad_epu8(load_some(a + k, count - k, 0), zero));
    sums = _mm_add_epi64(sums, _mm_srli_si128(sums, 8));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(sums));
  }

  // b' of eight columns goes to vector v of every four terms. Gives the sums of the columns.
  static __m256i put(__m256i x, __m256i* to, __m256i sum) {
    x = _mm256_xor_si256(x, _mm256_set1_epi8(static_cast<char>(kNone)));
    _mm256_storeu_si256(to, x);
    return Vnni::add(sum, _mm256_set1_epi8(1), x);
  }

  // b is (columns, terms).
  static __m256i columns(const Product& op, const uint8_t* b, int64_t from, int64_t v, __m256i* to) {
    const uint8_t *low[4], *high[4];
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t column = from + v * Order::kStep + i, last = op.columns - 1;
      low[i] = b + smaller(column, last) * op.terms;
      high[i] = b + smaller(column + Order::kApart, last) * op.terms;
    }
    __m256i sum = _mm256_setzero_si256();
    int64_t k = 0;
    to += v;
    for (; k + 16 <= op.terms; k += 16) {
      __m256i x[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) x[i] = _mm256_set_m128i(load_half(high[i] + k), load_half(low[i] + k));
      transpose_lanes(x);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i, to += kVectors) sum = put(x[i], to, sum);
    }
    if (k == op.terms) return sum;
    const int64_t left = op.terms - k;
    __m256i x[4];
    for (int i = 0; i < 4; ++i) {
      x[i] = _mm256_set_m128i(load_some(high[i] + k, left, kNone), load_some(low[i] + k, left, kNone));
    }
    transpose_lanes(x);
    for (int i = 0; 4 * i < left; ++i, to += kVectors) sum = put(x[i], to, sum);
    return sum;
  }

  // b is (terms, columns): sixteen of its columns, or `used` of them, go to two vectors of every four terms.
  template <bool Whole>
  static void rows(const Product& op, const uint8_t* b, int64_t used, __m256i* to, __m256i* sums) {
    const auto row = [&](int64_t k) {
      if (Whole && k < op.terms) return load_half(b + k * op.columns);
      return load_some(b + k * op.columns, k < op.terms ? used : 0, kNone);
    };
    __m256i first = sums[0], second = sums[1];
    for (int64_t k = 0; k < op.terms; k += 8) {
      __m256i x[4];  // four terms in the low half, the next four in the high one
#pragma GCC unroll 4
      for (int64_t i = 0; i < 4; ++i) x[i] = _mm256_set_m128i(row(k + 4 + i), row(k + i));
      const __m256i low01 = _mm256_unpacklo_epi8(x[0], x[1]), high01 = _mm256_unpackhi_epi8(x[0], x[1]);
      const __m256i low23 = _mm256_unpacklo_epi8(x[2], x[3]), high23 = _mm256_unpackhi_epi8(x[2], x[3]);
      const __m256i four[4] = {_mm256_unpacklo_epi16(low01, low23), _mm256_unpackhi_epi16(low01, low23),
                               _mm256_unpacklo_epi16(high01, high23), _mm256_unpackhi_epi16(high01, high23)};
      const __m256i &a = four[Order::kFirst[0]], &c = four[Order::kFirst[1]];
      const __m256i &d = four[Order::kSecond[0]], &e = four[Order::kSecond[1]];
      first = put(_mm256_permute2x128_si256(a, c, 0x20), to, first);
      second = put(_mm256_permute2x128_si256(d, e, 0x20), to + 1, second);
      to += kVectors;
      if (k + 4 >= op.terms) break;
      first = put(_mm256_permute2x128_si256(a, c, 0x31), to, first);
      second = put(_mm256_permute2x128_si256(d, e, 0x31), to + 1, second);
      to += kVectors;
    }
    sums[0] = first;
    sums[1] = second;
  }
};

struct ProductVnni : ProductTiles256<ProductVnni>, FourByteColumns<Order16, 16> {
  static __m256i add(__m256i acc, __m256i x, __m256i w) { return Vnni::add(acc, x, w); }
};

}  // namespace
}  // namespace edgewright
