// Depthwise convolution, on vectors of eight channels. The rows of a window are interleaved column by column,
// so that each 32-bit lane holds several taps of one channel (two words, or four bytes); an output is then a
// sum over columns, with no question of borders, and neighbouring outputs share their columns.
//
// A path names a type of block, with
//   kChannels  channels, in order, eight to a vector, 16 at least
//   kTaps      taps of a lane
//   interleave kTaps rows of kChannels bytes, to kChannels / 8 vectors
//   pack       the weight of a tap, into the 32-bit lane at `lane`
//   add        acc + activations * weights, per lane
#pragma once

#include "depthwise3.h"

namespace edgewright {
namespace {

template <class Block>
constexpr int64_t group_bytes() {
  return Block::kChannels * 4;
}

template <class Block>
int64_t groups_of(const Sliding& at) {
  return (at.kernel[0] + Block::kTaps - 1) / Block::kTaps;
}

template <class Block>
int64_t column_bytes(const Sliding& at) {
  return groups_of<Block>(at) * group_bytes<Block>();
}

template <class Block>
int64_t deep_block_bytes(const Sliding& at) {
  return static_cast<int64_t>(sizeof(PanelHead) + Block::kChannels / 8 * sizeof(Channels<8>)) +
         at.kernel[1] * column_bytes<Block>(at);
}

// How many outputs of a row are made from one filling of the column buffer, and what lies in it: columns
// `column_step` apart, a tap every `tap_step` of them.
struct Columns {
  int64_t outputs, count, column_step, tap_step;
};

template <class Block>
Columns columns_of(const Sliding& at) {
  constexpr int64_t kBuffer = 24 << 10;
  const int64_t fit = kBuffer / column_bytes<Block>(at);
  const int64_t span = (at.kernel[1] - 1) * at.dilation[1] + 1;
  if (span > fit) return {1, at.kernel[1], at.dilation[1], 1};
  const int64_t outputs = smaller((fit - span) / at.stride[1] + 1, at.out[1]);
  return {outputs, (outputs - 1) * at.stride[1] + span, 1, at.dilation[1]};
}

template <class Block>
int64_t deep_blocks(const Sliding& at) {
  return (at.out_channels + Block::kChannels - 1) / Block::kChannels;
}

// The last block ends with the last channel: it does some channels again rather than too few.
template <class Block>
int64_t deep_from(const Sliding& at, int64_t block) {
  const int64_t last = at.out_channels - Block::kChannels;
  return last < 0 ? 0 : smaller(block * Block::kChannels, last);
}

template <class Block>
size_t depthwise_packed_bytes(const Convolution& op) {
  return static_cast<size_t>(deep_blocks<Block>(op.at) * deep_block_bytes<Block>(op.at));
}

template <class Block>
void pack_deep_block(const Convolution& op, const int8_t* weight, int64_t from, uint8_t* packed) {
  const Sliding& at = op.at;
  const int64_t used = smaller(Block::kChannels, at.out_channels - from);
  const PanelHead head{Form::kFours, common_way(op.scaling, from, used)};
  Channels<8> channels[Block::kChannels / 8];
  std::memset(channels, 0, sizeof channels);
  uint8_t* to = packed + sizeof head + sizeof channels;
  std::memset(packed, 0, static_cast<size_t>(deep_block_bytes<Block>(at)));
  for (int64_t c = 0; c < used; ++c) {
    pack_channel(op, from + c, c % 8, channels[c / 8]);
    for (int64_t row = 0; row < at.kernel[0]; ++row) {
      for (int64_t column = 0; column < at.kernel[1]; ++column) {
        uint8_t* group = to + column * column_bytes<Block>(at) + row / Block::kTaps * group_bytes<Block>();
        Block::pack(weight[(from + c) * taps(at) + row * at.kernel[1] + column], row % Block::kTaps,
                    group + c * 4);
      }
    }
  }
  std::memcpy(packed, &head, sizeof head);
  std::memcpy(packed + sizeof head, channels, sizeof channels);
}

template <class Block>
void pack_depthwise(const Convolution& op, const int8_t* weight, uint8_t* packed) {
  for (int64_t b = 0; b < deep_blocks<Block>(op.at); ++b, packed += deep_block_bytes<Block>(op.at)) {
    pack_deep_block<Block>(op, weight, deep_from<Block>(op.at, b), packed);
  }
}

template <class Block>
size_t depthwise_scratch_bytes(const Convolution& op) {
  return static_cast<size_t>(columns_of<Block>(op.at).count * column_bytes<Block>(op.at));
}

inline int64_t depthwise_units(const Convolution& op) { return op.at.out[0]; }

// One group of rows, for `count` columns; row t starts at rows[t] and goes on in steps of steps[t].
template <class Block, bool Whole>
void interleave_columns(const uint8_t* const* rows, const int64_t* steps, int64_t used, int64_t count,
                        int64_t bytes, uint8_t* to) {
  const uint8_t* seen[Block::kTaps];
  for (int t = 0; t < Block::kTaps; ++t) seen[t] = rows[t];
  for (int64_t i = 0; i < count; ++i, to += bytes) {
    if constexpr (Whole) {
      Block::interleave(seen, to);
    } else {  // few channels: never a byte past them
      uint8_t some[Block::kTaps][Block::kChannels] = {};
      const uint8_t* all[Block::kTaps];
      for (int t = 0; t < Block::kTaps; ++t) {
        for (int64_t c = 0; c < used; ++c) some[t][c] = seen[t][c];
        all[t] = some[t];
      }
      Block::interleave(all, to);
    }
    for (int t = 0; t < Block::kTaps; ++t) seen[t] += steps[t];
  }
}

// The column buffer for outputs of row `oy` whose first column of x is `start`, which may lie outside.
template <class Block>
void fill_columns(const Convolution& op, const uint8_t* x, int64_t from, int64_t used, int64_t oy,
                  int64_t start, const Columns& columns, int64_t count, uint8_t* buffer) {
  const Sliding& at = op.at;
  const int64_t channels = at.in_channels, bytes = column_bytes<Block>(at), step = columns.column_step;
  const Inside inside = taps_inside(at, 0, oy);
  uint8_t padding[Block::kChannels];
  std::memset(padding, op.zero_point, sizeof padding);
  // Columns before, within and after the image.
  const int64_t before = start < 0 ? smaller((-start + step - 1) / step, count) : 0;
  const int64_t left = start < at.in[1] ? (at.in[1] - 1 - start) / step + 1 : 0;
  const int64_t end = left < before ? before : smaller(left, count);
  for (int64_t g = 0; g < groups_of<Block>(at); ++g) {
    const uint8_t *rows[Block::kTaps], *outside[Block::kTaps];
    int64_t steps[Block::kTaps], stay[Block::kTaps] = {};
    for (int64_t t = 0; t < Block::kTaps; ++t) {
      const int64_t r = g * Block::kTaps + t;
      const bool is_inside = r >= inside.first && r < inside.last;
      const int64_t row = inside.start + r * at.dilation[0], column = start + before * step;
      outside[t] = padding;
      rows[t] = is_inside && before < end ? x + (row * at.in[1] + column) * channels + from : padding;
      steps[t] = is_inside ? channels * step : 0;
    }
    uint8_t* to = buffer + g * group_bytes<Block>();
    interleave_columns<Block, true>(outside, stay, used, before, bytes, to);
    if (used == Block::kChannels) {
      interleave_columns<Block, true>(rows, steps, used, end - before, bytes, to + before * bytes);
    } else {
      interleave_columns<Block, false>(rows, steps, used, end - before, bytes, to + before * bytes);
    }
    interleave_columns<Block, true>(outside, stay, used, count - end, bytes, to + end * bytes);
  }
}

template <int Value>
struct Number {
  static constexpr int value = Value;
};

// Eight channels of a row of outputs.
struct Strip {
  const Convolution* op;
  Way way;
  const Channels<8>* channels;
  const uint8_t *weight, *columns;  // of these channels
  int64_t apart, tap_bytes;         // bytes of the columns from output to output, and from tap to tap
  int64_t from, used, outputs;
};

// Results of Way::kAny, one by one.
[[gnu::noinline]] inline void finish_any(const Convolution& op, const int32_t* acc, int64_t from,
                                         int64_t used, uint8_t* y) {
  for (int64_t c = 0; c < used; ++c) y[c] = requantize_any(acc[c], op.scaling, from + c);
}

template <bool Whole>
[[gnu::always_inline]] inline void put(int64_t eight, int64_t used, uint8_t* y) {
  if (Whole) {
    std::memcpy(y, &eight, 8);
  } else {
    uint8_t bytes[8];
    std::memcpy(bytes, &eight, 8);
    for (int64_t c = 0; c < used; ++c) y[c] = bytes[c];
  }
}

// `Width` and `Groups` are those of the window, or 0 for any. Whole strips have eight channels. Everything
// the loop needs is copied before it, where stores to y cannot seem to change it.
template <class Block, int Width, int Groups, bool Whole>
void deep_strip(const Strip& strip, uint8_t* y) {
  constexpr int64_t kGroup = group_bytes<Block>();
  const int64_t width = Width == 0 ? strip.op->at.kernel[1] : Width;
  const int64_t groups = Groups == 0 ? groups_of<Block>(strip.op->at) : Groups;
  const int64_t y_stride = strip.op->at.out_channels, apart = strip.apart, tap_bytes = strip.tap_bytes;
  const int64_t used = strip.used, from = strip.from, outputs = strip.outputs;
  const Way way = strip.way;
  const Convolution& op = *strip.op;
  const uint8_t* const weights = strip.weight;
  const Bounds bounds = bounds_of(op.scaling);
  const Channels<8> by = *strip.channels;
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);

