// The rules of a plan as a whole. Those of its operators are in the check_*.cpp files, by family.
#include "check.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <unordered_set>

#include "rules.h"

namespace edgewright {
namespace {

constexpr size_t kMaxNameBytes = 255;
constexpr int64_t kMaxDim = 1 << 20, kMaxElements = 1 << 28;
constexpr uint64_t kMaxArenaBytes = uint64_t{1} << 31, kArenaAlignment = 64;

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
  if (!is_inside(tensor.dtype)) {
    if (tensor.scale != 0.0f || tensor.zero_point != 0 || tensor.offset != 0) {
      refuse(where + name_of(tensor.dtype) + " has no scale, zero point or place in the arena");
    }
    return;
  }
  if (!std::isfinite(tensor.scale) || !(tensor.scale > 0.0f)) {
    refuse(where + "scale " + std::to_string(tensor.scale) + " is not a positive float32");
  }
  const int32_t most = tensor.is_wide() ? 0 : 255;
  if (tensor.zero_point < 0 || tensor.zero_point > most) {
    refuse(where + "zero point " + std::to_string(tensor.zero_point) + " is not in 0.." +
           std::to_string(most));
  }
  if (tensor.offset % kArenaAlignment != 0 || tensor.offset > plan.arena_bytes ||
      tensor.size_bytes() > plan.arena_bytes - tensor.offset) {
    refuse(where + "lies at " + std::to_string(tensor.offset) + ", outside the arena or not aligned");
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
  check_dtypes(plan, op);
  const bool takes = is_inside(plan.tensors[op.x()].dtype), gives = is_inside(y.dtype);
  if (listed_in(plan.inputs, op.y) || (!takes && !listed_in(plan.inputs, op.x())) ||
      (!gives && !listed_in(plan.outputs, op.y))) {
    refuse("a tensor at the border is an input that is read or an output that is written, no other");
  }
  if (!takes || !gives) return;
  for (const int32_t number : op.reads) {
    const Tensor& t = plan.tensors[number];
    if (op.kind == Kind::kReshape && t.offset == y.offset) continue;
    if (t.offset < y.offset + y.size_bytes() && y.offset < t.offset + t.size_bytes()) {
      refuse(quoted(t) + " and " + quoted(y) + " overlap in the arena");
    }
  }
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
  check_rescale_by_channel(op.rescale, y);
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
      check_rescale(op.rescale, op.kind == Kind::kAdd ? 2 : 1, y);
      if (op.kind == Kind::kAdd && op.rescale.shift[0] != op.rescale.shift[1]) {
        refuse("its two shifts differ");
      }
      return;
    case Kind::kRequantize:
      same_shape(y, x.shape);
      return check_rescale_by_channel(op.rescale, y);
    case Kind::kLookup:
      check_table(op, x, y);
      return same_shape(y, x.shape);
    case Kind::kFullyConnected: {
      std::vector<int64_t> shape = x.shape;
      const int64_t outputs = shape.back() = y.shape.back();
      same_shape(y, shape);
      return check_weights(plan, op, y, outputs, x.shape.back());
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

// Which tensors still lie whole in the arena while the operators run.
class Arena {
 public:
  explicit Arena(const Plan& plan) : plan_(plan) {}

  bool holds(int32_t number) const {
    const Tensor& tensor = plan_.tensors[number];
    if (!is_inside(tensor.dtype)) return true;
    const auto found = at_.find(tensor.offset);
    return found != at_.end() && found->second == number;
  }

  void write(int32_t number) {
    const Tensor& tensor = plan_.tensors[number];
    if (!is_inside(tensor.dtype)) return;
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
      if (!there || is_inside(plan.tensors[port].dtype) ||
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
