// Runs cases with several threads, every step shared however small it is, from two callers at once, on every
// kernel path of this machine, and compares every bit.
//
//     threads FOLDER
//
// FOLDER is as replay.cpp takes it.
#include <dirent.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "cpu.h"
#include "engine.h"

using namespace edgewright;

namespace {

constexpr double kEverything = 1e-9;  // nanoseconds that are worth handing over

[[noreturn]] void stop(const std::string& what) {
  std::fprintf(stderr, "threads: %s\n", what.c_str());
  std::exit(1);
}

std::vector<char> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) stop(path + " cannot be read");
  return std::vector<char>(std::istreambuf_iterator<char>(file), {});
}

std::vector<std::string> folders_in(const std::string& path) {
  DIR* folder = opendir(path.c_str());
  if (folder == nullptr) stop(path + " cannot be read");
  std::vector<std::string> names;
  while (const dirent* entry = readdir(folder)) {
    if (entry->d_name[0] != '.') names.push_back(path + "/" + entry->d_name);
  }
  closedir(folder);
  std::sort(names.begin(), names.end());
  if (names.empty()) stop(path + " holds no case");
  return names;
}

struct Case {
  std::vector<char> plan, weights;
  std::vector<std::vector<char>> inputs, outputs;
  int64_t samples = 0;
};

Case read_case(const std::string& folder) {
  Case read;
  read.plan = read_file(folder + "/plan.bin");
  read.weights = read_file(folder + "/weights.safetensors");
  const Plan plan = read_plan(reinterpret_cast<const uint8_t*>(read.plan.data()), read.plan.size());
  for (size_t i = 0; i < plan.inputs.size(); ++i) {
    read.inputs.push_back(read_file(folder + "/input." + std::to_string(i) + ".bin"));
    read.samples =
        static_cast<int64_t>(read.inputs.back().size() / plan.tensors[plan.inputs[i]].size_bytes());
  }
  for (size_t i = 0; i < plan.outputs.size(); ++i) {
    read.outputs.push_back(read_file(folder + "/output." + std::to_string(i) + ".bin"));
  }
  return read;
}

bool gives_its_bits(const Engine& engine, const Case& given) {
  std::vector<const void*> from;
  for (const auto& input : given.inputs) from.push_back(input.data());
  std::vector<std::vector<char>> outputs;
  std::vector<float*> to;
  for (const auto& output : given.outputs) outputs.emplace_back(output.size(), '\x55');
  for (auto& output : outputs) to.push_back(reinterpret_cast<float*>(output.data()));
  engine.run(from.data(), to.data(), given.samples);
  return outputs == given.outputs;
}

void check(const std::string& folder, const Kernels& kernels) {
  const Case given = read_case(folder);
  Engine engine(reinterpret_cast<const uint8_t*>(given.plan.data()), given.plan.size(),
                reinterpret_cast<const uint8_t*>(given.weights.data()), given.weights.size(), kernels);
  for (const int threads : {2, 3, 5}) {
    engine.set_threads(threads, kEverything);
    bool good = true, others_good = true;
    std::thread other([&] {
      for (int i = 0; i < 3; ++i) others_good = gives_its_bits(engine, given) && others_good;
    });
    for (int i = 0; i < 3; ++i) good = gives_its_bits(engine, given) && good;
    other.join();
    if (!good || !others_good) {
      stop(folder + " on " + kernels.name + ": differs on " + std::to_string(threads) + " threads");
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) stop("usage: threads FOLDER");
  const std::vector<std::string> folders = folders_in(arguments[1]);
  std::string shown;
  for (const Kernels* kernels : usable_paths()) {
    for (const std::string& folder : folders) check(folder, *kernels);
    shown += (shown.empty() ? "" : ", ") + std::string(kernels->name);
  }
  std::printf("%zu cases equal reference.py bit for bit with 2, 3 and 5 threads on %s\n", folders.size(),
              shown.c_str());
  return 0;
}
