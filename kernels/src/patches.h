// Patches: what each output of a convolution sees, laid out as a row of terms, in the order (row, column,
// channel).
#pragma once

#include "simd256.h"

namespace edgewright {
namespace {

inline int64_t terms(const Convolution& op) { return taps(op.at) * op.at.in_channels; }
inline int64_t padded_terms(const Convolution& op) { return round_up(terms(op), 4); }

constexpr int64_t kOvershoot = 16;  // bytes that copy_row may write past its end

// Copies `count` bytes. May write up to kOvershoot bytes more, never reads them: `room` are left of the
// source.
inline void copy_row(const uint8_t* x, int64_t count, int64_t room, uint8_t* to) {
  int64_t i = 0;
  if (room >= round_up(count, 16)) {
    for (; i < count; i += 16) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), load_half(x + i));
    return;
  }
  for (; i + 16 <= count; i += 16) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), load_half(x + i));
  for (; i < count; ++i) to[i] = x[i];
}

// The patch that an output pixel sees, in the order (row, column, channel).
inline void lay_out_patch(const Convolution& op, const uint8_t* x, const Inside& rows, const Inside& columns,
                          uint8_t* to) {
  const Sliding& at = op.at;
  const int64_t channels = at.in_channels, row_terms = at.kernel[1] * channels;
  const uint8_t* const end = x + at.in[0] * at.in[1] * channels;
  const auto fill = [&op](uint8_t* from, int64_t count) {
    if (count > 0) std::memset(from, op.zero_point, static_cast<size_t>(count));
  };
  for (int64_t r = 0; r < at.kernel[0]; ++r, to += row_terms) {
    if (r < rows.first || r >= rows.last) {
      fill(to, row_terms);
      continue;
    }
    const uint8_t* row = x + (rows.start + r * at.dilation[0]) * at.in[1] * channels;
    fill(to, columns.first * channels);
    if (at.dilation[1] == 1) {
      const uint8_t* from = row + (columns.start + columns.first) * channels;
      copy_row(from, (columns.last - columns.first) * channels, end - from, to + columns.first * channels);
    } else {
      for (int64_t c = columns.first; c < columns.last; ++c) {
        const uint8_t* from = row + (columns.start + c * at.dilation[1]) * channels;
        copy_row(from, channels, end - from, to + c * channels);
      }
    }
    fill(to + columns.last * channels, (at.kernel[1] - columns.last) * channels);
  }
}

// Outputs of a row whose windows lie inside the image along that row: from `first`, `count` of them.
struct Run {
  int64_t first, count;
};

inline Run inner_run(const Sliding& at) {
  const int64_t span = (at.kernel[1] - 1) * at.dilation[1] + 1, step = at.stride[1];
  const int64_t first = (at.before[1] + step - 1) / step;
  const int64_t room = at.in[1] + at.before[1] - span;
  const int64_t last = room < 0 ? 0 : smaller(room / step + 1, at.out[1]);
  return {first, last > first ? last - first : 0};
}

// The patches of up to `count` outputs side by side whose windows lie inside, the first at `x`; gives how
// many. What is written past a row of a patch is written over by what follows. `end` is that of the image.
inline int64_t lay_out_run(const Sliding& at, const uint8_t* x, const uint8_t* end, int64_t count,
                           int64_t stride, uint8_t* to) {
  const int64_t row_terms = at.kernel[1] * at.in_channels, step = at.stride[1] * at.in_channels;
  const int64_t row_bytes = at.in[1] * at.in_channels, rows = at.kernel[0], down = row_bytes * at.dilation[0];
  const int64_t room = end - x - down * (rows - 1) - round_up(row_terms, kOvershoot);
  count = room < 0 ? 0 : smaller(count, room / step + 1);
  for (int64_t i = 0; i < count; ++i, x += step, to += stride) {
    const uint8_t* from = x;
    uint8_t* row = to;
    for (int64_t r = 0; r < rows; ++r, from += down, row += row_terms) {
      for (int64_t c = 0; c < row_terms; c += kOvershoot) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(row + c), load_half(from + c));
      }
    }
  }
  return count;
}

