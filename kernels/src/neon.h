// What the ARM paths share beside the dense tiles: the way out of an accumulator, depthwise convolution, and
// the operators that gain from NEON by hand. Each path's file includes this and compiles its own copies.
//
// Activations are uint8, and NEON before i8mm multiplies int8 by int8 alone. So x - 128 (x with its highest
// bit flipped) is taken for x, and 128 times the sum of a channel's weights goes into its bias: the same
// accumulator, as 32-bit sums wrap and the result is known to fit.
#pragma once

#include <arm_neon.h>

#include "plain.h"

namespace edgewright {
namespace {

[[maybe_unused]] inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
[[maybe_unused]] inline int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

// ---- requantization ----

// SRSHL with a negative count is the rounding rule itself: (product + 2^(shift-1)) >> shift, the sum taken
// without overflow. Every later step saturates, and saturation keeps order, so the clamp is that of the rule.
// `shift` is negative here.
inline int32x4_t rescaled(int32x4_t acc, int32x4_t multiplier, int32x4_t shift, int32x4_t zero_point) {
  const int64x2_t low =
      vrshlq_s64(vmull_s32(vget_low_s32(acc), vget_low_s32(multiplier)), vmovl_s32(vget_low_s32(shift)));
  const int64x2_t high = vrshlq_s64(vmull_high_s32(acc, multiplier), vmovl_high_s32(shift));
  return vqaddq_s32(vqmovn_high_s64(vqmovn_s64(low), high), zero_point);
}

inline uint8x8_t narrow(int32x4_t low, int32x4_t high) {
  return vqmovun_s16(vqmovn_high_s32(vqmovn_s32(low), high));
}

inline uint8x8_t clamp(uint8x8_t bytes, const Scaling& to) {
  return vmin_u8(vmax_u8(bytes, vdup_n_u8(static_cast<uint8_t>(to.low))),
                 vdup_n_u8(static_cast<uint8_t>(to.high)));
}

inline void store(uint8_t* y, uint8x8_t bytes, int64_t count) {
  if (count >= 8) {
    vst1_u8(y, bytes);
  } else {
    uint8_t all[8];
    vst1_u8(all, bytes);
    for (int64_t i = 0; i < count; ++i) y[i] = all[i];
  }
}

// ---- depthwise: two taps at a time ----

// Channels are packed in sixteens: this head, then for each of an even number of taps its sixteen weights.
struct DeepHead {
  int32_t bias[16], multiplier[16], shift[16];
};

constexpr int64_t kDeep = 16;

inline int64_t even_taps(const Convolution& op) { return (taps(op.at) + 1) & ~int64_t{1}; }

inline int64_t deep_block_bytes(const Convolution& op) {
  return static_cast<int64_t>(sizeof(DeepHead)) + even_taps(op) * kDeep;
}

inline size_t depthwise_packed_bytes(const Convolution& op) {
  return static_cast<size_t>((op.at.out_channels + kDeep - 1) / kDeep * deep_block_bytes(op));
}

// The bias for activations that had their highest bit flipped.
inline int32_t flipped_bias(int32_t bias, int64_t weight_sum) {
  return static_cast<int32_t>(static_cast<uint32_t>(bias) + 128u * static_cast<uint32_t>(weight_sum));
}

inline void pack_depthwise(const Convolution& op, const int8_t* weight, uint8_t* packed) {
  const int64_t window = taps(op.at);
  std::memset(packed, 0, depthwise_packed_bytes(op));
  for (int64_t from = 0; from < op.at.out_channels; from += kDeep, packed += deep_block_bytes(op)) {
    DeepHead head{};
    for (int64_t c = 0; c < smaller(kDeep, op.at.out_channels - from); ++c) {
      int64_t sum = 0;
      for (int64_t tap = 0; tap < window; ++tap) {
        const int8_t w = weight[(from + c) * window + tap];
        packed[static_cast<int64_t>(sizeof head) + tap * kDeep + c] = static_cast<uint8_t>(w);
        sum += w;
      }
      head.bias[c] = flipped_bias(op.bias[from + c], sum);
      head.multiplier[c] = op.scaling.multiplier[from + c];
      head.shift[c] = -op.scaling.shift[from + c];
    }
    std::memcpy(packed, &head, sizeof head);
  }
}

// A pointer per tap, then one pixel of padding.
inline size_t depthwise_scratch_bytes(const Convolution& op) {
  return static_cast<size_t>(even_taps(op)) * sizeof(const uint8_t*) + static_cast<size_t>(op.at.in_channels);
}

// Sixteen channels, or `used` of them and never a byte past those, with their highest bits flipped.
inline int8x16_t load_flipped(const uint8_t* x, int64_t used) {
  uint8x16_t bytes;
  if (used >= kDeep) {
    bytes = vld1q_u8(x);
  } else {
    uint8_t all[kDeep] = {};
    std::memcpy(all, x, static_cast<size_t>(used));
    bytes = vld1q_u8(all);
  }
  return vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(0x80)));
}

