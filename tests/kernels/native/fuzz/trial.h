// What must hold for any bytes at all: a plan is refused with an error that names the place, or it runs, and
// then every kernel path and every number of threads gives the same bits, in the memory that the engine says.
#pragma once

#include <stdexcept>
#include <string>

#include "draft.h"
#include "random.h"

namespace fuzz {

// A promise that was broken.
struct Finding : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Result {
  enum Verdict : uint8_t { kDamaged, kUnsupported, kAccepted, kRan } verdict;
  std::string message;                 // of a refusal
  std::vector<Bytes> inputs, outputs;  // of a run; empty where it was not worth its time
};

// Starts to count memory. Once, before the first trial.
void count_memory();

// Loads and runs the case on scalar and on some of the other paths. `seed` chooses them, and the inputs.
// Throws Finding.
Result try_case(const Case& given, uint64_t seed);

// Whether the C interface says the same of the case, from the files of a folder. Throws Finding.
void try_files(const Case& given, const std::string& folder, Result::Verdict verdict);

}  // namespace fuzz
