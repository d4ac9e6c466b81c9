// Tiles of 256-bit vectors: 6 rows by 16 channels, twelve accumulators.
#pragma once

#include "dense.h"

namespace edgewright {
namespace {

// Says nothing, but keeps an accumulator in its register: gcc 12 spills the tile without it.
inline void keep(__m256i& value) { asm("" : "+x"(value)); }

inline __m256i four_of(const uint8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return _mm256_set1_epi32(four);
}

// What works on accumulators has to be inlined: a function that is called takes them from memory, where they
// would then stay throughout.
struct Tiles256 {
  static constexpr int kLanes = 8, kRows = 6;

  static Place place(int64_t channel) { return {vector_of(channel), lane_of(channel)}; }

  template <int Rows, int Vectors>
  [[gnu::always_inline]] static void begin(const Tile& tile, __m256i (&acc)[Rows][Vectors]) {
    const auto* channels = reinterpret_cast<const Channels<8>*>(tile.panel + sizeof(PanelHead));
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) acc[r][v] = load(channels[v].bias);
    }
  }

  template <int Vectors>
  static const uint8_t* weights(const Tile& tile) {
    return tile.panel + sizeof(PanelHead) + Vectors * sizeof(Channels<8>);
  }

  // Dot::add(acc, x, w): each int32 lane gains the product of its four terms.
  template <class Dot, int Rows, int Vectors>
  [[gnu::always_inline]] static void fours(const Tile& tile, __m256i (&acc)[Rows][Vectors]) {
    const uint8_t* weight = weights<Vectors>(tile);
    const uint8_t* x = tile.x;
    const int64_t stride = tile.stride;
    for (const uint8_t* const end = x + tile.terms; x < end; x += 4, weight += Vectors * 32) {
      __m256i w[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) w[v] = load(weight + v * 32);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const __m256i seen = four_of(x + r * stride);
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) {
          acc[r][v] = Dot::add(acc[r][v], seen, w[v]);
          keep(acc[r][v]);
        }
      }
    }
  }

  template <int Rows, int Vectors>
  [[gnu::always_inline]] static void finish(const Tile& tile, const __m256i (&acc)[Rows][Vectors]) {
    const auto* head = reinterpret_cast<const PanelHead*>(tile.panel);
    const auto* channels = reinterpret_cast<const Channels<8>*>(tile.panel + sizeof(PanelHead));
    if (head->way == Way::kShort) {
      put(tile, acc, [&](__m256i sums, int v) { return requantize_short(sums, channels[v]); });
    } else if (head->way == Way::kHighHalf) {
      put(tile, acc, [&](__m256i sums, int v) { return requantize_lanes(sums, channels[v]); });
    } else {
      alignas(32) int32_t sums[Rows][Vectors * 8];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) {
          _mm256_store_si256(reinterpret_cast<__m256i*>(sums[r] + v * 8), acc[r][v]);
        }
      }
      put_from_memory<Vectors>(tile, Rows, sums[0]);
    }
  }

  // Way::kWords and Way::kAny.
  template <int Vectors>
  [[gnu::noinline]] static void put_from_memory(const Tile& tile, int64_t rows, const int32_t* sums) {
    const auto* head = reinterpret_cast<const PanelHead*>(tile.panel);
    const auto* channels = reinterpret_cast<const Channels<8>*>(tile.panel + sizeof(PanelHead));
    const Scaling& to = tile.op->scaling;
    const int64_t y_item = tile.op->y_item, y_stride = tile.op->at.out_channels * y_item;
    uint8_t* y = tile.y;
    for (int64_t r = 0; r < rows; ++r, y += y_stride, sums += Vectors * 8) {
      if (head->way == Way::kWords) {
        const __m256i first = requantize_lanes(lifted(load(sums), load(channels[0].lift)), channels[0]);
        if constexpr (Vectors == 2) {
          const __m256i second =
              requantize_lanes(lifted(load(sums + 8), load(channels[1].lift)), channels[1]);
          store_words(y, _mm256_packs_epi32(first, second), to, tile.used);
        } else {
          const __m256i words = _mm256_packs_epi32(first, first);
          store_words(y, _mm256_permute4x64_epi64(words, 0xD8), to, tile.used);
        }
        continue;
      }
      for (int64_t o = 0; o < tile.used; ++o) {
        const Place at = Vectors == 2 ? place(o) : Place{0, o};
        put_any(sums[at.vector * 8 + at.lane], to, tile.from + o, y_item, y, o);
      }
    }
  }

  template <int Rows, int Vectors, class Requantize>
  [[gnu::always_inline]] static void put(const Tile& tile, const __m256i (&acc)[Rows][Vectors],
                                         Requantize requantize) {
    const Bounds bounds = bounds_of(tile.op->scaling);
    const int64_t y_stride = tile.op->at.out_channels;
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      __m128i bytes = _mm_setzero_si128();
      if constexpr (Vectors == 2) {
        bytes = narrow(requantize(acc[r][0], 0), requantize(acc[r][1], 1));
      } else {
        bytes = narrow(requantize(acc[r][0], 0));
      }
      store(tile.y + r * y_stride, clamp(bytes, bounds), tile.used);
    }
  }
};

}  // namespace
}  // namespace edgewright
