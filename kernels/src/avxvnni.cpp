// The AVX-VNNI path: vpdpbusd in the VEX encoding, for CPUs that have it without AVX-512. Only this file is
// compiled with -mavxvnni.
#include <immintrin.h>

namespace edgewright {
namespace {

struct Vnni {
  static __m256i add(__m256i acc, __m256i x, __m256i w) { return _mm256_dpbusd_avx_epi32(acc, x, w); }
};

}  // namespace
}  // namespace edgewright

#include "vnni256.h"

namespace edgewright {

const Kernels& avxvnni_kernels() {
  static const Kernels table = vnni_kernels("avxvnni");
  return table;
}

}  // namespace edgewright