// Up to sixteen channels of one output pixel. Two products of [-128, 127] x [-127, 127] fit 16 bits.
inline void depthwise_block(const Convolution& op, const uint8_t* packed, const uint8_t* const* seen,
                            int64_t from, int64_t used, uint8_t* y) {
  const DeepHead* head = reinterpret_cast<const DeepHead*>(packed);
  const int8_t* weight = reinterpret_cast<const int8_t*>(packed + sizeof(DeepHead));
  int32x4_t acc[4];
  for (int v = 0; v < 4; ++v) acc[v] = vld1q_s32(head->bias + 4 * v);
  const int64_t count = even_taps(op);
  for (int64_t tap = 0; tap < count; tap += 2, weight += 2 * kDeep) {
    const int8x16_t a = load_flipped(seen[tap] + from, used), b = load_flipped(seen[tap + 1] + from, used);
    const int8x16_t wa = vld1q_s8(weight), wb = vld1q_s8(weight + kDeep);
    const int16x8_t low =
        vmlal_s8(vmull_s8(vget_low_s8(a), vget_low_s8(wa)), vget_low_s8(b), vget_low_s8(wb));
    const int16x8_t high = vmlal_high_s8(vmull_high_s8(a, wa), b, wb);
    acc[0] = vaddw_s16(acc[0], vget_low_s16(low));
    acc[1] = vaddw_high_s16(acc[1], low);
    acc[2] = vaddw_s16(acc[2], vget_low_s16(high));
    acc[3] = vaddw_high_s16(acc[3], high);
  }
  const int32x4_t zero_point = vdupq_n_s32(op.scaling.zero_point);
  for (int v = 0; v < 4; ++v) {
    acc[v] =
        rescaled(acc[v], vld1q_s32(head->multiplier + 4 * v), vld1q_s32(head->shift + 4 * v), zero_point);
  }
  store(y, clamp(narrow(acc[0], acc[1]), op.scaling), used);
  if (used > 8) store(y + 8, clamp(narrow(acc[2], acc[3]), op.scaling), used - 8);
}

// A unit is a row of the result.
inline int64_t depthwise_units(const Convolution& op) { return op.at.out[0]; }

inline void depthwise(const Convolution& op, const uint8_t* packed, const uint8_t* x, uint8_t* y,
                      uint8_t* scratch, int64_t begin, int64_t end) {
  const Sliding& at = op.at;
  const int64_t channels = at.in_channels, row_bytes = at.in[1] * channels;
  const uint8_t** seen = reinterpret_cast<const uint8_t**>(scratch);
  uint8_t* padding = scratch + static_cast<size_t>(even_taps(op)) * sizeof(const uint8_t*);
  std::memset(padding, op.zero_point, static_cast<size_t>(channels));
  seen[even_taps(op) - 1] = padding;  // where the last pair has but one tap, its other weight is zero
  y += begin * at.out[1] * channels;
  for (int64_t oy = begin; oy < end; ++oy) {
    const Inside rows = taps_inside(at, 0, oy);
    for (int64_t ox = 0; ox < at.out[1]; ++ox, y += channels) {
      const Inside columns = taps_inside(at, 1, ox);
      const uint8_t** to = seen;
      for (int64_t r = 0; r < at.kernel[0]; ++r) {
        const bool row_inside = r >= rows.first && r < rows.last;
        const int64_t row = (rows.start + r * at.dilation[0]) * row_bytes;
        for (int64_t c = 0; c < at.kernel[1]; ++c) {
          const bool inside = row_inside && c >= columns.first && c < columns.last;
          *to++ = inside ? x + row + (columns.start + c * at.dilation[1]) * channels : padding;
        }
      }
      const uint8_t* block = packed;
      for (int64_t from = 0; from < channels; from += kDeep, block += deep_block_bytes(op)) {
        depthwise_block(op, block, seen, from, smaller(kDeep, channels - from), y + from);
      }
    }
  }
}

