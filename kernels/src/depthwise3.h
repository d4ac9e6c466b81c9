// Depthwise convolution with a window of 3 x 3 and strides of 1 or 2, eight channels at a time, without a
// buffer.
//
// A walk goes along the columns of an image. Of each it takes four rows, with several taps of a channel in a
// 32-bit lane, and adds them to the outputs that see it: with a stride of 1 to three outputs of two rows, of
// which the first sees the upper three of the four rows and the second the lower three. So a column is read
// once for six outputs. With a stride of 2 one row of outputs is made, and two outputs share a column.
// Columns outside the image are sums known beforehand; rows outside are read from padding.
//
// A path names a type with
//   kVectors   vectors that hold four rows of eight channels
//   gather     four times eight bytes, to those vectors
//   pack       the weights of four rows, to the lanes at `lane` and, for each further vector, 32 bytes on
//   add        acc + activations * weights, per lane
#pragma once

#include "dense256.h"

namespace edgewright {
namespace {

constexpr int64_t kEight = 8;  // channels of a block

template <class Taps>
struct alignas(64) BlockOfThree {
  PanelHead head;
  Channels<8> channels;
  uint8_t upper[3][Taps::kVectors * 32];  // weights by column: rows 0, 1, 2 and nothing
  uint8_t lower[3][Taps::kVectors * 32];  // nothing and rows 0, 1, 2
  int32_t outside[3][8];                  // what a column of padding adds, by its place in the window
};

inline bool three_by_three(const Sliding& at) {
  return at.kernel[0] == 3 && at.kernel[1] == 3 && at.dilation[0] == 1 && at.dilation[1] == 1 &&
         at.stride[0] == at.stride[1] && at.stride[0] <= 2 && at.out_channels >= kEight;
}

// The last block ends with the last channel: it does some channels again rather than too few.
inline int64_t blocks_of_three(const Sliding& at) { return (at.out_channels + kEight - 1) / kEight; }
inline int64_t block_from(const Sliding& at, int64_t block) {
  return smaller(block * kEight, at.out_channels - kEight);
}

template <class Taps>
size_t three_packed_bytes(const Convolution& op) {
  return static_cast<size_t>(blocks_of_three(op.at)) * sizeof(BlockOfThree<Taps>);
}

template <class Taps>
void pack_three(const Convolution& op, const int8_t* weight, uint8_t* packed) {
  for (int64_t b = 0; b < blocks_of_three(op.at); ++b) {
    const int64_t from = block_from(op.at, b);
    BlockOfThree<Taps> block;
    std::memset(&block, 0, sizeof block);
    block.head = {Form::kFours, common_way(op.scaling, from, kEight)};
    for (int64_t c = 0; c < kEight; ++c) {
      pack_channel(op, from + c, c, block.channels);
      const int8_t* w = weight + (from + c) * 9;
      for (int column = 0; column < 3; ++column) {
        const int8_t first[4] = {w[column], w[3 + column], w[6 + column], 0};
        const int8_t second[4] = {0, w[column], w[3 + column], w[6 + column]};
        Taps::pack(first, block.upper[column] + c * 4);
        Taps::pack(second, block.lower[column] + c * 4);
        block.outside[column][c] = op.zero_point * (w[column] + w[3 + column] + w[6 + column]);
      }
    }
    std::memcpy(packed + b * static_cast<int64_t>(sizeof block), &block, sizeof block);
  }
}

// Where a walk reads and writes: rows of x at the first column of the image, rows of y at the first output.
// It goes along as columns are read and outputs written.
struct Walk {
  const Convolution* op;
  const uint8_t* rows[4];
  int64_t steps[4];  // from column to column; 0 in padding
  uint8_t* y[2];     // the second is a place to leave behind where there is no second row
  int64_t y_steps[2];
  int64_t from;  // first channel
};

template <class Taps>
struct Column {
  __m256i of[Taps::kVectors];
};

template <class Taps>
[[gnu::always_inline]] inline Column<Taps> next_column(Walk& walk) {
  Column<Taps> made;
  Taps::gather(walk.rows, made.of);
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) walk.rows[r] += walk.steps[r];
  return made;
}

template <class Taps>
[[gnu::always_inline]] inline __m256i with(__m256i acc, const Column<Taps>& column, const uint8_t* weight) {
#pragma GCC unroll 2
  for (int v = 0; v < Taps::kVectors; ++v) acc = Taps::add(acc, column.of[v], load(weight + v * 32));
  return acc;
}

template <Way Out>
[[gnu::always_inline]] inline __m256i requantize_by(__m256i acc, const Channels<8>& by) {
  return Out == Way::kShort ? requantize_short(acc, by) : requantize_lanes(acc, by);
}

[[gnu::noinline]] inline void store_any(const Scaling& to, int64_t from, __m256i acc, uint8_t* y) {
  int32_t sums[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums), acc);
  for (int64_t c = 0; c < kEight; ++c) y[c] = requantize_any(sums[c], to, from + c);
}

