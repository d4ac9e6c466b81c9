// plan.bin as something that can be changed: its tables and words, with none of the format's rules.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace fuzz {

using Bytes = std::vector<uint8_t>;

// What a reader is given.
struct Case {
  Bytes plan, weights;
};

struct DraftTensor {
  uint8_t dtype, rank;
  uint32_t size[6];
  float scale;
  int32_t zero_point;
  uint64_t offset;
  std::string name;

  bool is_inside() const;  // in the arena, on a grid
  // Both saturated, so that nonsense does not overflow.
  uint64_t elements() const;
  uint64_t size_bytes() const;
};

struct DraftRange {
  uint64_t offset, size;
};

struct DraftOp {
  uint32_t kind;
  std::vector<int32_t> words;
};

struct Draft {
  uint32_t version;
  std::vector<DraftTensor> tensors;
  std::vector<DraftRange> ranges;
  std::vector<uint32_t> inputs, outputs;
  std::vector<DraftOp> ops;
  uint64_t arena_bytes;
  Bytes weights;
};

constexpr uint8_t kUInt8 = 1, kInt16 = 3;

// The numbers of the kinds.
enum KindNumber : uint32_t {
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
  kKinds = kConstant
};

// What a word of an operator is.
enum class Part : uint8_t {
  kTensor,  // read
  kResult,
  kMask,
  kRange,
  kBits,
  kBias,
  kCount,  // of what follows
  kOrder,
  kKernel,
  kStride,
  kPadding,
  kDilation,
  kExtra,
  kGroups,
  kFlag,
  kTable,  // four bytes
  kCurve,
  kGain,
  kLow64,
  kHigh64,
  kAxis,
  kStart,
  kStep,
  kIndex,
  kFraction,
  kClamp,
  kMultiplier,
  kShift
};

struct Word {
  size_t at;
  Part part;
};

// The words of an operator as far as they go; stops where counts lead beyond the end.
std::vector<Word> words_of(const DraftOp& op);

// The places of the words that are of one part.
std::vector<size_t> places(const DraftOp& op, Part part);

// Nothing where the tables do not lie within the bytes.
std::optional<Draft> parse(const Case& from);

// With counts, sizes and names that fit. Nothing else is made right.
Case encode(const Draft& draft);

}  // namespace fuzz
