// Operators whose plain loops the compiler vectorises well. Each path includes this file and compiles its own
// copies (kernels.h says why).
#pragma once

#include <cstring>

#include "kernels.h"
#include "plain_product.h"
#include "plain_rows.h"
#include "plain_volumes.h"
#include "plain_wide.h"
#include "requantize.h"
#include "windows.h"

namespace edgewright {
namespace {

[[maybe_unused]] inline void plain_quantize(const float* x, int64_t count, float scale, int32_t zero_point,
                                            uint8_t* y) {
  const float low = static_cast<float>(-zero_point), high = static_cast<float>(255 - zero_point);
  // Adding 1.5 * 2^23 leaves no fraction bits: the FPU itself rounds, half to even.
  constexpr float kRound = 12582912.0f;
  for (int64_t i = 0; i < count; ++i) {
    float steps = x[i] / scale;
    steps = steps == steps ? steps : 0.0f;
    steps = steps < low ? low : steps;
    steps = steps > high ? high : steps;
    y[i] = static_cast<uint8_t>(static_cast<int32_t>((steps + kRound) - kRound) + zero_point);
  }
}

// From pixel number `from` on.
[[maybe_unused]] inline void plain_interleave(const uint8_t* x, int64_t count, int64_t from, uint8_t* y) {
  for (int64_t i = from; i < count; ++i) {
    for (int64_t c = 0; c < 3; ++c) y[3 * i + c] = x[c * count + i];
  }
}

[[maybe_unused]] inline void plain_dequantize(const uint8_t* x, int64_t count, float scale,
                                              int32_t zero_point, float* y) {
  for (int64_t i = 0; i < count; ++i) y[i] = static_cast<float>(x[i] - zero_point) * scale;
}

[[maybe_unused]] inline void plain_max_pool(const Sliding& at, const uint8_t* x, uint8_t* y) {
  const int64_t channels = at.in_channels;
  for (int64_t oy = 0; oy < at.out[0]; ++oy) {
    const Inside rows = taps_inside(at, 0, oy);
    for (int64_t ox = 0; ox < at.out[1]; ++ox, y += channels) {
      const Inside columns = taps_inside(at, 1, ox);
      std::memset(y, 0, static_cast<size_t>(channels));
      for (int64_t r = rows.first; r < rows.last; ++r) {
        for (int64_t c = columns.first; c < columns.last; ++c) {
          const int64_t iy = rows.start + r * at.dilation[0], ix = columns.start + c * at.dilation[1];
          const uint8_t* __restrict seen = x + (iy * at.in[1] + ix) * channels;
          uint8_t* __restrict best = y;
          for (int64_t i = 0; i < channels; ++i) best[i] = seen[i] > best[i] ? seen[i] : best[i];
        }
      }
    }
  }
}

[[maybe_unused]] inline void plain_average_pool(const Sliding& at, int32_t zero_point, const Scaling& to,
                                                const uint8_t* x, uint8_t* y) {
  constexpr int64_t kBlock = 64;  // channels summed at a time, on the stack
  const int64_t channels = at.in_channels;
  for (int64_t oy = 0; oy < at.out[0]; ++oy) {
    const Inside rows = taps_inside(at, 0, oy);
    for (int64_t ox = 0; ox < at.out[1]; ++ox, y += channels) {
      const Inside columns = taps_inside(at, 1, ox);
      const int64_t seen = (rows.last - rows.first) * (columns.last - columns.first);
      for (int64_t from = 0; from < channels; from += kBlock) {
        const int64_t count = channels - from < kBlock ? channels - from : kBlock;
        int32_t sum[kBlock] = {};
        for (int64_t r = rows.first; r < rows.last; ++r) {
          for (int64_t c = columns.first; c < columns.last; ++c) {
            const int64_t iy = rows.start + r * at.dilation[0], ix = columns.start + c * at.dilation[1];
            const uint8_t* __restrict at_tap = x + (iy * at.in[1] + ix) * channels + from;
            for (int64_t i = 0; i < count; ++i) sum[i] += at_tap[i];
          }
        }
        for (int64_t i = 0; i < count; ++i) {
          const int64_t value = requantize(sum[i] - seen * zero_point, to.multiplier[0], to.shift[0]);
          y[from + i] = saturate(value + to.zero_point, to.low, to.high);
        }
      }
    }
  }
}

[[maybe_unused]] inline void plain_add(const Addition& op, const uint8_t* a, const uint8_t* b, int64_t count,
                                       uint8_t* y) {
  const int64_t ma = op.multiplier[0], mb = op.multiplier[1];
  const int64_t half = (int64_t{1} << (op.shift - 1)) - op.zero_point[0] * ma - op.zero_point[1] * mb;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t value = (a[i] * ma + b[i] * mb + half) >> op.shift;
    y[i] = saturate(value + op.scaling.zero_point, op.scaling.low, op.scaling.high);
  }
}

[[maybe_unused]] inline void plain_multiply(const Multiplication& op, const uint8_t* a, const uint8_t* b,
                                            int64_t count, uint8_t* y) {
  const Scaling& to = op.scaling;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t acc = (a[i] - op.zero_point[0]) * (b[i] - op.zero_point[1]);
    y[i] = saturate(requantize(acc, to.multiplier[0], to.shift[0]) + to.zero_point, to.low, to.high);
  }
}

