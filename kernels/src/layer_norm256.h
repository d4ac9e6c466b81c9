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

// The arithmetic shift of 64-bit lanes that AVX2 lacks: 2^63 is added to what is shifted, and 2^(63-shift)
// comes off afterwards.
constexpr uint64_t kLift = uint64_t{1} << 63;

[[maybe_unused]] inline __m256i lifted_half(int32_t shift) {
  return _mm256_set1_epi64x(static_cast<int64_t>((uint64_t{1} << (shift - 1)) + kLift));
}

[[maybe_unused]] inline void layer_norm(const Normalization& op, const uint8_t* x, int64_t rows, uint8_t* y) {
  if (!op.results_fit) return plain_layer_norm(op, x, rows, y);
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
    const RowSums sums = row_sums(x, op.count);
    const NormalizedRow by = normalized_row(op, sums.plain, sums.squares);
    const __m256i middle = _mm256_set1_epi64x(by.middle), factor = _mm256_set1_epi64x(by.factor);
    const __m256i half = lifted_half(by.shift), down = _mm256_set1_epi64x(by.shift);
    const __m256i lift = _mm256_set1_epi64x(static_cast<int64_t>(kLift >> by.shift));
    const auto four = [&](int64_t i) {
      int32_t bytes;
      std::memcpy(&bytes, x + i, sizeof bytes);
      const __m256i seen = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(bytes));
      const __m256i centred = _mm256_sub_epi64(_mm256_mul_epu32(seen, count), middle);
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
      const __m256i order = _mm256_permute4x64_epi64(words, 0xD8);
      const __m128i bytes =
          _mm_packus_epi16(_mm256_castsi256_si128(order), _mm256_extracti128_si256(order, 1));
      store(y + i, clamp(bytes, bounds), 16);
    }
    for (int64_t i = vectors; i < op.count; ++i) y[i] = gained(op, normalized(op, by, x[i]), i);
  }
}

}  // namespace
}  // namespace edgewright
