#include "draft.h"

#include <cstring>

namespace fuzz {
namespace {

constexpr size_t kHeader = 64, kTensor = 52, kRange = 16, kOp = 8;

template <class T>
T number(const Bytes& bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

template <class T>
void append(Bytes& bytes, T value) {
  const uint8_t* raw = reinterpret_cast<const uint8_t*>(&value);
  bytes.insert(bytes.end(), raw, raw + sizeof value);
}

// The words of each kind, by its number from 1: t tensor read, y result, m mask, r range, b bits, B bias, o
// order, W window, E extra, g groups, f flag, L lookup, S Softmax's table, N LayerNorm, a axis, c counted
// tensors, s starts and steps, I interpolation, R rescale.
constexpr const char* kWords[] = {
    "tyo",  "tyo", "tyrbBWgR", "tyrbBR", "tyW", "tyWR", "ttyR",  "tyR",  "tyo",       "ty", "ttyfR",
    "ttyR", "tyL", "tmySR",    "tyNR",   "yac", "tys",  "tyIIR", "tyrR", "tyrbBWEgR", "yr",
};
static_assert(sizeof kWords / sizeof *kWords == kKinds);

// Takes words in order.
class Walk {
 public:
  explicit Walk(const DraftOp& op) : op_(op) {}

  bool take(Part part, int64_t count = 1) {
    if (count < 0 || at_ + static_cast<uint64_t>(count) > op_.words.size()) return false;
    for (int64_t i = 0; i < count; ++i) found.push_back({at_++, part});
    return true;
  }
  // A count, and as many of each part.
  bool counted(std::initializer_list<Part> parts) {
    if (!take(Part::kCount)) return false;
    const int32_t count = last();
    for (const Part part : parts) {
      if (!take(part, count)) return false;
    }
    return true;
  }
  bool wide(int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      if (!take(Part::kLow64) || !take(Part::kHigh64)) return false;
    }
    return true;
  }
  bool window() {
    if (!take(Part::kCount)) return false;
    axes_ = last();
    return take(Part::kKernel, axes_) && take(Part::kStride, axes_) && take(Part::kPadding, axes_) &&
           take(Part::kPadding, axes_) && take(Part::kDilation, axes_);
  }
  bool step(char what);

  std::vector<Word> found;

 private:
  int64_t left() const { return static_cast<int64_t>(op_.words.size() - at_); }
  int32_t last() const { return op_.words[at_ - 1]; }

  const DraftOp& op_;
  size_t at_ = 0;
  int32_t axes_ = 0;
};

bool Walk::step(char what) {
  switch (what) {
    case 't':
      return take(Part::kTensor);
    case 'y':
      return take(Part::kResult);
    case 'm':
      return take(Part::kMask);
    case 'r':
      return take(Part::kRange);
    case 'b':
      return take(Part::kBits);
    case 'B':
      return take(Part::kBias);
    case 'o':
      return counted({Part::kOrder});
    case 'W':
      return window();
    case 'E':
      return take(Part::kExtra, axes_);
    case 'g':
      return take(Part::kGroups);
    case 'f':
      return take(Part::kFlag);
    case 'L':
      return take(Part::kTable, left());
    case 'S':
      return take(Part::kCurve, left() > 512 ? 512 : 256);
    case 'N':
      return counted({Part::kGain}) && wide(static_cast<int64_t>(found.size()) - 3) && wide(1);
    case 'a':
      return take(Part::kAxis);
    case 'c':
      return counted({Part::kTensor});
    case 's':
      return counted({Part::kStart, Part::kStep});
    case 'I':
      return counted({Part::kIndex, Part::kIndex, Part::kFraction});
    default:
      return take(Part::kClamp, 2) && counted({Part::kMultiplier, Part::kShift});
  }
}

}  // namespace

uint64_t DraftTensor::elements() const {
  uint64_t product = 1;
  for (int i = 0; i < rank && i < 6; ++i) {
    if (size[i] != 0 && product > (uint64_t{1} << 40) / size[i]) return uint64_t{1} << 40;
    product *= size[i];
  }
  return product;
}

bool DraftTensor::is_inside() const { return dtype == kUInt8 || dtype == kInt16; }

uint64_t DraftTensor::size_bytes() const { return elements() * (dtype == kInt16 ? 2 : 1); }

std::vector<Word> words_of(const DraftOp& op) {
  Walk walk(op);
  if (op.kind < 1 || op.kind > kKinds) return {};
  for (const char* what = kWords[op.kind - 1]; *what != '\0' && walk.step(*what); ++what) {
  }
  return walk.found;
}

std::vector<size_t> places(const DraftOp& op, Part part) {
  std::vector<size_t> found;
  for (const Word& word : words_of(op)) {
    if (word.part == part) found.push_back(word.at);
  }
  return found;
}

std::optional<Draft> parse(const Case& from) {
  const Bytes& bytes = from.plan;
  if (bytes.size() < kHeader) return {};
  uint32_t count[6];  // tensors, ranges, operators, inputs, outputs, name bytes
  for (size_t i = 0; i < 6; ++i) count[i] = number<uint32_t>(bytes, 16 + 4 * i);
  const uint64_t ranges_at = kHeader + uint64_t{count[0]} * kTensor;
  const uint64_t ports_at = ranges_at + uint64_t{count[1]} * kRange;
  const uint64_t ops_at = ports_at + 4 * (uint64_t{count[3]} + count[4]);
  if (ops_at + count[5] > bytes.size()) return {};
  const size_t names_at = bytes.size() - count[5];
  Draft draft;
  draft.version = number<uint32_t>(bytes, 8);
  draft.arena_bytes = number<uint64_t>(bytes, 40);
  draft.weights = from.weights;
  for (size_t i = 0; i < count[0]; ++i) {
    const size_t at = kHeader + i * kTensor;
    DraftTensor tensor{};
    tensor.dtype = bytes[at];
    tensor.rank = bytes[at + 1];
    for (size_t d = 0; d < 6; ++d) tensor.size[d] = number<uint32_t>(bytes, at + 4 + 4 * d);
    tensor.scale = number<float>(bytes, at + 28);
    tensor.zero_point = number<int32_t>(bytes, at + 32);
    tensor.offset = number<uint64_t>(bytes, at + 36);
    const uint64_t name_at = number<uint32_t>(bytes, at + 44), name_size = number<uint32_t>(bytes, at + 48);
    if (name_at + name_size > count[5]) return {};
    const char* name = reinterpret_cast<const char*>(bytes.data()) + names_at + name_at;
    tensor.name.assign(name, name_size);
    draft.tensors.push_back(tensor);
  }
  for (size_t i = 0; i < count[1]; ++i) {
    const size_t at = static_cast<size_t>(ranges_at) + i * kRange;
    draft.ranges.push_back({number<uint64_t>(bytes, at), number<uint64_t>(bytes, at + 8)});
  }
  for (size_t i = 0; i < uint64_t{count[3]} + count[4]; ++i) {
    const uint32_t port = number<uint32_t>(bytes, static_cast<size_t>(ports_at) + 4 * i);
    (i < count[3] ? draft.inputs : draft.outputs).push_back(port);
  }
  size_t at = static_cast<size_t>(ops_at);
  for (size_t i = 0; i < count[2]; ++i) {
    if (names_at - at < kOp) return {};
    DraftOp op{number<uint32_t>(bytes, at), {}};
    const uint32_t words = number<uint32_t>(bytes, at + 4);
    at += kOp;
    if ((names_at - at) / 4 < words) return {};
    op.words.resize(words);
    if (words > 0) std::memcpy(op.words.data(), bytes.data() + at, size_t{4} * words);
    at += size_t{4} * words;
    draft.ops.push_back(op);
  }
  return draft;
}

Case encode(const Draft& draft) {
  Bytes body, names;
  for (const DraftTensor& tensor : draft.tensors) {
    append<uint8_t>(body, tensor.dtype);
    append<uint8_t>(body, tensor.rank);
    append<uint16_t>(body, 0);
    for (const uint32_t size : tensor.size) append(body, size);
    append(body, tensor.scale);
    append(body, tensor.zero_point);
    append(body, tensor.offset);
    append(body, static_cast<uint32_t>(names.size()));
    append(body, static_cast<uint32_t>(tensor.name.size()));
    names.insert(names.end(), tensor.name.begin(), tensor.name.end());
  }
  for (const DraftRange& range : draft.ranges) {
    append(body, range.offset);
    append(body, range.size);
  }
  for (const auto* ports : {&draft.inputs, &draft.outputs}) {
    for (const uint32_t port : *ports) append(body, port);
  }
  for (const DraftOp& op : draft.ops) {
    append(body, op.kind);
    append(body, static_cast<uint32_t>(op.words.size()));
    for (const int32_t word : op.words) append(body, word);
  }
  body.insert(body.end(), names.begin(), names.end());
  Case made;
  for (const char letter : {'E', 'W', 'P', 'L', 'A', 'N', '\r', '\n'}) append(made.plan, letter);
  append(made.plan, draft.version);
  append(made.plan, static_cast<uint32_t>(kHeader + body.size()));
  for (const size_t count : {draft.tensors.size(), draft.ranges.size(), draft.ops.size(), draft.inputs.size(),
                             draft.outputs.size(), names.size()}) {
    append(made.plan, static_cast<uint32_t>(count));
  }
  append(made.plan, draft.arena_bytes);
  append(made.plan, static_cast<uint64_t>(draft.weights.size()));
  append(made.plan, uint64_t{0});
  made.plan.insert(made.plan.end(), body.begin(), body.end());
  made.weights = draft.weights;
  return made;
}

}  // namespace fuzz
