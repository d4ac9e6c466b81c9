// The AVX2 path. Exact over the full range: vpmaddwd on 16-bit pairs, int8 weights widened as they are
// loaded. Only this file is compiled with -mavx2 -mfma.
#include <immintrin.h>

#include "plain.h"

namespace edgewright {
namespace {

constexpr int64_t kLanes = 8;              // int32 lanes of a vector
constexpr int64_t kRows = 6;               // output pixels of a tile
constexpr int64_t kBlockBytes = 64 << 10;  // of widened activations, to stay in the second-level cache

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

__m256i load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }
__m128i load_half(const void* at) { return _mm_loadu_si128(static_cast<const __m128i*>(at)); }

// ---- requantization ----

// The constants of eight output channels. AVX2 has no arithmetic 64-bit shift, so 2^63 is added before a
// logical one and 2^(63-shift) taken off after it. Only the low 32 bits are kept; `lowest` and `highest`
// clamp the accumulator to where those suffice and the result has long saturated.
struct Channels {
  int32_t bias[8], lowest[8], highest[8], multiplier[8];
  int64_t half[2][4];  // 2^(shift-1) + 2^63; even lanes, then odd
  int64_t shift[2][4];
  int32_t offset[8];  // zero point - 2^(63-shift), modulo 2^32
};

// Largest accumulator whose result is at most `limit`, else INT32_MIN. Results grow with the accumulator.
int32_t last_at_most(int32_t limit, int32_t multiplier, int32_t shift) {
  int64_t low = INT32_MIN, high = INT32_MAX;
  while (low < high) {
    const int64_t middle = (low + high + 1) >> 1;
    if (requantize(middle, multiplier, shift) <= limit) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return static_cast<int32_t>(low);
}

void pack_channel(const Convolution& op, int64_t channel, int64_t lane, Channels& to) {
  const Scaling& scaling = op.scaling;
  const int32_t multiplier = scaling.multiplier[channel], shift = scaling.shift[channel];
  const int32_t below_highest = last_at_most(scaling.high - scaling.zero_point - 1, multiplier, shift);
  to.bias[lane] = op.bias[channel];
  to.lowest[lane] = last_at_most(scaling.low - scaling.zero_point, multiplier, shift);
  to.highest[lane] = below_highest == INT32_MAX ? INT32_MAX : below_highest + 1;
  to.multiplier[lane] = multiplier;
  const uint64_t half = (uint64_t{1} << (shift - 1)) + (uint64_t{1} << 63);
  to.half[lane % 2][lane / 2] = static_cast<int64_t>(half);
  to.shift[lane % 2][lane / 2] = shift;
  to.offset[lane] = static_cast<int32_t>(static_cast<uint32_t>(scaling.zero_point) -
                                         static_cast<uint32_t>(uint64_t{1} << (63 - shift)));
}

// int32 results with the zero point added, not yet clamped to 8 bits.
inline __m256i requantize8(__m256i acc, const Channels& by) {
  acc = _mm256_min_epi32(_mm256_max_epi32(acc, load(by.lowest)), load(by.highest));
  const __m256i multiplier = load(by.multiplier);
  __m256i even = _mm256_mul_epi32(acc, multiplier);
  __m256i odd = _mm256_mul_epi32(_mm256_srli_epi64(acc, 32), _mm256_srli_epi64(multiplier, 32));
  even = _mm256_srlv_epi64(_mm256_add_epi64(even, load(by.half[0])), load(by.shift[0]));
  odd = _mm256_srlv_epi64(_mm256_add_epi64(odd, load(by.half[1])), load(by.shift[1]));
  const __m256i both = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
  return _mm256_add_epi32(both, load(by.offset));
}

// Sixteen uint8, in order, from 16-bit lanes.
inline __m128i narrow(__m256i words) {
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi16(words, words), 0x08));
}

inline __m128i clamp(__m128i bytes, const Scaling& to) {
  return _mm_min_epu8(_mm_max_epu8(bytes, _mm_set1_epi8(static_cast<char>(to.low))),
                      _mm_set1_epi8(static_cast<char>(to.high)));
}

