// The one rounding rule. reference.py states it; every path must give these bits.
#pragma once

#include <cstdint>

namespace edgewright {

// (acc * multiplier + 2^(shift-1)) >> shift, in 64 bits. |acc| < 2^32, 0 <= multiplier < 2^31, shift
// in 1..62.
[[maybe_unused]] static inline int64_t requantize(int64_t acc, int32_t multiplier, int32_t shift) {
  return (acc * multiplier + (int64_t{1} << (shift - 1))) >> shift;
}

[[maybe_unused]] static inline uint8_t saturate(int64_t value, int32_t low, int32_t high) {
  return static_cast<uint8_t>(value < low ? low : value > high ? high : value);
}

}  // namespace edgewright
