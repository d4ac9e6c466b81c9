// Dense convolution where int16 comes in: vpmaddwd on pairs of 16-bit terms, exact always. Tiles are 6 rows
// by 16 channels. (Where only the result is int16, the tiles of dense.h serve.)
//
// Terms are taken two at a time. Where the window is one pixel and channels are even, rows of int16 are read
// from the image itself; otherwise those of a block of pixels are laid out first.
#pragma once

#include "simd256.h"

namespace edgewright {
namespace {

constexpr int64_t kWordRows = 6, kWordChannels = 16;  // of a tile

struct alignas(64) WordHead {
  Channels<8> channels[2];
  int32_t fits_high_half;  // else every result is requantized on its own
};

inline int64_t word_pairs(const Convolution& op) { return (taps(op.at) * op.at.in_channels + 1) / 2; }

inline int64_t word_panels(const Convolution& op) {
  return (op.at.out_channels + kWordChannels - 1) / kWordChannels;
}

// A panel is its head, and for each pair of terms the two weights of each of 16 channels.
inline int64_t word_panel_bytes(const Convolution& op) {
  return static_cast<int64_t>(sizeof(WordHead)) + round_up(word_pairs(op) * 2 * kWordChannels, 64);
}

inline size_t words_packed_bytes(const Convolution& op) {
  return static_cast<size_t>(word_panels(op) * word_panel_bytes(op));
}

inline void pack_words(const Convolution& op, const int8_t* weight, uint8_t* packed) {
  const int64_t window = taps(op.at), channels = op.at.in_channels, count = window * channels;
  std::memset(packed, 0, words_packed_bytes(op));
  for (int64_t from = 0; from < op.at.out_channels; from += kWordChannels, packed += word_panel_bytes(op)) {
    const int64_t used = smaller(kWordChannels, op.at.out_channels - from);
    WordHead head{};
    head.fits_high_half = 1;
    for (int64_t o = 0; o < used; ++o) {
      const int64_t vector = vector_of(o), lane = lane_of(o);
      head.fits_high_half &= fits_high_half(op.scaling, from + o);
      pack_channel(op, from + o, lane, head.channels[vector]);
      const int8_t* at = weight + (from + o) * count;
      uint8_t* column = packed + sizeof head + vector * kWordChannels + lane * 2;
      for (int64_t term = 0; term < count; ++term) {  // in the order (tap, channel)
        const int8_t value = at[term % channels * window + term / channels];
        column[term / 2 * 2 * kWordChannels + term % 2] = static_cast<uint8_t>(value);
      }
    }
    std::memcpy(packed, &head, sizeof head);
  }
}

// ---- rows ----

inline bool words_in_place(const Convolution& op) {
  const Sliding& at = op.at;
  return at.in_channels % 2 == 0 && taps(at) == 1 && at.stride[0] == 1 && at.stride[1] == 1 &&
         at.before[0] == 0 && at.before[1] == 0 && at.out[0] == at.in[0] && at.out[1] == at.in[1];
}

inline int64_t word_tiles(const Convolution& op) { return (pixels(op.at) + kWordRows - 1) / kWordRows; }

// Tiles of a block: so many that its rows stay in the second-level cache.
inline int64_t word_block(const Convolution& op) {
  constexpr int64_t kBlockBytes = 128 << 10;
  const int64_t fit = kBlockBytes / (word_pairs(op) * 4 * kWordRows);
  return smaller(fit < 1 ? 1 : fit, word_tiles(op));
}

inline size_t words_scratch_bytes(const Convolution& op) {
  if (words_in_place(op)) return 0;
  return static_cast<size_t>(word_block(op) * kWordRows * word_pairs(op) * 4);
}

// What `count` pixels of the result see, from number `from` on, in the order (row, column, channel).
inline void lay_out_words(const Convolution& op, const int16_t* x, int64_t from, int64_t count, int16_t* to) {
  const Sliding& at = op.at;
  const int64_t channels = at.in_channels, row = word_pairs(op) * 2;
  for (int64_t pixel = from; pixel < from + count; ++pixel, to += row) {
    const Inside rows = taps_inside(at, 0, pixel / at.out[1]),
                 columns = taps_inside(at, 1, pixel % at.out[1]);
    int16_t* __restrict word = to;
    for (int64_t r = 0; r < at.kernel[0]; ++r) {
      for (int64_t c = 0; c < at.kernel[1]; ++c, word += channels) {
        if (r < rows.first || r >= rows.last || c < columns.first || c >= columns.last) {
          for (int64_t i = 0; i < channels; ++i) word[i] = static_cast<int16_t>(op.zero_point);
          continue;
        }
        const int64_t iy = rows.start + r * at.dilation[0], ix = columns.start + c * at.dilation[1];
        const int16_t* __restrict seen = x + (iy * at.in[1] + ix) * channels;
        for (int64_t i = 0; i < channels; ++i) word[i] = seen[i];
      }
    }
    if (word < to + row) *word = 0;  // it meets a weight of zero
  }
}

// ---- tiles ----

struct WordTile {
  const Convolution* op;
  const int16_t* x;  // the first row
  int64_t stride;    // words from row to row
  const uint8_t* panel;
  int64_t from, used;  // channels
  uint8_t* y;          // result of the first row and channel
};

[[maybe_unused]] inline void store_results(uint8_t* y, __m256i first, __m256i second, const Scaling& to,
                                           int64_t used, uint8_t) {
  store(y, clamp(narrow(first, second), bounds_of(to)), used);
}

[[maybe_unused]] inline void store_results(uint8_t* y, __m256i first, __m256i second, const Scaling& to,
                                           int64_t used, int16_t) {
  store_words(y, _mm256_packs_epi32(first, second), to, used);
}

template <int Rows, class Y>
void word_tile(const WordTile& tile) {
  const auto* head = reinterpret_cast<const WordHead*>(tile.panel);
  const int8_t* weight = reinterpret_cast<const int8_t*>(tile.panel + sizeof(WordHead));
  const int16_t* x = tile.x;
  const int64_t stride = tile.stride, pairs = word_pairs(*tile.op);
  __m256i acc[Rows][2];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    acc[r][0] = load(head->channels[0].bias);
    acc[r][1] = load(head->channels[1].bias);
  }
  for (int64_t pair = 0; pair < pairs; ++pair, x += 2, weight += 2 * kWordChannels) {
    const __m256i left = _mm256_cvtepi8_epi16(load_half(weight));
    const __m256i right = _mm256_cvtepi8_epi16(load_half(weight + kWordChannels));
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      int32_t two;
      std::memcpy(&two, x + r * stride, sizeof two);
      const __m256i seen = _mm256_set1_epi32(two);
      acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(seen, left));
      acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(seen, right));
      asm("" : "+x"(acc[r][0]), "+x"(acc[r][1]));  // gcc 12 spills the tile without it
    }
  }
  const Scaling& to = tile.op->scaling;
  const int64_t y_stride = tile.op->at.out_channels * static_cast<int64_t>(sizeof(Y));
  if (head->fits_high_half) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      store_results(tile.y + r * y_stride, requantize_lanes(acc[r][0], head->channels[0]),
                    requantize_lanes(acc[r][1], head->channels[1]), to, tile.used, Y{});
    }
    return;
  }
  for (int r = 0; r < Rows; ++r) {
    int32_t all[2][8];
    for (int v = 0; v < 2; ++v) _mm256_storeu_si256(reinterpret_cast<__m256i*>(all[v]), acc[r][v]);
    Y* y = reinterpret_cast<Y*>(tile.y + r * y_stride);
    for (int64_t o = 0; o < tile.used; ++o) {
      const int64_t value =
          requantize(all[vector_of(o)][lane_of(o)], to.multiplier[tile.from + o], to.shift[tile.from + o]);
      y[o] = narrowed<Y>(value + to.zero_point, to.low, to.high);
    }
  }
}

