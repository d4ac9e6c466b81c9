// The rules of what only moves values.
#include <algorithm>

#include "rules.h"

namespace edgewright {

void check_order(const std::vector<int32_t>& order, const Tensor& x, const Tensor& y) {
  std::vector<int32_t> sorted = order;
  std::sort(sorted.begin(), sorted.end());
  bool good = order.size() == x.shape.size();
  for (size_t i = 0; good && i < sorted.size(); ++i) good = sorted[i] == static_cast<int32_t>(i);
  if (!good) refuse("its order is not one of " + std::to_string(x.shape.size()) + " axes");
  std::vector<int64_t> moved;
  for (const int32_t axis : order) moved.push_back(x.shape[axis]);
  same_shape(y, moved);
}

void check_concat(const Plan& plan, const Op& op, const Tensor& y) {
  if (op.axis < 0 || static_cast<size_t>(op.axis) >= y.shape.size()) {
    refuse("there is no axis " + std::to_string(op.axis));
  }
  int64_t total = 0;  // at most 2^20 for each of the file's 2^22 words
  for (const int32_t number : op.reads) {
    const Tensor& part = plan.tensors[number];
    if (part.shape.size() != y.shape.size()) refuse(quoted(part) + " and " + quoted(y) + " differ in rank");
    std::vector<int64_t> shape = y.shape;
    shape[op.axis] = part.shape[op.axis];
    same_shape(part, shape);
    same_grid(part, y);
    total += part.shape[op.axis];
  }
  if (total != y.shape[op.axis]) {
    refuse("its inputs have " + std::to_string(total) + " along axis " + std::to_string(op.axis) + ", " +
           quoted(y) + " has " + std::to_string(y.shape[op.axis]));
  }
}

void check_slice(const Op& op, const Tensor& x, const Tensor& y) {
  const size_t rank = x.shape.size();
  if (y.shape.size() != rank || op.starts.size() != rank) {
    refuse("needs a start, a step and a size for each of " + std::to_string(rank) + " axes");
  }
  for (size_t i = 0; i < rank; ++i) {
    if (op.starts[i] < 0 || op.steps[i] < 1 || op.starts[i] + (y.shape[i] - 1) * op.steps[i] >= x.shape[i]) {
      refuse(std::to_string(y.shape[i]) + " values from " + std::to_string(op.starts[i]) + " in steps of " +
             std::to_string(op.steps[i]) + " do not lie in " + std::to_string(x.shape[i]));
    }
  }
  same_grid(x, y);
}

void check_constant(const Plan& plan, const Op& op) {
  if (op.y < 0 || static_cast<size_t>(op.y) >= plan.tensors.size()) {
    refuse("there is no tensor " + std::to_string(op.y));
  }
  const Tensor& y = plan.tensors[op.y];
  if (!is_inside(y.dtype)) refuse("gives uint8 or int16, not " + std::string(name_of(y.dtype)));
  const uint64_t size = range_of(plan, op.weight).size;
  if (size != y.size_bytes()) {
    refuse("range " + std::to_string(op.weight) + " has " + std::to_string(size) + " bytes, " +
           std::to_string(y.size_bytes()) + " are needed");
  }
}

}  // namespace edgewright
