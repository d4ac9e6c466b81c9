#include "coverage.h"

#include <algorithm>
#include <array>
#include <unordered_set>

extern "C" char __executable_start;

namespace fuzz {
namespace {

constexpr size_t kSize = 1 << 16;

std::array<uint8_t, kSize> counts;    // of this trial, saturated
std::array<uint16_t, kSize> touched;  // where they are not 0
size_t touches = 0;
std::array<uint8_t, kSize> seen;  // one bit for each power of two
std::unordered_set<std::string> messages;
bool watching = false;

}  // namespace

void watch(bool on) { watching = on; }

size_t news(const std::string& message) {
  size_t found = 0;
  for (; touches > 0; --touches) {
    const size_t i = touched[touches - 1];
    const uint8_t bit = static_cast<uint8_t>(1u << (31 - __builtin_clz(uint32_t{counts[i]})));
    found += (seen[i] & bit) == 0;
    seen[i] = static_cast<uint8_t>(seen[i] | bit);
    counts[i] = 0;
  }
  std::string words;
  bool quoted = false;
  for (const char letter : message) {
    quoted ^= letter == '\'';
    if (!quoted && (letter < '0' || letter > '9')) words += letter;
  }
  return found + messages.insert(words.substr(0, 80)).second;
}

size_t ways() {
  return static_cast<size_t>(std::count_if(seen.begin(), seen.end(), [](uint8_t bits) { return bits != 0; }));
}

}  // namespace fuzz

// Places are counted from the start of the program, so that they are the same in every run.
extern "C" void __sanitizer_cov_trace_pc() {
  if (!fuzz::watching) return;
  const uintptr_t place = reinterpret_cast<uintptr_t>(__builtin_return_address(0)) -
                          reinterpret_cast<uintptr_t>(&__executable_start);
  const size_t i = (place * 0x9E3779B1u >> 8) % fuzz::kSize;
  if (fuzz::counts[i] == 0) fuzz::touched[fuzz::touches++] = static_cast<uint16_t>(i);
  if (fuzz::counts[i] != 255) ++fuzz::counts[i];
}
