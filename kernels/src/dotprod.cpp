// The path of ARM cores with the dot product instructions: SDOT, four terms to a lane. Only this file is
// compiled with +dotprod.
#include "neon_dense.h"
#include "product_neon.h"

namespace edgewright {
namespace {

struct DotProduct {
  static constexpr int64_t kRows = 8, kPanel = 8, kStep = 4;
  static constexpr uint8_t kFlip = 0x80;

  template <int Rows>
  static void tile(const uint8_t* x, int64_t stride, int64_t terms, const int8_t* weight,
                   const Head<kPanel>& head, int32x4_t (&sums)[Rows][2]) {
    int32x4_t acc[Rows][2];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      acc[r][0] = vld1q_s32(head.bias);
      acc[r][1] = vld1q_s32(head.bias + 4);
    }
    int64_t t = 0;
    for (; t + 16 <= terms; t += 16, weight += 16 * kPanel) {
      int8x16_t seen[Rows];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) seen[r] = vreinterpretq_s8_u8(vld1q_u8(x + r * stride + t));
      four<Rows, 0>(seen, weight, acc);
      four<Rows, 1>(seen, weight, acc);
      four<Rows, 2>(seen, weight, acc);
      four<Rows, 3>(seen, weight, acc);
    }
    for (; t < terms; t += 4, weight += 4 * kPanel) {
      int8x16_t seen[Rows];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        uint32_t few;
        std::memcpy(&few, x + r * stride + t, sizeof few);
        seen[r] = vreinterpretq_s8_u32(vdupq_n_u32(few));
      }
      four<Rows, 0>(seen, weight, acc);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      sums[r][0] = acc[r][0];
      sums[r][1] = acc[r][1];
    }
  }

 private:
  // Terms 4 * Four to 4 * Four + 3 of the sixteen that lie in `seen`.
  template <int Rows, int Four>
  [[gnu::always_inline]] static void four(const int8x16_t (&seen)[Rows], const int8_t* weight,
                                          int32x4_t (&acc)[Rows][2]) {
    const int8x16_t first = vld1q_s8(weight + Four * 4 * kPanel);
    const int8x16_t second = vld1q_s8(weight + Four * 4 * kPanel + 16);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      acc[r][0] = vdotq_laneq_s32(acc[r][0], first, seen[r], Four);
      acc[r][1] = vdotq_laneq_s32(acc[r][1], second, seen[r], Four);
    }
  }
};

// UDOT: panels hold four terms of eight columns, and the next four, and so on.
struct ProductDots : ProductTilesArm<ProductDots>, ProductBytes {
  static constexpr int64_t kTerms = 16;

  static void pack_panel(const Product& op, const uint8_t* b, int64_t from, uint8_t* panel) {
    uint8_t* to = panel + kColumns * sizeof(int32_t);
    uint32x4_t low = vdupq_n_u32(0), high = low;
    const auto put = [&](uint32x4_t first, uint32x4_t second) {
      vst1q_u32(reinterpret_cast<uint32_t*>(to), first);
      vst1q_u32(reinterpret_cast<uint32_t*>(to) + 4, second);
      const uint8x16_t ones = vdupq_n_u8(1);
      low = vdotq_u32(low, vreinterpretq_u8_u32(first), ones);
      high = vdotq_u32(high, vreinterpretq_u8_u32(second), ones);
      to += 32;
    };
    const int64_t padded = (op.terms + kTerms - 1) / kTerms * kTerms;
    for (int64_t k = 0; k < padded; k += 8) {
      uint8x16_t x[4];  // two columns each: first and last four terms of one, then of the other
      load_block(op, b, from, k, false, 0, x);
      uint32x4_t columns[4];
      for (int i = 0; i < 4; ++i) columns[i] = vreinterpretq_u32_u8(x[i]);
      put(vuzp1q_u32(columns[0], columns[1]), vuzp1q_u32(columns[2], columns[3]));
      put(vuzp2q_u32(columns[0], columns[1]), vuzp2q_u32(columns[2], columns[3]));
    }
    put_start(op, low, high, panel);
  }

  template <int Rows>
  static void sums(const ProductTile<ProductDots>& tile, int32x4_t (&acc)[Rows][2]) {
    const uint8_t* b = tile.panel + kColumns * sizeof(int32_t);
    uint32x4_t all[Rows][2];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) all[r][0] = all[r][1] = vdupq_n_u32(0);
    for (int64_t k = 0; k < tile.bytes; k += 16, b += 128) {
      uint8x16_t seen[Rows];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) seen[r] = vld1q_u8(tile.a + r * tile.stride + k);
      four<Rows, 0>(seen, b, all);
      four<Rows, 1>(seen, b, all);
      four<Rows, 2>(seen, b, all);
      four<Rows, 3>(seen, b, all);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      acc[r][0] = vreinterpretq_s32_u32(all[r][0]);
      acc[r][1] = vreinterpretq_s32_u32(all[r][1]);
    }
  }

 private:
  template <int Rows, int Four>
  [[gnu::always_inline]] static void four(const uint8x16_t (&seen)[Rows], const uint8_t* b,
                                          uint32x4_t (&all)[Rows][2]) {
    const uint8x16_t first = vld1q_u8(b + 32 * Four), second = vld1q_u8(b + 32 * Four + 16);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      all[r][0] = vdotq_laneq_u32(all[r][0], first, seen[r], Four);
      all[r][1] = vdotq_laneq_u32(all[r][1], second, seen[r], Four);
    }
  }
};

}  // namespace

const Kernels& dotprod_kernels() {
  static const Kernels table = [] {
    Kernels made = arm_kernels_with<DotProduct>("dotprod");
    made.product = tiled_product_kernel<ProductDots>();
    return made;
  }();
  return table;
}

}  // namespace edgewright
