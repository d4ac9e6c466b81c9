// What a change to one number asks of the others: without it, nearly every mutant would die at the first
// rule.
#include <algorithm>
#include <cstring>

#include "mutate.h"

namespace fuzz {
namespace {

constexpr uint64_t kMostWeights = 1 << 16, kAlignment = 64;

using Shape = std::vector<int64_t>;

class Repair {
 public:
  Repair(Draft& draft, Random& random) : draft_(draft), random_(random) {}

  void shapes() {
    for (DraftOp& op : draft_.ops) {
      const std::vector<size_t> results = places(op, Part::kResult);
      if (results.empty() || !there(op.words[results[0]])) continue;
      bool all = true;
      for (const size_t at : places(op, Part::kTensor)) all = all && there(op.words[at]);
      if (all) follow(op, draft_.tensors[static_cast<size_t>(op.words[results[0]])]);
    }
  }
  void arena();

 private:
  bool there(int32_t tensor) const {
    return tensor >= 0 && static_cast<size_t>(tensor) < draft_.tensors.size();
  }
  Shape shape_of(const DraftTensor& tensor) const {
    return Shape(tensor.size, tensor.size + std::min<int>(tensor.rank, 6));
  }
  DraftTensor& tensor(const DraftOp& op, size_t place) {
    return draft_.tensors[static_cast<size_t>(op.words[place])];
  }
  void set_shape(DraftTensor& tensor, const Shape& shape) {
    tensor.rank = static_cast<uint8_t>(std::min<size_t>(shape.size(), 6));
    for (size_t i = 0; i < 6; ++i) tensor.size[i] = i < shape.size() ? static_cast<uint32_t>(shape[i]) : 0;
  }
  static void same_grid(const DraftTensor& x, DraftTensor& y) {
    y.dtype = x.dtype;
    y.scale = x.scale;
    y.zero_point = x.zero_point;
  }
  void follow(DraftOp& op, DraftTensor& y);
  void follow_weights(DraftOp& op, const DraftTensor& x, DraftTensor& y, Shape& shape);
  int64_t window_size(const DraftOp& op, size_t axis, int64_t size) const;
  void resize_range(DraftOp& op, size_t place, uint64_t size);
  void resize_rescale(DraftOp& op, size_t count);
  void resize_table(DraftOp& op, size_t count);

