// The integer program as plan.bin holds it: the second reader, independent of plan.py. What it means is said
// in program.py and operators.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "errors.h"

namespace edgewright {

constexpr size_t kMaxRank = 6;

enum class DType : uint8_t { kFloat32 = 0, kUInt8 = 1, kInt64 = 2, kInt16 = 3 };
const char* name_of(DType dtype);
int64_t item_bytes(DType dtype);
// Whether tensors of it lie in the arena, on a grid; the others are the caller's.
inline bool is_inside(DType dtype) { return dtype == DType::kUInt8 || dtype == DType::kInt16; }

struct Tensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;  // of one sample; channels last
  float scale;
  int32_t zero_point;
  uint64_t offset;  // bytes into the arena

  bool is_wide() const { return dtype == DType::kInt16; }
  int64_t item() const { return item_bytes(dtype); }  // bytes of an element
  int64_t elements() const;
  uint64_t size_bytes() const;
};

struct ByteRange {
  uint64_t offset, size;
};

constexpr int kMaxWindowAxes = 3;

struct Window {
  int axes;
  int64_t kernel[kMaxWindowAxes], stride[kMaxWindowAxes], dilation[kMaxWindowAxes];
  int64_t before[kMaxWindowAxes], after[kMaxWindowAxes];  // padding
};

struct Rescale {
  int32_t low = 0, high = 255;
  std::vector<int32_t> multiplier, shift;
};

// The two inputs that each output takes along one axis, the second with weight `fraction` of 2048.
struct Interpolation {
  std::vector<int32_t> first, second, fraction;
};

// The numbers in the file.
enum class Kind : uint32_t {
  kQuantize = 1,
  kDequantize,
  kConvolution,
  kFullyConnected,
  kMaxPool,
  kAveragePool,
  kAdd,
  kRequantize,
  kTranspose,
  kReshape,
  kMatMul,
  kMultiply,
  kLookup,
  kSoftmax,
  kLayerNorm,
  kConcat,
  kSlice,
  kResize,
  kEmbedding,
  kTransposedConvolution,
  kConstant,
};
constexpr uint32_t kKinds = 21;
const char* name_of(Kind kind);

// One operator of any kind; what a kind does not have keeps its default.
struct Op {
  Kind kind;
  std::vector<int32_t> reads;  // tensors: x; a, b; x, mask; all of a Concat; none of a Constant
  int32_t y = -1;
  int32_t weight = -1, bias = -1;  // byte ranges; a bias of -1 is none
  int32_t weight_bits = 8;
  Window window{};
  std::vector<int32_t> extra;  // of the window's axes
  int32_t groups = 1;
  Rescale rescale;
  std::vector<int32_t> order;
  bool transpose_b = false;
  std::vector<int32_t> table;  // of Lookup, the words of its bytes; of Softmax
  std::vector<int32_t> gain;
  std::vector<int64_t> offset;
  int64_t epsilon = 0;
  int32_t axis = 0;
  std::vector<int32_t> starts, steps;
  Interpolation rows, columns;

  int32_t x() const { return reads.front(); }
};

struct Plan {
  std::vector<Tensor> tensors;
  std::vector<ByteRange> ranges;
  std::vector<Op> ops;
  std::vector<uint32_t> inputs, outputs;
  uint64_t arena_bytes, weights_bytes;
};

// Reads untrusted bytes and holds the plan to every rule that does not need the weights.
// Throws PlanError or UnsupportedError.
Plan read_plan(const uint8_t* data, size_t size);

// Where messages point: `operator 3 (Add)`.
std::string operator_name(size_t number, Kind kind);

}  // namespace edgewright
