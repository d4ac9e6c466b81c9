// What the rules of several operators share.
#include "rules.h"

#include <algorithm>

namespace edgewright {
namespace {

// True when the range has exactly `outputs * terms` bytes; the product itself may not fit 64 bits.
bool has_size(const ByteRange& range, int64_t outputs, int64_t terms) {
  const uint64_t rows = static_cast<uint64_t>(outputs);
  return range.size % rows == 0 && range.size / rows == static_cast<uint64_t>(terms);
}

}  // namespace

void refuse(const std::string& what) { throw PlanError(what); }

std::string quoted(const Tensor& tensor) { return "'" + tensor.name + "'"; }

std::string listed(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

void same_shape(const Tensor& tensor, const std::vector<int64_t>& shape) {
  if (tensor.shape != shape) {
    refuse(quoted(tensor) + " has shape " + listed(tensor.shape) + ", " + listed(shape) + " is needed");
  }
}

void same_grid(const Tensor& x, const Tensor& y) {
  if (x.scale != y.scale || x.zero_point != y.zero_point) {
    refuse(quoted(x) + " and " + quoted(y) + " differ in scale or zero point");
  }
}

void check_rescale(const Rescale& rescale, int64_t channels, const Tensor& y) {
  if (static_cast<int64_t>(rescale.multiplier.size()) != channels) {
    refuse("needs " + std::to_string(channels) + " multipliers and shifts, has " +
           std::to_string(rescale.multiplier.size()));
  }
  for (size_t i = 0; i < rescale.multiplier.size(); ++i) {
    if (rescale.multiplier[i] < 0 || rescale.shift[i] < 1 || rescale.shift[i] > 62) {
      refuse("a multiplier is negative, or a shift is not in 1..62");
    }
  }
  const int32_t lowest = y.is_wide() ? -32768 : 0, highest = y.is_wide() ? 32767 : 255;
  if (rescale.low < lowest || rescale.low > rescale.high || rescale.high > highest) {
    refuse("clamps to " + std::to_string(rescale.low) + ".." + std::to_string(rescale.high));
  }
}

void check_rescale_by_channel(const Rescale& rescale, const Tensor& y) {
  check_rescale(rescale, rescale.multiplier.size() == 1 ? 1 : y.shape.back(), y);
}

namespace {

bool moves(Kind kind) {
  return kind == Kind::kMaxPool || kind == Kind::kTranspose || kind == Kind::kReshape ||
         kind == Kind::kConcat || kind == Kind::kSlice;
}

bool is_narrow(Kind kind) { return kind == Kind::kResize || kind == Kind::kTransposedConvolution; }

// Tensor number `place` of those that the operator reads.
bool takes(Kind kind, size_t place, DType dtype) {
  if (kind == Kind::kQuantize) return dtype == DType::kFloat32;
  if (kind == Kind::kEmbedding) return dtype == DType::kInt64;
  const bool narrow = is_narrow(kind) || kind == Kind::kMatMul || (kind == Kind::kSoftmax && place > 0);
  return narrow ? dtype == DType::kUInt8 : is_inside(dtype);
}

bool gives(Kind kind, DType dtype) {
  if (kind == Kind::kDequantize) return dtype == DType::kFloat32;
  return is_narrow(kind) || kind == Kind::kSoftmax ? dtype == DType::kUInt8 : is_inside(dtype);
}

}  // namespace

void check_dtypes(const Plan& plan, const Op& op) {
  const Tensor& y = plan.tensors[op.y];
  for (size_t i = 0; i < op.reads.size(); ++i) {
    const Tensor& x = plan.tensors[op.reads[i]];
    if (!takes(op.kind, i, x.dtype)) refuse("does not take " + quoted(x) + ", which is " + name_of(x.dtype));
    if (moves(op.kind) && x.dtype != y.dtype) refuse(quoted(x) + " and " + quoted(y) + " differ in dtype");
  }
  if (!gives(op.kind, y.dtype)) refuse("does not give " + quoted(y) + ", which is " + name_of(y.dtype));
}

void check_table(const Op& op, const Tensor& x, const Tensor& y) {
  const size_t needed = x.is_wide() ? 513 : y.is_wide() ? 128 : 64;
  if (op.table.size() != needed) {
    refuse("its table has " + std::to_string(op.table.size()) + " words, " + std::to_string(needed) +
           " are needed");
  }
  if (!x.is_wide()) return;
  const int32_t lowest = y.is_wide() ? -32768 * 128 : 0, highest = (y.is_wide() ? 32767 : 255) * 128;
  for (const int32_t entry : op.table) {
    if (entry < lowest || entry > highest) {
      refuse("an entry of its table is not in " + std::to_string(lowest) + ".." + std::to_string(highest));
    }
  }
}

void check_broadcast(const Tensor& b, const Tensor& a) {
  bool good = b.shape.size() <= a.shape.size();
  for (size_t i = 1; good && i <= b.shape.size(); ++i) {
    const int64_t size = b.shape[b.shape.size() - i];
    good = size == 1 || size == a.shape[a.shape.size() - i];
  }
  if (!good) {
    refuse(quoted(b) + " of shape " + listed(b.shape) + " does not broadcast to " + listed(a.shape));
  }
}

const ByteRange& range_of(const Plan& plan, int32_t number) {
  if (number < 0 || static_cast<size_t>(number) >= plan.ranges.size()) {
    refuse("there is no range " + std::to_string(number));
  }
  return plan.ranges[number];
}

void check_weights(const Plan& plan, const Op& op, const Tensor& y, int64_t rows, int64_t row) {
  const int64_t outputs = y.shape.back();
  if (op.weight_bits != 4 && op.weight_bits != 8) {
    refuse("weights of " + std::to_string(op.weight_bits) + " bits; 8 and 4 are defined");
  }
  const auto check_range = [&](int32_t number, int64_t times, int64_t bytes) {
    if (!has_size(range_of(plan, number), times, bytes)) {
      refuse("range " + std::to_string(number) + " has " + std::to_string(plan.ranges[number].size) +
             " bytes, " + std::to_string(times) + " times " + std::to_string(bytes) + " are needed");
    }
  };
  check_range(op.weight, rows, op.weight_bits == 8 ? row : (row + 1) / 2);
  if (op.bias != -1) check_range(op.bias, outputs, 4);
  check_rescale(op.rescale, outputs, y);
}

void check_groups(int64_t groups, int64_t channels, int64_t outputs) {
  if (groups < 1 || channels % groups != 0 || outputs % groups != 0) {
    refuse(std::to_string(groups) + " groups do not divide " + std::to_string(channels) +
           " channels in and " + std::to_string(outputs) + " out");
  }
}

}  // namespace edgewright
