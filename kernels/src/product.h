// The product of two activations, whatever the vectors are: b goes into panels of columns once, then tiles of
// rows and columns are made one after the other. A path gives the panels and the tiles:
//
//   kRows, kColumns     of a tile
//   kTerms, kTermBytes  terms that are multiplied together, and bytes of each once it is laid out
//   pack_panel          kColumns columns of b, or fewer where b has fewer, to a panel
//   lay_out             a few rows of a
//   tile<Rows>          the sums of one tile, requantized
#pragma once

#include <cstring>

#include "kernels.h"

namespace edgewright {
namespace {

template <class Path>
struct ProductTile {
  const Product* op;
  const uint8_t* a;                // the first row, as lay_out left it
  int64_t stride;                  // bytes from one row to the next
  int64_t bytes;                   // of a row, with the terms that pad it
  int32_t row_start[Path::kRows];  // what the sums of a row start with, beside those of their columns
  const uint8_t* panel;
  uint8_t* y;
  int64_t used;  // columns
};

// A panel: what the sums of each column start with, then the columns' terms, kTerms by kTerms.
template <class Path>
int64_t product_panel_bytes(int64_t terms) {
  return Path::kColumns * (static_cast<int64_t>(sizeof(int32_t)) + terms * Path::kTermBytes);
}

template <class Path>
int64_t product_terms(const Product& op) {
  return (op.terms + Path::kTerms - 1) / Path::kTerms * Path::kTerms;
}

template <class Path>
int64_t product_panels(const Product& op) {
  return (op.columns + Path::kColumns - 1) / Path::kColumns;
}

// The last panel ends where b ends; its first columns may be made twice, which changes nothing.
template <class Path>
int64_t first_column(const Product& op, int64_t panel) {
  const int64_t from = panel * Path::kColumns, most = op.columns - Path::kColumns;
  return from <= most || most < 0 ? from : most;
}

template <class Path>
size_t tiled_product_scratch_bytes(const Product& op) {
  const int64_t terms = product_terms<Path>(op);
  return static_cast<size_t>(product_panels<Path>(op) * product_panel_bytes<Path>(terms) +
                             Path::kRows * terms * Path::kTermBytes);
}

template <class Path, int Rows>
void product_tile(int64_t rows, const ProductTile<Path>& tile) {
  if (rows == Rows) return Path::template tile<Rows>(tile);
  if constexpr (Rows > 1) product_tile<Path, Rows - 1>(rows, tile);
}

template <class Path>
void tiled_product(const Product& op, const uint8_t* a, const uint8_t* b, uint8_t* y, uint8_t* scratch) {
  const int64_t terms = product_terms<Path>(op), count = product_panels<Path>(op),
                each = product_panel_bytes<Path>(terms);
  for (int64_t p = 0; p < count; ++p) {
    Path::pack_panel(op, b, first_column<Path>(op, p), scratch + p * each);
  }
  // Tiles of about equal height.
  const int64_t tiles = (op.rows + Path::kRows - 1) / Path::kRows, height = (op.rows + tiles - 1) / tiles;
  ProductTile<Path> tile{};
  tile.op = &op;
  tile.bytes = terms * Path::kTermBytes;
  tile.used = op.columns < Path::kColumns ? op.columns : Path::kColumns;
  for (int64_t row = 0; row < op.rows; row += height) {
    const int64_t rows = op.rows - row < height ? op.rows - row : height;
    Path::lay_out(op, a + row * op.terms, rows, scratch + count * each, tile);
    for (int64_t p = 0; p < count; ++p) {
      tile.panel = scratch + p * each;
      tile.y = y + (row * op.columns + first_column<Path>(op, p)) * op.y_item;
      product_tile<Path, Path::kRows>(rows, tile);
    }
  }
}

template <class Path>
ProductKernel tiled_product_kernel() {
  return {tiled_product_scratch_bytes<Path>, tiled_product<Path>};
}

}  // namespace
}  // namespace edgewright
