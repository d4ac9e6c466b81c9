// Operators without weights that gain from NEON by hand: tables, Softmax, LayerNorm.
#pragma once

#include "neon.h"

namespace edgewright {
namespace {

// TBX picks from 64 bytes, and leaves alone what lies beyond them.
inline void lookup(const uint8_t* table, const uint8_t* x, int64_t count, uint8_t* y) {
  int64_t i = 0;
  if (count >= 16) {
    uint8x16x4_t quarter[4];
    for (int q = 0; q < 4; ++q) quarter[q] = vld1q_u8_x4(table + 64 * q);
    const uint8x16_t step = vdupq_n_u8(64);
    // The last sixteen values may be seen twice; y is not x, so that changes nothing.
    for (; i < count; i += 16) {
      const int64_t at = smaller(i, count - 16);
      uint8x16_t left = vld1q_u8(x + at), found = vqtbl4q_u8(quarter[0], left);
      for (int q = 1; q < 4; ++q) {
        left = vsubq_u8(left, step);
        found = vqtbx4q_u8(found, quarter[q], left);
      }
      vst1q_u8(y + at, found);
    }
    return;
  }
  plain_lookup(table, x, count, y);
}

// ---- Softmax ----

constexpr int64_t kMostExponentials = 2048;  // of one row, kept on the stack

// The largest value that is kept, 0 where none is.
inline int32_t largest(const Exponentials& op, const uint8_t* x, const uint8_t* mask) {
  int64_t i = 0;
  int32_t top = 0;
  if (op.count >= 16) {
    const uint8x16_t masked = vdupq_n_u8(static_cast<uint8_t>(op.masked));
    uint8x16_t best = vdupq_n_u8(0);
    for (; i < op.count; i += 16) {
      const int64_t at = smaller(i, op.count - 16);
      uint8x16_t seen = vld1q_u8(x + at);
      if (mask != nullptr) seen = vbicq_u8(seen, vceqq_u8(vld1q_u8(mask + at), masked));
      best = vmaxq_u8(best, seen);
    }
    return vmaxvq_u8(best);
  }
  for (; i < op.count; ++i) {
    const bool kept = mask == nullptr || mask[i] != op.masked;
    top = kept && x[i] > top ? x[i] : top;
  }
  return top;
}

inline void softmax(const Exponentials& op, const uint8_t* x, const uint8_t* mask, int64_t mask_step,
                    uint8_t* y) {
  const Scaling& to = op.scaling;
  const auto nothing = [&] {
    std::memset(y, saturate(to.zero_point, to.low, to.high), static_cast<size_t>(op.count));
  };
  if (op.count > kMostExponentials) return plain_softmax(op, x, mask, mask_step, y);
  if (mask != nullptr && mask_step == 0) {
    if (*mask == op.masked) return nothing();
    mask = nullptr;
  }
  const int32_t top = largest(op, x, mask);
  int32_t e[kMostExponentials], sum = 0;  // at most 2^11 * 2^16
  for (int64_t i = 0; i < op.count; ++i) {
    const bool kept = mask == nullptr || mask[i] != op.masked;
    e[i] = kept ? op.table[top - x[i]] : 0;
    sum += e[i];
  }
  if (sum == 0) return nothing();
  const int64_t whole = (int64_t{to.multiplier[0]} << 16) / sum;
  const int32_t factor = static_cast<int32_t>(smaller(whole, 2147483647));
  const int32x4_t by = vdupq_n_s32(factor), shift = vdupq_n_s32(-to.shift[0]);
  const int32x4_t zero_point = vdupq_n_s32(to.zero_point);
  for (int64_t i = op.count; i < 8; ++i) e[i] = 0;
  // The last eight results may be made twice.
  for (int64_t i = 0; i < op.count; i += 8) {
    const int64_t at = op.count < 8 ? 0 : smaller(i, op.count - 8);
    const int32x4_t low = rescaled(vld1q_s32(e + at), by, shift, zero_point);
    const int32x4_t high = rescaled(vld1q_s32(e + at + 4), by, shift, zero_point);
    store(y + at, clamp(narrow(low, high), to), smaller(op.count, 8));
  }
}

// ---- LayerNorm ----

inline void layer_norm(const Normalization& op, const uint8_t* x, int64_t rows, uint8_t* y) {
  const Scaling& to = op.scaling;
  const int64x2_t out_shift = vdupq_n_s64(-to.shift[0]);
  const int32x4_t zero_point = vdupq_n_s32(to.zero_point);
  const int64_t vectors = op.count / 8 * 8;
  for (int64_t row = 0; row < rows; ++row, x += op.count, y += op.count) {
    int32_t plain = 0, squares = 0;
    for (int64_t i = 0; i < op.count; ++i) {
      plain += x[i];
      squares += x[i] * x[i];
    }
    const NormalizedRow by = normalized_row(op, plain, squares);
    const int32x4_t middle = vdupq_n_s32(static_cast<int32_t>(by.middle));
    const int32x2_t factor = vdup_n_s32(by.factor);
    const int64x2_t shift = vdupq_n_s64(-by.shift);
    // T is below 2^23 (prepare_rows.cpp), the sum with an offset below 2^56.
    const auto two = [&](int32x2_t centred, int64_t i) {
      const int32x2_t t = vmovn_s64(vrshlq_s64(vmull_s32(centred, factor), shift));
      const int64x2_t sum = vmlal_s32(vld1q_s64(op.offset + i), t, vld1_s32(op.gain + i));
      return vqmovn_s64(vrshlq_s64(sum, out_shift));
    };
    const auto four = [&](uint16x4_t seen, int64_t i) {
      const int32x4_t wide = vreinterpretq_s32_u32(vmovl_u16(seen));
      const int32x4_t centred = vsubq_s32(vmulq_n_s32(wide, static_cast<int32_t>(op.count)), middle);
      const int32x4_t both = vcombine_s32(two(vget_low_s32(centred), i), two(vget_high_s32(centred), i + 2));
      return vqaddq_s32(both, zero_point);
    };
    for (int64_t i = 0; i < vectors; i += 8) {
      const uint16x8_t seen = vmovl_u8(vld1_u8(x + i));
      const int32x4_t low = four(vget_low_u16(seen), i), high = four(vget_high_u16(seen), i + 4);
      vst1_u8(y + i, clamp(narrow(low, high), to));
    }
    for (int64_t i = vectors; i < op.count; ++i) y[i] = gained(op, normalized(op, by, x[i]), i);
  }
}

}  // namespace
}  // namespace edgewright
