// 3x3 convolutions of stride 1 with fewer multiplications, and exactly: Winograd's F(2x2, 3x3), 16 products
// in place of 36 for four outputs (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016,
// section 4.1), on integers.
//
// The halves in the paper's G are avoided by taking 2G, so every sum comes out four times too large, and
// requantization takes two more bits off. Transformed activations lie in -510..1020, weights in -1143..1143:
// both fit the words that vpmaddwd multiplies. Sums are kept modulo 2^32, and `four times the accumulator` is
// proven to fit, so they are right whatever the parts did. AVX2 needs it; vpdpbusd on bytes is faster still.
#pragma once

#include "dense256.h"

namespace edgewright {
namespace {

constexpr int64_t kPoints = 16;      // of a transformed tile, 4 x 4
constexpr int64_t kPanelWidth = 16;  // output channels

// Where it can be used and pays. Depends on the shape, bias and scaling alone.
inline bool winograd_fits(const Convolution& op) {
  const Sliding& at = op.at;
  if (op.y_item != 1) return false;
  constexpr int32_t kMostBias = 1 << 28;  // 4 * (255 * 127 * 9 * 896 + 2^28) < 2^31
  if (at.kernel[0] != 3 || at.kernel[1] != 3 || at.stride[0] != 1 || at.stride[1] != 1 ||
      at.dilation[0] != 1 || at.dilation[1] != 1 || at.in_channels % 16 != 0 || at.in_channels > 896 ||
      at.out_channels < kPanelWidth || pixels(at) < 32) {
    return false;
  }
  for (int64_t o = 0; o < at.out_channels; ++o) {
    if (op.bias[o] > kMostBias || op.bias[o] < -kMostBias || !fits_high_half(op.scaling, o, 2)) return false;
  }
  return true;
}

inline int64_t winograd_panels(const Convolution& op) {
  return (op.at.out_channels + kPanelWidth - 1) / kPanelWidth;
}

inline int64_t winograd_panel_bytes(const Convolution& op) {
  return static_cast<int64_t>(2 * sizeof(Channels<8>)) + kPoints * op.at.in_channels * kPanelWidth * 2;
}

inline size_t winograd_packed_bytes(const Convolution& op) {
  return static_cast<size_t>(winograd_panels(op) * winograd_panel_bytes(op));
}

// 2G g (2G)^T of a 3 x 3 kernel.
inline void transform_weight(const int8_t* g, int32_t (&to)[4][4]) {
  int32_t rows[4][3];
  for (int c = 0; c < 3; ++c) {
    const int32_t a = g[c], b = g[3 + c], d = g[6 + c];
    rows[0][c] = 2 * a;
    rows[1][c] = a + b + d;
    rows[2][c] = a - b + d;
    rows[3][c] = 2 * d;
  }
  for (int r = 0; r < 4; ++r) {
    const int32_t a = rows[r][0], b = rows[r][1], d = rows[r][2];
    to[r][0] = 2 * a;
    to[r][1] = a + b + d;
    to[r][2] = a - b + d;
    to[r][3] = 2 * d;
  }
}

inline void winograd_pack(const Convolution& op, const int8_t* weight, uint8_t* packed) {
  const int64_t in_channels = op.at.in_channels;
  std::memset(packed, 0, winograd_packed_bytes(op));
  for (int64_t from = 0; from < op.at.out_channels; from += kPanelWidth, packed += winograd_panel_bytes(op)) {
    Channels<8> channels[2];
    std::memset(channels, 0, sizeof channels);
    int16_t* words = reinterpret_cast<int16_t*>(packed + sizeof channels);
    for (int64_t o = 0; o < smaller(kPanelWidth, op.at.out_channels - from); ++o) {
      const int64_t column = vector_of(o) * 8 + lane_of(o);
      pack_channel(op, from + o, lane_of(o), channels[vector_of(o)], 2);
      for (int64_t c = 0; c < in_channels; ++c) {
        int32_t all[4][4];
        transform_weight(weight + ((from + o) * in_channels + c) * 9, all);
        for (int64_t point = 0; point < kPoints; ++point) {
          words[(point * in_channels + c / 2 * 2) * kPanelWidth + column * 2 + c % 2] =
              static_cast<int16_t>(all[point / 4][point % 4]);
        }
      }
    }
    std::memcpy(packed, channels, sizeof channels);
  }
}

// Most tiles of a block: their transformed activations stay in the second-level cache, the products of one
// panel in the first.
inline int64_t winograd_block(const Convolution& op) {
  const int64_t fit = (256 << 10) / (kPoints * op.at.in_channels * 2);
  return smaller(fit, 24);
}

inline size_t winograd_scratch_bytes(const Convolution& op) {
  const int64_t tiles = winograd_block(op);
  return static_cast<size_t>(kPoints * tiles * (op.at.in_channels * 2 + kPanelWidth * 4) + op.at.in_channels);
}

// A unit is two rows of the result.
inline int64_t winograd_units(const Convolution& op) { return (op.at.out[0] + 1) / 2; }

// B^T d B of one tile, sixteen channels at a time, to words[point * apart + channel]. `seen` are its pixels.
inline void transform_tile(const uint8_t* const (&seen)[4][4], int64_t channels, int64_t apart,
                           int16_t* words) {
  for (int64_t c = 0; c < channels; c += 16) {
    __m256i rows[4][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m256i a = _mm256_cvtepu8_epi16(load_half(seen[0][j] + c));
      const __m256i b = _mm256_cvtepu8_epi16(load_half(seen[1][j] + c));
      const __m256i d = _mm256_cvtepu8_epi16(load_half(seen[2][j] + c));
      const __m256i e = _mm256_cvtepu8_epi16(load_half(seen[3][j] + c));
      rows[0][j] = _mm256_sub_epi16(a, d);
      rows[1][j] = _mm256_add_epi16(b, d);
      rows[2][j] = _mm256_sub_epi16(d, b);
      rows[3][j] = _mm256_sub_epi16(b, e);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i* row = rows[i];
      int16_t* to = words + 4 * i * apart + c;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_sub_epi16(row[0], row[2]));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + apart), _mm256_add_epi16(row[1], row[2]));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * apart), _mm256_sub_epi16(row[2], row[1]));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 3 * apart), _mm256_sub_epi16(row[1], row[3]));
    }
  }
}

