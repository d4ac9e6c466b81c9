// The path of every 64-bit ARM: SMULL, SMLAL and SADALP. Exact over the full range: two products of [-128,
// 127] and [-127, 127] are at most 32,512 and fit 16 bits.
#include "neon_dense.h"

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

}  // namespace

const Kernels& neon_kernels() {
  static const Kernels table = arm_kernels_with<Neon>("neon");
  return table;
}

}  // namespace edgewright
