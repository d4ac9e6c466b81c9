// The path of ARM cores with the int8 matrix instructions: USMMLA multiplies two rows of eight uint8 by two
// channels of eight int8, so activations are taken as they are. Only this file is compiled with +i8mm.
#include "neon_dense.h"
#include "product_neon.h"

namespace edgewright {
namespace {

struct MatrixMultiply {
  static constexpr int64_t kRows = 8, kPanel = 8, kStep = 8;
  static constexpr uint8_t kFlip = 0;

  template <int Rows>
  static void tile(const uint8_t* x, int64_t stride, int64_t terms, const int8_t* weight,
                   const Head<kPanel>& head, int32x4_t (&sums)[Rows][2]) {
    constexpr int kPairs = (Rows + 1) / 2;  // a lone row is its own partner
    int32x4_t acc[kPairs][4];               // two rows times two channels
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) acc[p][c] = vdupq_n_s32(0);
    }
    for (int64_t t = 0; t < terms; t += kStep, weight += kPanel * kStep) {
      uint8x16_t seen[kPairs];
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) {
        const uint8_t* row = x + 2 * p * stride + t;
        seen[p] = vcombine_u8(vld1_u8(row), vld1_u8(row + (Rows > 1 ? stride : 0)));
      }
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        const int8x16_t w = vld1q_s8(weight + 2 * c * kStep);
#pragma GCC unroll 4
        for (int p = 0; p < kPairs; ++p) acc[p][c] = vusmmlaq_s32(acc[p][c], seen[p], w);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const int64x2_t left = vreinterpretq_s64_s32(acc[r / 2][2 * v]);
        const int64x2_t right = vreinterpretq_s64_s32(acc[r / 2][2 * v + 1]);
        const int64x2_t row = r % 2 == 0 ? vzip1q_s64(left, right) : vzip2q_s64(left, right);
        sums[r][v] = vaddq_s32(vreinterpretq_s32_s64(row), vld1q_s32(head.bias + 4 * v));
      }
    }
  }
};

// UMMLA: panels hold eight terms of eight columns, and the next eight, and so on.
struct ProductMatrices : ProductTilesArm<ProductMatrices>, ProductBytes {
  static constexpr int64_t kTerms = 8;

  static void pack_panel(const Product& op, const uint8_t* b, int64_t from, uint8_t* panel) {
    uint8_t* to = panel + kColumns * sizeof(int32_t);
    const uint8x16_t ones = vdupq_n_u8(1);
    uint32x4_t halves[4];  // of the sums of two columns each
    for (uint32x4_t& half : halves) half = vdupq_n_u32(0);
    for (int64_t k = 0; k < op.terms; k += kTerms) {
      uint8x16_t x[4];
      load_block(op, b, from, k, false, 0, x);
      for (int i = 0; i < 4; ++i, to += 16) {
        vst1q_u8(to, x[i]);
        halves[i] = vdotq_u32(halves[i], x[i], ones);
      }
    }
    put_start(op, vpaddq_u32(halves[0], halves[1]), vpaddq_u32(halves[2], halves[3]), panel);
  }

  template <int Rows>
  static void sums(const ProductTile<ProductMatrices>& tile, int32x4_t (&acc)[Rows][2]) {
    constexpr int kPairs = (Rows + 1) / 2;  // a lone row is its own partner
    const uint8_t* b = tile.panel + kColumns * sizeof(int32_t);
    uint32x4_t all[kPairs][4];  // two rows times two columns
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) {
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) all[p][c] = vdupq_n_u32(0);
    }
    for (int64_t k = 0; k < tile.bytes; k += kTerms, b += 64) {
      uint8x16_t seen[kPairs];
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) {
        const uint8_t* row = tile.a + 2 * p * tile.stride + k;
        seen[p] = vcombine_u8(vld1_u8(row), vld1_u8(row + (2 * p + 1 < Rows ? tile.stride : 0)));
      }
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        const uint8x16_t columns = vld1q_u8(b + 16 * c);
#pragma GCC unroll 4
        for (int p = 0; p < kPairs; ++p) all[p][c] = vmmlaq_u32(all[p][c], seen[p], columns);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const int64x2_t left = vreinterpretq_s64_u32(all[r / 2][2 * v]);
        const int64x2_t right = vreinterpretq_s64_u32(all[r / 2][2 * v + 1]);
        acc[r][v] = vreinterpretq_s32_s64(r % 2 == 0 ? vzip1q_s64(left, right) : vzip2q_s64(left, right));
      }
    }
  }
};

}  // namespace

const Kernels& i8mm_kernels() {
  static const Kernels table = [] {
    Kernels made = arm_kernels_with<MatrixMultiply>("i8mm");
    made.product = tiled_product_kernel<ProductMatrices>();
    return made;
  }();
  return table;
}

}  // namespace edgewright
