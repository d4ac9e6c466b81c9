// The path of every 64-bit ARM: SMULL, SMLAL and SADALP. Exact over the full range: two products of [-128,
// 127] and [-127, 127] are at most 32,512 and fit 16 bits.
#include "neon_dense.h"
#include "product_neon.h"

namespace edgewright {
namespace {

struct Neon {
  static constexpr int64_t kRows = 4, kPanel = 4, kStep = 16;
  static constexpr uint8_t kFlip = 0x80;

  template <int Rows>
  static void tile(const uint8_t* x, int64_t stride, int64_t terms, const int8_t* weight,
                   const Head<kPanel>& head, int32x4_t (&sums)[Rows][1]) {
    int32x4_t acc[Rows][kPanel];  // four partial sums of one row and channel
    for (int r = 0; r < Rows; ++r) {
      for (int c = 0; c < kPanel; ++c) acc[r][c] = vdupq_n_s32(0);
    }
    for (int64_t t = 0; t < terms; t += kStep, weight += kPanel * kStep) {
      int8x16_t seen[Rows];
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) seen[r] = vreinterpretq_s8_u8(vld1q_u8(x + r * stride + t));
#pragma GCC unroll 4
      for (int c = 0; c < kPanel; ++c) {
        const int8x16_t w = vld1q_s8(weight + c * kStep);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
          const int16x8_t low = vmull_s8(vget_low_s8(seen[r]), vget_low_s8(w));
          acc[r][c] = vpadalq_s16(acc[r][c], vmlal_high_s8(low, seen[r], w));
        }
      }
    }
    const int32x4_t bias = vld1q_s32(head.bias);
    for (int r = 0; r < Rows; ++r) {
      const int32x4_t low = vpaddq_s32(acc[r][0], acc[r][1]), high = vpaddq_s32(acc[r][2], acc[r][3]);
      sums[r][0] = vaddq_s32(vpaddq_s32(low, high), bias);
    }
  }
};

// Both as 16-bit words without their zero points, at most 255 in magnitude.
struct ProductWords : ProductTilesArm<ProductWords> {
  static constexpr int64_t kTerms = 8, kTermBytes = 2;

  static int16x8_t centred(uint8x8_t bytes, int32_t zero_point) {
    return vreinterpretq_s16_u16(vsubl_u8(bytes, vdup_n_u8(static_cast<uint8_t>(zero_point))));
  }

  static void pack_panel(const Product& op, const uint8_t* b, int64_t from, uint8_t* panel) {
    std::memset(panel, 0, kColumns * sizeof(int32_t));
    int16_t* to = reinterpret_cast<int16_t*>(panel + kColumns * sizeof(int32_t));
    for (int64_t k = 0; k < op.terms; k += kTerms) {
      uint8x16_t x[4];
      load_block(op, b, from, k, true, static_cast<uint8_t>(op.zero_point[1]), x);
      for (int i = 0; i < 4; ++i, to += 16) {
        vst1q_s16(to, centred(vget_low_u8(x[i]), op.zero_point[1]));
        vst1q_s16(to + 8, centred(vget_high_u8(x[i]), op.zero_point[1]));
      }
    }
  }

  static void lay_out(const Product& op, const uint8_t* a, int64_t rows, uint8_t* to,
                      ProductTile<ProductWords>& tile) {
    const uint8_t fill = static_cast<uint8_t>(op.zero_point[0]);
    tile.a = to;
    tile.stride = tile.bytes;
    for (int64_t r = 0; r < rows; ++r, a += op.terms) {
      for (int64_t k = 0; k < op.terms; k += kTerms, to += 16) {
        const uint8x8_t bytes = load_some(a + k, op.terms - k, fill);
        vst1q_s16(reinterpret_cast<int16_t*>(to), centred(bytes, op.zero_point[0]));
      }
    }
  }

  template <int Rows>
  static void sums(const ProductTile<ProductWords>& tile, int32x4_t (&acc)[Rows][2]) {
    const int16_t* b = reinterpret_cast<const int16_t*>(tile.panel + kColumns * sizeof(int32_t));
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) acc[r][0] = acc[r][1] = vdupq_n_s32(0);
    for (int64_t k = 0; k < tile.bytes; k += 16, b += 64) {
      int16x8_t seen[Rows];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        seen[r] = vld1q_s16(reinterpret_cast<const int16_t*>(tile.a + r * tile.stride + k));
      }
      term<Rows, 0>(seen, b, acc);
      term<Rows, 1>(seen, b, acc);
      term<Rows, 2>(seen, b, acc);
      term<Rows, 3>(seen, b, acc);
      term<Rows, 4>(seen, b, acc);
      term<Rows, 5>(seen, b, acc);
      term<Rows, 6>(seen, b, acc);
      term<Rows, 7>(seen, b, acc);
    }
  }

 private:
  template <int Rows, int Term>
  [[gnu::always_inline]] static void term(const int16x8_t (&seen)[Rows], const int16_t* b,
                                          int32x4_t (&acc)[Rows][2]) {
    const int16x8_t w = vld1q_s16(b + 8 * Term);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      acc[r][0] = vmlal_laneq_s16(acc[r][0], vget_low_s16(w), seen[r], Term);
      acc[r][1] = vmlal_high_laneq_s16(acc[r][1], w, seen[r], Term);
    }
  }
};

}  // namespace

const Kernels& neon_kernels() {
  static const Kernels table = [] {
    Kernels made = arm_kernels_with<Neon>("neon");
    made.product = tiled_product_kernel<ProductWords>();
    return made;
  }();
  return table;
}

}  // namespace edgewright