// An output of each of two rows.
template <Way Out>
[[gnu::always_inline]] inline void put_two(Walk& walk, const Channels<8>& by, const Bounds& bounds,
                                           __m256i first, __m256i second) {
  if constexpr (Out == Way::kAny) {
    store_any(walk.op->scaling, walk.from, first, walk.y[0]);
    store_any(walk.op->scaling, walk.from, second, walk.y[1]);
  } else {
    const __m256i words = _mm256_packs_epi32(requantize_by<Out>(first, by), requantize_by<Out>(second, by));
    const __m256i bytes = clamp(_mm256_packus_epi16(words, words), bounds);
    // Four channels of each output in the lower half, the other four in the upper.
    const __m128i both =
        _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(walk.y[0]), both);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(walk.y[1]), _mm_unpackhi_epi64(both, both));
  }
  walk.y[0] += walk.y_steps[0];
  walk.y[1] += walk.y_steps[1];
}

template <class Taps, Way Out>
[[gnu::always_inline]] inline void walk_by_one(Walk walk, const BlockOfThree<Taps>& block) {
  const Sliding& at = walk.op->at;
  const Channels<8> by = block.channels;
  const Bounds bounds = bounds_of(walk.op->scaling);
  const __m256i bias = load(by.bias);
  // Sums of the outputs that have seen one column, and two; of the first row and the second.
  __m256i one[2] = {bias, bias}, two[2] = {bias, bias};
  const int64_t before = at.before[1], columns = at.out[1] + 2;
  const auto outside = [&](int64_t i) {
    const __m256i first = load(block.outside[0]), middle = load(block.outside[1]),
                  last = load(block.outside[2]);
    if (i >= 2)
      put_two<Out>(walk, by, bounds, _mm256_add_epi32(two[0], last), _mm256_add_epi32(two[1], last));
    for (int r = 0; r < 2; ++r) two[r] = _mm256_add_epi32(one[r], middle);
    one[0] = one[1] = _mm256_add_epi32(bias, first);
  };
  const auto inside = [&](bool put) __attribute__((always_inline)) {
    const Column<Taps> column = next_column<Taps>(walk);
    const __m256i first = with<Taps>(two[0], column, block.upper[2]);
    const __m256i second = with<Taps>(two[1], column, block.lower[2]);
    two[0] = with<Taps>(one[0], column, block.upper[1]);
    two[1] = with<Taps>(one[1], column, block.lower[1]);
    one[0] = with<Taps>(bias, column, block.upper[0]);
    one[1] = with<Taps>(bias, column, block.lower[0]);
    if (put) put_two<Out>(walk, by, bounds, first, second);
  };
  int64_t i = 0;
  for (; i < smaller(before, columns); ++i) outside(i);
  const int64_t end = smaller(before + at.in[1], columns);
  for (; i < smaller(2, end); ++i) inside(false);
  for (; i < end; ++i) inside(true);
  for (; i < columns; ++i) outside(i);
}