[[maybe_unused]] inline void plain_lookup(const uint8_t* table, const uint8_t* x, int64_t count, uint8_t* y) {
  for (int64_t i = 0; i < count; ++i) y[i] = table[x[i]];
}

[[maybe_unused]] inline void plain_resize(const Resizing& op, const uint8_t* x, uint8_t* y) {
  const Blend &rows = op.axes[0], &columns = op.axes[1];
  const Scaling& to = op.scaling;
  const int64_t channels = op.channels, row_bytes = columns.in * channels;
  for (int64_t oy = 0; oy < rows.out; ++oy) {
    const uint8_t *above = x + rows.first[oy] * row_bytes, *below = x + rows.second[oy] * row_bytes;
    const int32_t down = rows.fraction[oy], up = 2048 - down;
    for (int64_t ox = 0; ox < columns.out; ++ox, y += channels) {
      const int64_t left = columns.first[ox] * channels, right = columns.second[ox] * channels;
      const int32_t aside = columns.fraction[ox], here = 2048 - aside;
      for (int64_t i = 0; i < channels; ++i) {
        const int32_t at_left = above[left + i] * up + below[left + i] * down;
        const int32_t at_right = above[right + i] * up + below[right + i] * down;
        const int32_t acc =
            at_left * here + at_right * aside - (op.zero_point << 22);  // the weights sum to 2^22
        y[i] = saturate(requantize(acc, to.multiplier[0], to.shift[0]) + to.zero_point, to.low, to.high);
      }
    }
  }
}

// A table of these loops, for a path to put its own in place. It has no convolutions.
[[maybe_unused]] inline Kernels plain_kernels(const char* name, const Wide& wide) {
  Kernels table{};
  table.name = name;
  table.quantize = plain_quantize;
  table.interleave = [](const uint8_t* x, int64_t count, uint8_t* y) { plain_interleave(x, count, 0, y); };
  table.dequantize = plain_dequantize;
  table.max_pool = plain_max_pool;
  table.average_pool = plain_average_pool;
  table.add = plain_add;
  table.multiply = plain_multiply;
  table.lookup = plain_lookup;
  table.softmax = plain_softmax;
  table.layer_norm = plain_layer_norm;
  table.product = {product_scratch_bytes, product<uint8_t>};
  table.resize = plain_resize;
  table.average_pool_volume = plain_average_pool_volume;
  table.spread = plain_spread;
  table.wide = wide;
  return table;
}

}  // namespace
}  // namespace edgewright
