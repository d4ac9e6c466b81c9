// The AVX2 path. Exact over the full range: vpmaddwd on 16-bit pairs, int8 weights widened as they are
// loaded. Where the weights themselves prove that 16 bits suffice, vpmaddubsw on bytes instead, which is
// faster and gives the same bits. Only this file is compiled with -mavx2 -mfma.
#include "borders256.h"
#include "depthwise.h"
#include "elementwise256.h"
#include "lookup256.h"
#include "product_pairs256.h"
#include "wide256.h"
#include "winograd.h"

namespace edgewright {
namespace {

// ---- dense ----

// Four terms by vpmaddubsw, which adds two products in 16 bits. For weights whose `form_of` allows it.
struct TwoInWords {
  static __m256i add(__m256i acc, __m256i x, __m256i w) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)));
  }
};

// The fastest form of one output channel. vpmaddubsw adds the products u8 x s8 of terms 2i and 2i + 1 in 16
// bits, and of each eight terms, vpaddw adds those of the last four to those of the first. The largest sum
// has x = 255 under the positive weights and 0 under the others: 255 * 128 = 32,640 fits 16 bits, 255 * 129 =
// 32,895 does not. Likewise the smallest. `weight` lies in the plan's order (channel, tap); the terms go
// (tap, channel).
Form form_of(const int8_t* weight, int64_t count, int64_t in_channels, int64_t window) {
  constexpr int32_t kMost = 128;
  Form form = Form::kFastFour;
  int64_t channel = 0, tap = 0;
  for (int64_t from = 0; from < count; from += 8) {
    int32_t positive[4] = {}, negative[4] = {};  // of each pair
    for (int64_t i = 0; i < smaller(8, count - from); ++i) {
      const int32_t w = weight[channel * window + tap];
      positive[i / 2] += w > 0 ? w : 0;
      negative[i / 2] += w < 0 ? w : 0;
      if (++channel == in_channels) {
        channel = 0;
        ++tap;
      }
    }
    for (int pair = 0; pair < 4; ++pair) {
      if (positive[pair] > kMost || negative[pair] < -kMost) return Form::kPairs;
      const int32_t up = positive[pair % 2] + positive[pair % 2 + 2];
      const int32_t down = negative[pair % 2] + negative[pair % 2 + 2];
      if (up > kMost || down < -kMost) form = Form::kFastTwo;
    }
  }
  return form;
}

struct Avx2 : Tiles256 {
  static constexpr bool kWidens = true;

  static Form choose(const int8_t* weight, int64_t channels, int64_t count, int64_t in_channels,
                     int64_t window) {
    Form form = Form::kFastFour;
    for (int64_t o = 0; o < channels && form != Form::kPairs; ++o, weight += count) {
      const Form own = form_of(weight, count, in_channels, window);
      if (own != Form::kFastFour) form = own;
    }
    return form;
  }

  template <int Rows, int Vectors>
  [[gnu::always_inline]] static void pairs(const Tile& tile, __m256i (&acc)[Rows][Vectors]) {
    const uint8_t* weight = weights<Vectors>(tile);
    const uint8_t* x = tile.x;
    const int64_t stride = tile.stride;
    for (const uint8_t* const end = x + 2 * tile.terms; x < end; x += 4, weight += Vectors * 16) {
      __m256i w[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) w[v] = _mm256_cvtepi8_epi16(load_half(weight + v * 16));
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const __m256i seen = four_of(x + r * stride);
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) {
          acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(seen, w[v]));
          keep(acc[r][v]);
        }
      }
    }
  }

  // Eight terms at a time, two vpmaddubsw added in 16 bits; an odd last four on its own.
  template <int Rows, int Vectors>
  [[gnu::always_inline]] static void eights(const Tile& tile, __m256i (&acc)[Rows][Vectors]) {
    const __m256i ones = _mm256_set1_epi16(1);
    const uint8_t* weight = weights<Vectors>(tile);
    const uint8_t* x = tile.x;
    const int64_t stride = tile.stride;
    for (const uint8_t* const end = x + tile.terms / 8 * 8; x < end; x += 8, weight += Vectors * 64) {
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const __m256i first = four_of(x + r * stride), second = four_of(x + r * stride + 4);
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) {
          const __m256i words =
              _mm256_add_epi16(_mm256_maddubs_epi16(first, load(weight + v * 32)),
                               _mm256_maddubs_epi16(second, load(weight + (Vectors + v) * 32)));
          acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(words, ones));
          keep(acc[r][v]);
        }
      }
    }
    if (tile.terms % 8 == 0) return;
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        acc[r][v] = TwoInWords::add(acc[r][v], four_of(x + r * stride), load(weight + v * 32));
      }
    }
  }

  template <int Rows, int Vectors>
  static void tile(const Tile& tile) {
    switch (reinterpret_cast<const PanelHead*>(tile.panel)->form) {
      case Form::kFastFour: {
        __m256i acc[Rows][Vectors];
        begin(tile, acc);
        eights(tile, acc);
        return finish(tile, acc);
      }
      case Form::kFastTwo: {
        __m256i acc[Rows][Vectors];
        begin(tile, acc);
        fours<TwoInWords>(tile, acc);
        return finish(tile, acc);
      }
      default: {
        __m256i acc[Rows][Vectors];
        begin(tile, acc);
        pairs(tile, acc);
        return finish(tile, acc);
      }
    }
  }
};

