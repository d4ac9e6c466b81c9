// Dense convolution as a matrix product: rows are output pixels, columns output channels, terms the inputs
// that one output sees. It does what all x86 paths share: patches, packing, blocks. A path brings the tiles.
//
// Terms are taken four at a time. Where the window is one pixel and channels come in fours, rows are read
// from the image itself; otherwise patches of a block of rows are laid out first. Output channels are packed
// in panels of two vectors, and of one where no more are left.
//
// Where results are int16, or such that only one after the other can be made, a tile leaves its sums in
// memory and a function out of line goes on from there: in each tile it would take much code and save little
// time.
//
// A path is a type with
//   kLanes     int32 lanes of a vector
//   kRows      most rows of a tile
//   kWidens    whether some panels want activations as 16-bit words
//   place      (vector, lane) of a channel of a whole panel
//   choose     the Form of a panel
//   tile       <Rows, Vectors>(const Tile&)
#pragma once

#include "patches.h"

namespace edgewright {
namespace {

// How the terms of a panel are multiplied. All are exact.
enum class Form : int32_t {
  kFours,    // four terms to each channel, u8 x s8
  kPairs,    // two terms to each channel, activations widened to 16 bits
  kFastTwo,  // u8 x s8, where two products together fit 16 bits
  kFastFour  // and where four do
};

struct alignas(64) PanelHead {
  Form form;
  Way way;
};

// Rows of a panel: what a tile works on.
struct Tile {
  const Convolution* op;
  const uint8_t* x;  // first row; 16-bit words for Form::kPairs
  int64_t stride;    // bytes from row to row
  int64_t terms;     // a multiple of four
  const uint8_t* panel;
  int64_t from, used;  // its channels
  uint8_t* y;          // result of the first row and channel
};

struct Place {
  int64_t vector, lane;
};

// ---- packing ----

template <class Path>
int64_t vectors_at(const Convolution& op, int64_t from) {
  return op.at.out_channels - from > Path::kLanes ? 2 : 1;
}

template <class Path>
int64_t panel_bytes(const Convolution& op, int64_t vectors) {
  const int64_t each = static_cast<int64_t>(sizeof(Channels<Path::kLanes>)) + padded_terms(op) * Path::kLanes;
  return static_cast<int64_t>(sizeof(PanelHead)) + vectors * each;
}

template <class Path>
int64_t panels(const Convolution& op) {
  return (op.at.out_channels + 2 * Path::kLanes - 1) / (2 * Path::kLanes);
}

template <class Path>
size_t dense_packed_bytes(const Convolution& op) {
  const int64_t last = (panels<Path>(op) - 1) * 2 * Path::kLanes;
  return static_cast<size_t>((panels<Path>(op) - 1) * panel_bytes<Path>(op, 2) +
                             panel_bytes<Path>(op, vectors_at<Path>(op, last)));
}

template <class Path>
void pack_dense(const Convolution& op, const int8_t* weight, uint8_t* packed) {
  constexpr int64_t kLanes = Path::kLanes;
  const int64_t window = taps(op.at), in_channels = op.at.in_channels, count = terms(op);
  std::memset(packed, 0, dense_packed_bytes<Path>(op));
  for (int64_t from = 0; from < op.at.out_channels; from += 2 * kLanes) {
    const int64_t vectors = vectors_at<Path>(op, from), width = vectors * kLanes;
    const int64_t used = smaller(width, op.at.out_channels - from);
    const PanelHead head{Path::choose(weight + from * count, used, count, in_channels, window),
                         common_way(op.scaling, from, used, op.y_item)};
    Channels<kLanes> channels[2];
    std::memset(channels, 0, sizeof channels);
    uint8_t* to = packed + sizeof head + vectors * static_cast<int64_t>(sizeof channels[0]);
    const int64_t depth = head.form == Form::kPairs ? 2 : 4;
    for (int64_t o = 0; o < used; ++o) {
      const Place place = vectors == 2 ? Path::place(o) : Place{0, o};
      pack_channel(op, from + o, place.lane, channels[place.vector]);
      const int8_t* at = weight + (from + o) * count;
      uint8_t* column = to + (place.vector * kLanes + place.lane) * depth;
      int64_t term = 0;
      for (int64_t tap = 0; tap < window; ++tap) {
        for (int64_t c = 0; c < in_channels; ++c, ++term) {
          column[term / depth * depth * width + term % depth] = static_cast<uint8_t>(at[c * window + tap]);
        }
      }
    }
    std::memcpy(packed, &head, sizeof head);
    std::memcpy(packed + sizeof head, channels, static_cast<size_t>(vectors) * sizeof channels[0]);
    packed += panel_bytes<Path>(op, vectors);
  }
}

// ---- rows of activations ----

inline bool pointwise(const Sliding& at) {
  return taps(at) == 1 && at.stride[0] == 1 && at.stride[1] == 1 && at.before[0] == 0 && at.before[1] == 0 &&
         at.out[0] == at.in[0] && at.out[1] == at.in[1];
}

inline bool read_in_place(const Convolution& op) { return pointwise(op.at) && op.at.in_channels % 4 == 0; }

// Rows of a block: so many that they stay in the second-level cache, and a multiple of those of a tile.
template <class Path>
int64_t block_tiles(const Convolution& op) {
  constexpr int64_t kBlockBytes = 128 << 10;
  const int64_t fit = kBlockBytes / (padded_terms(op) * (Path::kWidens ? 2 : 1) * Path::kRows);
  return smaller(fit < 1 ? 1 : fit, (pixels(op.at) + Path::kRows - 1) / Path::kRows);
}

template <class Path>
int64_t patch_bytes(const Convolution& op) {
  if (read_in_place(op)) return 0;
  return round_up(block_tiles<Path>(op) * Path::kRows * padded_terms(op) + kOvershoot, 64);
}

template <class Path>
int64_t word_bytes(const Convolution& op) {
  return Path::kWidens ? round_up(block_tiles<Path>(op) * Path::kRows * padded_terms(op) * 2, 64) : 0;
}

template <class Path>
size_t dense_scratch_bytes(const Convolution& op) {
  const int64_t padding = padded_bytes(op.at, block_tiles<Path>(op) * Path::kRows);
  return static_cast<size_t>(patch_bytes<Path>(op) + word_bytes<Path>(op) + padding);
}

inline void widen(const uint8_t* x, int64_t count, uint8_t* words) {
  int16_t* to = reinterpret_cast<int16_t*>(words);
  for (; count >= 16; count -= 16, x += 16, to += 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_cvtepu8_epi16(load_half(x)));
  }
  for (int64_t i = 0; i < count; ++i) to[i] = x[i];
}

// ---- running ----

template <class Path>
int64_t row_tiles(const Convolution& op) {
  return (pixels(op.at) + Path::kRows - 1) / Path::kRows;
}

// Rows are shared out evenly among tiles, so that none is much smaller than the others.
struct Share {
  int64_t each, more;  // the first `more` tiles have one row more

