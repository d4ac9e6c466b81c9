// Walks over arrays whose axes are not in the order of memory. T is uint8_t or int16_t.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "plan.h"

namespace edgewright {

// A copy into a contiguous array: element (i, j, ...) of y is x[base + i * stride[0] + j * stride[1] + ...].
struct Strided {
  std::vector<int64_t> size, stride;
  int64_t base = 0;

  // True when y is x itself, byte for byte.
  bool is_plain() const { return base == 0 && size.size() == 1 && stride[0] == 1; }
  // Elements of y under one first index.
  int64_t row() const;
  template <class T>
  void copy(const T* x, T* y) const {
    copy(x, y, 0, size[0]);
  }
  // The part whose first index lies in [begin, end); it goes to y.
  template <class T>
  void copy(const T* x, T* y, int64_t begin, int64_t end) const;
};

// y[c * y_stride + r] = x[r * x_stride + c], in squares that stay in the cache.
template <class T>
void transpose(const T* x, int64_t rows, int64_t columns, int64_t x_stride, T* y, int64_t y_stride);

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

  int64_t runs() const {
    int64_t count = 1;
    for (const int64_t d : size) count *= d;
    return count;
  }

  // Calls f(offset in a, offset in b) for the runs in [begin, end), in order.
  template <class F>
  void for_each(int64_t begin, int64_t end, F f) const {
    std::array<int64_t, kMaxRank> index{};
    int64_t b = 0;
    for (int64_t i = static_cast<int64_t>(size.size()) - 1, left = begin; i >= 0; --i) {
      const size_t axis = static_cast<size_t>(i);
      index[axis] = left % size[axis];
      left /= size[axis];
      b += index[axis] * stride[axis];
    }
    for (int64_t a = begin * run; a < end * run; a += run) {
      f(a, b);
      size_t axis = size.size();
      for (; axis > 0; --axis) {
        const size_t i = axis - 1;
        b += stride[i];
        if (++index[i] < size[i]) break;
        b -= stride[i] * size[i];
        index[i] = 0;
      }
    }
  }
};

// Runs never reach beyond the last `most` axes of a.
Broadcast broadcast(const std::vector<int64_t>& b, const std::vector<int64_t>& a, size_t most);

}  // namespace edgewright
