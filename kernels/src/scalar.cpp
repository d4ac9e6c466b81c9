// The path for any CPU: plain C++, one dot product at a time.
#include "plain.h"

namespace edgewright {

const Kernels& scalar_kernels() {
  static const Kernels table = [] {
    Kernels made = plain_kernels("scalar", plain_wide());
    made.dense = plain_dense_kernel<uint8_t, uint8_t>();
    made.depthwise = plain_depthwise_kernel<uint8_t, uint8_t>();
    return made;
  }();
  return table;
}

}  // namespace edgewright