inline void store(uint8_t* y, __m128i bytes, int64_t count) {
  if (count >= 16) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), bytes);
  } else if (count == 8) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(y), bytes);
  } else {
    uint8_t all[16];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(all), bytes);
    for (int64_t i = 0; i < count; ++i) y[i] = all[i];
  }
}

// ---- dense: widened patches times packed panels ----

// Output channels are packed in panels of 16, and of 8 where at most 8 are left. A panel is the Channels of
// each eight, then for each pair of terms and each channel its two weights. An odd last term is paired with a
// zero.

int64_t terms(const Convolution& op) { return taps(op.at) * op.at.in_channels; }
int64_t even_terms(const Convolution& op) { return (terms(op) + 1) & ~int64_t{1}; }
int64_t vectors_left(int64_t channels) { return channels > kLanes ? 2 : 1; }

size_t dense_packed_bytes(const Convolution& op) {
  const int64_t vectors = (op.at.out_channels + kLanes - 1) / kLanes;
  return static_cast<size_t>(vectors) * (sizeof(Channels) + static_cast<size_t>(even_terms(op) * kLanes));
}

void pack_dense(const Convolution& op, const int8_t* weight, uint8_t* packed) {
  const int64_t window = taps(op.at), in_channels = op.at.in_channels, count = terms(op);
  std::memset(packed, 0, dense_packed_bytes(op));
  for (int64_t from = 0; from < op.at.out_channels;) {
    const int64_t width = vectors_left(op.at.out_channels - from) * kLanes;
    const int64_t used = smaller(width, op.at.out_channels - from);
    for (int64_t first = 0; first < width; first += kLanes) {
      Channels channels;
      std::memset(&channels, 0, sizeof channels);
      for (int64_t lane = 0; lane < smaller(kLanes, used - first); ++lane) {
        pack_channel(op, from + first + lane, lane, channels);
      }
      std::memcpy(packed, &channels, sizeof channels);
      packed += sizeof channels;
    }
    for (int64_t term = 0, tap = 0; tap < window; ++tap) {
      for (int64_t c = 0; c < in_channels; ++c, ++term) {
        uint8_t* to = packed + term / 2 * 2 * width + term % 2;
        const int8_t* at = weight + (from * in_channels + c) * window + tap;
        for (int64_t o = 0; o < used; ++o) to[2 * o] = static_cast<uint8_t>(at[o * count]);
      }
    }
    packed += even_terms(op) * width;
    from += width;
  }
}

int64_t block_rows(const Convolution& op) {
  const int64_t fit = kBlockBytes / (2 * even_terms(op)) / kRows * kRows;
  return smaller(fit < kRows ? kRows : fit, pixels(op.at));
}

size_t dense_scratch_bytes(const Convolution& op) {
  return static_cast<size_t>(block_rows(op) * even_terms(op)) * sizeof(int16_t);
}

inline void widen(const uint8_t* x, int64_t count, int16_t* to) {
  for (; count >= 16; count -= 16, x += 16, to += 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_cvtepu8_epi16(load_half(x)));
  }
  if (count >= 8) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_cvtepu8_epi16(eight));
    count -= 8, x += 8, to += 8;
  }
  for (int64_t i = 0; i < count; ++i) to[i] = x[i];
}