// Products at one point: `Rows` tiles times a panel, to sums[row * 16 + channel].
template <int Rows>
void winograd_product(const int16_t* x, int64_t channels, const int16_t* weight, int32_t* sums) {
  __m256i acc[Rows][2];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
  for (const int16_t* const end = x + channels; x < end; x += 2, weight += 32) {
    const __m256i first = load(weight), second = load(weight + 16);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const __m256i seen = four_of(reinterpret_cast<const uint8_t*>(x + r * channels));
      acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(seen, first));
      acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(seen, second));
      keep(acc[r][0]);
      keep(acc[r][1]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + r * 16), acc[r][0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + r * 16 + 8), acc[r][1]);
  }
}

inline void winograd_products(const int16_t* x, int64_t rows, int64_t channels, const int16_t* weight,
                              int32_t* sums) {
  const int64_t tiles = (rows + 5) / 6;
  const Share share{rows / tiles, rows % tiles};
  for (int64_t t = 0; t < tiles; ++t) {
    const int16_t* from = x + share.first(t) * channels;
    int32_t* to = sums + share.first(t) * 16;
    switch (share.rows(t)) {
      case 6:
        winograd_product<6>(from, channels, weight, to);
        break;
      case 5:
        winograd_product<5>(from, channels, weight, to);
        break;
      case 4:
        winograd_product<4>(from, channels, weight, to);
        break;
      case 3:
        winograd_product<3>(from, channels, weight, to);
        break;
      case 2:
        winograd_product<2>(from, channels, weight, to);
        break;
      default:
        winograd_product<1>(from, channels, weight, to);
    }
  }
}

