#include "engine.h"

#include <algorithm>
#include <chrono>

namespace edgewright {
namespace {

constexpr size_t kMaxSpare = 16;

// A long step has so many parts for each thread, so that none waits long for another that was held up.
constexpr int64_t kPartsEach = 4;

// By the number of the kind, from 1.
constexpr Step (*kPrepare[kKinds])(Setup&) = {
    prepare_quantize,  prepare_dequantize,   prepare_convolution, prepare_fully_connected,
    prepare_max_pool,  prepare_average_pool, prepare_add,         prepare_requantize,
    prepare_transpose, prepare_reshape,      prepare_matmul,      prepare_multiply,
    prepare_lookup,    prepare_softmax,      prepare_layer_norm,  prepare_concat,
    prepare_slice,     prepare_resize,       prepare_embedding,   prepare_transposed_convolution,
    prepare_constant,
};

// A step that threads share.
struct Shared {
  const Step& step;
  int64_t parts;
  const Call& call;
  size_t scratch_bytes;
};

void run_part(const void* what, int64_t part, int thread) {
  const Shared& shared = *static_cast<const Shared*>(what);
  Call call = shared.call;
  call.scratch += static_cast<size_t>(thread) * shared.scratch_bytes;
  const int64_t units = shared.step.units;
  shared.step.run(call, units * part / shared.parts, units * (part + 1) / shared.parts);
}

}  // namespace

Engine::Engine(const uint8_t* plan, size_t plan_size, const uint8_t* weights, size_t weights_size,
               const Kernels& kernels)
    : plan_(read_plan(plan, plan_size)), kernels_(kernels), team_(std::make_unique<Team>(1)) {
  if (weights_size != plan_.weights_bytes) {
    throw PlanError("the weights have " + std::to_string(weights_size) + " bytes, the plan was made for " +
                    std::to_string(plan_.weights_bytes));
  }
  Setup setup(plan_, kernels_, weights);
  steps_.reserve(plan_.ops.size());
  spare_.reserve(kMaxSpare);  // so that a call takes no memory once there is some
  for (size_t i = 0; i < plan_.ops.size(); ++i) {
    setup.number = i;
    steps_.push_back({kPrepare[static_cast<uint32_t>(plan_.ops[i].kind) - 1](setup), 1});
  }
  index_limits_ = setup.index_limits;
  packed_bytes_ = setup.packed_bytes();
  scratch_at_ = aligned(static_cast<size_t>(plan_.arena_bytes));
  scratch_bytes_ = aligned(setup.scratch_bytes);
}

int64_t Engine::parts_of(const Step& step, double worthwhile) const {
  const int64_t most = std::min(step.units, threads() == 1 ? 1 : threads() * kPartsEach);
  return static_cast<int64_t>(std::min(std::max(1.0, step.work / worthwhile), static_cast<double>(most)));
}

// Parts are decided here, never at run.
void Engine::set_threads(int threads, double worthwhile) {
  team_ = std::make_unique<Team>(threads);
  for (Planned& planned : steps_) planned.parts = parts_of(planned.step, worthwhile);
  spare_.clear();  // they have the size that fewer threads, or more, need
}

// Neither this nor give_back ever waits: a process that forked while another thread held the mutex would wait
// forever.
Bytes Engine::take_memory() const {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (!lock || spare_.empty()) return Bytes(arena_bytes());
  Bytes memory = std::move(spare_.back());
  spare_.pop_back();
  return memory;
}

void Engine::give_back(Bytes memory) const {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (lock && spare_.size() < kMaxSpare) spare_.push_back(std::move(memory));
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

void Engine::run_step(const Planned& planned, const Call& call, Team::Turn& turn) const {
  if (planned.parts == 1 || !turn) return planned.step.run(call, 0, planned.step.units);
  const Shared shared = {planned.step, planned.parts, call, scratch_bytes_};
  turn.share(planned.parts, run_part, &shared);
}

void Engine::run(const void* const* inputs, float* const* outputs, int64_t samples) const {
  check_indices(inputs, samples);
  Bytes memory = take_memory();
  Team::Turn turn(*team_);
  for (int64_t sample = 0; sample < samples; ++sample) {
    const Call call = {inputs, outputs, sample, memory.data(), memory.data() + scratch_at_};
    for (const Planned& planned : steps_) run_step(planned, call, turn);
  }
  give_back(std::move(memory));
}

void Engine::profile(const void* const* inputs, float* const* outputs, int64_t* nanoseconds) const {
  using Clock = std::chrono::steady_clock;
  check_indices(inputs, 1);
  Bytes memory = take_memory();
  Team::Turn turn(*team_);
  const Call call = {inputs, outputs, 0, memory.data(), memory.data() + scratch_at_};
  Clock::time_point before = Clock::now();
  for (const Planned& planned : steps_) {
    run_step(planned, call, turn);
    const Clock::time_point after = Clock::now();
    *nanoseconds++ = std::chrono::duration_cast<std::chrono::nanoseconds>(after - before).count();
    before = after;
  }
  give_back(std::move(memory));
}

}  // namespace edgewright
