// Errors of the engine; the binding turns them into the Python ones of the same name.
#pragma once

#include <stdexcept>

namespace edgewright {

// A plan, or the weights it points to, is damaged; the message names the place.
struct PlanError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The plan is well formed but needs an operator, version or CPU path that is not here.
struct UnsupportedError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The caller's own mistake in the values of an input; ValueError in Python.
struct InputError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

}  // namespace edgewright
