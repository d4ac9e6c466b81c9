// Fuzzes the readers of plan.bin: changes plans at the level of the format, loads and runs what comes out,
// and holds the engine to trial.h.
//
//     fuzz FOLDER [--runs N] [--seconds N] [--seed N] [--out DIRECTORY] [--pairs N]
//     fuzz --replay FILE|DIRECTORY
//
// FOLDER holds the first plans, as tests/kernels/cases.py writes them. What shows new ways through the reader
// joins them. A finding ends the run: the case is written to DIRECTORY, which --replay takes. With --pairs,
// that many of the trials go to DIRECTORY/pairs.bin for tests/kernels/readers.py to compare. A seed gives the
// same trials again.
//
// A case file is the size of the plan as u32, the plan, and the weights.
#include <dirent.h>
#include <sanitizer/common_interface_defs.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "coverage.h"
#include "mutate.h"
#include "trial.h"

namespace {

using namespace fuzz;

constexpr size_t kMostSeed = 20000;  // bytes; larger plans only take longer
constexpr uint64_t kFilesEach = 64;  // one trial in so many goes through files too

[[noreturn]] void stop(const std::string& what) {
  std::fprintf(stderr, "fuzz: %s\n", what.c_str());
  std::exit(2);
}

Bytes read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) stop(path + " cannot be read");
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

std::vector<std::string> entries(const std::string& path) {
  DIR* folder = opendir(path.c_str());
  if (folder == nullptr) stop(path + " cannot be read");
  std::vector<std::string> names;
  while (const dirent* entry = readdir(folder)) {
    if (entry->d_name[0] != '.') names.push_back(path + "/" + entry->d_name);
  }
  closedir(folder);
  std::sort(names.begin(), names.end());
  return names;
}

void put(Bytes& to, const Bytes& bytes) {
  const uint32_t size = static_cast<uint32_t>(bytes.size());
  const uint8_t* raw = reinterpret_cast<const uint8_t*>(&size);
  to.insert(to.end(), raw, raw + sizeof size);
  to.insert(to.end(), bytes.begin(), bytes.end());
}

void write_file(const std::string& path, const Bytes& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!file) stop(path + " cannot be written");
}

struct Options {
  std::string folder, replay, out = "build/fuzz";
  uint64_t runs = ~uint64_t{0}, seed = 0, pairs = 0;
  double seconds = 1e9;
};

Options options_of(int count, char** arguments) {
  Options made;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    if (name.rfind("--", 0) != 0) {
      made.folder = name;
      continue;
    }
    if (++i == count) stop(name + " needs a value");
    const char* value = arguments[i];
    if (name == "--runs") {
      made.runs = std::strtoull(value, nullptr, 10);
    } else if (name == "--seconds") {
      made.seconds = std::strtod(value, nullptr);
    } else if (name == "--seed") {
      made.seed = std::strtoull(value, nullptr, 10);
    } else if (name == "--pairs") {
      made.pairs = std::strtoull(value, nullptr, 10);
    } else if (name == "--out") {
      made.out = value;
    } else if (name == "--replay") {
      made.replay = value;
    } else {
      stop("there is no option " + name);
    }
  }
  if (made.folder.empty() == made.replay.empty()) stop("usage: fuzz FOLDER [options], or fuzz --replay FILE");
  return made;
}

// Where a sanitizer ends the program, the case at hand is kept.
std::string directory, files;  // `files` is for the C interface, of this process alone
const Case* at_hand = nullptr;

std::string keep() {
  Bytes bytes;
  put(bytes, at_hand->plan);
  bytes.insert(bytes.end(), at_hand->weights.begin(), at_hand->weights.end());
  uint64_t hash = 0xCBF29CE484222325u;
  for (const uint8_t byte : bytes) hash = (hash ^ byte) * 0x100000001B3u;  // FNV-1a
  char name[32];
  std::snprintf(name, sizeof name, "/%016llx.case", static_cast<unsigned long long>(hash));
  write_file(directory + name, bytes);
  return directory + name;
}

void on_death() {
  if (at_hand != nullptr) std::fprintf(stderr, "fuzz: the case is %s\n", keep().c_str());
}

Result attempt(const Case& given, uint64_t seed) {
  at_hand = &given;
  try {
    const Result result = try_case(given, seed);
    if (seed % kFilesEach == 0) try_files(given, files, result.verdict);
    at_hand = nullptr;
    return result;
  } catch (const Finding& finding) {
    std::fprintf(stderr, "fuzz: %s\nfuzz: the case is %s\n", finding.what(), keep().c_str());
    std::exit(1);
  }
}

