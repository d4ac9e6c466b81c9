// The AVX-512 VNNI paths. `avx512vnni` has 512-bit vectors where they pay; `avx512vnni256` keeps to 256 bits,
// for CPUs that lower their clock under wider ones. Only this file is compiled with the AVX-512 flags.
#include <immintrin.h>

namespace edgewright {
namespace {

struct Vnni {
  static __m256i add(__m256i acc, __m256i x, __m256i w) { return _mm256_dpbusd_epi32(acc, x, w); }
};

}  // namespace
}  // namespace edgewright

#include "product512.h"
#include "rows512.h"
#include "vbmi512.h"
#include "vnni256.h"

namespace edgewright {
namespace {

inline __m512i load512(const void* at) { return _mm512_loadu_si512(at); }

inline void keep(__m512i& value) { asm("" : "+v"(value)); }

// As for eight lanes in simd256.h.
inline __m512i requantize_short(__m512i acc, const Channels<16>& by) {
  const __m512 scaled =
      _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), _mm512_loadu_ps(by.factor), _mm512_loadu_ps(by.offset));
  return _mm512_cvttps_epi32(scaled);
}

inline __m512i requantize_lanes(__m512i acc, const Channels<16>& by) {
  __m512i even = _mm512_mul_epi32(acc, load512(by.multiplier[0]));
  __m512i odd = _mm512_mul_epi32(_mm512_srli_epi64(acc, 32), load512(by.multiplier[1]));
  even = _mm512_add_epi64(even, load512(by.half[0]));
  odd = _mm512_add_epi64(odd, load512(by.half[1]));
  const __m512i high = _mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB);
  return _mm512_srav_epi32(high, load512(by.shift));
}

// Tiles of 12 rows by 32 channels, 24 accumulators.
// What works on accumulators has to be inlined: a function that is called takes them from memory, where they
// would then stay throughout.
struct Tiles512 {
  static constexpr int kLanes = 16, kRows = 12;
  static constexpr bool kWidens = false;

  static Place place(int64_t channel) { return {channel / 16, channel % 16}; }
  static Form choose(const int8_t*, int64_t, int64_t, int64_t, int64_t) { return Form::kFours; }

  template <int Rows, int Vectors>
  static void tile(const Tile& tile) {
    const auto* channels = reinterpret_cast<const Channels<16>*>(tile.panel + sizeof(PanelHead));
    const uint8_t* weight = tile.panel + sizeof(PanelHead) + Vectors * sizeof(Channels<16>);
    const uint8_t* x = tile.x;
    const int64_t stride = tile.stride;
    __m512i acc[Rows][Vectors];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) acc[r][v] = load512(channels[v].bias);
    }
    for (const uint8_t* const end = x + tile.terms; x < end; x += 4, weight += Vectors * 64) {
      __m512i w[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) w[v] = load512(weight + v * 64);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        int32_t four;
        std::memcpy(&four, x + r * stride, sizeof four);
        const __m512i seen = _mm512_set1_epi32(four);
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) {
          acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], seen, w[v]);
          keep(acc[r][v]);
        }
      }
    }
    finish(tile, channels, acc);
  }

  template <int Rows, int Vectors>
  [[gnu::always_inline]] static void finish(const Tile& tile, const Channels<16>* channels,
                                            const __m512i (&acc)[Rows][Vectors]) {
    const Way way = reinterpret_cast<const PanelHead*>(tile.panel)->way;
    if (way == Way::kShort) {
      put(tile, acc, [&](__m512i sums, int v) { return requantize_short(sums, channels[v]); });
    } else if (way == Way::kHighHalf) {
      put(tile, acc, [&](__m512i sums, int v) { return requantize_lanes(sums, channels[v]); });
    } else {
      alignas(64) int32_t sums[Rows][Vectors * 16];
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) _mm512_store_si512(sums[r] + v * 16, acc[r][v]);
      }
      put_from_memory<Vectors>(tile, Rows, sums[0]);
    }
  }

  // Way::kWords and Way::kAny.
  template <int Vectors>
  [[gnu::noinline]] static void put_from_memory(const Tile& tile, int64_t rows, const int32_t* sums) {
    const auto* channels = reinterpret_cast<const Channels<16>*>(tile.panel + sizeof(PanelHead));
    const Way way = reinterpret_cast<const PanelHead*>(tile.panel)->way;
    const Scaling& to = tile.op->scaling;
    const int64_t y_item = tile.op->y_item, y_stride = tile.op->at.out_channels * y_item;
    uint8_t* y = tile.y;
    for (int64_t r = 0; r < rows; ++r, y += y_stride, sums += Vectors * 16) {
      if (way == Way::kWords) {
        for (int64_t v = 0; v < Vectors; ++v) {
          const __m512i results =
              requantize_lanes(lifted(load512(sums + v * 16), load512(channels[v].lift)), channels[v]);
          const int64_t used = tile.used - v * 16;
          store_words(y + v * 32, _mm512_cvtsepi32_epi16(results), to, smaller(used, 16));
        }
        continue;
      }
      for (int64_t o = 0; o < tile.used; ++o) put_any(sums[o], to, tile.from + o, y_item, y, o);
    }
  }

  template <int Rows, int Vectors, class Requantize>
  [[gnu::always_inline]] static void put(const Tile& tile, const __m512i (&acc)[Rows][Vectors],
                                         Requantize requantize) {
    const Scaling& to = tile.op->scaling;
    const int64_t y_stride = tile.op->at.out_channels;
    const __m256i low = _mm256_set1_epi8(static_cast<char>(to.low));
    const __m256i high = _mm256_set1_epi8(static_cast<char>(to.high));
    const __m512i zero = _mm512_setzero_si512();
    const auto bytes_of = [&](__m512i words) {
      return _mm512_cvtusepi32_epi8(_mm512_max_epi32(words, zero));
    };
    const __mmask32 some = static_cast<__mmask32>((uint64_t{1} << tile.used) - 1);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      __m256i bytes = _mm256_castsi128_si256(bytes_of(requantize(acc[r][0], 0)));
      if constexpr (Vectors == 2) {
        bytes = _mm256_inserti128_si256(bytes, bytes_of(requantize(acc[r][1], 1)), 1);
      }
      bytes = _mm256_min_epu8(_mm256_max_epu8(bytes, low), high);
      _mm256_mask_storeu_epi8(tile.y + r * y_stride, some, bytes);
    }
  }
};

}  // namespace

const Kernels& avx512vnni_kernels() {
  static const Kernels table = [] {
    Kernels made = vnni_kernels("avx512vnni");
    made.dense = made.wide.dense[0][1] = dense_kernel<Tiles512>();
    made.product = made.wide.product = tiled_product_kernel<ProductVnni512>();
    made.add = add512;
    made.layer_norm = layer_norm512<uint8_t, uint8_t>;
    made.wide.layer_norm[1][0] = layer_norm512<int16_t, uint8_t>;
    made.wide.layer_norm[1][1] = layer_norm512<int16_t, int16_t>;
    if (__builtin_cpu_supports("avx512vbmi")) {
      made.lookup = lookup_vbmi;
      made.softmax = softmax_vbmi;
    }
    return made;
  }();
  return table;
}

const Kernels& avx512vnni256_kernels() {
  static const Kernels table = vnni_kernels("avx512vnni256");
  return table;
}

}  // namespace edgewright
