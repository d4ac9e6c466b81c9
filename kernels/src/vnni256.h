// What the paths with VNNI share: vpdpbusd multiplies four u8 by four s8 and adds all to an int32, exactly:
// no 16-bit sum is in between. The file that includes this defines `Vnni::add(acc, x, w)` before, in the
// encoding that its CPUs have.
#pragma once

#include "borders256.h"
#include "depthwise.h"
#include "elementwise256.h"
#include "lookup256.h"
#include "product_vnni.h"
#include "wide256.h"

namespace edgewright {
namespace {

struct VnniTiles : Tiles256 {
  static constexpr bool kWidens = false;

  static Form choose(const int8_t*, int64_t, int64_t, int64_t, int64_t) { return Form::kFours; }

  template <int Rows, int Vectors>
  static void tile(const Tile& tile) {
    __m256i acc[Rows][Vectors];
    begin(tile, acc);
    fours<Vnni>(tile, acc);
    finish(tile, acc);
  }
};

// ---- depthwise: four taps in the bytes of a lane ----

struct FourTaps {
  static constexpr int kChannels = 16, kTaps = 4;

  static void pack(int8_t weight, int64_t tap, uint8_t* lane) { lane[tap] = static_cast<uint8_t>(weight); }
  static __m256i add(__m256i acc, __m256i x, __m256i w) { return Vnni::add(acc, x, w); }

  static void interleave(const uint8_t* const* rows, uint8_t* to) {
    const __m128i a = load_half(rows[0]), b = load_half(rows[1]), c = load_half(rows[2]),
                  d = load_half(rows[3]);
    const __m128i low_ab = _mm_unpacklo_epi8(a, b), high_ab = _mm_unpackhi_epi8(a, b);
    const __m128i low_cd = _mm_unpacklo_epi8(c, d), high_cd = _mm_unpackhi_epi8(c, d);
    __m128i* const at = reinterpret_cast<__m128i*>(to);
    _mm_storeu_si128(at, _mm_unpacklo_epi16(low_ab, low_cd));
    _mm_storeu_si128(at + 1, _mm_unpackhi_epi16(low_ab, low_cd));
    _mm_storeu_si128(at + 2, _mm_unpacklo_epi16(high_ab, high_cd));
    _mm_storeu_si128(at + 3, _mm_unpackhi_epi16(high_ab, high_cd));
  }
};

// Four rows in the bytes of a lane.
struct FourRows {
  static constexpr int kVectors = 1;

  static void gather(const uint8_t* const* rows, __m256i* to) {
    __m128i of[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) of[r] = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows[r]));
    const __m128i upper = _mm_unpacklo_epi8(of[0], of[1]), lower = _mm_unpacklo_epi8(of[2], of[3]);
    to[0] = _mm256_set_m128i(_mm_unpackhi_epi16(upper, lower), _mm_unpacklo_epi16(upper, lower));
  }

  static void pack(const int8_t* weights, uint8_t* lane) { std::memcpy(lane, weights, 4); }
  static __m256i add(__m256i acc, __m256i x, __m256i w) { return Vnni::add(acc, x, w); }
};

[[maybe_unused]] inline Kernels vnni_kernels(const char* name) {
  Kernels made = plain_kernels(name, wide256());
  made.dense = dense_kernel<VnniTiles>();
  made.quantize = quantize;
  made.interleave = interleave;
  made.depthwise = depthwise_kernel<FourTaps, FourRows>();
  made.wide.dense[0][1] = made.dense;
  made.add = add;
  made.multiply = multiply;
  made.softmax = softmax;
  made.layer_norm = layer_norm<uint8_t, uint8_t>;
  made.lookup = lookup;
  made.product = made.wide.product = tiled_product_kernel<ProductVnni>();
  return made;
}

}  // namespace
}  // namespace edgewright
