#include "check.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <unordered_set>

namespace edgewright {
namespace {

constexpr size_t kMaxRank = 6, kMaxNameBytes = 255;
constexpr int64_t kMaxDim = 1 << 20, kMaxElements = 1 << 28, kMaxWindow = 4096;
constexpr uint64_t kMaxArenaBytes = uint64_t{1} << 31, kArenaAlignment = 64;
constexpr int64_t kMaxAveraged = 2147483647 / 255;  // their sum fits 32 bits

[[noreturn]] void refuse(const std::string& what) { throw PlanError(what); }

std::string quoted(const Tensor& tensor) { return "'" + tensor.name + "'"; }

std::string listed(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

void check_tensor(const Plan& plan, const Tensor& tensor) {
  const std::string where = "tensor " + quoted(tensor) + ": ";
  bool good = !tensor.shape.empty() && tensor.shape.size() <= kMaxRank;
  for (const int64_t d : tensor.shape) good = good && d >= 1 && d <= kMaxDim;
  if (!good) refuse(where + "shape " + listed(tensor.shape) + " (1 to 6 dimensions, each 1 to 1048576)");
  int64_t elements = 1;
  for (const int64_t d : tensor.shape) {
    elements *= d;  // at most 2^28 * 2^20
    if (elements > kMaxElements) refuse(where + "more than " + std::to_string(kMaxElements) + " elements");
  }
  if (tensor.name.empty() || tensor.name.size() > kMaxNameBytes) refuse(where + "a name has 1 to 255 bytes");
  if (tensor.dtype == DType::kFloat32) {
    if (tensor.scale != 0.0f || tensor.zero_point != 0 || tensor.offset != 0) {
      refuse(where + "float32 has no scale, zero point or place in the arena");
    }
    return;
  }
  if (!std::isfinite(tensor.scale) || !(tensor.scale > 0.0f)) {
    refuse(where + "scale " + std::to_string(tensor.scale) + " is not a positive float32");
  }
  if (tensor.zero_point < 0 || tensor.zero_point > 255) {
    refuse(where + "zero point " + std::to_string(tensor.zero_point) + " is not in 0..255");
  }
  if (tensor.offset % kArenaAlignment != 0 || tensor.offset > plan.arena_bytes ||
      tensor.size_bytes() > plan.arena_bytes - tensor.offset) {
    refuse(where + "lies at " + std::to_string(tensor.offset) + ", outside the arena or not aligned");
  }
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

void check_rescale(const Rescale& rescale, int64_t channels) {
  if (static_cast<int64_t>(rescale.multiplier.size()) != channels) {
    refuse("needs " + std::to_string(channels) + " multipliers and shifts, has " +
           std::to_string(rescale.multiplier.size()));
  }
  for (size_t i = 0; i < rescale.multiplier.size(); ++i) {
    if (rescale.multiplier[i] < 0 || rescale.shift[i] < 1 || rescale.shift[i] > 62) {
      refuse("a multiplier is negative, or a shift is not in 1..62");
    }
  }
  if (rescale.low < 0 || rescale.low > rescale.high || rescale.high > 255) {
    refuse("clamps to " + std::to_string(rescale.low) + ".." + std::to_string(rescale.high));
  }
}

// True when the range has exactly `outputs * terms` bytes; the product itself may not fit 64 bits.
bool has_size(const ByteRange& range, int64_t outputs, int64_t terms) {
  const uint64_t rows = static_cast<uint64_t>(outputs);
  return range.size % rows == 0 && range.size / rows == static_cast<uint64_t>(terms);
}

void check_weights(const Plan& plan, const Op& op, int64_t outputs, int64_t terms) {
  const auto check_range = [&](int32_t number, int64_t bytes_per_output) {
    if (number < 0 || static_cast<size_t>(number) >= plan.ranges.size()) {
      refuse("there is no range " + std::to_string(number));
    }
    if (!has_size(plan.ranges[number], outputs, bytes_per_output)) {
      refuse("range " + std::to_string(number) + " has " + std::to_string(plan.ranges[number].size) +
             " bytes, " + std::to_string(outputs) + " times " + std::to_string(bytes_per_output) +
             " are needed");
    }
  };
  check_range(op.weight, terms);
  if (op.bias != -1) check_range(op.bias, 4);
  check_rescale(op.rescale, outputs);
}

void check_window(const Plan& plan, const Op& op, const Tensor& x, const Tensor& y) {
  const Window& window = op.window;
  if (x.shape.size() != 3 || y.shape.size() != 3) refuse("takes and gives (H, W, C)");
  const auto within = [](int64_t value, int64_t low) { return value >= low && value <= kMaxWindow; };
  for (int axis = 0; axis < 2; ++axis) {
    if (!within(window.kernel[axis], 1) || !within(window.stride[axis], 1) ||
        !within(window.dilation[axis], 1) || !within(window.padding[axis], 0) ||
        !within(window.padding[axis + 2], 0)) {
      refuse("its window is out of bounds (1 to 4096; padding 0 to 4096)");
    }
  }
  const std::string input = std::to_string(x.shape[0]) + " x " + std::to_string(x.shape[1]);
  int64_t size[2];
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t span = window.dilation[axis] * (window.kernel[axis] - 1) + 1;
    if (op.kind != Kind::kConv2d) {
      // Each window of a pool must hold a real value; a convolution may look at padding alone.
      if (window.padding[axis] >= span || window.padding[axis + 2] >= span) {
        refuse("its padding is as large as its window");
      }
      if (window.dilation[axis] > x.shape[axis]) refuse("its dilation is larger than " + input);
    }
    size[axis] = output_size(window, axis, x.shape[axis]);
    if (size[axis] < 1) refuse("its window does not fit into " + input);
  }
  const int64_t channels = x.shape[2];
  if (op.kind == Kind::kConv2d) {
    same_shape(y, {size[0], size[1], y.shape[2]});
    if (op.groups != 1 && !(op.groups == channels && op.groups == y.shape[2])) {
      refuse("groups " + std::to_string(op.groups) + "; only 1 and depthwise are defined");
    }
    check_weights(plan, op, y.shape[2], channels / op.groups * window.kernel[0] * window.kernel[1]);
    return;
  }
  same_shape(y, {size[0], size[1], channels});
  if (op.kind == Kind::kMaxPool) {
    same_grid(x, y);
    return;
  }
  if (window.kernel[0] * window.kernel[1] > kMaxAveraged) {
    refuse("averages more than " + std::to_string(kMaxAveraged) + " values");
  }
  check_rescale(op.rescale, 1);
}

bool listed_in(const std::vector<uint32_t>& ports, int32_t number) {
  return std::find(ports.begin(), ports.end(), static_cast<uint32_t>(number)) != ports.end();
}

void check_op(const Plan& plan, const Op& op) {
  std::vector<int32_t> reads = {op.x};
  if (op.kind == Kind::kAdd) reads.push_back(op.b);
  for (const int32_t number : {op.x, reads.back(), op.y}) {
    if (number < 0 || static_cast<size_t>(number) >= plan.tensors.size()) {
      refuse("there is no tensor " + std::to_string(number));
    }
  }
  const Tensor &x = plan.tensors[op.x], &y = plan.tensors[op.y];
  const bool takes_float = op.kind == Kind::kQuantize, gives_float = op.kind == Kind::kDequantize;
  for (const int32_t number : reads) {
    const bool is_float = plan.tensors[number].dtype == DType::kFloat32;
    if (is_float != takes_float || (y.dtype == DType::kFloat32) != gives_float) {
      refuse(std::string("takes ") + (takes_float ? "float32" : "uint8") + " and gives " +
             (gives_float ? "float32" : "uint8"));
    }
  }
  if (listed_in(plan.inputs, op.y) || (takes_float && !listed_in(plan.inputs, op.x)) ||
      (gives_float && !listed_in(plan.outputs, op.y))) {
    refuse("a float32 tensor is an input that is read or an output that is written, no other");
  }
  if (!takes_float && !gives_float) {
    for (const int32_t number : reads) {
      const Tensor& t = plan.tensors[number];
      if (t.offset < y.offset + y.size_bytes() && y.offset < t.offset + t.size_bytes()) {
        refuse(quoted(t) + " and " + quoted(y) + " overlap in the arena");
      }
    }
  }
  switch (op.kind) {
    case Kind::kQuantize:
    case Kind::kDequantize: {
      std::vector<int64_t> moved = x.shape;
      if (moved.size() == 3) {
        const auto first = moved.begin() + (takes_float ? 1 : 2);
        std::rotate(moved.begin(), first, moved.end());
      }
      same_shape(y, moved);
      return;
    }
    case Kind::kFlatten:
      same_shape(y, {x.elements()});
      same_grid(x, y);
      return;
    case Kind::kAdd:
      same_shape(plan.tensors[op.b], x.shape);
      same_shape(y, x.shape);
      check_rescale(op.rescale, 2);
      if (op.rescale.shift[0] != op.rescale.shift[1]) refuse("its two shifts differ");
      return;
    case Kind::kRequantize:
      same_shape(y, x.shape);
      check_rescale(op.rescale, 1);
      return;
    case Kind::kFullyConnected:
      if (x.shape.size() != 1 || y.shape.size() != 1) refuse("takes and gives one dimension");
      check_weights(plan, op, y.shape[0], x.shape[0]);
      return;
    case Kind::kConv2d:
    case Kind::kMaxPool:
    case Kind::kAveragePool:
      check_window(plan, op, x, y);
      return;
  }
}

// Which uint8 tensors still lie whole in the arena while the operators run.
class Arena {
 public:
  explicit Arena(const Plan& plan) : plan_(plan) {}

  bool holds(int32_t number) const {
    const Tensor& tensor = plan_.tensors[number];
    if (tensor.dtype == DType::kFloat32) return true;
    const auto found = at_.find(tensor.offset);
    return found != at_.end() && found->second == number;
  }

  void write(int32_t number) {
    const Tensor& tensor = plan_.tensors[number];
    if (tensor.dtype == DType::kFloat32) return;
    auto first = at_.lower_bound(tensor.offset);
    if (first != at_.begin()) {
      const Tensor& before = plan_.tensors[std::prev(first)->second];
      if (before.offset + before.size_bytes() > tensor.offset) --first;
    }
    at_.erase(first, at_.lower_bound(tensor.offset + tensor.size_bytes()));
    at_[tensor.offset] = number;
  }

 private:
  const Plan& plan_;
  std::map<uint64_t, int32_t> at_;  // by offset; the tensors in it do not overlap
};

}  // namespace

int64_t output_size(const Window& window, int axis, int64_t size) {
  const int64_t span = window.dilation[axis] * (window.kernel[axis] - 1) + 1;
  const int64_t room = size + window.padding[axis] + window.padding[axis + 2] - span;
  return room < 0 ? 0 : room / window.stride[axis] + 1;
}

void check(const Plan& plan) {
  if (plan.arena_bytes > kMaxArenaBytes) {
    refuse("arena of " + std::to_string(plan.arena_bytes) + " bytes, at most " +
           std::to_string(kMaxArenaBytes) + " are allowed");
  }
  std::unordered_set<std::string> names;
  for (const Tensor& tensor : plan.tensors) {
    if (!names.insert(tensor.name).second) refuse("two tensors have the same name");
  }
  for (const Tensor& tensor : plan.tensors) check_tensor(plan, tensor);
  for (size_t i = 0; i < plan.ranges.size(); ++i) {
    const ByteRange& range = plan.ranges[i];
    if (range.offset > plan.weights_bytes || range.size > plan.weights_bytes - range.offset) {
      refuse("range " + std::to_string(i) + " ends beyond the weights, at " +
             std::to_string(plan.weights_bytes));
    }
  }
  for (const auto* ports : {&plan.inputs, &plan.outputs}) {
    for (const uint32_t port : *ports) {
      if (port >= plan.tensors.size() || plan.tensors[port].dtype != DType::kFloat32) {
        refuse("input or output " + std::to_string(port) + " is not a float32 tensor");
      }
    }
    if (ports->empty()) refuse("no input or no output");
    if (std::unordered_set<uint32_t>(ports->begin(), ports->end()).size() != ports->size()) {
      refuse("an input or output is listed twice");
    }
  }
  std::vector<bool> written(plan.tensors.size());
  for (const uint32_t port : plan.inputs) written[port] = true;
  Arena arena(plan);
  for (size_t i = 0; i < plan.ops.size(); ++i) {
    const Op& op = plan.ops[i];
    const std::string where = operator_name(i, op.kind) + ": ";
    try {
      check_op(plan, op);
    } catch (const PlanError& error) {
      refuse(where + error.what());
    }
    for (const int32_t number : {op.x, op.kind == Kind::kAdd ? op.b : op.x}) {
      const Tensor& tensor = plan.tensors[number];
      if (!written[number]) refuse(where + "reads " + quoted(tensor) + " before it is written");
      if (!arena.holds(number)) refuse(where + "reads " + quoted(tensor) + " after it was overwritten");
    }
    if (written[op.y]) refuse(where + "writes " + quoted(plan.tensors[op.y]) + " again");
    written[op.y] = true;
    arena.write(op.y);
  }
  for (const uint32_t port : plan.outputs) {
    if (!written[port] || listed_in(plan.inputs, static_cast<int32_t>(port))) {
      refuse("output " + quoted(plan.tensors[port]) + " is never written");
    }
  }
}

}  // namespace edgewright
