// The path for any CPU: plain C++, one dot product at a time.
#include "plain.h"

namespace edgewright {
namespace {

int64_t terms(const Convolution& op) { return taps(op.at) * op.at.in_channels; }

// Dense weights lie as (out, row, column, in), the order in which a patch is read.
size_t dense_packed_bytes(const Convolution& op) {
  return static_cast<size_t>(op.at.out_channels * terms(op));
}

void pack_dense(const Convolution& op, const int8_t* weight, uint8_t* packed) {
  const int64_t window = taps(op.at), channels = op.at.in_channels;
  for (int64_t o = 0; o < op.at.out_channels; ++o) {
    for (int64_t tap = 0; tap < window; ++tap) {
      for (int64_t c = 0; c < channels; ++c) {
        *packed++ = static_cast<uint8_t>(weight[(o * channels + c) * window + tap]);
      }
    }
  }
}

size_t dense_scratch_bytes(const Convolution& op) { return static_cast<size_t>(terms(op)); }

void copy_patch(const Convolution& op, const uint8_t* x, const Inside& rows, const Inside& columns,
                uint8_t* patch) {
  const Sliding& at = op.at;
  const size_t channels = static_cast<size_t>(at.in_channels);
  for (int64_t r = 0; r < at.kernel[0]; ++r) {
    for (int64_t c = 0; c < at.kernel[1]; ++c, patch += channels) {
      if (r < rows.first || r >= rows.last || c < columns.first || c >= columns.last) {
        std::memset(patch, op.zero_point, channels);
        continue;
      }
      const int64_t iy = rows.start + r * at.dilation[0], ix = columns.start + c * at.dilation[1];
      std::memcpy(patch, x + (iy * at.in[1] + ix) * at.in_channels, channels);
    }
  }
}

int32_t dot(const uint8_t* x, const int8_t* weight, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += x[i] * weight[i];
  return sum;
}

// A unit is a row of the result.
int64_t rows_out(const Convolution& op) { return op.at.out[0]; }

void dense(const Convolution& op, const uint8_t* packed, const uint8_t* x, uint8_t* y, uint8_t* scratch,
           int64_t begin, int64_t end) {
  const int64_t count = terms(op);
  const Scaling& to = op.scaling;
  y += begin * op.at.out[1] * op.at.out_channels;
  for (int64_t oy = begin; oy < end; ++oy) {
    const Inside rows = taps_inside(op.at, 0, oy);
    for (int64_t ox = 0; ox < op.at.out[1]; ++ox) {
      copy_patch(op, x, rows, taps_inside(op.at, 1, ox), scratch);
      const int8_t* weight = reinterpret_cast<const int8_t*>(packed);
      for (int64_t o = 0; o < op.at.out_channels; ++o, weight += count) {
        const int32_t acc = op.bias[o] + dot(scratch, weight, count);
        *y++ = saturate(requantize(acc, to.multiplier[o], to.shift[o]) + to.zero_point, to.low, to.high);
      }
    }
  }
}

// Depthwise weights lie as (tap, channel).
size_t depthwise_packed_bytes(const Convolution& op) {
  return static_cast<size_t>(taps(op.at) * op.at.out_channels);
}

void pack_depthwise(const Convolution& op, const int8_t* weight, uint8_t* packed) {
  for (int64_t tap = 0; tap < taps(op.at); ++tap) {
    for (int64_t c = 0; c < op.at.out_channels; ++c) {
      *packed++ = static_cast<uint8_t>(weight[c * taps(op.at) + tap]);
    }
  }
}

size_t depthwise_scratch_bytes(const Convolution&) { return 0; }

void depthwise(const Convolution& op, const uint8_t* packed, const uint8_t* x, uint8_t* y, uint8_t*,
               int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 64;  // channels summed at a time, on the stack
  const Sliding& at = op.at;
  const Scaling& to = op.scaling;
  const int64_t channels = at.in_channels;
  const int8_t* weight = reinterpret_cast<const int8_t*>(packed);
  y += begin * at.out[1] * channels;
  for (int64_t oy = begin; oy < end; ++oy) {
    const Inside rows = taps_inside(at, 0, oy);
    for (int64_t ox = 0; ox < at.out[1]; ++ox, y += channels) {
      const Inside columns = taps_inside(at, 1, ox);
      for (int64_t from = 0; from < channels; from += kBlock) {
        const int64_t count = channels - from < kBlock ? channels - from : kBlock;
        int32_t acc[kBlock];
        for (int64_t i = 0; i < count; ++i) acc[i] = op.bias[from + i];
        for (int64_t r = 0; r < at.kernel[0]; ++r) {
          for (int64_t c = 0; c < at.kernel[1]; ++c) {
            const int8_t* w = weight + (r * at.kernel[1] + c) * channels + from;
            if (r < rows.first || r >= rows.last || c < columns.first || c >= columns.last) {
              for (int64_t i = 0; i < count; ++i) acc[i] += op.zero_point * w[i];
              continue;
            }
            const int64_t iy = rows.start + r * at.dilation[0], ix = columns.start + c * at.dilation[1];
            const uint8_t* seen = x + (iy * at.in[1] + ix) * channels + from;
            for (int64_t i = 0; i < count; ++i) acc[i] += seen[i] * w[i];
          }
        }
        for (int64_t i = 0; i < count; ++i) {
          const int64_t value = requantize(acc[i], to.multiplier[from + i], to.shift[from + i]);
          y[from + i] = saturate(value + to.zero_point, to.low, to.high);
        }
      }
    }
  }
}

}  // namespace

const Kernels& scalar_kernels() {
  static const Kernels table = [] {
    Kernels made = plain_kernels("scalar");
    made.dense = {dense_packed_bytes, pack_dense, dense_scratch_bytes, rows_out, dense};
    made.depthwise = {depthwise_packed_bytes, pack_depthwise, depthwise_scratch_bytes, rows_out, depthwise};
    return made;
  }();
  return table;
}

}  // namespace edgewright
