// Replays cases through the C interface, on every kernel path of this machine, and compares every bit.
//
//     replay FOLDER [PATH ...]
//
// FOLDER holds one folder per case, as tests/kernels/cases.py writes them: plan.bin, weights.safetensors,
// input.N.bin, and output.N.bin with the bits reference.py gives. PATHs are names that must be usable.
#include <dirent.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "edgewright.h"

namespace {

[[noreturn]] void stop(const std::string& what) {
  std::fprintf(stderr, "replay: %s\n", what.c_str());
  std::exit(1);
}

std::vector<char> read_file(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) stop(path + " cannot be read");
  std::vector<char> bytes;
  char block[65536];
  for (size_t got; (got = std::fread(block, 1, sizeof block, file)) > 0;) {
    bytes.insert(bytes.end(), block, block + got);
  }
  std::fclose(file);
  bytes.shrink_to_fit();  // so that AddressSanitizer sees a step past the end
  return bytes;
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

using Values = std::vector<std::vector<char>>;

// What the model gives for a case's inputs.
Values run(const edgewright_model* model, const Values& inputs, int64_t samples) {
  std::vector<edgewright_input> from;
  for (const auto& value : inputs) from.push_back({value.data(), value.size()});
  Values outputs;
  std::vector<edgewright_output> to;
  for (size_t i = 0; i < edgewright_output_count(model); ++i) {
    edgewright_port port;
    if (edgewright_output_port(model, i, &port) != EDGEWRIGHT_OK) stop(edgewright_error());
    outputs.emplace_back(port.sample_bytes * static_cast<size_t>(samples), '\x55');
    to.push_back({outputs.back().data(), outputs.back().size()});
  }
  if (edgewright_run(model, from.data(), from.size(), to.data(), to.size(), samples) != EDGEWRIGHT_OK) {
    stop(edgewright_error());
  }
  return outputs;
}

void replay(const std::string& folder, const char* path) {
  // The environment, not the argument, so that the way a device is steered is tested too.
  setenv("EDGEWRIGHT_CPU", path, 1);
  const std::string where = folder + " on " + path;
  edgewright_model* model;
  if (edgewright_open(folder.c_str(), nullptr, &model) != EDGEWRIGHT_OK) {
    stop(where + ": " + edgewright_error());
  }
  if (std::strcmp(edgewright_path(model), path) != 0) stop(where + ": runs on " + edgewright_path(model));
  Values inputs;
  int64_t samples = 0;
  for (size_t i = 0; i < edgewright_input_count(model); ++i) {
    edgewright_port port;
    if (edgewright_input_port(model, i, &port) != EDGEWRIGHT_OK) stop(edgewright_error());
    inputs.push_back(read_file(folder + "/input." + std::to_string(i) + ".bin"));
    samples = static_cast<int64_t>(inputs.back().size() / port.sample_bytes);
  }
  const Values first = run(model, inputs, samples);
  Values second;
  std::thread other([&] { second = run(model, inputs, samples); });
  const Values third = run(model, inputs, samples);
  other.join();
  for (size_t i = 0; i < first.size(); ++i) {
    if (first[i] != read_file(folder + "/output." + std::to_string(i) + ".bin")) {
      stop(where + ": output " + std::to_string(i) + " differs from the reference");
    }
  }
  if (first != second || first != third) stop(where + ": two calls differ");
  edgewright_close(model);
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) stop("usage: replay FOLDER [PATH ...]");
  std::vector<std::string> paths;
  for (size_t i = 0; edgewright_usable_path(i) != nullptr; ++i) paths.push_back(edgewright_usable_path(i));
  for (int i = 2; i < count; ++i) {
    if (std::find(paths.begin(), paths.end(), arguments[i]) == paths.end()) {
      stop(std::string("path ") + arguments[i] + " is not usable here");
    }
  }
  const std::vector<std::string> folders = folders_in(arguments[1]);
  std::string shown;
  for (const std::string& path : paths) {
    for (const std::string& folder : folders) replay(folder, path.c_str());
    shown += (shown.empty() ? "" : ", ") + path;
  }
  std::printf("%zu cases equal reference.py bit for bit on %s\n", folders.size(), shown.c_str());
  return 0;
}