// `count` rows from number `from` on, padded_terms(op) bytes each. What lies past the last term meets a
// weight of zero.
inline void lay_out_patches(const Convolution& op, const uint8_t* x, int64_t from, int64_t count,
                            uint8_t* to) {
  const Sliding& at = op.at;
  const int64_t stride = padded_terms(op), channels = at.in_channels;
  const uint8_t* const end = x + at.in[0] * at.in[1] * channels;
  const Run inner = inner_run(at);
  int64_t oy = from / at.out[1], ox = from % at.out[1];
  Inside rows = taps_inside(at, 0, oy);
  while (count > 0) {
    int64_t done = 0;
    const bool whole = at.dilation[1] == 1 && rows.first == 0 && rows.last == at.kernel[0];
    if (whole && ox >= inner.first && ox < inner.first + inner.count) {
      const int64_t column = ox * at.stride[1] - at.before[1];
      done = lay_out_run(at, x + (rows.start * at.in[1] + column) * channels, end,
                         smaller(count, inner.first + inner.count - ox), stride, to);
    }
    if (done == 0) {
      lay_out_patch(op, x, rows, taps_inside(at, 1, ox), to);
      for (int64_t pad = terms(op); pad < stride; ++pad) to[pad] = 0;
      done = 1;
    }
    to += done * stride;
    count -= done;
    ox += done;
    if (ox == at.out[1] && count > 0) {
      ox = 0;
      rows = taps_inside(at, 0, ++oy);
    }
  }
}

// ---- small windows on padded images ----

// Windows at a border are laid out slowly, one by one. Where the rows of a window are short, the part of the
// image that a block of outputs sees is first copied with its padding, so that none is at a border.
inline bool pads_first(const Sliding& at) {
  if (at.kernel[1] * at.in_channels > 64 || at.dilation[0] != 1 || at.dilation[1] != 1) return false;
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t reach = (at.out[axis] - 1) * at.stride[axis] + at.kernel[axis] - at.before[axis];
    if (at.before[axis] > 0 || reach > at.in[axis]) return true;
  }
  return false;
}

// What `rows` rows of outputs see, padding and all, as an image of its own without padding.
inline Sliding padded(const Sliding& at, int64_t rows) {
  Sliding made = at;
  made.out[0] = rows;
  for (int axis = 0; axis < 2; ++axis) {
    made.before[axis] = 0;
    made.in[axis] = (made.out[axis] - 1) * at.stride[axis] + at.kernel[axis];
  }
  return made;
}

// For `count` outputs wherever they begin.
inline int64_t padded_bytes(const Sliding& at, int64_t count) {
  if (!pads_first(at)) return 0;
  const Sliding image = padded(at, smaller((count + at.out[1] - 2) / at.out[1] + 1, at.out[0]));
  return round_up(image.in[0] * image.in[1] * image.in_channels, 64);
}

// Copies what the rows of outputs from `oy` on see.
inline void pad_image(const Convolution& op, const Sliding& image, const uint8_t* x, int64_t oy,
                      uint8_t* to) {
  const Sliding& at = op.at;
  const int64_t channels = at.in_channels, width = image.in[1];
  const int64_t left = smaller(at.before[1], width), seen = smaller(at.in[1], width - left);
  std::memset(to, op.zero_point, static_cast<size_t>(image.in[0] * width * channels));
  for (int64_t r = 0; r < image.in[0]; ++r, to += width * channels) {
    const int64_t iy = oy * at.stride[0] - at.before[0] + r;
    if (iy < 0 || iy >= at.in[0]) continue;
    std::memcpy(to + left * channels, x + iy * at.in[1] * channels, static_cast<size_t>(seen * channels));
  }
}

// As lay_out_patches, by way of a padded copy at `scratch` where that is faster.
inline void lay_out(const Convolution& op, const uint8_t* x, int64_t from, int64_t count, uint8_t* to,
                    uint8_t* scratch) {
  const Sliding& at = op.at;
  if (!pads_first(at)) return lay_out_patches(op, x, from, count, to);
  const int64_t oy = from / at.out[1], last = (from + count - 1) / at.out[1];
  Convolution inner = op;
  inner.at = padded(at, last - oy + 1);
  pad_image(op, inner.at, x, oy, scratch);
  lay_out_patches(inner, scratch, from - oy * at.out[1], count, to);
}

}  // namespace
}  // namespace edgewright
