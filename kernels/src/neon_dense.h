// Dense convolution on ARM as a matrix product: rows are output pixels, columns output channels, terms the
// inputs that one output sees. Patches of a block of rows are laid out first, then tiles of a few rows and
// one panel of channels are computed in registers.
//
// A path brings a type with
//   kRows    most rows of a tile, a power of two
//   kPanel   channels of a panel, 4 or 8
//   kStep    terms that are packed side by side
//   kFlip    0x80 where it takes x - 128 for x, else 0
//   tile     <Rows>(x, stride, terms, weight, const Head<kPanel>&, sums): sums[row][kPanel / 4], bias
//   included
#pragma once

#include "neon.h"
#include "rows_neon.h"

namespace edgewright {
namespace {

// A panel is this head, then for every kStep terms and each channel its kStep weights.
template <int64_t Panel>
struct Head {
  int32_t bias[Panel], multiplier[Panel], shift[Panel];  // the shift negative, as NEON wants it
};

inline int64_t terms(const Convolution& op) { return taps(op.at) * op.at.in_channels; }

template <class Path>
int64_t padded_terms(const Convolution& op) {
  return round_up(terms(op), Path::kStep);
}

template <class Path>
int64_t panel_bytes(const Convolution& op) {
  return static_cast<int64_t>(sizeof(Head<Path::kPanel>)) + padded_terms<Path>(op) * Path::kPanel;
}

template <class Path>
size_t dense_packed_bytes(const Convolution& op) {
  return static_cast<size_t>((op.at.out_channels + Path::kPanel - 1) / Path::kPanel * panel_bytes<Path>(op));
}

template <class Path>
void pack_dense(const Convolution& op, const int8_t* weight, uint8_t* packed) {
  const int64_t window = taps(op.at), channels = op.at.in_channels, outputs = op.at.out_channels;
  std::memset(packed, 0, dense_packed_bytes<Path>(op));
  for (int64_t from = 0; from < outputs; from += Path::kPanel, packed += panel_bytes<Path>(op)) {
    Head<Path::kPanel> head{};
    for (int64_t lane = 0; lane < smaller(Path::kPanel, outputs - from); ++lane) {
      const int8_t* at = weight + (from + lane) * channels * window;
      uint8_t* to = packed + sizeof head + lane * Path::kStep;
      int64_t sum = 0;
      for (int64_t tap = 0, term = 0; tap < window; ++tap) {
        for (int64_t c = 0; c < channels; ++c, ++term) {
          const int8_t w = at[c * window + tap];
          to[term / Path::kStep * Path::kStep * Path::kPanel + term % Path::kStep] = static_cast<uint8_t>(w);
          sum += w;
        }
      }
      head.bias[lane] = Path::kFlip != 0 ? flipped_bias(op.bias[from + lane], sum) : op.bias[from + lane];
      head.multiplier[lane] = op.scaling.multiplier[from + lane];
      head.shift[lane] = -op.scaling.shift[from + lane];
    }
    std::memcpy(packed, &head, sizeof head);
  }
}

// A unit is the rows of a tile.
template <class Path>
int64_t dense_units(const Convolution& op) {
  return (pixels(op.at) + Path::kRows - 1) / Path::kRows;
}

// Tiles of a block: so many that its patches stay in the first-level cache.
template <class Path>
int64_t block_units(const Convolution& op) {
  constexpr int64_t kBlockBytes = 16 << 10;
  const int64_t fit = kBlockBytes / (padded_terms<Path>(op) * Path::kRows);
  return smaller(fit < 1 ? 1 : fit, dense_units<Path>(op));
}

template <class Path>
size_t dense_scratch_bytes(const Convolution& op) {
  return static_cast<size_t>(block_units<Path>(op) * Path::kRows * padded_terms<Path>(op));
}

template <class Path>
void copy_terms(const uint8_t* x, int64_t count, uint8_t* to) {
  if (Path::kFlip == 0) {
    std::memcpy(to, x, static_cast<size_t>(count));
    return;
  }
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) vst1q_u8(to + i, veorq_u8(vld1q_u8(x + i), vdupq_n_u8(Path::kFlip)));
  if (i + 8 <= count) {
    vst1_u8(to + i, veor_u8(vld1_u8(x + i), vdup_n_u8(Path::kFlip)));
    i += 8;
  }
  for (; i < count; ++i) to[i] = static_cast<uint8_t>(x[i] ^ Path::kFlip);
}

// The patch that output pixel (oy, ox) sees, in the order (row, column, channel).
template <class Path>
void copy_patch(const Convolution& op, const uint8_t* x, const Inside& rows, const Inside& columns,
                uint8_t* to) {
  const Sliding& at = op.at;
  const int64_t channels = at.in_channels, row_terms = at.kernel[1] * channels;
  const int padding = op.zero_point ^ Path::kFlip;
  const auto fill = [padding](uint8_t* from, int64_t count) {
    std::memset(from, padding, static_cast<size_t>(count));
  };
  for (int64_t r = 0; r < at.kernel[0]; ++r, to += row_terms) {
    if (r < rows.first || r >= rows.last || columns.first >= columns.last) {
      fill(to, row_terms);
      continue;
    }
    const uint8_t* row = x + (rows.start + r * at.dilation[0]) * at.in[1] * channels;
    fill(to, columns.first * channels);
    fill(to + columns.last * channels, (at.kernel[1] - columns.last) * channels);
    if (at.dilation[1] == 1) {
      copy_terms<Path>(row + (columns.start + columns.first) * channels,
                       (columns.last - columns.first) * channels, to + columns.first * channels);
      continue;
    }
    for (int64_t c = columns.first; c < columns.last; ++c) {
      copy_terms<Path>(row + (columns.start + c * at.dilation[1]) * channels, channels, to + c * channels);
    }
  }
}

// `count` output pixels from number `from` on, one row of padded_terms(op) bytes each.
template <class Path>
void copy_patches(const Convolution& op, const uint8_t* x, int64_t from, int64_t count, uint8_t* to) {
  const Sliding& at = op.at;
  const int64_t used = terms(op), stride = padded_terms<Path>(op);
  int64_t oy = from / at.out[1], ox = from % at.out[1];
  Inside rows = taps_inside(at, 0, oy);
  for (int64_t i = 0; i < count; ++i, to += stride) {
    copy_patch<Path>(op, x, rows, taps_inside(at, 1, ox), to);
    std::memset(to + used, 0, static_cast<size_t>(stride - used));
    if (++ox == at.out[1]) {
      ox = 0;
      rows = taps_inside(at, 0, ++oy);
    }
  }
}

// `Rows` rows of one panel, to the end.
template <class Path, int Rows>
void finished_tile(const Convolution& op, const uint8_t* x, const uint8_t* panel, int64_t used, uint8_t* y) {
  constexpr int kVectors = Path::kPanel / 4;
  const Head<Path::kPanel>& head = *reinterpret_cast<const Head<Path::kPanel>*>(panel);
  const int8_t* weight = reinterpret_cast<const int8_t*>(panel + sizeof head);
  int32x4_t sums[Rows][kVectors];
  Path::template tile<Rows>(x, padded_terms<Path>(op), padded_terms<Path>(op), weight, head, sums);
  const int32x4_t zero_point = vdupq_n_s32(op.scaling.zero_point);
  for (int r = 0; r < Rows; ++r, y += op.at.out_channels) {
    int32x4_t out[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
    for (int v = 0; v < kVectors; ++v) {
      out[v] =
          rescaled(sums[r][v], vld1q_s32(head.multiplier + 4 * v), vld1q_s32(head.shift + 4 * v), zero_point);
    }
    store(y, clamp(narrow(out[0], out[1]), op.scaling), used);
  }
}

// Tiles of `Rows` rows while there are so many, then of half as many.
template <class Path, int Rows>
void tiles(const Convolution& op, const uint8_t* x, int64_t rows, const uint8_t* panel, int64_t used,
           uint8_t* y) {
  for (; rows >= Rows; rows -= Rows) {
    finished_tile<Path, Rows>(op, x, panel, used, y);
    x += Rows * padded_terms<Path>(op);
    y += Rows * op.at.out_channels;
  }
  if constexpr (Rows > 1) {
    if (rows > 0) tiles<Path, Rows / 2>(op, x, rows, panel, used, y);
  }
}

template <class Path>
void dense(const Convolution& op, const uint8_t* packed, const uint8_t* x, uint8_t* y, uint8_t* scratch,
           int64_t begin, int64_t end) {
  const int64_t outputs = op.at.out_channels, block = block_units<Path>(op) * Path::kRows;
  const int64_t last = smaller(end * Path::kRows, pixels(op.at));
  for (int64_t from = begin * Path::kRows; from < last; from += block) {
    const int64_t rows = smaller(block, last - from);
    copy_patches<Path>(op, x, from, rows, scratch);
    const uint8_t* panel = packed;
    for (int64_t o = 0; o < outputs; o += Path::kPanel, panel += panel_bytes<Path>(op)) {
      tiles<Path, Path::kRows>(op, scratch, rows, panel, smaller(Path::kPanel, outputs - o),
                               y + from * outputs + o);
    }
  }
}

// The whole table of a path.
template <class Path>
Kernels arm_kernels_with(const char* name) {
  Kernels table = arm_kernels(name);
  table.dense = {dense_packed_bytes<Path>, pack_dense<Path>, dense_scratch_bytes<Path>, dense_units<Path>,
                 dense<Path>};
  table.lookup = lookup;
  table.softmax = softmax;
  table.layer_norm = layer_norm;
  return table;
}

}  // namespace
}  // namespace edgewright
