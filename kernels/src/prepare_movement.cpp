// Operators that move values and change none.
#include <cstring>

#include "step.h"
#include "strides.h"

namespace edgewright {
namespace {

Run run_copy(Setup& setup, const Strided& how) {
  return [how, x = setup.x().offset, y = setup.y().offset](const Call& call) {
    how.copy(call.arena + x, call.arena + y);
  };
}

}  // namespace

Run prepare_transpose(Setup& setup) {
  return run_copy(setup, transposition(setup.x().shape, setup.op().order));
}

Run prepare_slice(Setup& setup) {
  return run_copy(setup, stretches(setup.x().shape, setup.y().shape, setup.op().starts, setup.op().steps));
}

Run prepare_reshape(Setup& setup) {
  return [x = setup.x().offset, y = setup.y().offset,
          size = static_cast<size_t>(setup.x().size_bytes())](const Call& call) {
    if (x != y) std::memcpy(call.arena + y, call.arena + x, size);
  };
}

Run prepare_concat(Setup& setup) {
  struct Part {
    uint64_t x;
    size_t run;  // bytes side by side
  };
  const std::vector<int64_t>& shape = setup.y().shape;
  const size_t axis = static_cast<size_t>(setup.op().axis);
  int64_t rounds = 1, behind = 1;
  for (size_t i = 0; i < axis; ++i) rounds *= shape[i];
  for (size_t i = axis + 1; i < shape.size(); ++i) behind *= shape[i];
  std::vector<Part> parts;
  for (const int32_t number : setup.op().reads) {
    const Tensor& part = setup.plan.tensors[number];
    parts.push_back({part.offset, static_cast<size_t>(part.shape[axis] * behind)});
  }
  return [=, at = setup.y().offset](const Call& call) {
    uint8_t* y = call.arena + at;
    for (int64_t round = 0; round < rounds; ++round) {
      for (const Part& part : parts) {
        std::memcpy(y, call.arena + part.x + static_cast<size_t>(round) * part.run, part.run);
        y += part.run;
      }
    }
  };
}

}  // namespace edgewright