inline void fill(int16_t value, int64_t count, int16_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

// The patch that output pixel (oy, ox) sees, in the order (row, column, channel), widened.
void widen_patch(const Convolution& op, const uint8_t* x, const Inside& rows, const Inside& columns,
                 int16_t* to) {
  const Sliding& at = op.at;
  const int64_t channels = at.in_channels, row_terms = at.kernel[1] * channels;
  const int16_t padding = static_cast<int16_t>(op.zero_point);
  for (int64_t r = 0; r < at.kernel[0]; ++r, to += row_terms) {
    if (r < rows.first || r >= rows.last) {
      fill(padding, row_terms, to);
      continue;
    }
    const uint8_t* row = x + (rows.start + r * at.dilation[0]) * at.in[1] * channels;
    fill(padding, columns.first * channels, to);
    fill(padding, (at.kernel[1] - columns.last) * channels, to + columns.last * channels);
    if (at.dilation[1] == 1) {
      widen(row + (columns.start + columns.first) * channels, (columns.last - columns.first) * channels,
            to + columns.first * channels);
      continue;
    }
    for (int64_t c = columns.first; c < columns.last; ++c) {
      widen(row + (columns.start + c * at.dilation[1]) * channels, channels, to + c * channels);
    }
  }
}

// `count` output pixels from number `from` on, one row of even_terms(op) words each.
void widen_patches(const Convolution& op, const uint8_t* x, int64_t from, int64_t count, int16_t* to) {
  const Sliding& at = op.at;
  const int64_t used = terms(op), stride = even_terms(op);
  const bool pointwise = taps(at) == 1 && at.stride[0] == 1 && at.stride[1] == 1 && at.before[0] == 0 &&
                         at.before[1] == 0 && at.out[0] == at.in[0] && at.out[1] == at.in[1];
  if (pointwise && used == stride) {
    widen(x + from * used, count * used, to);
    return;
  }
  int64_t oy = from / at.out[1], ox = from % at.out[1];
  Inside rows = taps_inside(at, 0, oy);
  for (int64_t i = from; i < from + count; ++i, to += stride) {
    if (pointwise) {
      widen(x + i * used, used, to);
    } else {
      widen_patch(op, x, rows, taps_inside(at, 1, ox), to);
    }
    if (used != stride) to[used] = 0;
    if (++ox == at.out[1]) {
      ox = 0;
      rows = taps_inside(at, 0, ++oy);
    }
  }
}

// `Rows` output pixels times one panel of `Vectors` * 8 channels.
template <int Rows, int Vectors>
void tile(const int16_t* x, int64_t count, const uint8_t* panel, const Scaling& to, uint8_t* y,
          int64_t y_stride, int64_t used) {
  const Channels* channels = reinterpret_cast<const Channels*>(panel);
  const uint8_t* weight = panel + Vectors * sizeof(Channels);
  __m256i acc[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) acc[r][v] = load(channels[v].bias);
  }
  for (int64_t t = 0; t < count; t += 2, weight += Vectors * 16) {
    __m256i w[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) w[v] = _mm256_cvtepi8_epi16(load_half(weight + v * 16));
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      int32_t pair;
      std::memcpy(&pair, x + r * count + t, sizeof pair);
      const __m256i seen = _mm256_set1_epi32(pair);
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(seen, w[v]));
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    const __m256i first = requantize8(acc[r][0], channels[0]);
    const __m256i second = Vectors == 2 ? requantize8(acc[r][Vectors - 1], channels[Vectors - 1]) : first;
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xD8);
    store(y + r * y_stride, clamp(narrow(words), to), used);
  }
}

template <int Vectors>
void tiles(const int16_t* x, int64_t rows, int64_t count, const uint8_t* panel, const Scaling& to, uint8_t* y,
           int64_t y_stride, int64_t used) {
  for (; rows >= kRows; rows -= kRows, x += kRows * count, y += kRows * y_stride) {
    tile<kRows, Vectors>(x, count, panel, to, y, y_stride, used);
  }
  switch (rows) {
    case 5:
      return tile<5, Vectors>(x, count, panel, to, y, y_stride, used);
    case 4:
      return tile<4, Vectors>(x, count, panel, to, y, y_stride, used);
    case 3:
      return tile<3, Vectors>(x, count, panel, to, y, y_stride, used);
    case 2:
      return tile<2, Vectors>(x, count, panel, to, y, y_stride, used);
    case 1:
      return tile<1, Vectors>(x, count, panel, to, y, y_stride, used);
  }
}

// A unit is a row of tiles.
int64_t dense_units(const Convolution& op) { return (pixels(op.at) + kRows - 1) / kRows; }

void dense(const Convolution& op, const uint8_t* packed, const uint8_t* x, uint8_t* y, uint8_t* scratch,
           int64_t begin, int64_t end) {
  const int64_t count = even_terms(op), outputs = op.at.out_channels,
                last = smaller(end * kRows, pixels(op.at));
  const int64_t block = block_rows(op);
  int16_t* patches = reinterpret_cast<int16_t*>(scratch);
  for (int64_t from = begin * kRows; from < last; from += block) {
    const int64_t rows = smaller(block, last - from);
    widen_patches(op, x, from, rows, patches);
    const uint8_t* panel = packed;
    for (int64_t o = 0; o < outputs;) {
      const int64_t vectors = vectors_left(outputs - o), used = smaller(vectors * kLanes, outputs - o);
      uint8_t* to = y + from * outputs + o;
      if (vectors == 2) {
        tiles<2>(patches, rows, count, panel, op.scaling, to, outputs, used);
      } else {
        tiles<1>(patches, rows, count, panel, op.scaling, to, outputs, used);
      }
      panel += vectors * (static_cast<int64_t>(sizeof(Channels)) + count * kLanes);
      o += vectors * kLanes;
    }
  }
}

