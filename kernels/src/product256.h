// The product of two activations in tiles of 6 rows by 16 columns: on 16-bit pairs with AVX2, on four bytes
// with VNNI. Columns lie in two vectors as simd256.h's `narrow` takes them.
#pragma once

#include "product.h"
#include "simd256.h"

namespace edgewright {
namespace {

// Dot::add(acc, x, w) as in dense256.h: each lane gains the product of four bytes, or of two words.
template <class Dot>
struct ProductTiles256 {
  static constexpr int64_t kRows = 6, kColumns = 16;

  template <int Rows>
  static void tile(const ProductTile<Dot>& tile) {
    const uint8_t* panel = tile.panel + kColumns * sizeof(int32_t);
    const uint8_t* a = tile.a;
    const int64_t stride = tile.stride;
    __m256i acc[Rows][2];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const __m256i start = _mm256_set1_epi32(tile.row_start[r]);
      acc[r][0] = _mm256_add_epi32(load(tile.panel), start);
      acc[r][1] = _mm256_add_epi32(load(tile.panel + 32), start);
    }
    for (const uint8_t* const end = a + tile.bytes; a < end; a += 4, panel += 64) {
      const __m256i left = load(panel), right = load(panel + 32);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        int32_t four;
        std::memcpy(&four, a + r * stride, sizeof four);
        const __m256i seen = _mm256_set1_epi32(four);
        acc[r][0] = Dot::add(acc[r][0], seen, left);
        acc[r][1] = Dot::add(acc[r][1], seen, right);
        asm("" : "+x"(acc[r][0]), "+x"(acc[r][1]));  // gcc 12 spills the tile without it
      }
    }
    const Scaling& to = tile.op->scaling;
    const int64_t y_stride = tile.op->columns;
    if (tile.op->y_item == 2 || !fits_high_half(to, 0)) {
      alignas(32) int32_t sums[Rows][kColumns];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(sums[r]), acc[r][0]);
        _mm256_store_si256(reinterpret_cast<__m256i*>(sums[r] + 8), acc[r][1]);
      }
      return put_from_memory(tile, Rows, sums[0]);
    }
    const Uniform256 by = uniform256(to);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const __m128i bytes = narrow(requantize_lanes(acc[r][0], by), requantize_lanes(acc[r][1], by));
      store(tile.y + r * y_stride, clamp(bytes, by.bounds), tile.used);
    }
  }

  // As in dense.h, out of line.
  [[gnu::noinline]] static void put_from_memory(const ProductTile<Dot>& tile, int64_t rows,
                                                const int32_t* sums) {
    const Scaling& to = tile.op->scaling;
    const int64_t y_item = tile.op->y_item;
    const bool words = y_item == 2 && fits_lifted(to, 0);
    const Uniform256 by = words ? uniform256(to) : Uniform256{};
    uint8_t* y = tile.y;
    for (int64_t r = 0; r < rows; ++r, y += tile.op->columns * y_item, sums += kColumns) {
      if (words) {
        const __m256i first = requantize_lanes(lifted(load(sums), by.lift), by),
                      second = requantize_lanes(lifted(load(sums + 8), by.lift), by);
        store_words(y, _mm256_packs_epi32(first, second), to, tile.used);
        continue;
      }
      for (int64_t n = 0; n < tile.used; ++n) {
        put_any(sums[8 * vector_of(n) + lane_of(n)], to, 0, y_item, y, n);
      }
    }
  }
};

// ---- b in columns of four-byte lanes ----

// Four columns in the low half and four in the high one, four lanes of each, become four vectors, each with
// one lane of every column.
[[maybe_unused]] inline void transpose_lanes(__m256i (&x)[4]) {
  const __m256i low01 = _mm256_unpacklo_epi32(x[0], x[1]), high01 = _mm256_unpackhi_epi32(x[0], x[1]);
  const __m256i low23 = _mm256_unpacklo_epi32(x[2], x[3]), high23 = _mm256_unpackhi_epi32(x[2], x[3]);
  x[0] = _mm256_unpacklo_epi64(low01, low23);
  x[1] = _mm256_unpackhi_epi64(low01, low23);
  x[2] = _mm256_unpacklo_epi64(high01, high23);
  x[3] = _mm256_unpackhi_epi64(high01, high23);
}

// `count` bytes at `at`, at most 16, the rest of `fill`.
[[maybe_unused]] inline __m128i load_some(const uint8_t* at, int64_t count, uint8_t fill) {
  if (count >= 16) return load_half(at);
  uint8_t all[16];
  std::memset(all, fill, sizeof all);
  if (count > 0) std::memcpy(all, at, static_cast<size_t>(count));
  return load_half(all);
}

}  // namespace
}  // namespace edgewright
