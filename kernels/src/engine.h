// A plan made ready for one CPU path: weights checked and packed, then run sample by sample.
#pragma once

#include <mutex>
#include <vector>

#include "kernels.h"
#include "plan.h"
#include "step.h"

namespace edgewright {

class Engine {
 public:
  // Throws PlanError or UnsupportedError. Keeps no reference to the bytes it is given.
  Engine(const uint8_t* plan, size_t plan_size, const uint8_t* weights, size_t weights_size,
         const Kernels& kernels);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Runs `samples` samples. One pointer per input and output of the plan, each to that many samples, of
  // float32, or of int64 for an input that holds indices. Safe from several threads at once. Throws
  // InputError, and computes nothing, where an index is out of range.
  void run(const void* const* inputs, float* const* outputs, int64_t samples) const;

  // Runs one sample and notes the nanoseconds of each operator of the plan. Reading the clock costs some 30
  // of them each time, which `run` does not pay. The rest is as with `run`.
  void profile(const void* const* inputs, float* const* outputs, int64_t* nanoseconds) const;

  const Plan& plan() const { return plan_; }
  const char* path() const { return kernels_.name; }
  size_t arena_bytes() const { return memory_bytes_; }

 private:
  void check_indices(const void* const* inputs, int64_t samples) const;
  Bytes take_memory() const;
  void give_back(Bytes memory) const;

  Plan plan_;  // the steps point into it
  const Kernels& kernels_;
  std::vector<Run> steps_;
  std::vector<IndexLimit> index_limits_;
  size_t scratch_at_ = 0, memory_bytes_ = 0;
  mutable std::mutex mutex_;
  mutable std::vector<Bytes> spare_;  // working memories of calls that have ended
};

}  // namespace edgewright