// ---- quantize, add ----

inline void quantize(const float* x, int64_t count, float scale, int32_t zero_point, uint8_t* y) {
  const float32x4_t by = vdupq_n_f32(scale);
  const int32x4_t offset = vdupq_n_s32(zero_point);
  // FCVTNS rounds half to even, saturates, and makes 0 of NaN.
  const auto four = [&](const float* at) {
    return vqaddq_s32(vcvtnq_s32_f32(vdivq_f32(vld1q_f32(at), by)), offset);
  };
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) vst1_u8(y + i, narrow(four(x + i), four(x + i + 4)));
  plain_quantize(x + i, count - i, scale, zero_point, y + i);
}

// Three planes to pixels.
inline void interleave(const uint8_t* x, int64_t count, uint8_t* y) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    vst3q_u8(y + 3 * i, {{vld1q_u8(x + i), vld1q_u8(x + count + i), vld1q_u8(x + 2 * count + i)}});
  }
  plain_interleave(x, count, i, y);
}

inline void add(const Addition& op, const uint8_t* a, const uint8_t* b, int64_t count, uint8_t* y) {
  const int64_t ma = op.multiplier[0], mb = op.multiplier[1];
  const int32x2_t by_a = vdup_n_s32(op.multiplier[0]), by_b = vdup_n_s32(op.multiplier[1]);
  const int64x2_t start = vdupq_n_s64(-op.zero_point[0] * ma - op.zero_point[1] * mb);
  const int64x2_t shift = vdupq_n_s64(-op.shift);
  const int32x4_t zero_point = vdupq_n_s32(op.scaling.zero_point);
  const auto two = [&](int32x2_t av, int32x2_t bv) {
    return vqmovn_s64(vrshlq_s64(vmlal_s32(vmlal_s32(start, av, by_a), bv, by_b), shift));
  };
  const auto four = [&](uint16x4_t a16, uint16x4_t b16) {
    const int32x4_t av = vreinterpretq_s32_u32(vmovl_u16(a16)), bv = vreinterpretq_s32_u32(vmovl_u16(b16));
    return vqaddq_s32(
        vcombine_s32(two(vget_low_s32(av), vget_low_s32(bv)), two(vget_high_s32(av), vget_high_s32(bv))),
        zero_point);
  };
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const uint16x8_t av = vmovl_u8(vld1_u8(a + i)), bv = vmovl_u8(vld1_u8(b + i));
    const int32x4_t low = four(vget_low_u16(av), vget_low_u16(bv));
    const int32x4_t high = four(vget_high_u16(av), vget_high_u16(bv));
    vst1_u8(y + i, clamp(narrow(low, high), op.scaling));
  }
  plain_add(op, a + i, b + i, count - i, y + i);
}

// A table of all this, without dense convolution.
inline Kernels arm_kernels(const char* name) {
  Kernels table = plain_kernels(name, plain_wide());
  table.depthwise = {depthwise_packed_bytes, pack_depthwise, depthwise_scratch_bytes, depthwise_units,
                     depthwise};
  table.quantize = quantize;
  table.interleave = interleave;
  table.add = add;
  return table;
}

}  // namespace
}  // namespace edgewright
