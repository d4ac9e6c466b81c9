#include "trial.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>

#include "coverage.h"
#include "cpu.h"
#include "edgewright.h"
#include "engine.h"

// Of the sanitizers' runtime; gcc has no header that declares them.
extern "C" size_t __sanitizer_get_allocated_size(const volatile void* memory);
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void*, size_t),
                                                         void (*on_free)(const volatile void*));

namespace fuzz {
namespace {

using namespace edgewright;

// Above this a case is loaded, but not run: it would only take long.
constexpr double kMostWork = 3e5;  // values and products
constexpr size_t kMostMemory = size_t{16} << 20;
constexpr double kMostSeconds = 10;

// What a plan costs beside the packed weights, at most: an operator of 4 words becomes a structure of some
// 700 bytes in a vector that doubles. And what stands beside packed weights while they are made.
constexpr size_t kEachPlanByte = 160, kEachWeightByte = 4, kSlack = 1 << 16;
constexpr size_t kPackedFactor = 16, kPackedSlack = size_t{64} << 20;  // the limit, as step.cpp has it

std::atomic<int64_t> live{0}, peak{0}, taken{0};

// What fresh memory holds, another byte each time: who reads what was never written, such as beyond a tensor
// but within the arena, where AddressSanitizer sees nothing, gives other bits on other paths.
std::atomic<uint8_t> fresh{0};

void on_malloc(const volatile void* memory, size_t size) {
  std::memset(const_cast<void*>(memory), fresh += 89, size);
  const int64_t now = live += static_cast<int64_t>(size);
  if (now > peak) peak = now;
  ++taken;
}

void on_free(const volatile void* memory) {
  if (memory != nullptr) live -= static_cast<int64_t>(__sanitizer_get_allocated_size(memory));
}

[[noreturn]] void found(const std::string& what) { throw Finding(what); }

// In a block of exactly its size, so that AddressSanitizer sees a step past the end.
std::unique_ptr<uint8_t[]> alone(const Bytes& bytes) {
  auto copy = std::make_unique<uint8_t[]>(bytes.size());
  if (!bytes.empty()) std::memcpy(copy.get(), bytes.data(), bytes.size());
  return copy;
}

double work_of(const Plan& plan) {
  double work = 0;
  for (const Op& op : plan.ops) {
    double each = 1;
    if (op.window.axes > 0) {
      for (int i = 0; i < op.window.axes; ++i) each *= static_cast<double>(op.window.kernel[i]);
    }
    double values = static_cast<double>(plan.tensors[op.y].elements());
    if (!op.reads.empty()) {
      const Tensor& x = plan.tensors[op.x()];
      if (op.kind == Kind::kConvolution) each *= static_cast<double>(x.shape.back()) / op.groups;
      if (op.kind == Kind::kFullyConnected || op.kind == Kind::kMatMul)
        each = static_cast<double>(x.shape.back());
      if (op.kind == Kind::kTransposedConvolution) {
        each *= static_cast<double>(plan.tensors[op.y].shape.back()) / op.groups;
        values += static_cast<double>(x.elements());
      }
      for (const int32_t read : op.reads) work += static_cast<double>(plan.tensors[read].elements());
    }
    work += values * each;
  }
  return work;
}

// Rows of the smallest table that an int64 input looks into, 0 where none does.
int64_t rows_of(const Plan& plan, uint32_t port) {
  int64_t least = 0;
  for (const Op& op : plan.ops) {
    if (op.kind != Kind::kEmbedding || static_cast<uint32_t>(op.x()) != port) continue;
    const int64_t rows = static_cast<int64_t>(plan.ranges[op.weight].size) / plan.tensors[op.y].shape.back();
    least = least == 0 ? rows : std::min(least, rows);
  }
  return least;
}

float scale_of(const Plan& plan, uint32_t port) {
  for (const Op& op : plan.ops) {
    if (op.kind == Kind::kQuantize && static_cast<uint32_t>(op.x()) == port) return plan.tensors[op.y].scale;
  }
  return 1;
}

Bytes input_for(const Plan& plan, uint32_t port, int64_t samples, Random& random, bool& out_of_range) {
  const Tensor& tensor = plan.tensors[port];
  const size_t count = static_cast<size_t>(tensor.elements() * samples);
  Bytes bytes(static_cast<size_t>(tensor.size_bytes()) * static_cast<size_t>(samples));
  if (tensor.dtype == DType::kInt64) {
    const int64_t rows = rows_of(plan, port);
    int64_t* values = reinterpret_cast<int64_t*>(bytes.data());
    for (size_t i = 0; i < count; ++i)
      values[i] = static_cast<int64_t>(random.below(static_cast<uint64_t>(rows)));
    if (rows > 0 && random.one_in(8)) {
      const int64_t beyond[] = {-1, rows, INT64_MIN, INT64_MAX};
      values[random.below(count)] = beyond[random.below(4)];
      out_of_range = true;
    }
    return bytes;
  }
  const float special[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-45f, -0.0f, 0.5f, 1.5f, -2.5f};
  const float scale = scale_of(plan, port);
  float* values = reinterpret_cast<float*>(bytes.data());
  const uint64_t rare = random.one_in(2) ? 50 : 5;
  for (size_t i = 0; i < count; ++i) {
    const float steps = static_cast<float>(random.between(-600, 600)) * 0.5f;
    values[i] = random.one_in(rare) ? special[random.below(std::size(special))] : steps * scale;
  }
  return bytes;
}

size_t grown_since(int64_t before) {
  const int64_t now = live;
  return now < before ? 0 : static_cast<size_t>(now - before);
}

// The outputs for some inputs; empty where an index is out of range. The engine must take as many bytes for
// it as `takes` says, in one piece.
std::vector<Bytes> run(const Engine& engine, const std::vector<Bytes>& inputs, int64_t samples,
                       std::optional<size_t> takes) {
  std::vector<std::unique_ptr<uint8_t[]>> blocks;
  std::vector<const void*> from;
  std::vector<float*> to;
  for (const Bytes& input : inputs) {
    blocks.push_back(alone(input));
    from.push_back(blocks.back().get());
  }
  std::vector<Bytes> outputs;
  for (const uint32_t port : engine.plan().outputs) {
    outputs.emplace_back(
        static_cast<size_t>(engine.plan().tensors[port].size_bytes()) * static_cast<size_t>(samples), 0x55);
    blocks.push_back(alone(outputs.back()));
    to.push_back(reinterpret_cast<float*>(blocks.back().get()));
  }
  const int64_t before = live, times = taken;
  try {
    engine.run(from.data(), to.data(), samples);
  } catch (const InputError&) {
    return {};
  }
  if (takes && (grown_since(before) != *takes || taken - times != (*takes == 0 ? 0 : 1))) {
    found("a run took " + std::to_string(taken - times) + " pieces of memory, " +
          std::to_string(grown_since(before)) + " bytes in all; " + std::to_string(*takes) + " were said");
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i].empty()) std::memcpy(outputs[i].data(), to[i], outputs[i].size());
  }
  return outputs;
}

