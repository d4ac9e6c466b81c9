// A plan made ready for one CPU path: weights checked and packed, then run sample by sample.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "kernels.h"
#include "plan.h"
#include "step.h"
#include "team.h"

namespace edgewright {

class Engine {
 public:
  // Throws PlanError or UnsupportedError. Keeps no reference to the bytes it is given.
  Engine(const uint8_t* plan, size_t plan_size, const uint8_t* weights, size_t weights_size,
         const Kernels& kernels);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // How many threads share one call, 1 to Team::kMost; 1 at first. Not while another thread uses the engine.
  // A part of a step is worth handing over where it takes `worthwhile` nanoseconds, as `cost` counts them.
  // Throws InputError or UnsupportedError, and changes nothing then.
  static constexpr double kWorthwhile = 10000;
  void set_threads(int threads, double worthwhile = kWorthwhile);

  // Runs `samples` samples. One pointer per input and output of the plan, each to that many samples, of
  // float32, or of int64 for an input that holds indices. Safe from several threads at once: one of
  // them at a time gets the engine's own threads to help, and none waits for another. Throws InputError, and
  // computes nothing, where an index is out of range.
  void run(const void* const* inputs, float* const* outputs, int64_t samples) const;

  // Runs one sample and notes the nanoseconds of each operator of the plan. Reading the clock costs some 30
  // of them each time, which `run` does not pay. The rest is as with `run`.
  void profile(const void* const* inputs, float* const* outputs, int64_t* nanoseconds) const;

  const Plan& plan() const { return plan_; }
  const char* path() const { return kernels_.name; }
  int threads() const { return team_->threads(); }
  // Memory that the engine holds: the packed weights.
  size_t packed_bytes() const { return packed_bytes_; }
  // Working memory of one call: the arena, and a scratch for each thread.
  size_t arena_bytes() const { return scratch_at_ + static_cast<size_t>(threads()) * scratch_bytes_; }

 private:
  void check_indices(const void* const* inputs, int64_t samples) const;
  Bytes take_memory() const;
  void give_back(Bytes memory) const;
  struct Planned {
    Step step;
    int64_t parts;  // how many pieces the threads get; 1 where it does not pay
  };
  int64_t parts_of(const Step& step, double worthwhile) const;
  void run_step(const Planned& planned, const Call& call, Team::Turn& turn) const;

  Plan plan_;  // the steps point into it
  const Kernels& kernels_;
  std::vector<Planned> steps_;
  std::vector<IndexLimit> index_limits_;
  size_t packed_bytes_ = 0;
  size_t scratch_at_ = 0, scratch_bytes_ = 0;  // of one thread
  std::unique_ptr<Team> team_;
  mutable std::mutex mutex_;
  mutable std::vector<Bytes> spare_;  // working memories of calls that have ended
};

}  // namespace edgewright
