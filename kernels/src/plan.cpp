// Decoding of plan.bin: bytes to structure. The rules a decoded plan must keep are in check.cpp.
#include "plan.h"

#include <cstring>

#include "check.h"

namespace edgewright {
namespace {

constexpr char kMagic[] = "EWPLAN\r\n";
constexpr uint32_t kVersion = 3, kOldest = 2;
constexpr size_t kHeaderBytes = 64, kTensorBytes = 52, kRangeBytes = 16, kOpBytes = 8;
constexpr uint32_t kMaxFileBytes = 16 << 20;
constexpr uint32_t kMaxCount = 65536;
constexpr uint32_t kMaxPorts = 64;

uint32_t u32(const uint8_t* at) {
  return uint32_t{at[0]} | uint32_t{at[1]} << 8 | uint32_t{at[2]} << 16 | uint32_t{at[3]} << 24;
}

int32_t i32(const uint8_t* at) { return static_cast<int32_t>(u32(at)); }

uint64_t u64(const uint8_t* at) { return uint64_t{u32(at)} | uint64_t{u32(at + 4)} << 32; }

float f32(const uint8_t* at) {
  const uint32_t bits = u32(at);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

[[noreturn]] void refuse(const std::string& what) { throw PlanError("plan.bin: " + what); }

// UTF-8 as Unicode defines it: shortest forms only, no surrogates, nothing above U+10FFFF.
bool is_utf8(const uint8_t* text, size_t size) {
  for (size_t i = 0; i < size;) {
    const uint8_t lead = text[i++];
    if (lead < 0x80) continue;
    if (lead < 0xC2 || lead > 0xF4) return false;
    const size_t more = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
    if (size - i < more) return false;
    const uint8_t lowest = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const uint8_t highest = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (text[i] < lowest || text[i] > highest) return false;
    for (size_t k = 1; k < more; ++k) {
      if ((text[i + k] & 0xC0) != 0x80) return false;
    }
    i += more;
  }
  return true;
}

Tensor read_tensor(size_t index, const uint8_t* at, const uint8_t* names, uint64_t names_bytes) {
  const uint8_t dtype = at[0], rank = at[1];
  const uint64_t name_at = u32(at + 44), name_size = u32(at + 48);
  if (dtype > 3 || rank > kMaxRank || name_at + name_size > names_bytes) {
    refuse("tensor " + std::to_string(index) + ": unknown dtype, rank over 6, or a name outside the names");
  }
  if (!is_utf8(names + name_at, name_size)) {
    refuse("tensor " + std::to_string(index) + ": its name is not UTF-8");
  }
  Tensor tensor;
  tensor.name.assign(reinterpret_cast<const char*>(names + name_at), name_size);
  tensor.dtype = static_cast<DType>(dtype);
  for (size_t d = 0; d < rank; ++d) tensor.shape.push_back(u32(at + 4 + 4 * d));
  tensor.scale = f32(at + 28);
  tensor.zero_point = i32(at + 32);
  tensor.offset = u64(at + 36);
  return tensor;
}

// The int32 words of one operator, taken in order.
class Words {
 public:
  Words(const uint8_t* at, size_t count, std::string where)
      : at_(at), left_(count), where_(std::move(where)) {}

  int32_t take() {
    need(1);
    const int32_t value = i32(at_);
    at_ += 4;
    --left_;
    return value;
  }

  std::vector<int32_t> take(int32_t count) {
    need(count);
    std::vector<int32_t> values(static_cast<size_t>(count));
    for (int32_t& value : values) value = take();
    return values;
  }

  // 64-bit numbers, the low word first.
  std::vector<int64_t> take_wide(int32_t count) {
    std::vector<int64_t> values;
    for (int32_t i = 0; i < count; ++i) {
      need(2);
      values.push_back(static_cast<int64_t>(u64(at_)));
      at_ += 8;
      left_ -= 2;
    }
    return values;
  }

  int32_t left() const { return static_cast<int32_t>(left_); }

  [[noreturn]] void refuse_value(const std::string& what) const { refuse(where_ + ": " + what); }

  void end() const {
    if (left_ != 0) refuse(where_ + " has " + std::to_string(left_) + " words too many");
  }

 private:
  void need(int32_t count) const {
    if (count < 0 || static_cast<size_t>(count) > left_) refuse(where_ + " has too few words");
  }

  const uint8_t* at_;
  size_t left_;
  std::string where_;
};

Window read_window(Words& words) {
  Window window{};
  window.axes = words.take();
  if (window.axes < 1 || window.axes > kMaxWindowAxes) {
    words.refuse_value("a window over " + std::to_string(window.axes) + " axes, 1 to 3 are defined");
  }
  for (int64_t* part : {window.kernel, window.stride, window.before, window.after, window.dilation}) {
    for (int axis = 0; axis < window.axes; ++axis) part[axis] = words.take();
  }
  return window;
}

Rescale read_rescale(Words& words) {
  Rescale rescale;
  rescale.low = words.take();
  rescale.high = words.take();
  const int32_t count = words.take();
  rescale.multiplier = words.take(count);
  rescale.shift = words.take(count);
  return rescale;
}

Interpolation read_interpolation(Words& words) {
  Interpolation along;
  const int32_t count = words.take();
  for (auto* part : {&along.first, &along.second, &along.fraction}) *part = words.take(count);
  return along;
}

bool read_flag(Words& words) {
  const int32_t value = words.take();
  if (value != 0 && value != 1) {
    words.refuse_value("transpose_b is " + std::to_string(value) + ", 0 or 1 is needed");
  }
  return value == 1;
}

void read_weights(Words& words, Op& op) {
  op.weight = words.take();
  op.weight_bits = words.take();
  op.bias = words.take();
}

Op read_op(Kind kind, Words words) {
  Op op;
  op.kind = kind;
  if (kind != Kind::kConcat && kind != Kind::kConstant) op.reads = words.take(1);
  if (kind == Kind::kAdd || kind == Kind::kMultiply || kind == Kind::kMatMul) {
    op.reads.push_back(words.take());
  }
  if (kind == Kind::kSoftmax) {
    const int32_t mask = words.take();
    if (mask != -1) op.reads.push_back(mask);
  }
  op.y = words.take();
  switch (kind) {
    case Kind::kQuantize:
    case Kind::kDequantize:
    case Kind::kTranspose:
      op.order = words.take(words.take());
      break;
    case Kind::kConvolution:
      read_weights(words, op);
      op.window = read_window(words);
      op.groups = words.take();
      break;
    case Kind::kFullyConnected:
      read_weights(words, op);
      break;
    case Kind::kTransposedConvolution:
      read_weights(words, op);
      op.window = read_window(words);
      op.extra = words.take(op.window.axes);
      op.groups = words.take();
      break;
    case Kind::kMaxPool:
    case Kind::kAveragePool:
      op.window = read_window(words);
      break;
    case Kind::kMatMul:
      op.transpose_b = read_flag(words);
      break;
    case Kind::kLookup:
      op.table = words.take(words.left());  // how many there must be, the dtypes say: check.cpp
      break;
    case Kind::kSoftmax:
      op.table = words.take(words.left() > 512 ? 512 : 256);
      break;
    case Kind::kLayerNorm: {
      const int32_t count = words.take();
      op.gain = words.take(count);
      op.offset = words.take_wide(count);
      op.epsilon = words.take_wide(1).front();
      break;
    }
    case Kind::kConcat:
      op.axis = words.take();
      op.reads = words.take(words.take());
      break;
    case Kind::kSlice: {
      const int32_t count = words.take();
      op.starts = words.take(count);
      op.steps = words.take(count);
      break;
    }
    case Kind::kResize:
      op.rows = read_interpolation(words);
      op.columns = read_interpolation(words);
      break;
    case Kind::kEmbedding:
    case Kind::kConstant:
      op.weight = words.take();
      break;
    case Kind::kAdd:
    case Kind::kMultiply:
    case Kind::kRequantize:
    case Kind::kReshape:
      break;
  }
  switch (kind) {
    case Kind::kQuantize:
    case Kind::kDequantize:
    case Kind::kTranspose:
    case Kind::kReshape:
    case Kind::kMaxPool:
    case Kind::kLookup:
    case Kind::kConcat:
    case Kind::kSlice:
    case Kind::kConstant:
      break;
    default:
      op.rescale = read_rescale(words);
  }
  words.end();
  return op;
}

// Version 3 added int16, and multipliers per channel to Requantize and Embedding.
uint32_t needed_version(const Plan& plan) {
  for (const Tensor& tensor : plan.tensors) {
    if (tensor.is_wide()) return 3;
  }
  for (const Op& op : plan.ops) {
    const bool one = op.kind == Kind::kRequantize || op.kind == Kind::kEmbedding;
    if (one && op.rescale.multiplier.size() > 1) return 3;
  }
  return 2;
}

}  // namespace

const char* name_of(DType dtype) {
  static constexpr const char* kNames[] = {"float32", "uint8", "int64", "int16"};
  return kNames[static_cast<uint8_t>(dtype)];
}

const char* name_of(Kind kind) {
  static constexpr const char* kNames[kKinds] = {
      "Quantize",    "Dequantize", "Convolution", "FullyConnected", "MaxPool",
      "AveragePool", "Add",        "Requantize",  "Transpose",      "Reshape",
      "MatMul",      "Multiply",   "Lookup",      "Softmax",        "LayerNorm",
      "Concat",      "Slice",      "Resize",      "Embedding",      "TransposedConvolution",
      "Constant",
  };
  return kNames[static_cast<uint32_t>(kind) - 1];
}

std::string operator_name(size_t number, Kind kind) {
  return "operator " + std::to_string(number) + " (" + name_of(kind) + ")";
}

int64_t Tensor::elements() const {
  int64_t product = 1;
  for (const int64_t d : shape) product *= d;
  return product;
}

int64_t item_bytes(DType dtype) {
  static constexpr int64_t kBytes[] = {4, 1, 8, 2};
  return kBytes[static_cast<uint8_t>(dtype)];
}

uint64_t Tensor::size_bytes() const { return static_cast<uint64_t>(elements() * item()); }

Plan read_plan(const uint8_t* data, size_t size) {
  if (size < kHeaderBytes || std::memcmp(data, kMagic, 8) != 0) {
    refuse("not a plan (its first eight bytes are not EWPLAN)");
  }
  const uint32_t version = u32(data + 8);
  if (version < kOldest || version > kVersion) {
    throw UnsupportedError("plan.bin: format version " + std::to_string(version) +
                           "; this engine reads versions 2 to 3");
  }
  const uint32_t file_bytes = u32(data + 12);
  if (file_bytes != size || size > kMaxFileBytes) {
    refuse(std::to_string(size) + " bytes, its header says " + std::to_string(file_bytes) + " (at most " +
           std::to_string(kMaxFileBytes) + ")");
  }
  const uint32_t n_tensors = u32(data + 16), n_ranges = u32(data + 20), n_ops = u32(data + 24);
  const uint32_t n_inputs = u32(data + 28), n_outputs = u32(data + 32), names_bytes = u32(data + 36);
  const struct {
    const char* what;
    uint32_t count, limit;
  } limits[] = {{"tensors", n_tensors, kMaxCount}, {"ranges", n_ranges, kMaxCount},
                {"operators", n_ops, kMaxCount},   {"inputs", n_inputs, kMaxPorts},
                {"outputs", n_outputs, kMaxPorts}, {"name bytes", names_bytes, kMaxFileBytes}};
  for (const auto& [what, count, limit] : limits) {
    if (count > limit) {
      refuse(std::to_string(count) + " " + what + ", at most " + std::to_string(limit) + " are allowed");
    }
  }
  const size_t ranges_at = kHeaderBytes + n_tensors * kTensorBytes;
  const size_t ports_at = ranges_at + n_ranges * kRangeBytes;
  const size_t ops_at = ports_at + 4 * (size_t{n_inputs} + n_outputs);
  if (names_bytes > size || ops_at > size - names_bytes) refuse("its tables are larger than the file");
  const size_t names_at = size - names_bytes;

  Plan plan;
  plan.arena_bytes = u64(data + 40);
  plan.weights_bytes = u64(data + 48);
  for (size_t i = 0; i < n_tensors; ++i) {
    plan.tensors.push_back(
        read_tensor(i, data + kHeaderBytes + i * kTensorBytes, data + names_at, names_bytes));
  }
  for (size_t i = 0; i < n_ranges; ++i) {
    const uint8_t* at = data + ranges_at + i * kRangeBytes;
    plan.ranges.push_back({u64(at), u64(at + 8)});
  }
  for (size_t i = 0; i < n_inputs; ++i) plan.inputs.push_back(u32(data + ports_at + 4 * i));
  for (size_t i = 0; i < n_outputs; ++i) plan.outputs.push_back(u32(data + ports_at + 4 * (n_inputs + i)));
  size_t at = ops_at;
  for (size_t i = 0; i < n_ops; ++i) {
    const std::string where = "operator " + std::to_string(i);
    if (names_at - at < kOpBytes) refuse(where + " lies beyond the end");
    const uint32_t kind = u32(data + at), count = u32(data + at + 4);
    at += kOpBytes;
    if ((names_at - at) / 4 < count) refuse(where + " is cut short");
    if (kind < 1 || kind > kKinds) {
      throw UnsupportedError("plan.bin: " + where + " is of kind " + std::to_string(kind) +
                             ", which this engine does not know");
    }
    const Kind known = static_cast<Kind>(kind);
    plan.ops.push_back(read_op(known, Words(data + at, count, operator_name(i, known))));
    at += size_t{4} * count;
  }
  if (at != names_at) refuse(std::to_string(names_at - at) + " bytes after the last operator");
  if (version < needed_version(plan)) refuse("version 2 has neither int16 nor a multiplier per channel");
  check(plan);
  return plan;
}

}  // namespace edgewright
