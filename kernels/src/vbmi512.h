// Tables and Softmax by VPERMB, which picks from 64 bytes at once. These functions alone want AVX-512 VBMI:
// avx512vnni.cpp takes them where the CPU has it.
#pragma once

#include "softmax256.h"

namespace edgewright {
namespace {

#define EDGEWRIGHT_VBMI __attribute__((target("avx512vbmi")))

// 256 bytes.
struct ByteTable {
  __m512i quarter[4];
};

// Which of 64 indices lie in each quarter of a table but the first.
struct Quarters {
  __mmask64 second, third, fourth;
};

inline ByteTable byte_table(const uint8_t* table) {
  return {{_mm512_loadu_si512(table), _mm512_loadu_si512(table + 64), _mm512_loadu_si512(table + 128),
           _mm512_loadu_si512(table + 192)}};
}

inline Quarters quarters(__m512i index) {
  const __mmask64 upper = _mm512_movepi8_mask(index);
  const __mmask64 odd = _mm512_movepi8_mask(_mm512_add_epi8(index, index));
  return {odd & ~upper, upper & ~odd, upper & odd};
}

EDGEWRIGHT_VBMI inline __m512i picked(const ByteTable& from, __m512i index, const Quarters& in) {
  __m512i found = _mm512_permutexvar_epi8(index, from.quarter[0]);
  found = _mm512_mask_permutexvar_epi8(found, in.second, index, from.quarter[1]);
  found = _mm512_mask_permutexvar_epi8(found, in.third, index, from.quarter[2]);
  return _mm512_mask_permutexvar_epi8(found, in.fourth, index, from.quarter[3]);
}

// The lowest `count` of 64.
inline __mmask64 first_of(int64_t count) { return count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1; }

EDGEWRIGHT_VBMI inline void lookup_vbmi(const uint8_t* table, const uint8_t* x, int64_t count, uint8_t* y) {
  const ByteTable from = byte_table(table);
  for (int64_t i = 0; i < count; i += 64) {
    const __mmask64 some = first_of(count - i);
    const __m512i seen = _mm512_maskz_loadu_epi8(some, x + i);
    _mm512_mask_storeu_epi8(y + i, some, picked(from, seen, quarters(seen)));
  }
}

// ---- Softmax ----

// The larger of the bytes that lie 16, 32 and 48 apart.
inline __m128i halved(__m512i x) {
  const __m256i y = _mm256_max_epu8(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
  return _mm_max_epu8(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
}

// (e * factor + 2^(shift-1)) >> shift for 32 words e, with factor = 2^16 * high + low below 2^31 and a shift
// of 33..48: e * factor >> 32 needs but the high half of e * low and the carry into that of e * high; it is
// below 2^15, and the half that is added, at most 2^15, is a whole number of it.
inline __m512i shared(__m512i e, __m512i low, __m512i high, __m512i half, __m128i shift, __m512i zero_point) {
  const __m512i below = _mm512_mulhi_epu16(e, low), middle = _mm512_mullo_epi16(e, high);
  const __m512i above = _mm512_mulhi_epu16(e, high);
  const __mmask32 carry = _mm512_cmplt_epu16_mask(_mm512_add_epi16(below, middle), below);
  const __m512i whole = _mm512_mask_add_epi16(above, carry, above, _mm512_set1_epi16(1));
  return _mm512_adds_epi16(_mm512_srl_epi16(_mm512_add_epi16(whole, half), shift), zero_point);
}

EDGEWRIGHT_VBMI inline void softmax_vbmi(const Exponentials& op, const uint8_t* x, const uint8_t* mask,
                                         int64_t mask_step, uint8_t* y) {
  const Scaling& to = op.scaling;
  const int32_t shift = to.shift[0];
  if (op.count > kMostExponentials || shift < 33 || shift > 48) return softmax(op, x, mask, mask_step, y);
  const uint8_t nothing = saturate(to.zero_point, to.low, to.high);
  if (mask != nullptr && mask_step == 0) {
    if (*mask == op.masked) {
      std::memset(y, nothing, static_cast<size_t>(op.count));
      return;
    }
    mask = nullptr;
  }
  const int64_t blocks = (op.count + 63) / 64;
  const __m512i masked = _mm512_set1_epi8(static_cast<char>(op.masked)), zero = _mm512_setzero_si512();
  __mmask64 kept[kMostExponentials / 64];
  __m512i best = zero;
  for (int64_t i = 0; i < blocks; ++i) {
    kept[i] = first_of(op.count - 64 * i);
    if (mask != nullptr) {
      const __m512i seen = _mm512_maskz_loadu_epi8(kept[i], mask + 64 * i);
      kept[i] = _mm512_mask_cmpneq_epu8_mask(kept[i], seen, masked);
    }
    best = _mm512_max_epu8(best, _mm512_maskz_loadu_epi8(kept[i], x + 64 * i));
  }
  const __m512i top = _mm512_set1_epi8(static_cast<char>(largest_byte(halved(best))));
  // e by its bytes. Those of the first `whole` entries are 1 too small here.
  const ByteTable low_bytes = byte_table(op.planes), high_bytes = byte_table(op.planes + 256);
  const __m512i whole = _mm512_set1_epi8(static_cast<char>(op.whole - 1));
  alignas(64) uint8_t low[kMostExponentials], high[kMostExponentials];
  __mmask64 largest[kMostExponentials / 64];
  __m512i low_sum = zero, high_sum = zero;
  int64_t sum = 0;
  for (int64_t i = 0; i < blocks; ++i) {
    const __m512i below = _mm512_sub_epi8(top, _mm512_maskz_loadu_epi8(kept[i], x + 64 * i));
    const Quarters in = quarters(below);
    const __m512i first = _mm512_maskz_mov_epi8(kept[i], picked(low_bytes, below, in));
    const __m512i second = _mm512_maskz_mov_epi8(kept[i], picked(high_bytes, below, in));
    _mm512_store_si512(low + 64 * i, first);
    _mm512_store_si512(high + 64 * i, second);
    low_sum = _mm512_add_epi64(low_sum, _mm512_sad_epu8(first, zero));
    high_sum = _mm512_add_epi64(high_sum, _mm512_sad_epu8(second, zero));
    largest[i] = _mm512_mask_cmple_epu8_mask(kept[i], below, whole);
    sum += __builtin_popcountll(largest[i]);
  }
  sum += _mm512_reduce_add_epi64(_mm512_add_epi64(low_sum, _mm512_slli_epi64(high_sum, 8)));
  if (sum == 0) {
    std::memset(y, nothing, static_cast<size_t>(op.count));
    return;
  }
  const int64_t share = smaller((int64_t{to.multiplier[0]} << 16) / sum, 2147483647);
  const int64_t most = requantize(65536, static_cast<int32_t>(share), shift) + to.zero_point;
  const __m512i of_most = _mm512_set1_epi8(static_cast<char>(saturate(most, to.low, to.high)));
  const __m512i by_low = _mm512_set1_epi16(static_cast<int16_t>(share & 65535));
  const __m512i by_high = _mm512_set1_epi16(static_cast<int16_t>(share >> 16));
  const __m512i half = _mm512_set1_epi16(static_cast<int16_t>(1 << (shift - 33)));
  const __m512i zero_point = _mm512_set1_epi16(static_cast<int16_t>(to.zero_point));
  const __m512i lowest = _mm512_set1_epi8(static_cast<char>(to.low));
  const __m512i highest = _mm512_set1_epi8(static_cast<char>(to.high));
  const __m128i down = _mm_cvtsi32_si128(shift - 32);
  for (int64_t i = 0; i < blocks; ++i) {
    const __m512i first = _mm512_load_si512(low + 64 * i), second = _mm512_load_si512(high + 64 * i);
    const __m512i left = shared(_mm512_unpacklo_epi8(first, second), by_low, by_high, half, down, zero_point);
    const __m512i right =
        shared(_mm512_unpackhi_epi8(first, second), by_low, by_high, half, down, zero_point);
    __m512i bytes = _mm512_packus_epi16(left, right);
    bytes = _mm512_min_epu8(_mm512_max_epu8(bytes, lowest), highest);
    bytes = _mm512_mask_mov_epi8(bytes, largest[i], of_most);
    _mm512_mask_storeu_epi8(y + 64 * i, first_of(op.count - 64 * i), bytes);
  }
}

}  // namespace
}  // namespace edgewright