// ---- depthwise: two taps at a time ----

// Channels are packed in sixteens: their Channels, then for each pair of taps 32 words, as vpunpck
// interleaves two taps of sixteen channels. So the first vector has channels 0-3 and 8-11, the second the
// others.

constexpr int64_t kDeep = 16;

int64_t lane_of(int64_t channel) { return channel / 8 * 4 + channel % 4; }
int64_t vector_of(int64_t channel) { return channel / 4 % 2; }
int64_t even_taps(const Convolution& op) { return (taps(op.at) + 1) & ~int64_t{1}; }

size_t deep_block_bytes(const Convolution& op) {
  return 2 * sizeof(Channels) + static_cast<size_t>(even_taps(op) * kDeep) * sizeof(int16_t);
}

size_t depthwise_packed_bytes(const Convolution& op) {
  return static_cast<size_t>((op.at.out_channels + kDeep - 1) / kDeep) * deep_block_bytes(op);
}

void pack_depthwise(const Convolution& op, const int8_t* weight, uint8_t* packed) {
  const int64_t window = taps(op.at);
  for (int64_t from = 0; from < op.at.out_channels; from += kDeep, packed += deep_block_bytes(op)) {
    std::memset(packed, 0, deep_block_bytes(op));
    Channels channels[2];
    std::memset(channels, 0, sizeof channels);
    int16_t* words = reinterpret_cast<int16_t*>(packed + sizeof channels);
    for (int64_t c = 0; c < smaller(kDeep, op.at.out_channels - from); ++c) {
      const int64_t vector = vector_of(c), lane = lane_of(c);
      pack_channel(op, from + c, lane, channels[vector]);
      for (int64_t tap = 0; tap < window; ++tap) {
        words[tap / 2 * 32 + vector * 16 + lane * 2 + tap % 2] = weight[(from + c) * window + tap];
      }
    }
    std::memcpy(packed, channels, sizeof channels);
  }
}

// A pointer per tap, then one pixel of padding.
size_t depthwise_scratch_bytes(const Convolution& op) {
  return static_cast<size_t>(even_taps(op)) * sizeof(const uint8_t*) + static_cast<size_t>(op.at.in_channels);
}

// Fewer than sixteen channels, and never a byte past them.
inline __m256i load_few(const uint8_t* x, int64_t count) {
  if (count == 8) return _mm256_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x)));
  uint8_t all[16] = {};
  for (int64_t i = 0; i < count; ++i) all[i] = x[i];
  return _mm256_cvtepu8_epi16(load_half(all));
}

// Sixteen channels of one output pixel, or `used` of them. `count` is the even number of taps.
template <bool Whole>
inline __m128i depthwise_block(const uint8_t* packed, const uint8_t* const* seen, int64_t from, int64_t count,
                               int64_t used) {
  const Channels* channels = reinterpret_cast<const Channels*>(packed);
  const uint8_t* weight = packed + 2 * sizeof(Channels);
  __m256i first = load(channels[0].bias), second = load(channels[1].bias);
#pragma GCC unroll 5
  for (int64_t tap = 0; tap < count; tap += 2, weight += 64) {
    const uint8_t *at_a = seen[tap] + from, *at_b = seen[tap + 1] + from;
    const __m256i a = Whole ? _mm256_cvtepu8_epi16(load_half(at_a)) : load_few(at_a, used);
    const __m256i b = Whole ? _mm256_cvtepu8_epi16(load_half(at_b)) : load_few(at_b, used);
    const __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);
    first = _mm256_add_epi32(first, _mm256_madd_epi16(low, load(weight)));
    second = _mm256_add_epi32(second, _mm256_madd_epi16(high, load(weight + 32)));
  }
  return narrow(_mm256_packs_epi32(requantize8(first, channels[0]), requantize8(second, channels[1])));
}

