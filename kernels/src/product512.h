// The product of two activations in tiles of 12 rows by 32 columns, 512 bits at a time.
#pragma once

#include "product_vnni.h"

namespace edgewright {
namespace {

struct Uniform512 {
  __m512i multiplier, half, shift, lift;
};

inline Uniform512 uniform512(const Scaling& to) {
  Factor by = raised(to.multiplier[0], to.shift[0]);
  const int32_t lift = lift_of(by.shift);
  by.shift += lift;
  return {_mm512_set1_epi32(by.multiplier),
          _mm512_set1_epi64((int64_t{1} << (by.shift - 1)) + (int64_t{to.zero_point} << by.shift)),
          _mm512_set1_epi32(by.shift - 32), _mm512_set1_epi32(lift)};
}

// As in simd256.h.
inline __m512i lifted(__m512i acc, __m512i lift) {
  const __m512i most =
      _mm512_mask_set1_epi32(_mm512_set1_epi32(1 << 17), _mm512_testn_epi32_mask(lift, lift), 0x7FFFFFFF);
  const __m512i least = _mm512_xor_si512(most, _mm512_set1_epi32(-1));
  return _mm512_sllv_epi32(_mm512_max_epi32(_mm512_min_epi32(acc, most), least), lift);
}

inline __m512i requantize_lanes(__m512i acc, const Uniform512& by) {
  const __m512i even = _mm512_add_epi64(_mm512_mul_epi32(acc, by.multiplier), by.half);
  const __m512i odd = _mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64(acc, 32), by.multiplier), by.half);
  return _mm512_srav_epi32(_mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB), by.shift);
}

struct ProductVnni512 : FourByteColumns<Order32, 32> {
  static constexpr int64_t kRows = 12, kColumns = 32;

  template <int Rows>
  static void tile(const ProductTile<ProductVnni512>& tile) {
    const uint8_t* panel = tile.panel + kColumns * sizeof(int32_t);
    const uint8_t* a = tile.a;
    const int64_t stride = tile.stride;
    __m512i acc[Rows][2];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const __m512i start = _mm512_set1_epi32(tile.row_start[r]);
      acc[r][0] = _mm512_add_epi32(_mm512_loadu_si512(tile.panel), start);
      acc[r][1] = _mm512_add_epi32(_mm512_loadu_si512(tile.panel + 64), start);
    }
    for (const uint8_t* const end = a + tile.bytes; a < end; a += 4, panel += 128) {
      const __m512i left = _mm512_loadu_si512(panel), right = _mm512_loadu_si512(panel + 64);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        int32_t four;
        std::memcpy(&four, a + r * stride, sizeof four);
        const __m512i seen = _mm512_set1_epi32(four);
        acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], seen, left);
        acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], seen, right);
        asm("" : "+v"(acc[r][0]), "+v"(acc[r][1]));  // gcc 12 spills the tile without it
      }
    }
    const Scaling& to = tile.op->scaling;
    const int64_t y_stride = tile.op->columns;
    if (tile.op->y_item == 2 || !fits_high_half(to, 0)) {
      alignas(64) int32_t sums[Rows][kColumns];
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        _mm512_store_si512(sums[r], acc[r][0]);
        _mm512_store_si512(sums[r] + 16, acc[r][1]);
      }
      return put_from_memory(tile, Rows, sums[0]);
    }
    const Uniform512 by = uniform512(to);
    const __m512i lowest = _mm512_set1_epi8(static_cast<char>(to.low));
    const __m512i highest = _mm512_set1_epi8(static_cast<char>(to.high));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __mmask32 some = static_cast<__mmask32>((uint64_t{1} << tile.used) - 1);
    // Two rows at a time; a lone row is its own partner.
#pragma GCC unroll 16
    for (int r = 0; r < Rows; r += 2) {
      const int next = r + 1 < Rows ? r + 1 : r;
      const __m512i first =
          _mm512_packs_epi32(requantize_lanes(acc[r][0], by), requantize_lanes(acc[r][1], by));
      const __m512i second =
          _mm512_packs_epi32(requantize_lanes(acc[next][0], by), requantize_lanes(acc[next][1], by));
      __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second));
      bytes = _mm512_min_epu8(_mm512_max_epu8(bytes, lowest), highest);
      _mm256_mask_storeu_epi8(tile.y + r * y_stride, some, _mm512_castsi512_si256(bytes));
      _mm256_mask_storeu_epi8(tile.y + next * y_stride, some, _mm512_extracti64x4_epi64(bytes, 1));
    }
  }

  // As in dense.h, out of line.
  [[gnu::noinline]] static void put_from_memory(const ProductTile<ProductVnni512>& tile, int64_t rows,
                                                const int32_t* sums) {
    const Scaling& to = tile.op->scaling;
    const int64_t y_item = tile.op->y_item;
    const bool words = y_item == 2 && fits_lifted(to, 0);
    const Uniform512 by = words ? uniform512(to) : Uniform512{};
    uint8_t* y = tile.y;
    for (int64_t r = 0; r < rows; ++r, y += tile.op->columns * y_item, sums += kColumns) {
      if (!words) {
        for (int64_t n = 0; n < tile.used; ++n) put_any(sums[n], to, 0, y_item, y, n);
        continue;
      }
      for (int64_t n = 0; n < tile.used; n += 16) {
        const __m512i results = requantize_lanes(lifted(_mm512_load_si512(sums + n), by.lift), by);
        store_words(y + n * 2, _mm512_cvtsepi32_epi16(results), to, smaller(tile.used - n, 16));
      }
    }
  }
};

}  // namespace
}  // namespace edgewright
