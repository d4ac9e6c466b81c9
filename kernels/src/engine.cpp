#include "engine.h"

#include <chrono>

namespace edgewright {
namespace {

constexpr size_t kMaxSpare = 16;

// By the number of the kind, from 1.
constexpr Run (*kPrepare[kKinds])(Setup&) = {
    prepare_quantize,  prepare_dequantize,   prepare_convolution, prepare_fully_connected,
    prepare_max_pool,  prepare_average_pool, prepare_add,         prepare_requantize,
    prepare_transpose, prepare_reshape,      prepare_matmul,      prepare_multiply,
    prepare_lookup,    prepare_softmax,      prepare_layer_norm,  prepare_concat,
    prepare_slice,     prepare_resize,       prepare_embedding,   prepare_transposed_convolution,
};

}  // namespace

Engine::Engine(const uint8_t* plan, size_t plan_size, const uint8_t* weights, size_t weights_size,
               const Kernels& kernels)
    : plan_(read_plan(plan, plan_size)), kernels_(kernels) {
  if (weights_size != plan_.weights_bytes) {
    throw PlanError("the weights have " + std::to_string(weights_size) + " bytes, the plan was made for " +
                    std::to_string(plan_.weights_bytes));
  }
  Setup setup(plan_, kernels_, weights);
  steps_.reserve(plan_.ops.size());
  for (size_t i = 0; i < plan_.ops.size(); ++i) {
    setup.number = i;
    steps_.push_back(kPrepare[static_cast<uint32_t>(plan_.ops[i].kind) - 1](setup));
  }
  index_limits_ = setup.index_limits;
  scratch_at_ = aligned(static_cast<size_t>(plan_.arena_bytes));
  memory_bytes_ = scratch_at_ + setup.scratch_bytes;
}

Bytes Engine::take_memory() const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!spare_.empty()) {
      Bytes memory = std::move(spare_.back());
      spare_.pop_back();
      return memory;
    }
  }
  return Bytes(memory_bytes_);
}

void Engine::give_back(Bytes memory) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (spare_.size() < kMaxSpare) spare_.push_back(std::move(memory));
}

void Engine::check_indices(const void* const* inputs, int64_t samples) const {
  for (const IndexLimit& limit : index_limits_) {
    const int64_t* index = static_cast<const int64_t*>(inputs[limit.port]);
    for (int64_t i = 0; i < limit.count * samples; ++i) {
      if (index[i] < 0 || index[i] >= limit.rows) {
        throw InputError("input '" + plan_.tensors[plan_.inputs[limit.port]].name + "' holds the index " +
                         std::to_string(index[i]) + "; 0 to " + std::to_string(limit.rows - 1) +
                         " are allowed");
      }
    }
  }
}

void Engine::run(const void* const* inputs, float* const* outputs, int64_t samples) const {
  check_indices(inputs, samples);
  Bytes memory = take_memory();
  for (int64_t sample = 0; sample < samples; ++sample) {
    const Call call = {inputs, outputs, sample, memory.data(), memory.data() + scratch_at_};
    for (const Run& step : steps_) step(call);
  }
  give_back(std::move(memory));
}

void Engine::profile(const void* const* inputs, float* const* outputs, int64_t* nanoseconds) const {
  using Clock = std::chrono::steady_clock;
  check_indices(inputs, 1);
  Bytes memory = take_memory();
  const Call call = {inputs, outputs, 0, memory.data(), memory.data() + scratch_at_};
  Clock::time_point before = Clock::now();
  for (const Run& step : steps_) {
    step(call);
    const Clock::time_point after = Clock::now();
    *nanoseconds++ = std::chrono::duration_cast<std::chrono::nanoseconds>(after - before).count();
    before = after;
  }
  give_back(std::move(memory));
}

}  // namespace edgewright