  const auto pixels = [&](auto number, const uint8_t* seen, uint8_t* to) __attribute__((always_inline)) {
    constexpr int kPixels = decltype(number)::value;
    __m256i acc[kPixels];
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; ++p) acc[p] = load(by.bias);
    const auto tap = [&](const uint8_t* at, __m256i w) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int p = 0; p < kPixels; ++p) {
        acc[p] = Block::add(acc[p], load(at + p * apart), w);
        keep(acc[p]);
      }
    };
    const uint8_t* weight = weights;
    for (int64_t column = 0; column < width; ++column, seen += tap_bytes) {
#pragma GCC unroll 3
      for (int64_t g = 0; g < groups; ++g, weight += kGroup) tap(seen + g * kGroup, load(weight));
    }
    if (way == Way::kAny) {
#pragma GCC unroll 4
      for (int p = 0; p < kPixels; ++p) {
        int32_t all[8];
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(all), acc[p]);
        finish_any(op, all, from, used, to + p * y_stride);
      }
      return;
    }
    const auto requantize = [&](__m256i sums) __attribute__((always_inline)) {
      return way == Way::kShort ? requantize_short(sums, by) : requantize_lanes(sums, by);
    };
    if constexpr (kPixels == 4) {
      const __m256i low = _mm256_packs_epi32(requantize(acc[0]), requantize(acc[1]));
      const __m256i high = _mm256_packs_epi32(requantize(acc[2]), requantize(acc[3]));
      // Four channels of each pixel in the lower half, the other four in the upper.
      const __m256i halves = clamp(_mm256_packus_epi16(low, high), bounds);
      const __m256i bytes = _mm256_permutevar8x32_epi32(halves, order);
      const __m128i first = _mm256_castsi256_si128(bytes), second = _mm256_extracti128_si256(bytes, 1);
      put<Whole>(_mm_cvtsi128_si64(first), used, to);
      put<Whole>(_mm_extract_epi64(first, 1), used, to + y_stride);
      put<Whole>(_mm_cvtsi128_si64(second), used, to + 2 * y_stride);
      put<Whole>(_mm_extract_epi64(second, 1), used, to + 3 * y_stride);
    } else {
      put<Whole>(_mm_cvtsi128_si64(clamp(narrow(requantize(acc[0])), bounds)), used, to);
    }
  };

  int64_t at = 0;
  for (; at + 4 <= outputs; at += 4) pixels(Number<4>{}, strip.columns + at * apart, y + at * y_stride);
  if (at < outputs && outputs >= 4) {
    at = outputs - 4;  // some again, rather than one by one
    pixels(Number<4>{}, strip.columns + at * apart, y + at * y_stride);
    return;
  }
  for (; at < outputs; ++at) pixels(Number<1>{}, strip.columns + at * apart, y + at * y_stride);
}

