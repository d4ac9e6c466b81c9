// Which ways through the reader a trial takes. The compiler calls __sanitizer_cov_trace_pc on each of them,
// in the files that read, check and prepare.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace fuzz {

// Switches the counting on and off.
void watch(bool on);

// How many new things the trial since the last call did: ways it went, or how often (in powers of two).
// `message` counts too, without its numbers.
size_t news(const std::string& message);

// Ways seen so far.
size_t ways();

}  // namespace fuzz