  int64_t first(int64_t tile) const { return tile * each + smaller(tile, more); }
  int64_t rows(int64_t tile) const { return each + (tile < more ? 1 : 0); }
};

template <class Path>
Share share(const Convolution& op) {
  return {pixels(op.at) / row_tiles<Path>(op), pixels(op.at) % row_tiles<Path>(op)};
}

// A unit is a row of tiles, or where there are but few of those, a panel.
template <class Path>
bool by_panels(const Convolution& op) {
  return row_tiles<Path>(op) < 16 && panels<Path>(op) > row_tiles<Path>(op);
}

template <class Path>
int64_t dense_units(const Convolution& op) {
  return by_panels<Path>(op) ? panels<Path>(op) : row_tiles<Path>(op);
}

template <class Path, int Vectors, int Rows>
void run_tile(int64_t rows, const Tile& tile) {
  if (rows == Rows) return Path::template tile<Rows, Vectors>(tile);
  if constexpr (Rows > 1) run_tile<Path, Vectors, Rows - 1>(rows, tile);
}

template <class Path>
void dense(const Convolution& op, const uint8_t* packed, const uint8_t* x, uint8_t* y, uint8_t* scratch,
           int64_t begin, int64_t end) {
  const int64_t outputs = op.at.out_channels, count = padded_terms(op), block = block_tiles<Path>(op);
  const bool split = by_panels<Path>(op), in_place = read_in_place(op);
  const int64_t first_panel = split ? begin : 0, last_panel = split ? end : panels<Path>(op);
  const int64_t last_tile = split ? row_tiles<Path>(op) : end;
  const Share share_of = share<Path>(op);
  uint8_t *const words = scratch + patch_bytes<Path>(op), *const copy = words + word_bytes<Path>(op);
  for (int64_t from = split ? 0 : begin; from < last_tile; from += block) {
    const int64_t to = smaller(from + block, last_tile), row = share_of.first(from);
    const int64_t rows = share_of.first(to) - row;
    const uint8_t* bytes = in_place ? x + row * count : scratch;
    if (!in_place) lay_out(op, x, row, rows, scratch, copy);
    bool widened = false;
    for (int64_t p = first_panel; p < last_panel; ++p) {
      const int64_t o = p * 2 * Path::kLanes, vectors = vectors_at<Path>(op, o);
      Tile tile{&op,
                bytes,
                count,
                count,
                packed + p * panel_bytes<Path>(op, 2),
                o,
                smaller(vectors * Path::kLanes, outputs - o),
                nullptr};
      if constexpr (Path::kWidens) {
        if (reinterpret_cast<const PanelHead*>(tile.panel)->form == Form::kPairs) {
          if (!widened) widen(bytes, rows * count, words);
          widened = true;
          tile.x = words;
          tile.stride = 2 * count;
        }
      }
      const uint8_t* const first = tile.x;
      for (int64_t t = from; t < to; ++t) {
        const int64_t at = share_of.first(t), height = share_of.rows(t);
        tile.x = first + (at - row) * tile.stride;
        tile.y = y + (at * outputs + o) * op.y_item;
        if (vectors == 2) {
          run_tile<Path, 2, Path::kRows>(height, tile);
        } else {
          run_tile<Path, 1, Path::kRows>(height, tile);
        }
      }
    }
  }
}

template <class Path>
ConvolutionKernel dense_kernel() {
  return {dense_packed_bytes<Path>, pack_dense<Path>, dense_scratch_bytes<Path>, dense_units<Path>,
          dense<Path>};
}

}  // namespace
}  // namespace edgewright
