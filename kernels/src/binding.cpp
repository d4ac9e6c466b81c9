#include <nanobind/nanobind.h>

NB_MODULE(_native, module) {
  module.doc() = "The integer engine in C++.";
}
