// The rules of what works on whole rows.
#include <algorithm>
#include <functional>

#include "rules.h"

namespace edgewright {
namespace {

constexpr int64_t kMaxMatMulTerms = 2147483647 / (255 * 255), kMaxSoftmax = 1 << 16, kMaxLayerNorm = 1 << 15;
constexpr int64_t kMaxEpsilon = int64_t{1} << 46, kMaxWideEpsilon = int64_t{1} << 60;
constexpr int64_t kMaxOffset = int64_t{1} << 55;
constexpr int32_t kOne = 1 << 16;     // in Softmax's table, and in that of high bytes
constexpr int32_t kLowOne = 1 << 15;  // in that of low bytes

// One of Softmax's tables: 256 values.
void check_exponentials(const std::vector<int32_t>& table, size_t from, int32_t one) {
  const auto begin = table.begin() + static_cast<std::ptrdiff_t>(from), end = begin + 256;
  if (*begin != one || *(end - 1) < 0 || !std::is_sorted(begin, end, std::greater<int32_t>())) {
    refuse("a table has 256 values that start with " + std::to_string(one) + " and never grow or go below 0");
  }
}

}  // namespace

void check_matmul(const Op& op, const Tensor& a, const Tensor& b, const Tensor& y) {
  const size_t rank = a.shape.size();
  if (rank < 2 || b.shape.size() != rank) {
    refuse("takes two tensors of the same rank, 2 or more, not " + listed(a.shape) + " and " +
           listed(b.shape));
  }
  const int64_t terms = a.shape[rank - 1], columns = b.shape[op.transpose_b ? rank - 2 : rank - 1];
  std::vector<int64_t> shape = a.shape;
  shape[rank - 2] = op.transpose_b ? columns : terms;
  shape[rank - 1] = op.transpose_b ? terms : columns;
  same_shape(b, shape);
  shape = a.shape;
  shape[rank - 1] = columns;
  same_shape(y, shape);
  if (terms > kMaxMatMulTerms) {
    refuse("sums " + std::to_string(terms) + " products, at most " + std::to_string(kMaxMatMulTerms) +
           " fit 32 bits");
  }
  check_rescale(op.rescale, 1, y);
}

void check_softmax(const Plan& plan, const Op& op, const Tensor& x, const Tensor& y) {
  if (op.reads.size() > 1) check_broadcast(plan.tensors[op.reads[1]], x);
  same_shape(y, x.shape);
  if (x.shape.back() > kMaxSoftmax) {
    refuse("its rows have " + std::to_string(x.shape.back()) + " values, at most " +
           std::to_string(kMaxSoftmax) + " are allowed");
  }
  if (op.table.size() != (x.is_wide() ? 512 : 256)) refuse("its table has not as many values as its x needs");
  if (x.is_wide()) check_exponentials(op.table, 0, kLowOne);
  check_exponentials(op.table, x.is_wide() ? 256 : 0, kOne);
  check_rescale(op.rescale, 1, y);
}

void check_layer_norm(const Op& op, const Tensor& x, const Tensor& y) {
  same_shape(y, x.shape);
  const int64_t values = x.shape.back();
  if (values > kMaxLayerNorm) {
    refuse("its rows have " + std::to_string(values) + " values, at most " + std::to_string(kMaxLayerNorm) +
           " are allowed");
  }
  if (static_cast<int64_t>(op.gain.size()) != values) {
    refuse("needs " + std::to_string(values) + " gains and offsets, has " + std::to_string(op.gain.size()));
  }
  for (const int64_t offset : op.offset) {
    if (offset <= -kMaxOffset || offset >= kMaxOffset) refuse("an offset is beyond 55 bits");
  }
  const int64_t most = x.is_wide() ? kMaxWideEpsilon : kMaxEpsilon;
  if (op.epsilon < 1 || op.epsilon > most) {
    refuse("epsilon " + std::to_string(op.epsilon) + " is not in 1.." + std::to_string(most));
  }
  check_rescale(op.rescale, 1, y);
  if (op.rescale.multiplier[0] != 1) refuse("its multiplier is not 1");
}

}  // namespace edgewright
