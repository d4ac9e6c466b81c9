// Changes to a plan and its weights.
#pragma once

#include "draft.h"
#include "random.h"

namespace fuzz {

// A changed copy of `from`. `other` gives material for splices.
Case mutate(const Case& from, const Case& other, Random& random);

// Lets shapes, ranges, counts and places in the arena follow from what the operators say, as far as they can.
void repair(Draft& draft, Random& random);

}  // namespace fuzz