template <class Y, int Rows>
void run_word_tile(int64_t rows, const WordTile& tile) {
  if (rows == Rows) return word_tile<Rows, Y>(tile);
  if constexpr (Rows > 1) run_word_tile<Y, Rows - 1>(rows, tile);
}

// A unit is a row of tiles, or where there are but few of those, a panel.
inline bool words_by_panels(const Convolution& op) {
  return word_tiles(op) < 16 && word_panels(op) > word_tiles(op);
}

inline int64_t words_units(const Convolution& op) {
  return words_by_panels(op) ? word_panels(op) : word_tiles(op);
}

template <class Y>
void dense_words(const Convolution& op, const uint8_t* packed, const uint8_t* x_bytes, uint8_t* y,
                 uint8_t* scratch, int64_t begin, int64_t end) {
  const int16_t* x = reinterpret_cast<const int16_t*>(x_bytes);
  const int64_t outputs = op.at.out_channels, count = pixels(op.at), row = word_pairs(op) * 2;
  const bool split = words_by_panels(op), in_place = words_in_place(op);
  const int64_t first_panel = split ? begin : 0, last_panel = split ? end : word_panels(op);
  const int64_t last_tile = split ? word_tiles(op) : end, block = word_block(op);
  for (int64_t from = split ? 0 : begin; from < last_tile; from += block) {
    const int64_t to = smaller(from + block, last_tile), first = from * kWordRows;
    const int16_t* words = reinterpret_cast<const int16_t*>(scratch);
    if (in_place) {
      words = x + first * row;
    } else {
      lay_out_words(op, x, first, smaller(to * kWordRows, count) - first,
                    reinterpret_cast<int16_t*>(scratch));
    }
    for (int64_t p = first_panel; p < last_panel; ++p) {
      const int64_t o = p * kWordChannels;
      WordTile tile{
          &op,    words, row, packed + p * word_panel_bytes(op), o, smaller(kWordChannels, outputs - o),
          nullptr};
      for (int64_t at = first; at < smaller(to * kWordRows, count); at += kWordRows) {
        tile.y = y + (at * outputs + o) * static_cast<int64_t>(sizeof(Y));
        run_word_tile<Y, kWordRows>(smaller(kWordRows, count - at), tile);
        tile.x += kWordRows * row;
      }
    }
  }
}

template <class Y>
ConvolutionKernel words_kernel() {
  return {words_packed_bytes, pack_words, words_scratch_bytes, words_units, dense_words<Y>};
}

}  // namespace
}  // namespace edgewright
