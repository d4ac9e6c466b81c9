// LayerNorm, 256 bits at a time: four values, each in 64 bits.
#pragma once

#include "simd256.h"

namespace edgewright {
namespace {

// The sums over a row of x and of x^2: at most 255^2 * 2^15.
struct RowSums {
  int32_t plain, squares;
};

[[maybe_unused]] inline RowSums row_sums(const uint8_t* x, int64_t count) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i plain = zero, squares = zero;
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const __m256i seen = load(x + i);
    const __m256i low = _mm256_unpacklo_epi8(seen, zero), high = _mm256_unpackhi_epi8(seen, zero);
    plain = _mm256_add_epi64(plain, _mm256_sad_epu8(seen, zero));
    squares = _mm256_add_epi32(squares,
                               _mm256_add_epi32(_mm256_madd_epi16(low, low), _mm256_madd_epi16(high, high)));
  }
  int32_t all[2][8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(all[0]), plain);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(all[1]), squares);
  RowSums sums{};
  for (int j = 0; j < 8; ++j) {
    sums.plain += all[0][j];  // the high halves are 0
    sums.squares += all[1][j];
  }
  for (; i < count; ++i) {
    sums.plain += x[i];
    sums.squares += x[i] * x[i];
  }
  return sums;
}

// The same of int16: at most 2^15 * 2^15 and 2^15 * 2^30.
struct WordSums {
  int32_t plain;
  int64_t squares;
};

[[maybe_unused]] inline WordSums row_sums(const int16_t* x, int64_t count) {
  const __m256i ones = _mm256_set1_epi16(1), zero = _mm256_setzero_si256();
  __m256i plain = zero, squares = zero;
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m256i seen = load(x + i);
    plain = _mm256_add_epi32(plain, _mm256_madd_epi16(seen, ones));
    const __m256i two = _mm256_madd_epi16(seen, seen);  // at most 2^31: without a sign
    squares = _mm256_add_epi64(
        squares, _mm256_add_epi64(_mm256_blend_epi32(two, zero, 0xAA), _mm256_srli_epi64(two, 32)));
  }
  int32_t all[8];
  int64_t four[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(all), plain);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(four), squares);
  WordSums sums{};
  for (int j = 0; j < 8; ++j) sums.plain += all[j];
  for (int j = 0; j < 4; ++j) sums.squares += four[j];
  for (; i < count; ++i) {
    sums.plain += x[i];
    sums.squares += x[i] * x[i];
  }
  return sums;
}

// Four values, each in 64 bits.
[[maybe_unused]] inline __m256i four_longs(const uint8_t* x) {
  int32_t bytes;
  std::memcpy(&bytes, x, sizeof bytes);
  return _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(bytes));
}

[[maybe_unused]] inline __m256i four_longs(const int16_t* x) {
  return _mm256_cvtepi16_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x)));
}

// The arithmetic shift of 64-bit lanes that AVX2 lacks: 2^63 is added to what is shifted, and 2^(63-shift)
// comes off afterwards.
constexpr uint64_t kLift = uint64_t{1} << 63;

[[maybe_unused]] inline __m256i lifted_half(int32_t shift) {
  return _mm256_set1_epi64x(static_cast<int64_t>((uint64_t{1} << (shift - 1)) + kLift));
}

// Where results do not fit: the scalar path's.
template <class X, class Y>
void any_layer_norm(const Normalization& op, const uint8_t* x, int64_t rows, uint8_t* y) {
  const Kernels& scalar = scalar_kernels();
  const auto run =
      sizeof(X) + sizeof(Y) == 2 ? scalar.layer_norm : scalar.wide.layer_norm[sizeof(X) - 1][sizeof(Y) - 1];
  run(op, x, rows, y);
}

template <class X, class Y>
void layer_norm(const Normalization& op, const uint8_t* x_bytes, int64_t rows, uint8_t* y_bytes) {
  if (!op.results_fit) return any_layer_norm<X, Y>(op, x_bytes, rows, y_bytes);
  const X* x = reinterpret_cast<const X*>(x_bytes);
  Y* y = reinterpret_cast<Y*>(y_bytes);
  const Scaling& to = op.scaling;
  const int32_t shift = to.shift[0];
  const __m256i out_half = lifted_half(shift), out_shift = _mm256_set1_epi64x(shift);
  // Of the lifted results the low 32 bits are kept, in which this brings the right ones.
  const __m256i lower = _mm256_set1_epi32(
      static_cast<int32_t>(static_cast<uint32_t>(to.zero_point) - static_cast<uint32_t>(kLift >> shift)));
  const __m256i count = _mm256_set1_epi64x(op.count);
  const Bounds bounds = bounds_of(to);
  const int64_t vectors = op.count / 16 * 16;
  for (int64_t row = 0; row < rows; ++row, x += op.count, y += op.count) {
    const auto sums = row_sums(x, op.count);
    const NormalizedRow by = normalized_row(op, sums.plain, sums.squares);
    const __m256i middle = _mm256_set1_epi64x(by.middle), factor = _mm256_set1_epi64x(by.factor);
    const __m256i half = lifted_half(by.shift), down = _mm256_set1_epi64x(by.shift);
    const __m256i lift = _mm256_set1_epi64x(static_cast<int64_t>(kLift >> by.shift));
    const auto four = [&](int64_t i) {
      const __m256i centred = _mm256_sub_epi64(_mm256_mul_epi32(four_longs(x + i), count), middle);
      const __m256i product = _mm256_add_epi64(_mm256_mul_epi32(centred, factor), half);
      const __m256i t = _mm256_sub_epi64(_mm256_srlv_epi64(product, down), lift);
      const __m256i gain = _mm256_cvtepi32_epi64(load_half(op.gain + i));
      const __m256i sum =
          _mm256_add_epi64(_mm256_mul_epi32(t, gain), _mm256_add_epi64(load(op.offset + i), out_half));
      return _mm256_srlv_epi64(sum, out_shift);
    };
    // The low halves of 0, 1, 4, 5 | 2, 3, 6, 7; then in order.
    const auto eight = [&](int64_t i) {
      const __m256 low = _mm256_castsi256_ps(four(i)), high = _mm256_castsi256_ps(four(i + 4));
      const __m256i both = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0x88));
      return _mm256_add_epi32(_mm256_permute4x64_epi64(both, 0xD8), lower);
    };
    for (int64_t i = 0; i < vectors; i += 16) {
      const __m256i words = _mm256_packs_epi32(eight(i), eight(i + 8));
      store_sixteen(y + i, _mm256_permute4x64_epi64(words, 0xD8), to, bounds);
    }
    for (int64_t i = vectors; i < op.count; ++i) y[i] = gained<Y>(op, normalized(op, by, x[i]), i);
  }
}

}  // namespace
}  // namespace edgewright
