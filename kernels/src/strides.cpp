#include "strides.h"

#include <algorithm>
#include <cstring>

namespace edgewright {
namespace {

using Strides = std::array<int64_t, kMaxRank>;

Strides row_major(const std::vector<int64_t>& shape) {
  Strides stride{};
  int64_t behind = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    stride[i] = behind;
    behind *= shape[i];
  }
  return stride;
}

// Leaves out axes of one element, and joins neighbours that memory joins.
Strided joined(const Strided& all) {
  Strided made;
  made.base = all.base;
  for (size_t i = 0; i < all.size.size(); ++i) {
    if (all.size[i] == 1) continue;
    if (!made.size.empty() && made.stride.back() == all.stride[i] * all.size[i]) {
      made.size.back() *= all.size[i];
      made.stride.back() = all.stride[i];
    } else {
      made.size.push_back(all.size[i]);
      made.stride.push_back(all.stride[i]);
    }
  }
  if (made.size.empty()) {
    made.size.push_back(1);
    made.stride.push_back(1);
  }
  return made;
}

}  // namespace

template <class T>
void transpose(const T* x, int64_t rows, int64_t columns, int64_t x_stride, T* y, int64_t y_stride) {
  constexpr int64_t kSquare = 64;
  for (int64_t r0 = 0; r0 < rows; r0 += kSquare) {
    const int64_t r1 = std::min(rows, r0 + kSquare);
    for (int64_t c0 = 0; c0 < columns; c0 += kSquare) {
      const int64_t c1 = std::min(columns, c0 + kSquare);
      for (int64_t c = c0; c < c1; ++c) {
        for (int64_t r = r0; r < r1; ++r) y[c * y_stride + r] = x[r * x_stride + c];
      }
    }
  }
}

int64_t Strided::row() const { return row_major(size)[0]; }

template <class T>
void Strided::copy(const T* x, T* y, int64_t begin, int64_t end) const {
  const size_t last = size.size() - 1;
  const Strides y_stride = row_major(size);
  Strides count{};
  for (size_t i = 0; i <= last; ++i) count[i] = i == 0 ? end - begin : size[i];
  x += base + begin * stride[0];
  // The innermost work: a run, a transposition of the last axis with the one that is contiguous in
  // x, or a row one by one.
  size_t other = last;
  if (stride[last] != 1) {
    for (size_t i = 0; i < last; ++i) other = stride[i] == 1 ? i : other;
  }
  Strides index{};
  for (;;) {
    if (stride[last] == 1) {
      std::memcpy(y, x, static_cast<size_t>(count[last]) * sizeof(T));
    } else if (other != last) {
      transpose(x, count[last], count[other], stride[last], y, y_stride[other]);
    } else {
      for (int64_t i = 0; i < count[last]; ++i) y[i] = x[i * stride[last]];
    }
    size_t axis = last;
    for (; axis > 0; --axis) {
      const size_t i = axis - 1;
      if (i == other) continue;
      x += stride[i];
      y += y_stride[i];
      if (++index[i] < count[i]) break;
      x -= stride[i] * count[i];
      y -= y_stride[i] * count[i];
      index[i] = 0;
    }
    if (axis == 0) return;
  }
}

template void transpose(const uint8_t*, int64_t, int64_t, int64_t, uint8_t*, int64_t);
template void transpose(const int16_t*, int64_t, int64_t, int64_t, int16_t*, int64_t);
template void Strided::copy(const uint8_t*, uint8_t*, int64_t, int64_t) const;
template void Strided::copy(const int16_t*, int16_t*, int64_t, int64_t) const;

Strided transposition(const std::vector<int64_t>& shape, const std::vector<int32_t>& order) {
  const Strides stride = row_major(shape);
  Strided all;
  for (const int32_t axis : order) {
    all.size.push_back(shape[static_cast<size_t>(axis)]);
    all.stride.push_back(stride[static_cast<size_t>(axis)]);
  }
  return joined(all);
}

Strided stretches(const std::vector<int64_t>& x, const std::vector<int64_t>& y,
                  const std::vector<int32_t>& starts, const std::vector<int32_t>& steps) {
  Strided all;
  all.size = y;
  const Strides stride = row_major(x);
  all.stride.assign(stride.begin(), stride.begin() + static_cast<std::ptrdiff_t>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    all.base += starts[i] * all.stride[i];
    all.stride[i] *= steps[i];
  }
  return joined(all);
}

Broadcast broadcast(const std::vector<int64_t>& b, const std::vector<int64_t>& a, size_t most) {
  std::vector<int64_t> padded(a.size() - b.size(), 1);
  padded.insert(padded.end(), b.begin(), b.end());
  const Strides stride = row_major(padded);
  // The last axes where b equals a, and those where it has one value: whichever makes the longer run.
  size_t axis = a.size();
  Broadcast made;
  for (const bool contiguous : {true, false}) {
    size_t first = a.size();
    int64_t run = 1;
    const auto goes_on = [&](size_t i) { return contiguous ? padded[i] == a[i] : padded[i] == 1; };
    while (first > 0 && a.size() - first < most && goes_on(first - 1)) run *= a[--first];
    if (contiguous || run > made.run) {
      made.run = run;
      made.contiguous = contiguous;
      axis = first;
    }
  }
  for (size_t i = 0; i < axis; ++i) {
    made.size.push_back(a[i]);
    made.stride.push_back(padded[i] == 1 ? 0 : stride[i]);
  }
  return made;
}

}  // namespace edgewright