void replay(const std::string& path) {
  struct stat found;
  if (stat(path.c_str(), &found) != 0) stop(path + " is not there");
  const std::vector<std::string> files =
      S_ISDIR(found.st_mode) ? entries(path) : std::vector<std::string>{path};
  for (const std::string& file : files) {
    const Bytes bytes = read_file(file);
    uint32_t size = 0;
    if (bytes.size() >= 4) std::memcpy(&size, bytes.data(), 4);
    if (bytes.size() < 4 || size > bytes.size() - 4) stop(file + " is no case");
    const auto middle = bytes.begin() + 4 + static_cast<std::ptrdiff_t>(size);
    const Case given = {Bytes(bytes.begin() + 4, middle), Bytes(middle, bytes.end())};
    for (uint64_t seed = 0; seed < 4; ++seed) {
      const Result result = attempt(given, seed);
      if (seed == 0 && files.size() == 1) {
        std::printf("%s\n", result.verdict < Result::kAccepted ? result.message.c_str() : "accepted");
      }
    }
  }
  std::printf("%zu hostile plans keep every promise\n", files.size());
}

// For readers.py: verdict u8; then plan, weights, number of inputs u32, the inputs, the outputs, each behind
// its size.
void write_pair(std::ofstream& to, const Case& given, const Result& result) {
  Bytes pair = {result.verdict};
  put(pair, given.plan);
  put(pair, given.weights);
  put(pair, Bytes(result.message.begin(), result.message.end()));
  for (const auto* values : {&result.inputs, &result.outputs}) {
    Bytes all;
    for (const Bytes& value : *values) put(all, value);
    put(pair, all);
  }
  to.write(reinterpret_cast<const char*>(pair.data()), static_cast<std::streamsize>(pair.size()));
}

void go(const Options& options) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  const auto seconds = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  std::vector<Case> first, corpus, refused;
  for (const std::string& folder : entries(options.folder)) {
    const Case given = {read_file(folder + "/plan.bin"), read_file(folder + "/weights.safetensors")};
    if (given.plan.size() + given.weights.size() <= kMostSeed) first.push_back(given);
  }
  uint64_t verdicts[4] = {};
  std::ofstream pairs;
  if (options.pairs > 0) pairs.open(options.out + "/pairs.bin", std::ios::binary);
  uint64_t trials = 0;
  Random random(options.seed);
  const auto trial = [&](const Case& given) {
    const Result result = attempt(given, random.next());
    ++verdicts[result.verdict];
    ++trials;
    if (trials <= options.pairs) write_pair(pairs, given, result);
    if (news(result.message) == 0) return;
    (result.verdict < Result::kAccepted ? refused : corpus).push_back(given);
  };
  const auto report = [&] {
    const double percent = 100.0 / static_cast<double>(trials);
    std::printf(
        "%llu trials in %.0f s: %.1f %% load, %.1f %% run; %zu ways, by %zu plans that load and %zu others\n",
        static_cast<unsigned long long>(trials), seconds(),
        percent * static_cast<double>(verdicts[Result::kAccepted] + verdicts[Result::kRan]),
        percent * static_cast<double>(verdicts[Result::kRan]), ways(), corpus.size(), refused.size());
    std::fflush(stdout);
  };
  for (const Case& given : first) trial(given);
  if (corpus.empty()) stop(options.folder + " holds no case that loads");
  report();
  while (trials < options.runs && seconds() < options.seconds) {
    // What came last has been changed least often. What is refused rarely leads on.
    std::vector<Case>& from = refused.empty() || !random.one_in(12) ? corpus : refused;
    const size_t recent = random.one_in(2) ? from.size() / 4 + 1 : from.size();
    trial(mutate(from[from.size() - 1 - random.below(recent)], random.of(corpus), random));
    if (trials % 20000 == 0) report();
  }
  report();
  if (options.pairs > 0 && !pairs.flush()) stop("pairs.bin cannot be written");
}

}  // namespace

extern "C" const char* __asan_default_options() { return "quarantine_size_mb=32:malloc_context_size=4"; }

int main(int count, char** arguments) {
  const Options options = options_of(count, arguments);
  directory = options.out;
  files = directory + "/files-" + std::to_string(getpid());
  for (const std::string& made : {directory, files}) mkdir(made.c_str(), 0777);
  __sanitizer_set_death_callback(on_death);
  count_memory();
  if (options.replay.empty()) {
    go(options);
  } else {
    replay(options.replay);
  }
  for (const char* made : {"/plan.bin", "/weights.safetensors", ""}) std::remove((files + made).c_str());
  return 0;
}
