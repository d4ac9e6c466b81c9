#include "mutate.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace fuzz {
namespace {

constexpr size_t kMostBytes = 1 << 16;  // of a plan, and of its weights, so that a trial stays short
constexpr size_t kMostOps = 40;

constexpr int64_t kInteresting[] = {
    -1,         0,
    1,          2,
    3,          4,
    5,          7,
    8,          9,
    15,         16,
    17,         31,
    32,         33,
    62,         63,
    64,         65,
    127,        128,
    129,        254,
    255,        256,
    257,        2047,
    2048,       2049,
    4095,       4096,
    4097,       32767,
    32768,      33025,
    33026,      65535,
    65536,      65537,
    -127,       -128,
    -129,       1 << 20,
    1 << 28,    (1 << 20) + 1,
    0x7FFFFFFF, 0x7FFFFFFE,
    0x80000000, 0xFFFFFFFF,
    1 << 30,    -32768,
    16777216,
};

int64_t interesting(Random& random) { return kInteresting[random.below(std::size(kInteresting))]; }

// A number near `value`, a small one, or one where something often ends.
int32_t other_number(int32_t value, Random& random) {
  switch (random.below(6)) {
    case 0:
      return static_cast<int32_t>(static_cast<uint32_t>(value) + 1);
    case 1:
      return static_cast<int32_t>(static_cast<uint32_t>(value) - 1);
    case 2:
      return static_cast<int32_t>(interesting(random));
    case 3:
      return static_cast<int32_t>(static_cast<uint32_t>(value) ^ 1u << random.below(32));
    case 4:
      return static_cast<int32_t>(random.below(16));
    default:
      return static_cast<int32_t>(static_cast<uint32_t>(value) * (random.one_in(2) ? 2 : -1));
  }
}

// A value that belongs in such a word.
int32_t fitting_number(const Draft& draft, Part part, int32_t value, Random& random) {
  switch (part) {
    case Part::kTensor:
    case Part::kResult:
      return static_cast<int32_t>(random.below(draft.tensors.size()));
    case Part::kMask:
    case Part::kBias:
      if (random.one_in(3)) return -1;
      return static_cast<int32_t>(
          random.below(part == Part::kMask ? draft.tensors.size() : draft.ranges.size()));
    case Part::kRange:
      return static_cast<int32_t>(random.below(draft.ranges.size()));
    case Part::kBits:
      return random.one_in(2) ? 4 : 8;
    case Part::kOrder:
    case Part::kAxis:
    case Part::kExtra:
    case Part::kStart:
      return static_cast<int32_t>(random.below(5));
    case Part::kKernel:
      return static_cast<int32_t>(random.one_in(6) ? random.between(1, 40) : random.between(1, 5));
    case Part::kStride:
    case Part::kDilation:
    case Part::kStep:
      return static_cast<int32_t>(random.one_in(6) ? random.between(1, 30) : random.between(1, 4));
    case Part::kPadding:
      return static_cast<int32_t>(random.one_in(6) ? random.below(30) : random.below(4));
    case Part::kGroups:
      return static_cast<int32_t>(random.between(1, 8));
    case Part::kFlag:
      return static_cast<int32_t>(random.below(2));
    case Part::kClamp:
      if (random.one_in(4)) return static_cast<int32_t>(random.between(-32768, 32767));
      return static_cast<int32_t>(random.one_in(2) ? random.below(2) * 255 : random.below(256));
    case Part::kMultiplier:
      return static_cast<int32_t>(random.below(uint64_t{1} << random.between(1, 31)));
    case Part::kShift:
      return static_cast<int32_t>(random.between(1, 62));
    case Part::kIndex:
      return static_cast<int32_t>(random.below(9));
    case Part::kFraction:
      return static_cast<int32_t>(random.below(2049));
    case Part::kCurve:
      return static_cast<int32_t>(random.below(65537));
    case Part::kTable:  // bytes, or 128ths of a step
      return static_cast<int32_t>(random.one_in(2) ? random.next() : random.below(255 * 128 + 1));
    case Part::kGain:
    case Part::kLow64:
      return static_cast<int32_t>(random.next());
    case Part::kHigh64:
      return static_cast<int32_t>(random.between(-(1 << 23), 1 << 23));
    case Part::kCount:
      break;
  }
  return value;
}

void change_word(Draft& draft, Random& random) {
  if (draft.ops.empty()) return;
  DraftOp& op = random.of(draft.ops);
  const std::vector<Word> words = words_of(op);
  if (words.empty()) return;
  // The part first, so that long tables do not hide the rest.
  const Part part = [&] {
    std::vector<Part> parts;
    for (const Word& word : words) {
      if (std::find(parts.begin(), parts.end(), word.part) == parts.end()) parts.push_back(word.part);
    }
    return random.of(parts);
  }();
  const std::vector<size_t> at = places(op, part);
  const bool fitting = !random.one_in(4), all = random.one_in(6);
  const size_t chosen = random.of(at);
  for (const size_t place : at) {
    if (!all && place != chosen) continue;
    int32_t& word = op.words[place];
    word = fitting ? fitting_number(draft, part, word, random) : other_number(word, random);
  }
  if (part == Part::kOrder && random.one_in(2)) {  // a real order
    std::vector<int32_t> axes(at.size());
    for (size_t i = 0; i < axes.size(); ++i) axes[i] = static_cast<int32_t>(i);
    for (size_t i = axes.size(); i > 1; --i) std::swap(axes[i - 1], axes[random.below(i)]);
    for (size_t i = 0; i < at.size(); ++i) op.words[at[i]] = axes[i];
  }
  if (part == Part::kCurve && random.one_in(2)) {  // one that falls
    std::vector<int32_t> curve;
    for (const size_t place : at) curve.push_back(op.words[place] & 0xFFFF);
    std::sort(curve.rbegin(), curve.rend());
    curve.front() = 65536;
    for (size_t i = 0; i < at.size(); ++i) op.words[at[i]] = curve[i];
  }
}

void change_words(Draft& draft, Random& random) {  // how many there are
  if (draft.ops.empty()) return;
  std::vector<int32_t>& words = random.of(draft.ops).words;
  if (random.one_in(2) || words.empty()) {
    words.insert(words.begin() + static_cast<std::ptrdiff_t>(random.below(words.size() + 1)),
                 static_cast<int32_t>(interesting(random)));
  } else {
    words.erase(words.begin() + static_cast<std::ptrdiff_t>(random.below(words.size())));
  }
}

void change_tensor(Draft& draft, Random& random) {
  if (draft.tensors.empty()) return;
  DraftTensor& tensor = random.of(draft.tensors);
  const bool border =
      !tensor.is_inside() && !random.one_in(8);  // its grid is none, and nearly always stays so
  switch (border ? random.between(5, 9) : random.below(10)) {
    case 0:
      if (!random.one_in(4)) {
        tensor.dtype = tensor.dtype == kUInt8 ? kInt16 : kUInt8;
        if (tensor.dtype == kInt16) tensor.zero_point = 0;
      } else {
        tensor.dtype = static_cast<uint8_t>(random.below(6));
      }
      break;
    case 1:
      tensor.rank = static_cast<uint8_t>(random.below(8));
      break;
    case 2:
      tensor.zero_point = random.one_in(4) ? other_number(tensor.zero_point, random)
                                           : static_cast<int32_t>(random.below(256));
      break;
    case 3: {
      const float scales[] = {0.0f,  -1.0f,    1.0f, 1e-38f, 1e-45f,
                              3e38f, INFINITY, NAN,  0.1f,   tensor.scale * 3.0f};
      tensor.scale = scales[random.below(std::size(scales))];
      break;
    }
    case 4:
      tensor.offset = random.one_in(2) ? random.below(64) * 64 : static_cast<uint64_t>(interesting(random));
      if (random.one_in(8)) tensor.offset = ~uint64_t{0} - random.below(4096);
      break;
    case 5: {
      const char* names[] = {
          "", "x", "y", "t0", "\xC3\xA9", "\xC3", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xC0\x80"};
      tensor.name = names[random.below(std::size(names))];
      if (random.one_in(8)) tensor.name.assign(random.between(250, 260), 'n');
      break;
    }
    default: {
      uint32_t& size =
          tensor.size[random.below(random.one_in(8) ? 6 : std::clamp<uint8_t>(tensor.rank, 1, 6))];
      size = random.one_in(6)
                 ? static_cast<uint32_t>(interesting(random))
                 : static_cast<uint32_t>(random.one_in(2) ? random.between(1, 9) : random.between(1, 70));
    }
  }
}

void change_range(Draft& draft, Random& random) {
  if (draft.ranges.empty()) return;
  DraftRange& range = random.of(draft.ranges);
  uint64_t& value = random.one_in(2) ? range.offset : range.size;
  switch (random.below(4)) {
    case 0:
      value = static_cast<uint64_t>(interesting(random));
      break;
    case 1:
      value = ~uint64_t{0} - random.below(64);
      break;
    case 2:
      value += random.between(-4, 4);
      break;
    default:
      value = random.below(draft.weights.size() + 2);
  }
}

void change_ports(Draft& draft, Random& random) {
  std::vector<uint32_t>& ports = random.one_in(2) ? draft.inputs : draft.outputs;
  const uint32_t any = static_cast<uint32_t>(random.below(draft.tensors.size() + 1));
  if (ports.empty() || random.one_in(4)) return ports.push_back(any);
  if (random.one_in(4)) return ports.pop_back();
  if (random.one_in(4)) return std::swap(random.of(ports), random.of(ports));
  random.of(ports) = any;
}

void change_order(Draft& draft, Random& random) {  // of the operators
  std::vector<DraftOp>& ops = draft.ops;
  if (ops.empty()) return;
  const auto at = [&] { return ops.begin() + static_cast<std::ptrdiff_t>(random.below(ops.size())); };
  switch (random.below(4)) {
    case 0:
      if (ops.size() < kMostOps) ops.insert(at(), DraftOp(*at()));
      break;
    case 1:
      ops.erase(at());
      break;
    case 2:
      std::swap(*at(), *at());
      break;
    default:
      at()->kind = static_cast<uint32_t>(random.below(kKinds + 3));
  }
}

void change_weights(Draft& draft, Random& random) {
  Bytes& weights = draft.weights;
  if (weights.empty() || random.one_in(16)) {
    weights.resize(random.below(weights.size() + 64));
    return;
  }
  size_t from = random.below(weights.size()), to = std::min(weights.size(), from + 1 + random.below(64));
  if (!draft.ranges.empty() && random.one_in(2)) {  // a whole range
    const DraftRange& range = random.of(draft.ranges);
    if (range.offset <= weights.size() && range.size <= weights.size() - range.offset) {
      from = static_cast<size_t>(range.offset);
      to = from + static_cast<size_t>(range.size);
    }
  }
  const uint64_t how = random.below(5);
  const uint8_t one =
      static_cast<uint8_t>(random.one_in(2) ? random.between(-127, 127) : 0x7F + random.below(3));
  for (size_t i = from; i < to; ++i) {
    weights[i] = how == 0   ? one
                 : how == 1 ? (i % 2 ? 0x7F : 0x81)
                 : how == 2 ? static_cast<uint8_t>(random.next())
                 : how == 3 ? static_cast<uint8_t>(random.between(-127, 127))
                            : static_cast<uint8_t>(random.between(-1, 1));
  }
}

// All of `other` behind what is there, with its numbers moved on.
void append(Draft& draft, const Draft& other, Random& random) {
  if (draft.ops.size() + other.ops.size() > kMostOps || draft.tensors.size() + other.tensors.size() > 200)
    return;
  const uint32_t tensors = static_cast<uint32_t>(draft.tensors.size());
  const uint32_t ranges = static_cast<uint32_t>(draft.ranges.size());
  const uint64_t weights = draft.weights.size();
  for (DraftTensor tensor : other.tensors) {
    if (tensor.is_inside()) tensor.offset += (draft.arena_bytes + 63) / 64 * 64;
    tensor.name += "+" + std::to_string(tensors);
    draft.tensors.push_back(tensor);
  }
  for (DraftRange range : other.ranges) {
    range.offset += weights;
    draft.ranges.push_back(range);
  }
  draft.weights.insert(draft.weights.end(), other.weights.begin(), other.weights.end());
  for (const uint32_t port : other.inputs) draft.inputs.push_back(port + tensors);
  for (const uint32_t port : other.outputs) draft.outputs.push_back(port + tensors);
  for (DraftOp op : other.ops) {
    for (const Word& word : words_of(op)) {
      int32_t& value = op.words[word.at];
      if (word.part == Part::kTensor || word.part == Part::kResult ||
          (word.part == Part::kMask && value != -1)) {
        value = static_cast<int32_t>(static_cast<uint32_t>(value) + tensors);
        // One of ours in the place of one of its own.
        if (word.part == Part::kTensor && tensors > 0 && op.kind != kQuantize && op.kind != kEmbedding &&
            random.one_in(3)) {
          const int32_t mine = static_cast<int32_t>(random.below(tensors));
          if (draft.tensors[static_cast<size_t>(mine)].is_inside()) value = mine;
        }
      }
      if (word.part == Part::kRange || (word.part == Part::kBias && value != -1)) {
        value = static_cast<int32_t>(static_cast<uint32_t>(value) + ranges);
      }
    }
    draft.ops.push_back(op);
  }
  draft.arena_bytes += other.arena_bytes;
}

// Puts an operator of `other` between a tensor and those that read it.
void insert(Draft& draft, const Draft& other, Random& random) {
  if (other.ops.empty() || draft.ops.empty() || draft.ops.size() >= kMostOps) return;
  DraftOp op = random.of(other.ops);
  const size_t at = random.below(draft.ops.size());
  const auto read = places(draft.ops[at], Part::kTensor);
  const auto mine = places(op, Part::kTensor), result = places(op, Part::kResult);
  if (read.empty() || mine.empty() || result.empty()) return;
  const int32_t x = draft.ops[at].words[random.of(read)];
  const uint32_t from = static_cast<uint32_t>(op.words[result[0]]);
  if (x < 0 || static_cast<size_t>(x) >= draft.tensors.size() || from >= other.tensors.size()) return;
  DraftTensor y = other.tensors[from];
  if (!y.is_inside() || !draft.tensors[static_cast<size_t>(x)].is_inside()) return;
  y.name = "+" + std::to_string(draft.tensors.size());
  const int32_t number = static_cast<int32_t>(draft.tensors.size());
  draft.tensors.push_back(y);
  for (const size_t place : mine) op.words[place] = x;
  op.words[result[0]] = number;
  for (const Part part : {Part::kRange, Part::kBias}) {
    for (const size_t place : places(op, part)) {
      if (op.words[place] == -1) continue;
      draft.ranges.push_back({0, 0});
      op.words[place] = static_cast<int32_t>(draft.ranges.size() - 1);
    }
  }
  for (size_t i = at; i < draft.ops.size(); ++i) {
    for (const size_t place : places(draft.ops[i], Part::kTensor)) {
      if (draft.ops[i].words[place] == x) draft.ops[i].words[place] = number;
    }
  }
  draft.ops.insert(draft.ops.begin() + static_cast<std::ptrdiff_t>(at), op);
}

void change(Draft& draft, const Case& other, Random& random) {
  switch (random.below(16)) {
    case 0:
    case 1:
    case 2:
    case 3:
    case 4:
      return change_word(draft, random);
    case 5:
    case 6:
    case 7:
      return change_tensor(draft, random);
    case 8:
      return change_range(draft, random);
    case 9:
      return random.one_in(3) ? change_ports(draft, random) : change_order(draft, random);
    case 10:
    case 11:
      return change_weights(draft, random);
    case 12:
      if (random.one_in(3)) return change_words(draft, random);
      draft.arena_bytes = random.one_in(2) ? random.below(4096) : static_cast<uint64_t>(interesting(random));
      return;
    default: {
      const std::optional<Draft> material = parse(other);
      if (!material) return;
      return random.one_in(3) ? append(draft, *material, random) : insert(draft, *material, random);
    }
  }
}

void set32(Bytes& bytes, size_t at, uint32_t value) {
  if (at + 4 <= bytes.size()) std::memcpy(bytes.data() + at, &value, 4);
}

// Below the level of the format: single bits, words, and where the file ends.
void change_bytes(Bytes& plan, Random& random) {
  if (plan.empty()) return;
  const size_t at = random.below(plan.size());
  switch (random.below(6)) {
    case 0:
      plan[at] ^= static_cast<uint8_t>(1u << random.below(8));
      break;
    case 1:
      set32(plan, at / 4 * 4, static_cast<uint32_t>(interesting(random)));
      break;
    case 2:
      set32(plan, random.below(16) * 4, static_cast<uint32_t>(interesting(random)));  // in the header
      break;
    case 3:
      plan.resize(at);
      break;
    case 4:
      plan.insert(plan.end(), 1 + random.below(64), static_cast<uint8_t>(random.next()));
      break;
    default:
      plan.erase(
          plan.begin() + static_cast<std::ptrdiff_t>(at),
          plan.begin() + static_cast<std::ptrdiff_t>(std::min(plan.size(), at + 1 + random.below(16))));
  }
  if (!random.one_in(4)) set32(plan, 12, static_cast<uint32_t>(plan.size()));
}

}  // namespace

Case mutate(const Case& from, const Case& other, Random& random) {
  Case made = from;
  const std::optional<Draft> parsed = parse(from);
  if (parsed) {
    Draft draft = *parsed;
    for (uint64_t i = 1 + random.below(4); i > 0; --i) change(draft, other, random);
    if (!random.one_in(5)) repair(draft, random);
    made = encode(draft);
  }
  if (!parsed || random.one_in(10)) {
    for (uint64_t i = 1 + random.below(3); i > 0; --i) change_bytes(made.plan, random);
  }
  if (random.one_in(100)) made.weights.resize(random.below(made.weights.size() + 8));
  return made.plan.size() > kMostBytes || made.weights.size() > kMostBytes ? from : made;
}

}  // namespace fuzz
