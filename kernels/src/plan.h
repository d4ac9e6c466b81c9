// The integer program as plan.bin holds it: the second reader, independent of plan.py. What it means is said
// in program.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "errors.h"

namespace edgewright {

enum class DType : uint8_t { kFloat32 = 0, kUInt8 = 1 };

struct Tensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;  // one sample: (height, width, channels) or (features) inside
  float scale;
  int32_t zero_point;
  uint64_t offset;  // bytes into the arena

  int64_t elements() const;
  uint64_t size_bytes() const;
};

struct ByteRange {
  uint64_t offset, size;
};

struct Window {
  int64_t kernel[2], stride[2], padding[4], dilation[2];  // (height, width); (top, left, bottom, right)
};

struct Rescale {
  int32_t low = 0, high = 255;
  std::vector<int32_t> multiplier, shift;
};

// The numbers in the file.
enum class Kind : uint32_t {
  kQuantize = 1,
  kDequantize,
  kConv2d,
  kFullyConnected,
  kMaxPool,
  kAveragePool,
  kAdd,
  kRequantize,
  kFlatten,
};
const char* name_of(Kind kind);

// One operator of any kind; what a kind does not have keeps its default.
struct Op {
  Kind kind;
  int32_t x = -1, b = -1, y = -1;  // tensors; b is the second input of an Add
  int32_t weight = -1, bias = -1;  // byte ranges; a bias of -1 is none
  Window window{};
  int32_t groups = 1;
  Rescale rescale;
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

// Where messages point: `operator 3 (Conv2d)`.
std::string operator_name(size_t number, Kind kind);

}  // namespace edgewright
