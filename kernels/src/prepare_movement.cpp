// Operators that move values and change none.
#include <cstring>

#include "step.h"
#include "strides.h"

namespace edgewright {
namespace {

template <class T>
Step run_copy(Setup& setup, const Strided& how) {
  const auto run = [how, row = how.row(), x = setup.x().offset, y = setup.y().offset](
                       const Call& call, int64_t begin, int64_t end) {
    how.copy(reinterpret_cast<const T*>(call.arena + x), reinterpret_cast<T*>(call.arena + y) + begin * row,
             begin, end);
  };
  const double each = how.stride.back() == 1 ? cost::kByte * sizeof(T) : cost::kValue;
  return {run, how.size[0], each * static_cast<double>(setup.y().elements())};
}

Step run_copy(Setup& setup, const Strided& how) {
  return setup.y().is_wide() ? run_copy<int16_t>(setup, how) : run_copy<uint8_t>(setup, how);
}

}  // namespace

Step prepare_transpose(Setup& setup) {
  return run_copy(setup, transposition(setup.x().shape, setup.op().order));
}

Step prepare_slice(Setup& setup) {
  return run_copy(setup, stretches(setup.x().shape, setup.y().shape, setup.op().starts, setup.op().steps));
}

Step prepare_reshape(Setup& setup) {
  const Blocks blocks = {static_cast<int64_t>(setup.x().size_bytes())};
  const uint64_t x = setup.x().offset, y = setup.y().offset;
  if (x == y) return {[](const Call&, int64_t, int64_t) {}, 1, 0};
  const auto run = [=](const Call& call, int64_t begin, int64_t end) {
    const int64_t from = blocks.start(begin), size = blocks.start(end) - from;
    std::memcpy(call.arena + y + from, call.arena + x + from, static_cast<size_t>(size));
  };
  return {run, blocks.units(), cost::kByte * static_cast<double>(blocks.count)};
}

Step prepare_concat(Setup& setup) {
  struct Part {
    uint64_t x;
    size_t run;  // bytes side by side
  };
  const std::vector<int64_t>& shape = setup.y().shape;
  const size_t axis = static_cast<size_t>(setup.op().axis);
  int64_t rounds = 1, behind = setup.y().item();
  for (size_t i = 0; i < axis; ++i) rounds *= shape[i];
  for (size_t i = axis + 1; i < shape.size(); ++i) behind *= shape[i];
  std::vector<Part> parts;
  for (const int32_t number : setup.op().reads) {
    const Tensor& part = setup.plan.tensors[number];
    parts.push_back({part.offset, static_cast<size_t>(part.shape[axis] * behind)});
  }
  const auto run = [=, at = setup.y().offset, all = shape[axis] * behind](const Call& call, int64_t begin,
                                                                          int64_t end) {
    uint8_t* y = call.arena + at + begin * all;
    for (int64_t round = begin; round < end; ++round) {
      for (const Part& part : parts) {
        std::memcpy(y, call.arena + part.x + static_cast<size_t>(round) * part.run, part.run);
        y += part.run;
      }
    }
  };
  return {run, rounds, cost::kByte * static_cast<double>(setup.y().size_bytes())};
}

Step prepare_constant(Setup& setup) {
  const Blocks blocks = {static_cast<int64_t>(setup.y().size_bytes())};
  const std::shared_ptr<Bytes> kept = setup.take(static_cast<size_t>(blocks.count));
  std::memcpy(kept->data(), setup.bytes_of(setup.op().weight), static_cast<size_t>(blocks.count));
  const auto run = [=, at = setup.y().offset](const Call& call, int64_t begin, int64_t end) {
    const int64_t from = blocks.start(begin), size = blocks.start(end) - from;
    std::memcpy(call.arena + at + from, kept->data() + from, static_cast<size_t>(size));
  };
  return {run, blocks.units(), cost::kByte * static_cast<double>(blocks.count)};
}

}  // namespace edgewright