  Draft& draft_;
  Random& random_;
};

int64_t Repair::window_size(const DraftOp& op, size_t axis, int64_t size) const {
  const auto kernel = places(op, Part::kKernel), stride = places(op, Part::kStride),
             padding = places(op, Part::kPadding), dilation = places(op, Part::kDilation),
             extra = places(op, Part::kExtra);
  const auto word = [&](const std::vector<size_t>& at, size_t i) { return int64_t{op.words[at[i]]}; };
  const int64_t span = word(dilation, axis) * (word(kernel, axis) - 1) + 1;
  const int64_t padded = word(padding, axis) + word(padding, axis + kernel.size());
  const int64_t step = std::max<int64_t>(1, word(stride, axis));
  if (op.kind == kTransposedConvolution) {
    return step * (size - 1) + (extra.empty() ? 0 : word(extra, axis)) + span - padded;
  }
  return (size + padded - span) / step + 1;
}

// A range of that size somewhere in the weights; a new one, as others may use the old.
void Repair::resize_range(DraftOp& op, size_t place, uint64_t size) {
  const uint32_t number = static_cast<uint32_t>(op.words[place]);
  if (size > kMostWeights || (number < draft_.ranges.size() && draft_.ranges[number].size == size)) return;
  while (draft_.weights.size() < size) {
    draft_.weights.push_back(static_cast<uint8_t>(random_.between(-127, 127)));
  }
  uint64_t offset = random_.below(draft_.weights.size() - size + 1);
  if (number < draft_.ranges.size() && draft_.ranges[number].offset + size <= draft_.weights.size()) {
    offset = draft_.ranges[number].offset;
  }
  draft_.ranges.push_back({offset, size});
  op.words[place] = static_cast<int32_t>(draft_.ranges.size() - 1);
}

void Repair::resize_rescale(DraftOp& op, size_t count) {
  const auto multipliers = places(op, Part::kMultiplier), shifts = places(op, Part::kShift);
  const auto clamps = places(op, Part::kClamp);
  if (clamps.size() != 2 || multipliers.size() == count || count > kMostWeights) return;
  std::vector<int32_t> words(op.words.begin(), op.words.begin() + static_cast<std::ptrdiff_t>(clamps[1] + 1));
  words.push_back(static_cast<int32_t>(count));
  for (const auto* part : {&multipliers, &shifts}) {
    for (size_t i = 0; i < count; ++i) {
      words.push_back(part->empty() ? 1 : op.words[(*part)[i % part->size()]]);
    }
  }
  op.words = words;
}

// The table of a Lookup, or the curve of a Softmax.
void Repair::resize_table(DraftOp& op, size_t count) {
  const size_t head = op.kind == kLookup ? 2 : 3, tail = op.kind == kLookup ? 0 : 5;
  if (op.words.size() <= head + tail || op.words.size() == head + count + tail) return;
  std::vector<int32_t> table(op.words.begin() + static_cast<std::ptrdiff_t>(head),
                             op.words.end() - static_cast<std::ptrdiff_t>(tail));
  std::vector<int32_t> words(op.words.begin(), op.words.begin() + static_cast<std::ptrdiff_t>(head));
  for (size_t i = 0; i < count; ++i) {
    const int32_t word = table[i % table.size()];
    words.push_back(count == 513 ? word & 0x7FFF : count == 512 && i < 256 ? std::min(word, 32768) : word);
  }
  words.insert(words.end(), op.words.end() - static_cast<std::ptrdiff_t>(tail), op.words.end());
  op.words = words;
}

void Repair::follow_weights(DraftOp& op, const DraftTensor& x, DraftTensor& y, Shape& shape) {
  const int64_t inputs = x.size[std::max(0, std::min<int>(x.rank, 6) - 1)];
  int64_t outputs = std::max<int64_t>(1, y.size[std::max(0, std::min<int>(y.rank, 6) - 1)]);
  int64_t rows = outputs, row = inputs;
  const auto groups = places(op, Part::kGroups);
  if (!groups.empty()) {
    int32_t& group = op.words[groups[0]];
    if (group < 1 || inputs % group != 0) group = random_.one_in(2) ? 1 : static_cast<int32_t>(inputs);
    if (group < 1) return;
    outputs = (outputs + group - 1) / group * group;
    int64_t taps = 1;
    for (const size_t at : places(op, Part::kKernel)) taps *= std::clamp(op.words[at], 1, 4096);
    row = inputs / group * taps;
    rows = outputs;
    if (op.kind == kTransposedConvolution) {
      rows = inputs;
      row = outputs / group * taps;
    }
  }
  shape.back() = outputs;
  const auto bits = places(op, Part::kBits), range = places(op, Part::kRange), bias = places(op, Part::kBias);
  if (bits.empty() || range.empty() || bias.empty() || rows > 4096 || row > 65536) return;
  const uint64_t bytes = static_cast<uint64_t>(rows * (op.words[bits[0]] == 4 ? (row + 1) / 2 : row));
  resize_range(op, range[0], bytes);
  if (op.words[bias[0]] != -1) resize_range(op, bias[0], static_cast<uint64_t>(outputs) * 4);
  resize_rescale(op, static_cast<size_t>(outputs));
}

void Repair::follow(DraftOp& op, DraftTensor& y) {
  const auto read = places(op, Part::kTensor), range = places(op, Part::kRange);
  if (op.kind == kConstant) {
    if (!range.empty()) resize_range(op, range[0], y.size_bytes());
    return;
  }
  if (read.empty()) return;
  const DraftTensor& x = tensor(op, read[0]);
  const DraftTensor& second = tensor(op, read.back());
  Shape shape = shape_of(x);
  if (shape.empty()) return;
  switch (op.kind) {
    case kQuantize:
    case kDequantize:
    case kTranspose: {
      if (places(op, Part::kOrder).size() != shape.size() && op.words.size() > 2) {
        op.words = {op.words[0], op.words[1], static_cast<int32_t>(shape.size())};
        for (size_t i = 0; i < shape.size(); ++i) op.words.push_back(static_cast<int32_t>(i));
        if (random_.one_in(2)) std::swap(op.words[3], op.words.back());
      }
      const auto order = places(op, Part::kOrder);
      if (order.size() != shape.size()) return;
      Shape moved;
      for (const size_t at : order) {
        const int32_t axis = op.words[at];
        if (axis < 0 || static_cast<size_t>(axis) >= shape.size()) return;
        moved.push_back(shape[static_cast<size_t>(axis)]);
      }
      shape = moved;
      break;
    }
    case kConvolution:
    case kTransposedConvolution:
    case kMaxPool:
    case kAveragePool: {
      const size_t axes = places(op, Part::kKernel).size();
      if (places(op, Part::kDilation).size() != axes || shape.size() != axes + 1) return;
      for (size_t i = 0; i < axes; ++i) {
        shape[i] = window_size(op, i, shape[i]);
        if (shape[i] < 1 || shape[i] > (1 << 20)) return;
      }
      if (op.kind == kConvolution || op.kind == kTransposedConvolution) follow_weights(op, x, y, shape);
      break;
    }
    case kFullyConnected:
      follow_weights(op, x, y, shape);
      break;
    case kMatMul: {
      const auto flag = places(op, Part::kFlag);
      if (second.rank < 2 || second.rank > 6 || flag.empty()) return;
      if (read.front() != read.back() && op.words[read[0]] == op.words[read[1]]) op.words[flag[0]] = 1;
      shape.back() = second.size[second.rank - (op.words[flag[0]] == 1 ? 2 : 1)];
      break;
    }
    case kLayerNorm: {
      const size_t gains = places(op, Part::kGain).size(), values = static_cast<size_t>(shape.back());
      const auto clamps = places(op, Part::kClamp);
      if (gains == values || gains == 0 || clamps.empty() || values > 4096) break;
      std::vector<int32_t> words(op.words.begin(), op.words.begin() + 2);
      words.push_back(static_cast<int32_t>(values));
      for (size_t i = 0; i < values; ++i) words.push_back(op.words[3 + i % gains]);
      for (size_t i = 0; i < 2 * values; ++i) words.push_back(op.words[3 + gains + i % (2 * gains)]);
      words.insert(words.end(), op.words.begin() + static_cast<std::ptrdiff_t>(3 + 3 * gains),
                   op.words.end());
      op.words = words;
      break;
    }
    case kConcat: {
      const auto axis = places(op, Part::kAxis);
      if (axis.empty() || op.words[axis[0]] < 0) return;
      const size_t along = static_cast<size_t>(op.words[axis[0]]);
      if (along >= shape.size()) return;
      shape[along] = 0;
      for (const size_t at : read) shape[along] += tensor(op, at).size[along];
      break;
    }
    case kSlice: {
      const auto starts = places(op, Part::kStart), steps = places(op, Part::kStep);
      if (starts.size() != shape.size() || steps.size() != shape.size()) return;
      for (size_t i = 0; i < shape.size(); ++i) {
        const int64_t left = shape[i] - 1 - op.words[starts[i]];
        const int64_t most = left / std::max(1, op.words[steps[i]]) + 1;
        shape[i] = i < y.rank ? std::clamp<int64_t>(y.size[i], 1, std::max<int64_t>(1, most)) : most;
      }
      break;
    }
    case kReshape:
      if (x.elements() == y.elements()) shape = shape_of(y);
      break;
    case kResize: {
      const auto index = places(op, Part::kIndex), fraction = places(op, Part::kFraction);
      const auto count = places(op, Part::kCount);
      if (shape.size() != 3 || count.size() < 2) return;
      shape[0] = op.words[count[0]];
      shape[1] = op.words[count[1]];
      if (random_.one_in(2)) {
        for (size_t i = 0; i < index.size(); ++i) {
          const int64_t size = x.size[i < 2 * static_cast<size_t>(shape[0]) ? 0 : 1];
          op.words[index[i]] = static_cast<int32_t>(op.words[index[i]] % std::max<int64_t>(1, size));
        }
      }
      break;
    }
    case kEmbedding: {
      const int64_t columns = std::max<int64_t>(1, y.size[std::max(0, std::min<int>(y.rank, 6) - 1)]);
      shape.push_back(columns);
      if (range.empty() || columns > 4096) return;
      resize_range(op, range[0], static_cast<uint64_t>(columns * random_.between(1, 9)));
      break;
    }
    case kLookup:
      resize_table(op, x.dtype == kInt16 ? 513 : y.dtype == kInt16 ? 128 : 64);
      break;
    case kSoftmax:
      resize_table(op, x.dtype == kInt16 ? 512 : 256);
      break;
    case kRequantize:
      if (random_.one_in(8)) resize_rescale(op, static_cast<size_t>(shape.back()));
      break;
    default:
      break;
  }
  if (random_.one_in(24)) {  // one wrong size, from which all that comes later follows
    int64_t& size = random_.of(shape);
    size = std::max<int64_t>(1, size + random_.between(-1, 3));
  }
  set_shape(y, shape);
  if (op.kind == kMaxPool || op.kind == kTranspose || op.kind == kReshape || op.kind == kSlice ||
      op.kind == kConcat) {
    same_grid(x, y);
  }
}

// Gives every tensor a place: one behind the other, or where the memory of those no longer needed is.
void Repair::arena() {
  const size_t count = draft_.tensors.size();
  std::vector<int64_t> born(count, -1), dies(count, -1);
  for (size_t i = 0; i < draft_.ops.size(); ++i) {
    const DraftOp& op = draft_.ops[i];
    for (const Word& word : words_of(op)) {
      const bool reads = word.part == Part::kTensor || word.part == Part::kMask;
      if ((!reads && word.part != Part::kResult) || !there(op.words[word.at])) continue;
      const size_t number = static_cast<size_t>(op.words[word.at]);
      if (!reads && born[number] < 0) born[number] = static_cast<int64_t>(i);
      dies[number] = static_cast<int64_t>(i);
    }
  }
  const bool shared = random_.one_in(2);
  uint64_t end = 0;
  for (size_t n = 0; n < count; ++n) {
    DraftTensor& tensor = draft_.tensors[n];
    if (!tensor.is_inside()) continue;
    const uint64_t size = tensor.size_bytes();
    uint64_t at = shared ? 0 : end;
    for (bool moved = shared; moved;) {  // the lowest place that nothing alive at the same time overlaps
      moved = false;
      for (size_t m = 0; m < n; ++m) {
        const DraftTensor& other = draft_.tensors[m];
        if (!other.is_inside() || born[m] > dies[n] || born[n] > dies[m]) continue;
        if (at < other.offset + other.size_bytes() && other.offset < at + size) {
          at = (other.offset + other.size_bytes() + kAlignment - 1) / kAlignment * kAlignment;
          moved = true;
        }
      }
    }
    tensor.offset = at;
    end = std::max(end, at + size);
    end = (end + kAlignment - 1) / kAlignment * kAlignment;
  }
  draft_.arena_bytes = end;
}

}  // namespace

void repair(Draft& draft, Random& random) {
  Repair made(draft, random);
  made.shapes();
  const bool wide = std::any_of(draft.tensors.begin(), draft.tensors.end(),
                                [](const DraftTensor& tensor) { return tensor.dtype == kInt16; });
  if (wide && !random.one_in(16)) draft.version = 3;
  if (!random.one_in(8)) made.arena();
}

}  // namespace fuzz
