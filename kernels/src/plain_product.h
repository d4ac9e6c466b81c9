// The product of two activations, as plain loops over fixed tiles that the compiler keeps in registers.
//
// Sums run in float32 and are exact: at most 256 products of magnitude 255^2 at a time, so that each sum is a
// whole number below 2^24. Longer ones continue in int32.
#pragma once

#include <cstring>

#include "kernels.h"
#include "requantize.h"

namespace edgewright {
namespace {

constexpr int64_t kProductRows = 4, kProductColumns = 16;  // of a tile
constexpr int64_t kExactTerms = 256;                       // 256 * 255^2 < 2^24

// Where a tile's columns start in the panels that hold b as float32: (panel, term, column).
[[maybe_unused]] inline int64_t panels(const Product& op) {
  return (op.columns + kProductColumns - 1) / kProductColumns;
}

[[maybe_unused]] inline size_t product_scratch_bytes(const Product& op) {
  const int64_t floats = (panels(op) * kProductColumns + kProductRows) * op.terms;
  return static_cast<size_t>(floats) * sizeof(float);
}

// b without its zero point; columns past the end are 0.
[[maybe_unused]] inline void pack_panels(const Product& op, const uint8_t* b, float* to) {
  const float zero_point = static_cast<float>(op.zero_point[1]);
  for (int64_t from = 0; from < op.columns; from += kProductColumns) {
    const int64_t left = op.columns - from, used = left < kProductColumns ? left : kProductColumns;
    for (int64_t k = 0; k < op.terms; ++k, to += kProductColumns) {
      const uint8_t* at = op.transposed ? b + from * op.terms + k : b + k * op.columns + from;
      const int64_t step = op.transposed ? op.terms : 1;
      for (int64_t n = 0; n < used; ++n) to[n] = static_cast<float>(at[n * step]) - zero_point;
      for (int64_t n = used; n < kProductColumns; ++n) to[n] = 0.0f;
    }
  }
}

// `rows` rows of a, up to kProductRows, side by side: (term, row).
[[maybe_unused]] inline void pack_rows(const Product& op, const uint8_t* a, int64_t rows, float* to) {
  const float zero_point = static_cast<float>(op.zero_point[0]);
  for (int64_t r = 0; r < kProductRows; ++r) {
    for (int64_t k = 0; k < op.terms; ++k) {
      to[k * kProductRows + r] = r < rows ? static_cast<float>(a[r * op.terms + k]) - zero_point : 0.0f;
    }
  }
}

typedef float ProductLanes __attribute__((vector_size(kProductColumns / 2 * sizeof(float))));

// One tile of sums over `terms` products, at most kExactTerms, added to `sums`.
[[maybe_unused]] inline void product_tile(const float* a, const float* b, int64_t terms, int32_t* sums) {
  constexpr int64_t kHalf = kProductColumns / 2;
  ProductLanes acc[kProductRows][2] = {};
  for (int64_t k = 0; k < terms; ++k, a += kProductRows, b += kProductColumns) {
    ProductLanes left, right;
    std::memcpy(&left, b, sizeof left);
    std::memcpy(&right, b + kHalf, sizeof right);
#pragma GCC unroll 4
    for (int64_t r = 0; r < kProductRows; ++r) {
      acc[r][0] += left * a[r];
      acc[r][1] += right * a[r];
    }
  }
  for (int64_t r = 0; r < kProductRows; ++r) {
    float exact[kProductColumns];
    std::memcpy(exact, &acc[r], sizeof exact);
    for (int64_t n = 0; n < kProductColumns; ++n) {
      sums[r * kProductColumns + n] += static_cast<int32_t>(exact[n]);
    }
  }
}

// Y is what it gives: uint8 or int16.
template <class Y>
void product(const Product& op, const uint8_t* a, const uint8_t* b, uint8_t* y, uint8_t* scratch) {
  const Scaling& to = op.scaling;
  float* packed = reinterpret_cast<float*>(scratch);
  float* rows_of_a = packed + panels(op) * kProductColumns * op.terms;
  pack_panels(op, b, packed);
  for (int64_t row = 0; row < op.rows; row += kProductRows) {
    const int64_t rows = op.rows - row < kProductRows ? op.rows - row : kProductRows;
    pack_rows(op, a + row * op.terms, rows, rows_of_a);
    const float* panel = packed;
    for (int64_t from = 0; from < op.columns; from += kProductColumns, panel += op.terms * kProductColumns) {
      int32_t sums[kProductRows * kProductColumns] = {};
      for (int64_t k = 0; k < op.terms; k += kExactTerms) {
        const int64_t terms = op.terms - k < kExactTerms ? op.terms - k : kExactTerms;
        product_tile(rows_of_a + k * kProductRows, panel + k * kProductColumns, terms, sums);
      }
      const int64_t left = op.columns - from, used = left < kProductColumns ? left : kProductColumns;
      for (int64_t r = 0; r < rows; ++r) {
        Y* out = reinterpret_cast<Y*>(y) + (row + r) * op.columns + from;
        for (int64_t n = 0; n < used; ++n) {
          const int64_t value =
              requantize(sums[r * kProductColumns + n], to.multiplier[0], to.shift[0]) + to.zero_point;
          out[n] = narrowed<Y>(value, to.low, to.high);
        }
      }
    }
  }
}

}  // namespace
}  // namespace edgewright