template <class Block, int Width, int Groups>
void deep_strip(const Strip& strip, uint8_t* y) {
  if (strip.used == 8) return deep_strip<Block, Width, Groups, true>(strip, y);
  deep_strip<Block, Width, Groups, false>(strip, y);
}

// One block of channels of one row of the result.
template <class Block>
void deep_block(const Convolution& op, const uint8_t* packed, const uint8_t* x, int64_t from, int64_t oy,
                uint8_t* buffer, uint8_t* y) {
  const Sliding& at = op.at;
  const int64_t used = smaller(Block::kChannels, at.out_channels - from);
  const Columns columns = columns_of<Block>(at);
  y += oy * at.out[1] * at.out_channels + from;
  for (int64_t ox = 0; ox < at.out[1]; ox += columns.outputs) {
    const int64_t outputs = smaller(columns.outputs, at.out[1] - ox);
    const int64_t count = columns.count - (columns.outputs - outputs) * at.stride[1];
    fill_columns<Block>(op, x, from, used, oy, ox * at.stride[1] - at.before[1], columns, count, buffer);
    const auto* head = reinterpret_cast<const PanelHead*>(packed);
    const auto* of_channels = reinterpret_cast<const Channels<8>*>(packed + sizeof(PanelHead));
    const auto* weight = reinterpret_cast<const uint8_t*>(of_channels + Block::kChannels / 8);
    const int64_t groups = groups_of<Block>(at), bytes = column_bytes<Block>(at);
    constexpr int kFive = (5 + Block::kTaps - 1) / Block::kTaps;
    for (int64_t c = 0; c < used; c += 8) {
      const Strip strip{&op,
                        head->way,
                        of_channels + c / 8,
                        weight + c * 4,
                        buffer + c * 4,
                        at.stride[1] * bytes,
                        columns.tap_step * bytes,
                        from + c,
                        smaller(8, used - c),
                        outputs};
      uint8_t* to = y + ox * at.out_channels + c;
      if (at.kernel[1] == 5 && groups == kFive) {
        deep_strip<Block, 5, kFive>(strip, to);
      } else {
        deep_strip<Block, 0, 0>(strip, to);
      }
    }
  }
}