// A^T m A of eight channels of a tile: four times the sums of its 2 x 2 outputs. `apart` int32 lie between
// points.
inline void transform_sums(const int32_t* sums, int64_t apart, __m256i (&to)[4]) {
  __m256i upper[4], lower[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m256i a = load(sums + j * apart), b = load(sums + (4 + j) * apart);
    const __m256i d = load(sums + (8 + j) * apart), e = load(sums + (12 + j) * apart);
    upper[j] = _mm256_add_epi32(_mm256_add_epi32(a, b), d);
    lower[j] = _mm256_sub_epi32(_mm256_sub_epi32(b, d), e);
  }
  to[0] = _mm256_add_epi32(_mm256_add_epi32(upper[0], upper[1]), upper[2]);
  to[1] = _mm256_sub_epi32(_mm256_sub_epi32(upper[1], upper[2]), upper[3]);
  to[2] = _mm256_add_epi32(_mm256_add_epi32(lower[0], lower[1]), lower[2]);
  to[3] = _mm256_sub_epi32(_mm256_sub_epi32(lower[1], lower[2]), lower[3]);
}

inline void winograd_run(const Convolution& op, const uint8_t* packed, const uint8_t* x, uint8_t* y,
                         uint8_t* scratch, int64_t begin, int64_t end) {
  const Sliding at = op.at;
  const int64_t channels = at.in_channels, outputs = at.out_channels, most = winograd_block(op);
  const int64_t across = (at.out[1] + 1) / 2, total = (end - begin) * across;
  const Share share{total / ((total + most - 1) / most), total % ((total + most - 1) / most)};
  const Bounds bounds = bounds_of(op.scaling);
  int32_t* const sums = reinterpret_cast<int32_t*>(scratch);
  int16_t* const words = reinterpret_cast<int16_t*>(sums + kPoints * most * kPanelWidth);
  uint8_t* const padding = reinterpret_cast<uint8_t*>(words + kPoints * most * channels);
  std::memset(padding, op.zero_point, static_cast<size_t>(channels));
  for (int64_t block = 0, first = 0; first < total; first += share.rows(block), ++block) {
    const int64_t count = share.rows(block);
    for (int64_t t = 0; t < count; ++t) {
      const int64_t tile = begin * across + first + t;
      const int64_t top = tile / across * 2 - at.before[0], left = tile % across * 2 - at.before[1];
      const uint8_t* seen[4][4];
      for (int64_t i = 0; i < 4; ++i) {
        const bool row_inside = top + i >= 0 && top + i < at.in[0];
        for (int64_t j = 0; j < 4; ++j) {
          const bool inside = row_inside && left + j >= 0 && left + j < at.in[1];
          seen[i][j] = inside ? x + ((top + i) * at.in[1] + left + j) * channels : padding;
        }
      }
      transform_tile(seen, channels, count * channels, words + t * channels);
    }
    const uint8_t* panel = packed;
    for (int64_t o = 0; o < outputs; o += kPanelWidth, panel += winograd_panel_bytes(op)) {
      const auto* by = reinterpret_cast<const Channels<8>*>(panel);
      const int16_t* weight = reinterpret_cast<const int16_t*>(panel + 2 * sizeof(Channels<8>));
      const int64_t used = smaller(kPanelWidth, outputs - o), apart = count * kPanelWidth;
      for (int64_t point = 0; point < kPoints; ++point) {
        winograd_products(words + point * count * channels, count, channels,
                          weight + point * channels * kPanelWidth, sums + point * apart);
      }
      for (int64_t t = 0; t < count; ++t) {
        const int64_t tile = begin * across + first + t;
        const int64_t oy = tile / across * 2, ox = tile % across * 2;
        __m256i four[2][4];
        transform_sums(sums + t * kPanelWidth, apart, four[0]);
        transform_sums(sums + t * kPanelWidth + 8, apart, four[1]);
        uint8_t* to = y + (oy * at.out[1] + ox) * outputs + o;
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          if (oy + i / 2 >= at.out[0] || ox + i % 2 >= at.out[1]) continue;
          const __m256i a = requantize_lanes(_mm256_add_epi32(four[0][i], load(by[0].bias)), by[0]);
          const __m256i b = requantize_lanes(_mm256_add_epi32(four[1][i], load(by[1].bias)), by[1]);
          store(to + (i / 2 * at.out[1] + i % 2) * outputs, clamp(narrow(a, b), bounds), used);
        }
      }
    }
  }
}

}  // namespace
}  // namespace edgewright