template <class Taps, Way Out>
[[gnu::always_inline]] inline void walk_by_two(Walk walk, const BlockOfThree<Taps>& block) {
  const Sliding& at = walk.op->at;
  const Channels<8> by = block.channels;
  const Bounds bounds = bounds_of(walk.op->scaling);
  const __m256i bias = load(by.bias);
  const auto put = [&](__m256i acc) __attribute__((always_inline)) {
    if constexpr (Out == Way::kAny) {
      store_any(walk.op->scaling, walk.from, acc, walk.y[0]);
    } else {
      const __m128i bytes = clamp(narrow(requantize_by<Out>(acc, by)), bounds);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(walk.y[0]), bytes);
    }
    walk.y[0] += walk.y_steps[0];
  };
  const int64_t size = at.in[1];
  int64_t i = -at.before[1], o = 0;  // the first column of output `o`
  Column<Taps> shared{};             // column `i`, where it lies inside
  if (i >= 0 && i < size) shared = next_column<Taps>(walk);
  // One output, of which columns may lie outside.
  const auto edge = [&] {
    const bool inside = i >= 0 && i < size;
    __m256i acc =
        inside ? with<Taps>(bias, shared, block.upper[0]) : _mm256_add_epi32(bias, load(block.outside[0]));
    for (int place = 1; place < 3; ++place) {
      ++i;
      if (i >= 0 && i < size) {
        shared = next_column<Taps>(walk);
        acc = with<Taps>(acc, shared, block.upper[place]);
      } else {
        acc = _mm256_add_epi32(acc, load(block.outside[place]));
      }
    }
    put(acc);
  };
  for (; o < at.out[1] && i < 0; ++o) edge();
  for (; o < at.out[1] && i + 2 < size; ++o, i += 2) {
    const __m256i one = with<Taps>(bias, shared, block.upper[0]);
    const __m256i two = with<Taps>(one, next_column<Taps>(walk), block.upper[1]);
    shared = next_column<Taps>(walk);
    put(with<Taps>(two, shared, block.upper[2]));
  }
  for (; o < at.out[1]; ++o) edge();
}

template <class Taps, Way Out>
[[gnu::always_inline]] inline void walk_along(const Walk& walk, const BlockOfThree<Taps>& block) {
  if (walk.op->at.stride[1] == 1) {
    walk_by_one<Taps, Out>(walk, block);
  } else {
    walk_by_two<Taps, Out>(walk, block);
  }
}

// Rows of outputs that one walk makes.
inline int64_t rows_of_walk(const Sliding& at) { return at.stride[0] == 1 ? 2 : 1; }

inline int64_t three_units(const Convolution& op) {
  const int64_t rows = rows_of_walk(op.at);
  return (op.at.out[0] + rows - 1) / rows;
}

template <class Taps>
void run_three(const Convolution& op, const uint8_t* packed, const uint8_t* x, uint8_t* y, uint8_t*,
               int64_t begin, int64_t end) {
  const Sliding& at = op.at;
  const int64_t channels = at.out_channels, row_bytes = at.in[1] * channels;
  uint8_t padding[kEight], nowhere[kEight];
  std::memset(padding, op.zero_point, sizeof padding);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t oy = unit * rows_of_walk(at), top = oy * at.stride[0] - at.before[0];
    const bool second = rows_of_walk(at) == 2 && oy + 1 < at.out[0];
    for (int64_t b = 0; b < blocks_of_three(at); ++b) {
      const auto& block = reinterpret_cast<const BlockOfThree<Taps>*>(packed)[b];
      Walk walk;
      walk.op = &op;
      walk.from = block_from(at, b);
      for (int64_t r = 0; r < 4; ++r) {
        const bool inside = top + r >= 0 && top + r < at.in[0];
        walk.rows[r] = inside ? x + (top + r) * row_bytes + walk.from : padding;
        walk.steps[r] = inside ? channels : 0;
      }
      walk.y[0] = y + oy * at.out[1] * channels + walk.from;
      walk.y[1] = second ? walk.y[0] + at.out[1] * channels : nowhere;
      walk.y_steps[0] = channels;
      walk.y_steps[1] = second ? channels : 0;
      switch (block.head.way) {
        case Way::kShort:
          walk_along<Taps, Way::kShort>(walk, block);
          break;
        case Way::kHighHalf:
          walk_along<Taps, Way::kHighHalf>(walk, block);
          break;
        default:
          walk_along<Taps, Way::kAny>(walk, block);
      }
    }
  }
}

}  // namespace
}  // namespace edgewright