template <class Block>
void depthwise(const Convolution& op, const uint8_t* packed, const uint8_t* x, uint8_t* y, uint8_t* scratch,
               int64_t begin, int64_t end) {
  for (int64_t oy = begin; oy < end; ++oy) {
    for (int64_t b = 0; b < deep_blocks<Block>(op.at); ++b) {
      const uint8_t* block = packed + b * deep_block_bytes<Block>(op.at);
      deep_block<Block>(op, block, x, deep_from<Block>(op.at, b), oy, scratch, y);
    }
  }
}

// Which way is taken depends on the shape alone. `Taps` is what depthwise3.h asks of a path.
template <class Block, class Taps>
ConvolutionKernel depthwise_kernel() {
  return {
      [](const Convolution& op) {
        return three_by_three(op.at) ? three_packed_bytes<Taps>(op) : depthwise_packed_bytes<Block>(op);
      },
      [](const Convolution& op, const int8_t* weight, uint8_t* packed) {
        (three_by_three(op.at) ? pack_three<Taps> : pack_depthwise<Block>)(op, weight, packed);
      },
      [](const Convolution& op) {
        return three_by_three(op.at) ? size_t{0} : depthwise_scratch_bytes<Block>(op);
      },
      [](const Convolution& op) { return three_by_three(op.at) ? three_units(op) : depthwise_units(op); },
      [](const Convolution& op, const uint8_t* packed, const uint8_t* x, uint8_t* y, uint8_t* scratch,
         int64_t begin, int64_t end) {
        (three_by_three(op.at) ? run_three<Taps> : depthwise<Block>)(op, packed, x, y, scratch, begin, end);
      },
  };
}

}  // namespace
}  // namespace edgewright
