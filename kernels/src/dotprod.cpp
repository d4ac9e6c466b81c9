// The path of ARM cores with the dot product instructions: SDOT, four terms to a lane. Only this file is
// compiled with +dotprod.
#include "neon_dense.h"

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

}  // namespace

const Kernels& dotprod_kernels() {
  static const Kernels table = arm_kernels_with<DotProduct>("dotprod");
  return table;
}

}  // namespace edgewright
