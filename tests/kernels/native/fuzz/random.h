// Random numbers that are the same on every machine (SplitMix64: Steele, Lea, Flood, OOPSLA 2014).
#pragma once

#include <cstdint>
#include <vector>

namespace fuzz {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }
  // In 0..count-1; 0 where count is 0.
  uint64_t below(uint64_t count) { return count == 0 ? 0 : next() % count; }
  // In low..high.
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(below(static_cast<uint64_t>(high - low + 1)));
  }
  bool one_in(uint64_t count) { return below(count) == 0; }
  template <class T>
  T& of(std::vector<T>& values) {
    return values[below(values.size())];
  }
  template <class T>
  const T& of(const std::vector<T>& values) {
    return values[below(values.size())];
  }

 private:
  uint64_t state_;
};

}  // namespace fuzz