void check_message(const std::string& message) {
  for (const char* place : {"plan.bin: ", "operator ", "tensor", "two tensors", "range ", "input ", "output ",
                            "an input or output", "no input or no output", "arena", "the weights have "}) {
    if (message.rfind(place, 0) == 0) return;
  }
  found("a refusal that names no place: " + message);
}

// Loads on one path, and holds the engine to the memory it says.
std::unique_ptr<Engine> load(const Case& given, const Kernels& kernels, Result& result) {
  const auto plan = alone(given.plan), weights = alone(given.weights);
  const int64_t before = live;
  peak = before;
  const size_t beside = kEachPlanByte * given.plan.size() + kEachWeightByte * given.weights.size() + kSlack;
  std::unique_ptr<Engine> engine;
  try {
    engine =
        std::make_unique<Engine>(plan.get(), given.plan.size(), weights.get(), given.weights.size(), kernels);
    result.verdict = Result::kAccepted;
  } catch (const PlanError& error) {
    result.verdict = Result::kDamaged;
    result.message = error.what();
  } catch (const UnsupportedError& error) {
    result.verdict = Result::kUnsupported;
    result.message = error.what();
  }
  if (engine == nullptr) check_message(result.message);
  const size_t packed =
      engine == nullptr ? kPackedFactor * given.weights.size() + kPackedSlack : engine->packed_bytes();
  const size_t most = static_cast<size_t>(peak - before), held = grown_since(before);
  if (most > packed + beside) {
    found("loading took " + std::to_string(most) + " bytes, for " + std::to_string(given.plan.size()) +
          " of plan, " + std::to_string(given.weights.size()) + " of weights and " + std::to_string(packed) +
          " packed");
  }
  if (engine != nullptr && held < packed) found("less is held than is said to be packed");
  return engine;
}

}  // namespace

