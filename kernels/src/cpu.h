// Which paths this CPU can run, and which one to take.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace edgewright {

// Usable here, best first. Found once.
const std::vector<const Kernels*>& usable_paths();

// The path named `wanted`; where that is empty, the one EDGEWRIGHT_CPU names; otherwise the best.
// Throws UnsupportedError for a name that is unknown or not usable here.
const Kernels& choose_path(const std::string& wanted);

}  // namespace edgewright
