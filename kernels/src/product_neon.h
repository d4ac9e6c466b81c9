// What the ARM paths share in the product of two activations: tiles of 8 rows by 8 columns, b in blocks of
// eight by eight bytes, the way out.
#pragma once

#include "neon.h"
#include "product.h"

namespace edgewright {
namespace {

// `count` bytes at `at`, at most eight, the rest of `fill`.
inline uint8x8_t load_some(const uint8_t* at, int64_t count, uint8_t fill) {
  if (count >= 8) return vld1_u8(at);
  uint8_t all[8];
  std::memset(all, fill, sizeof all);
  if (count > 0) std::memcpy(all, at, static_cast<size_t>(count));
  return vld1_u8(all);
}

// Eight terms from `term` of eight columns from `from`, a column or (by_terms) a term to a register, those
// past the end of `fill`. Columns past the end are any.
inline void load_block(const Product& op, const uint8_t* b, int64_t from, int64_t term, bool by_terms,
                       uint8_t fill, uint8x16_t (&to)[4]) {
  uint8x8_t x[8];
  for (int64_t i = 0; i < 8; ++i) {
    if (op.transposed) {
      const int64_t column = smaller(from + i, op.columns - 1);
      x[i] = load_some(b + column * op.terms + term, op.terms - term, fill);
    } else {
      const int64_t count = term + i < op.terms ? op.columns - from : 0;
      x[i] = load_some(b + (term + i) * op.columns + from, count, fill);
    }
  }
  if (by_terms != op.transposed) {
    for (int i = 0; i < 4; ++i) to[i] = vcombine_u8(x[2 * i], x[2 * i + 1]);
    return;
  }
  const auto zip = [](uint8x8_t a, uint8x8_t c) { return vzip1q_u8(vcombine_u8(a, a), vcombine_u8(c, c)); };
  const uint8x16_t x04 = zip(x[0], x[4]), x26 = zip(x[2], x[6]);
  const uint8x16_t x15 = zip(x[1], x[5]), x37 = zip(x[3], x[7]);
  const uint8x16_t even[2] = {vzip1q_u8(x04, x26), vzip2q_u8(x04, x26)};
  const uint8x16_t odd[2] = {vzip1q_u8(x15, x37), vzip2q_u8(x15, x37)};
  for (int i = 0; i < 2; ++i) {
    to[2 * i] = vzip1q_u8(even[i], odd[i]);
    to[2 * i + 1] = vzip2q_u8(even[i], odd[i]);
  }
}

// Path::sums<Rows>(tile, acc): what the products of a tile add up to.
template <class Path>
struct ProductTilesArm {
  static constexpr int64_t kRows = 8, kColumns = 8;

  template <int Rows>
  static void tile(const ProductTile<Path>& tile) {
    int32x4_t acc[Rows][2];
    Path::template sums<Rows>(tile, acc);
    const Scaling& to = tile.op->scaling;
    const int32x4_t multiplier = vdupq_n_s32(to.multiplier[0]), shift = vdupq_n_s32(-to.shift[0]);
    const int32x4_t zero_point = vdupq_n_s32(to.zero_point);
    const int32_t* start = reinterpret_cast<const int32_t*>(tile.panel);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const int32x4_t row = vdupq_n_s32(tile.row_start[r]);
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const int32x4_t sum = vaddq_s32(vaddq_s32(acc[r][v], row), vld1q_s32(start + 4 * v));
        acc[r][v] = rescaled(sum, multiplier, shift, zero_point);
      }
      store(tile.y + r * tile.op->columns, clamp(narrow(acc[r][0], acc[r][1]), to), tile.used);
    }
  }
};

// For products of u8 by u8, with A the sum of a row of a, B that of a column of b, over K terms:
//
//   sum (a - za) (b - zb) = sum a b - zb A - za B + K za zb
//
// Each part may leave 32 bits, which wrap; the whole is known to fit. Terms that pad have b = 0.
struct ProductBytes {
  static constexpr int64_t kTermBytes = 1;

  template <class Tile>
  static void lay_out(const Product& op, const uint8_t* a, int64_t rows, uint8_t* to, Tile& tile) {
    const uint32_t za = static_cast<uint32_t>(op.zero_point[0]), zb = static_cast<uint32_t>(op.zero_point[1]);
    for (int64_t r = 0; r < rows && zb != 0; ++r) {
      const uint32_t all = static_cast<uint32_t>(op.terms) * za;
      tile.row_start[r] = static_cast<int32_t>(zb * (all - sum(a + r * op.terms, op.terms)));
    }
    const bool in_place = tile.bytes == op.terms;
    tile.a = in_place ? a : to;
    tile.stride = tile.bytes;
    for (int64_t r = 0; r < rows && !in_place; ++r, a += op.terms, to += tile.stride) {
      std::memcpy(to, a, static_cast<size_t>(op.terms));
      std::memset(to + op.terms, 0, static_cast<size_t>(tile.bytes - op.terms));
    }
  }

  // The start of eight columns.
  static void put_start(const Product& op, uint32x4_t low, uint32x4_t high, uint8_t* panel) {
    const int32_t by = -op.zero_point[0];
    int32_t* const start = reinterpret_cast<int32_t*>(panel);
    vst1q_s32(start, vmulq_n_s32(vreinterpretq_s32_u32(low), by));
    vst1q_s32(start + 4, vmulq_n_s32(vreinterpretq_s32_u32(high), by));
  }

 private:
  static uint32_t sum(const uint8_t* a, int64_t count) {
    uint32_t all = 0;
    int64_t k = 0;
    for (; k + 16 <= count; k += 16) all += vaddlvq_u8(vld1q_u8(a + k));
    for (; k < count; ++k) all += a[k];
    return all;
  }
};

}  // namespace
}  // namespace edgewright
