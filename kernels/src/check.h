// The rules a plan must keep before anything runs it.
#pragma once

#include "plan.h"

namespace edgewright {

// Holds a plan to every rule of the format that does not need the weights. Throws PlanError.
void check(const Plan& plan);

// Size along one spatial axis of what a window leaves, or 0 where it does not fit.
int64_t output_size(const Window& window, int axis, int64_t size);

}  // namespace edgewright