// One output pixel; `seen` points at the pixel under each tap. `Taps` is their even number, or 0 for any.
template <int Taps>
void depthwise_pixel(const Convolution& op, const uint8_t* packed, const uint8_t* const* seen, uint8_t* y) {
  const int64_t count = Taps == 0 ? even_taps(op) : Taps, outputs = op.at.out_channels;
  const int64_t block_bytes = static_cast<int64_t>(deep_block_bytes(op));
  const Scaling to = op.scaling;
  int64_t from = 0;
  for (; from + kDeep <= outputs; from += kDeep, packed += block_bytes) {
    store(y + from, clamp(depthwise_block<true>(packed, seen, from, count, kDeep), to), kDeep);
  }
  if (from < outputs) {
    const int64_t used = outputs - from;
    store(y + from, clamp(depthwise_block<false>(packed, seen, from, count, used), to), used);
  }
}

int64_t depthwise_units(const Convolution& op) { return op.at.out[0]; }

void depthwise(const Convolution& op, const uint8_t* packed, const uint8_t* x, uint8_t* y, uint8_t* scratch,
               int64_t begin, int64_t end) {
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
      if (taps(at) == 9) {
        depthwise_pixel<10>(op, packed, seen, y);
      } else {
        depthwise_pixel<0>(op, packed, seen, y);
      }
    }
  }
}

// ---- add ----

void add(const Addition& op, const uint8_t* a, const uint8_t* b, int64_t count, uint8_t* y) {
  const int64_t ma = op.multiplier[0], mb = op.multiplier[1];
  int64_t done = 0;
  // The vector loop keeps the low 32 bits of a result.
  if ((255 * (ma + mb)) >> op.shift < int64_t{1} << 30) {
    const uint64_t half = (uint64_t{1} << (op.shift - 1)) + (uint64_t{1} << 63) -
                          static_cast<uint64_t>(op.zero_point[0] * ma + op.zero_point[1] * mb);
    const __m256i halves = _mm256_set1_epi64x(static_cast<int64_t>(half));
    const __m256i by_a = _mm256_set1_epi64x(ma), by_b = _mm256_set1_epi64x(mb);
    const __m128i shift = _mm_cvtsi32_si128(op.shift);
    const __m256i offset =
        _mm256_set1_epi32(static_cast<int32_t>(static_cast<uint32_t>(op.scaling.zero_point) -
                                               static_cast<uint32_t>(uint64_t{1} << (63 - op.shift))));
    const auto eight = [&](__m128i a8, __m128i b8) {
      const __m256i av = _mm256_cvtepu8_epi32(a8), bv = _mm256_cvtepu8_epi32(b8);
      __m256i even = _mm256_add_epi64(_mm256_mul_epi32(av, by_a), _mm256_mul_epi32(bv, by_b));
      __m256i odd = _mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64(av, 32), by_a),
                                     _mm256_mul_epi32(_mm256_srli_epi64(bv, 32), by_b));
      even = _mm256_srl_epi64(_mm256_add_epi64(even, halves), shift);
      odd = _mm256_srl_epi64(_mm256_add_epi64(odd, halves), shift);
      return _mm256_add_epi32(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA), offset);
    };
    for (; done + 16 <= count; done += 16) {
      const __m128i av = load_half(a + done), bv = load_half(b + done);
      const __m256i first = eight(av, bv), second = eight(_mm_srli_si128(av, 8), _mm_srli_si128(bv, 8));
      const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xD8);
      store(y + done, clamp(narrow(words), op.scaling), 16);
    }
  }
  plain_add(op, a + done, b + done, count - done, y + done);
}

}  // namespace

const Kernels& avx2_kernels() {
  static const Kernels table = [] {
    Kernels made = plain_kernels("avx2");
    made.dense = {dense_packed_bytes, pack_dense, dense_scratch_bytes, dense_units, dense};
    made.depthwise = {depthwise_packed_bytes, pack_depthwise, depthwise_scratch_bytes, depthwise_units,
                      depthwise};
    made.add = add;
    return made;
  }();
  return table;
}

}  // namespace edgewright
