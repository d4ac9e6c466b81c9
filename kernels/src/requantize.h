// The one rounding rule. reference.py states it; every path must give these bits.
#pragma once

#include <cstdint>

namespace edgewright {

// (acc * multiplier + 2^(shift-1)) >> shift, in 64 bits. |acc| < 2^32, 0 <= multiplier < 2^31, shift
// in 1..62.
[[maybe_unused]] static inline int64_t requantize(int64_t acc, int32_t multiplier, int32_t shift) {
  return (acc * multiplier + (int64_t{1} << (shift - 1))) >> shift;
}

// value >> shift in a form that compilers vectorise: AVX2 lacks the arithmetic shift of 64 bits.
[[maybe_unused]] static inline int64_t shifted(int64_t value, int32_t shift) {
  constexpr uint64_t kLowest = uint64_t{1} << 63;
  return static_cast<int64_t>(((static_cast<uint64_t>(value) + kLowest) >> shift) - (kLowest >> shift));
}

// A result between the clamps, as uint8 or int16.
template <class Y>
[[maybe_unused]] static inline Y narrowed(int64_t value, int32_t low, int32_t high) {
  return static_cast<Y>(value < low ? low : value > high ? high : value);
}

[[maybe_unused]] static inline uint8_t saturate(int64_t value, int32_t low, int32_t high) {
  return static_cast<uint8_t>(value < low ? low : value > high ? high : value);
}

}  // namespace edgewright
