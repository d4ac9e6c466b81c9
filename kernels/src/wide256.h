// Operators where int16 comes in or goes out, on the 256-bit paths: those that have a form of their own here,
// or gain from loops that are compiled for the path. The others are the scalar path's.
#pragma once

#include "dense_words.h"
#include "layer_norm256.h"
#include "plain_wide.h"
#include "softmax256.h"

namespace edgewright {
namespace {

[[maybe_unused]] inline __m256i eight_ints(const uint8_t* x) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x)));
}

[[maybe_unused]] inline __m256i eight_ints(const int16_t* x) { return _mm256_cvtepi16_epi32(load_half(x)); }

// results(i): eight of them from number i on, with the zero point. Gives how many were stored, in sixteens.
template <class Y, class Results>
int64_t store_sixteens(int64_t count, uint8_t* y_bytes, const Scaling& to, const Results& results) {
  Y* y = reinterpret_cast<Y*>(y_bytes);
  const Bounds bounds = bounds_of(to);
  int64_t done = 0;
  for (; done + 16 <= count; done += 16) {
    const __m256i words = _mm256_packs_epi32(results(done), results(done + 8));
    store_sixteen(y + done, _mm256_permute4x64_epi64(words, 0xD8), to, bounds);
  }
  return done;
}

// In 64 bits: inputs shifted left by 14 at most, twice 2^29 * 2^31, and with a shift of 54 a zero point of up
// to 255 * 2^54. Zero points of a and b add less than twice 2^53 to that.
template <class A, class B, class Y>
void add_wide(const Addition& op, const uint8_t* a_bytes, const uint8_t* b_bytes, int64_t count, uint8_t* y) {
  const A* a = reinterpret_cast<const A*>(a_bytes);
  const B* b = reinterpret_cast<const B*>(b_bytes);
  const int32_t lift = lift_of(op.shift), shift = op.shift + lift;
  int64_t done = 0;
  if (lift <= 14 && shift <= 54) {
    const int64_t zeros =
        int64_t{op.zero_point[0]} * op.multiplier[0] + int64_t{op.zero_point[1]} * op.multiplier[1];
    const __m256i half = _mm256_set1_epi64x((int64_t{1} << (shift - 1)) +
                                            (int64_t{op.scaling.zero_point} << shift) - zeros * (1 << lift));
    const __m256i ma = _mm256_set1_epi32(op.multiplier[0]), mb = _mm256_set1_epi32(op.multiplier[1]);
    const __m128i up = _mm_cvtsi32_si128(lift), down = _mm_cvtsi32_si128(shift - 32);
    const auto sums = [&](__m256i left, __m256i right) {
      return _mm256_add_epi64(_mm256_add_epi64(_mm256_mul_epi32(left, ma), _mm256_mul_epi32(right, mb)),
                              half);
    };
    done = store_sixteens<Y>(count, y, op.scaling, [&](int64_t i) {
      const __m256i left = _mm256_sll_epi32(eight_ints(a + i), up),
                    right = _mm256_sll_epi32(eight_ints(b + i), up);
      const __m256i even = sums(left, right);
      const __m256i odd = sums(_mm256_srli_epi64(left, 32), _mm256_srli_epi64(right, 32));
      return _mm256_sra_epi32(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA), down);
    });
  }
  scalar_kernels().wide.add[sizeof(A) - 1][sizeof(B) - 1][sizeof(Y) - 1](
      op, a_bytes + done * static_cast<int64_t>(sizeof(A)), b_bytes + done * static_cast<int64_t>(sizeof(B)),
      count - done, y + done * static_cast<int64_t>(sizeof(Y)));
}

template <class A, class B, class Y>
void multiply_wide(const Multiplication& op, const uint8_t* a_bytes, const uint8_t* b_bytes, int64_t count,
                   uint8_t* y) {
  const A* a = reinterpret_cast<const A*>(a_bytes);
  const B* b = reinterpret_cast<const B*>(b_bytes);
  int64_t done = 0;
  if (sizeof(Y) == 1 ? fits_high_half(op.scaling, 0) : fits_lifted(op.scaling, 0)) {
    const Uniform256 by = uniform256(op.scaling);
    const __m256i za = _mm256_set1_epi32(op.zero_point[0]), zb = _mm256_set1_epi32(op.zero_point[1]);
    done = store_sixteens<Y>(count, y, op.scaling, [&](int64_t i) {
      const __m256i left = _mm256_sub_epi32(eight_ints(a + i), za);
      const __m256i right = _mm256_sub_epi32(eight_ints(b + i), zb);
      return requantize_lanes(lifted(_mm256_mullo_epi32(left, right), by.lift), by);
    });
  }
  scalar_kernels().wide.multiply[sizeof(A) - 1][sizeof(B) - 1][sizeof(Y) - 1](
      op, a_bytes + done * static_cast<int64_t>(sizeof(A)), b_bytes + done * static_cast<int64_t>(sizeof(B)),
      count - done, y + done * static_cast<int64_t>(sizeof(Y)));
}

// Without dense layers and products from uint8 to int16: they are those from uint8 to uint8.
[[maybe_unused]] inline Wide wide256() {
  using U8 = uint8_t;
  using I16 = int16_t;
  Wide table = scalar_kernels().wide;
  table.dense[1][0] = words_kernel<U8>();
  table.dense[1][1] = words_kernel<I16>();
  table.depthwise[0][1] = plain_depthwise_kernel<U8, I16>();
  table.depthwise[1][0] = plain_depthwise_kernel<I16, U8>();
  table.depthwise[1][1] = plain_depthwise_kernel<I16, I16>();
  table.quantize = wide_quantize;
  table.dequantize = wide_dequantize;
  table.requantize[0][0] = wide_requantize<U8, U8>;
  table.requantize[1][0] = wide_requantize<I16, U8>;
  table.requantize[1][1] = wide_requantize<I16, I16>;
  table.add[0][0][1] = add_wide<U8, U8, I16>;
  table.add[0][1][0] = add_wide<U8, I16, U8>;
  table.add[0][1][1] = add_wide<U8, I16, I16>;
  table.add[1][0][0] = add_wide<I16, U8, U8>;
  table.add[1][0][1] = add_wide<I16, U8, I16>;
  table.add[1][1][0] = add_wide<I16, I16, U8>;
  table.add[1][1][1] = add_wide<I16, I16, I16>;
  table.multiply[0][0][1] = multiply_wide<U8, U8, I16>;
  table.multiply[0][1][0] = multiply_wide<U8, I16, U8>;
  table.multiply[0][1][1] = multiply_wide<U8, I16, I16>;
  table.multiply[1][0][0] = multiply_wide<I16, U8, U8>;
  table.multiply[1][0][1] = multiply_wide<I16, U8, I16>;
  table.multiply[1][1][0] = multiply_wide<I16, I16, U8>;
  table.multiply[1][1][1] = multiply_wide<I16, I16, I16>;
  table.softmax = softmax_of_words;
  table.layer_norm[0][1] = layer_norm<U8, I16>;
  table.layer_norm[1][0] = layer_norm<I16, U8>;
  table.layer_norm[1][1] = layer_norm<I16, I16>;
  return table;
}

}  // namespace
}  // namespace edgewright