void count_memory() {
  if (__sanitizer_install_malloc_and_free_hooks(on_malloc, on_free) == 0) found("memory cannot be counted");
}

Result try_case(const Case& given, uint64_t seed) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  Result result{};
  try {
    Random random(seed);
    watch(true);
    const std::unique_ptr<Engine> engine = load(given, scalar_kernels(), result);
    watch(false);
    if (engine != nullptr && work_of(engine->plan()) <= kMostWork && engine->arena_bytes() <= kMostMemory) {
      const Plan& plan = engine->plan();
      const int64_t samples = random.between(1, 2);
      bool out_of_range = false;
      for (const uint32_t port : plan.inputs) {
        result.inputs.push_back(input_for(plan, port, samples, random, out_of_range));
      }
      watch(true);
      result.outputs = run(*engine, result.inputs, samples, engine->arena_bytes());
      watch(false);
      if (run(*engine, result.inputs, samples, 0) != result.outputs) found("two runs differ");
      if (result.outputs.empty() != out_of_range) found("an index out of range ran, or one in range did not");
      result.verdict = Result::kRan;
    }
    for (const Kernels* kernels : usable_paths()) {
      if (kernels == &scalar_kernels() || result.verdict < Result::kAccepted || random.one_in(2)) continue;
      Result other{};
      const std::unique_ptr<Engine> same = load(given, *kernels, other);
      if (other.verdict != Result::kAccepted) {
        // Only memory may be had on one path and not on another.
        if (other.message.find("too many times") == std::string::npos &&
            other.message.find("beside the arena") == std::string::npos) {
          found(std::string("accepted on scalar, and on ") + kernels->name + ": " + other.message);
        }
        continue;
      }
      if (result.verdict != Result::kRan || same->arena_bytes() > kMostMemory) continue;
      const int64_t samples = static_cast<int64_t>(result.inputs[0].size() /
                                                   same->plan().tensors[same->plan().inputs[0]].size_bytes());
      const bool shared = random.one_in(16);
      if (shared) same->set_threads(3, 1e-9);
      // Threads that have just begun take memory for themselves.
      const auto takes = shared ? std::nullopt : std::optional<size_t>(same->arena_bytes());
      if (run(*same, result.inputs, samples, takes) != result.outputs) {
        found(std::string("other bits on ") + kernels->name + (shared ? " with three threads" : ""));
      }
    }
  } catch (const Finding&) {
    throw;
  } catch (const std::exception& error) {
    found(std::string("an exception of no documented type: ") + error.what());
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  if (seconds > kMostSeconds) found("took " + std::to_string(seconds) + " seconds");
  return result;
}

void try_files(const Case& given, const std::string& folder, Result::Verdict verdict) {
  for (const auto& [name, bytes] : {std::pair<const char*, const Bytes&>{"plan.bin", given.plan},
                                    {"weights.safetensors", given.weights}}) {
    std::FILE* file = std::fopen((folder + "/" + name).c_str(), "wb");
    if (file == nullptr) found(folder + " cannot be written");
    if (!bytes.empty()) std::fwrite(bytes.data(), 1, bytes.size(), file);
    std::fclose(file);
  }
  edgewright_model* model;
  const edgewright_status status = edgewright_open(folder.c_str(), "scalar", &model);
  const edgewright_status expected = verdict == Result::kDamaged       ? EDGEWRIGHT_DAMAGED
                                     : verdict == Result::kUnsupported ? EDGEWRIGHT_UNSUPPORTED
                                                                       : EDGEWRIGHT_OK;
  if (status != expected || (status == EDGEWRIGHT_OK) != (model != nullptr)) {
    found("edgewright_open gives " + std::to_string(status) + ": " + edgewright_error());
  }
  for (size_t i = 0; i <= edgewright_output_count(model); ++i) {
    edgewright_port port;
    const bool there = i < edgewright_output_count(model);
    if ((edgewright_output_port(model, i, &port) == EDGEWRIGHT_OK) != there) found("ports are miscounted");
  }
  edgewright_close(model);
}

}  // namespace fuzz