// Of the two ways, the one that takes fewer multiplications. Both depend on the shape and the scaling alone.
ConvolutionKernel dense_or_winograd() {
  return {
      [](const Convolution& op) {
        return winograd_fits(op) ? winograd_packed_bytes(op) : dense_packed_bytes<Avx2>(op);
      },
      [](const Convolution& op, const int8_t* weight, uint8_t* packed) {
        winograd_fits(op) ? winograd_pack(op, weight, packed) : pack_dense<Avx2>(op, weight, packed);
      },
      [](const Convolution& op) {
        return winograd_fits(op) ? winograd_scratch_bytes(op) : dense_scratch_bytes<Avx2>(op);
      },
      [](const Convolution& op) { return winograd_fits(op) ? winograd_units(op) : dense_units<Avx2>(op); },
      [](const Convolution& op, const uint8_t* packed, const uint8_t* x, uint8_t* y, uint8_t* scratch,
         int64_t begin, int64_t end) {
        (winograd_fits(op) ? winograd_run : dense<Avx2>)(op, packed, x, y, scratch, begin, end);
      },
  };
}

// ---- depthwise: two taps in the words of a lane ----

struct TwoTaps {
  static constexpr int kChannels = 16, kTaps = 2;

  static void interleave(const uint8_t* const* rows, uint8_t* to) {
    const __m128i a = load_half(rows[0]), b = load_half(rows[1]);
    __m256i* const at = reinterpret_cast<__m256i*>(to);
    _mm256_storeu_si256(at, _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b)));
    _mm256_storeu_si256(at + 1, _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b)));
  }

  static void pack(int8_t weight, int64_t tap, uint8_t* lane) {
    const int16_t word = weight;
    std::memcpy(lane + tap * 2, &word, sizeof word);
  }

  static __m256i add(__m256i acc, __m256i x, __m256i w) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(x, w));
  }
};

// Four rows as two vectors of two taps each.
struct TwoRows {
  static constexpr int kVectors = 2;

  static void gather(const uint8_t* const* rows, __m256i* to) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const __m128i first = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows[2 * v]));
      const __m128i second = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows[2 * v + 1]));
      to[v] = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(first, second));
    }
  }

  static void pack(const int8_t* weights, uint8_t* lane) {
    for (int v = 0; v < 2; ++v) {
      const int16_t words[2] = {weights[2 * v], weights[2 * v + 1]};
      std::memcpy(lane + v * 32, words, sizeof words);
    }
  }

  static __m256i add(__m256i acc, __m256i x, __m256i w) { return TwoTaps::add(acc, x, w); }
};

}  // namespace

const Kernels& avx2_kernels() {
  static const Kernels table = [] {
    Kernels made = plain_kernels("avx2", wide256());
    made.dense = made.wide.dense[0][1] = dense_or_winograd();
    made.quantize = quantize;
    made.interleave = interleave;
    made.depthwise = depthwise_kernel<TwoTaps, TwoRows>();
    made.add = add;
    made.multiply = multiply;
    made.softmax = softmax;
    made.layer_norm = layer_norm<uint8_t, uint8_t>;
    made.lookup = lookup;
    made.product = made.wide.product = tiled_product_kernel<ProductPairs>();
    return made;
  }();
  return table;
}

}  // namespace edgewright
