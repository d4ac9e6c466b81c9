// Walks over arrays whose axes are not in the order of memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace edgewright {

// A copy into a contiguous array: element (i, j, ...) of y is x[base + i * stride[0] + j * stride[1] + ...].
struct Strided {
  std::vector<int64_t> size, stride;
  int64_t base = 0;

  // True when y is x itself, byte for byte.
  bool is_plain() const { return base == 0 && size.size() == 1 && stride[0] == 1; }
  void copy(const uint8_t* x, uint8_t* y) const;
};

// y = transpose(x, order), numpy's.
Strided transposition(const std::vector<int64_t>& shape, const std::vector<int32_t>& order);

// y = x[start : : step, ...], of the given shape.
Strided stretches(const std::vector<int64_t>& x, const std::vector<int64_t>& y,
                  const std::vector<int32_t>& starts, const std::vector<int32_t>& steps);

// A smaller array `b` held against `a`, in runs over which b is contiguous, or one value throughout.
struct Broadcast {
  std::vector<int64_t> size, stride;  // of the outer axes: how often, and how far it takes b
  int64_t run = 1;                    // elements of a in one run
  bool contiguous = true;             // b follows a along a run; otherwise it stays where it is

  // Calls f(offset in a, offset in b) for each run, in order.
  template <class F>
  void for_each(F f) const {
    std::vector<int64_t> index(size.size());
    for (int64_t a = 0, b = 0;;) {
      f(a, b);
      a += run;
      size_t axis = size.size();
      for (; axis > 0; --axis) {
        const size_t i = axis - 1;
        b += stride[i];
        if (++index[i] < size[i]) break;
        b -= stride[i] * size[i];
        index[i] = 0;
      }
      if (axis == 0) return;
    }
  }
};

// Runs never reach beyond the last `most` axes of a.
Broadcast broadcast(const std::vector<int64_t>& b, const std::vector<int64_t>& a, size_t most);

}  // namespace edgewright
