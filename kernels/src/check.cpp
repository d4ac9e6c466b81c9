#include "check.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <unordered_set>

namespace edgewright {
namespace {

constexpr size_t kMaxNameBytes = 255;
constexpr int64_t kMaxDim = 1 << 20, kMaxElements = 1 << 28, kMaxWindow = 4096;
constexpr uint64_t kMaxArenaBytes = uint64_t{1} << 31, kArenaAlignment = 64;
constexpr int64_t kMaxAveraged = 2147483647 / 255;  // their sum fits 32 bits
constexpr int64_t kMaxMatMulTerms = 2147483647 / (255 * 255), kMaxSoftmax = 1 << 16, kMaxLayerNorm = 1 << 15;
constexpr int64_t kMaxEpsilon = int64_t{1} << 46, kMaxOffset = int64_t{1} << 55;
constexpr int32_t kOne = 1 << 16, kFull = 1 << 11;  // in Softmax's table; the weight of one input in Resize

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
  if (tensor.dtype != DType::kUInt8) {
    if (tensor.scale != 0.0f || tensor.zero_point != 0 || tensor.offset != 0) {
      refuse(where + name_of(tensor.dtype) + " has no scale, zero point or place in the arena");
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

const ByteRange& range_of(const Plan& plan, int32_t number) {
  if (number < 0 || static_cast<size_t>(number) >= plan.ranges.size()) {
    refuse("there is no range " + std::to_string(number));
  }
  return plan.ranges[number];
}

// `rows` rows of `row` weights, and what there is one of per output.
void check_weights(const Plan& plan, const Op& op, int64_t outputs, int64_t rows, int64_t row) {
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
  check_rescale(op.rescale, outputs);
}

void check_groups(int64_t groups, int64_t channels, int64_t outputs) {
  if (groups < 1 || channels % groups != 0 || outputs % groups != 0) {
    refuse(std::to_string(groups) + " groups do not divide " + std::to_string(channels) +
           " channels in and " + std::to_string(outputs) + " out");
  }
}

int64_t span(const Window& window, int axis) { return window.dilation[axis] * (window.kernel[axis] - 1) + 1; }

int64_t taps(const Window& window) {
  int64_t product = 1;
  for (int axis = 0; axis < window.axes; ++axis) product *= window.kernel[axis];
  return product;
}

// The window's own numbers, and the ranks of what it slides over.
void check_image(const Window& window, const Tensor& x, const Tensor& y) {
  const size_t rank = static_cast<size_t>(window.axes) + 1;
  if (x.shape.size() != rank || y.shape.size() != rank) {
    refuse("takes and gives " + std::to_string(window.axes) + " spatial axes and channels");
  }
  const auto within = [](int64_t value, int64_t low) { return value >= low && value <= kMaxWindow; };
  for (int axis = 0; axis < window.axes; ++axis) {
    if (!within(window.kernel[axis], 1) || !within(window.stride[axis], 1) ||
        !within(window.dilation[axis], 1) || !within(window.before[axis], 0) ||
        !within(window.after[axis], 0)) {
      refuse("its window is out of bounds (1 to 4096; padding 0 to 4096)");
    }
  }
}

void check_window(const Plan& plan, const Op& op, const Tensor& x, const Tensor& y) {
  const Window& window = op.window;
  check_image(window, x, y);
  const std::string input = listed(x.shape);
  std::vector<int64_t> size;
  for (int axis = 0; axis < window.axes; ++axis) {
    if (op.kind != Kind::kConvolution) {
      // Each window of a pool must hold a real value; a convolution may look at padding alone.
      if (window.before[axis] >= span(window, axis) || window.after[axis] >= span(window, axis)) {
        refuse("its padding is as large as its window");
      }
      if (window.dilation[axis] > x.shape[axis]) refuse("its dilation is larger than " + input);
    }
    size.push_back(output_size(window, axis, x.shape[axis]));
    if (size.back() < 1) refuse("its window does not fit into " + input);
  }
  const int64_t channels = x.shape.back(), outputs = y.shape.back();
  if (op.kind == Kind::kConvolution) {
    size.push_back(outputs);
    same_shape(y, size);
    check_groups(op.groups, channels, outputs);
    check_weights(plan, op, outputs, outputs, channels / op.groups * taps(window));
    return;
  }
  size.push_back(channels);
  same_shape(y, size);
  if (op.kind == Kind::kMaxPool) {
    same_grid(x, y);
    return;
  }
  if (taps(window) > kMaxAveraged) refuse("averages more than " + std::to_string(kMaxAveraged) + " values");
  check_rescale(op.rescale, 1);
}

void check_transposed(const Plan& plan, const Op& op, const Tensor& x, const Tensor& y) {
  const Window& window = op.window;
  check_image(window, x, y);
  std::vector<int64_t> size;
  for (int axis = 0; axis < window.axes; ++axis) {
    if (op.extra[axis] < 0 || op.extra[axis] >= std::max(window.stride[axis], window.dilation[axis])) {
      refuse("its extra is not below its stride or dilation");
    }
    size.push_back(window.stride[axis] * (x.shape[axis] - 1) + op.extra[axis] + span(window, axis) -
                   window.before[axis] - window.after[axis]);
    if (size.back() < 1) refuse("its padding takes all of its result");
  }
  const int64_t channels = x.shape.back(), outputs = y.shape.back();
  size.push_back(outputs);
  same_shape(y, size);
  check_groups(op.groups, channels, outputs);
  check_weights(plan, op, outputs, channels, outputs / op.groups * taps(window));
}

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

// numpy's rule, where the result has the shape of `a`.
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
  check_rescale(op.rescale, 1);
}

void check_softmax(const Plan& plan, const Op& op, const Tensor& x, const Tensor& y) {
  if (op.reads.size() > 1) check_broadcast(plan.tensors[op.reads[1]], x);
  same_shape(y, x.shape);
  if (x.shape.back() > kMaxSoftmax) {
    refuse("its rows have " + std::to_string(x.shape.back()) + " values, at most " +
           std::to_string(kMaxSoftmax) + " are allowed");
  }
  if (op.table.front() != kOne || op.table.back() < 0 ||
      !std::is_sorted(op.table.rbegin(), op.table.rend())) {
    refuse("its table has 256 values that start with 65536 and never grow or go below 0");
  }
  check_rescale(op.rescale, 1);
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
  if (op.epsilon < 1 || op.epsilon > kMaxEpsilon) {
    refuse("epsilon " + std::to_string(op.epsilon) + " is not in 1.." + std::to_string(kMaxEpsilon));
  }
  check_rescale(op.rescale, 1);
  if (op.rescale.multiplier[0] != 1) refuse("its multiplier is not 1");
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

void check_interpolation(const Interpolation& along, int64_t size) {
  for (const auto* which : {&along.first, &along.second}) {
    for (const int32_t index : *which) {
      if (index < 0 || index >= size) refuse("it looks outside 0.." + std::to_string(size - 1));
    }
  }
  for (const int32_t fraction : along.fraction) {
    if (fraction < 0 || fraction > kFull) refuse("a fraction is not in 0..2048");
  }
}

void check_resize(const Op& op, const Tensor& x, const Tensor& y) {
  if (x.shape.size() != 3) refuse("takes and gives (H, W, C)");
  same_shape(y, {static_cast<int64_t>(op.rows.first.size()), static_cast<int64_t>(op.columns.first.size()),
                 x.shape[2]});
  check_interpolation(op.rows, x.shape[0]);
  check_interpolation(op.columns, x.shape[1]);
  check_rescale(op.rescale, 1);
}

void check_embedding(const Plan& plan, const Op& op, const Tensor& x, const Tensor& y) {
  std::vector<int64_t> shape = x.shape;
  shape.push_back(y.shape.back());
  same_shape(y, shape);
  const uint64_t size = range_of(plan, op.weight).size;
  if (size == 0 || size % static_cast<uint64_t>(y.shape.back()) != 0) {
    refuse("range " + std::to_string(op.weight) + " has " + std::to_string(size) +
           " bytes, no number of rows of " + std::to_string(y.shape.back()));
  }
  check_rescale(op.rescale, 1);
}

void check_constant(const Plan& plan, const Op& op) {
  if (op.y < 0 || static_cast<size_t>(op.y) >= plan.tensors.size()) {
    refuse("there is no tensor " + std::to_string(op.y));
  }
  const Tensor& y = plan.tensors[op.y];
  if (y.dtype != DType::kUInt8) refuse("gives uint8");
  const uint64_t size = range_of(plan, op.weight).size;
  if (size != y.size_bytes()) {
    refuse("range " + std::to_string(op.weight) + " has " + std::to_string(size) + " bytes, " +
           std::to_string(y.size_bytes()) + " are needed");
  }
}

bool listed_in(const std::vector<uint32_t>& ports, int32_t number) {
  return std::find(ports.begin(), ports.end(), static_cast<uint32_t>(number)) != ports.end();
}

// That every tensor is there, of the right dtype, at the border where it belongs, and apart from the result.
void check_tensors(const Plan& plan, const Op& op) {
  if (op.reads.empty()) refuse("reads nothing");
  const auto check_number = [&](int32_t number) {
    if (number < 0 || static_cast<size_t>(number) >= plan.tensors.size()) {
      refuse("there is no tensor " + std::to_string(number));
    }
  };
  for (const int32_t number : op.reads) check_number(number);
  check_number(op.y);
  const Tensor& y = plan.tensors[op.y];
  const DType takes = op.kind == Kind::kQuantize    ? DType::kFloat32
                      : op.kind == Kind::kEmbedding ? DType::kInt64
                                                    : DType::kUInt8;
  const DType gives = op.kind == Kind::kDequantize ? DType::kFloat32 : DType::kUInt8;
  for (const int32_t number : op.reads) {
    if (plan.tensors[number].dtype != takes || y.dtype != gives) {
      refuse(std::string("takes ") + name_of(takes) + " and gives " + name_of(gives));
    }
  }
  if (listed_in(plan.inputs, op.y) || (takes != DType::kUInt8 && !listed_in(plan.inputs, op.x())) ||
      (gives != DType::kUInt8 && !listed_in(plan.outputs, op.y))) {
    refuse("a tensor at the border is an input that is read or an output that is written, no other");
  }
  if (takes != DType::kUInt8 || gives != DType::kUInt8) return;
  for (const int32_t number : op.reads) {
    const Tensor& t = plan.tensors[number];
    if (op.kind == Kind::kReshape && t.offset == y.offset) continue;
    if (t.offset < y.offset + y.size_bytes() && y.offset < t.offset + t.size_bytes()) {
      refuse(quoted(t) + " and " + quoted(y) + " overlap in the arena");
    }
  }
}

void check_op(const Plan& plan, const Op& op) {
  if (op.kind == Kind::kConstant) return check_constant(plan, op);
  check_tensors(plan, op);
  const Tensor &x = plan.tensors[op.x()], &second = plan.tensors[op.reads.back()];
  const Tensor& y = plan.tensors[op.y];
  switch (op.kind) {
    case Kind::kQuantize:
    case Kind::kDequantize:
      return check_order(op.order, x, y);
    case Kind::kTranspose:
      check_order(op.order, x, y);
      return same_grid(x, y);
    case Kind::kReshape:
      if (x.elements() != y.elements()) {
        refuse(std::to_string(x.elements()) + " elements cannot become " + std::to_string(y.elements()));
      }
      return same_grid(x, y);
    case Kind::kAdd:
    case Kind::kMultiply:
      check_broadcast(second, x);
      same_shape(y, x.shape);
      check_rescale(op.rescale, op.kind == Kind::kAdd ? 2 : 1);
      if (op.kind == Kind::kAdd && op.rescale.shift[0] != op.rescale.shift[1]) {
        refuse("its two shifts differ");
      }
      return;
    case Kind::kRequantize:
      same_shape(y, x.shape);
      return check_rescale(op.rescale, 1);
    case Kind::kLookup:
      return same_shape(y, x.shape);
    case Kind::kFullyConnected: {
      std::vector<int64_t> shape = x.shape;
      const int64_t outputs = shape.back() = y.shape.back();
      same_shape(y, shape);
      return check_weights(plan, op, outputs, outputs, x.shape.back());
    }
    case Kind::kConvolution:
    case Kind::kMaxPool:
    case Kind::kAveragePool:
      return check_window(plan, op, x, y);
    case Kind::kTransposedConvolution:
      return check_transposed(plan, op, x, y);
    case Kind::kMatMul:
      return check_matmul(op, x, second, y);
    case Kind::kSoftmax:
      return check_softmax(plan, op, x, y);
    case Kind::kLayerNorm:
      return check_layer_norm(op, x, y);
    case Kind::kConcat:
      return check_concat(plan, op, y);
    case Kind::kSlice:
      return check_slice(op, x, y);
    case Kind::kResize:
      return check_resize(op, x, y);
    case Kind::kEmbedding:
      return check_embedding(plan, op, x, y);
    case Kind::kConstant:
      return;  // seen to above: it reads nothing
  }
}

// Which uint8 tensors still lie whole in the arena while the operators run.
class Arena {
 public:
  explicit Arena(const Plan& plan) : plan_(plan) {}

  bool holds(int32_t number) const {
    const Tensor& tensor = plan_.tensors[number];
    if (tensor.dtype != DType::kUInt8) return true;
    const auto found = at_.find(tensor.offset);
    return found != at_.end() && found->second == number;
  }

  void write(int32_t number) {
    const Tensor& tensor = plan_.tensors[number];
    if (tensor.dtype != DType::kUInt8) return;
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
  const int64_t room = size + window.before[axis] + window.after[axis] - span(window, axis);
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
    const bool in = ports == &plan.inputs;
    for (const uint32_t port : *ports) {
      const bool there = port < plan.tensors.size();
      if (!there || plan.tensors[port].dtype == DType::kUInt8 ||
          (!in && plan.tensors[port].dtype != DType::kFloat32)) {
        refuse((in ? "input " : "output ") + std::to_string(port) + " is not a float32" +
               (in ? " or int64" : "") + " tensor");
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
    for (const int32_t number : op.reads) {
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
