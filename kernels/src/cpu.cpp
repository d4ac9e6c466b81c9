#include "cpu.h"

#include <cstdlib>

#include "errors.h"

#if defined(EDGEWRIGHT_ARM)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace edgewright {

const std::vector<const Kernels*>& usable_paths() {
  static const std::vector<const Kernels*> paths = [] {
    std::vector<const Kernels*> found;
    // These ask cpuid, and whether the operating system saves the wide registers.
#if defined(EDGEWRIGHT_AVX512VNNI)
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("fma")) {
      found.push_back(&avx512vnni_kernels());
      found.push_back(&avx512vnni256_kernels());
    }
#endif
#if defined(EDGEWRIGHT_AVXVNNI)
    if (__builtin_cpu_supports("avxvnni") && __builtin_cpu_supports("avx2") &&
        __builtin_cpu_supports("fma")) {
      found.push_back(&avxvnni_kernels());
    }
#endif
#if defined(EDGEWRIGHT_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2_kernels());
#endif
#if defined(EDGEWRIGHT_ARM)
    if (getauxval(AT_HWCAP2) & HWCAP2_I8MM) found.push_back(&i8mm_kernels());
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) found.push_back(&dotprod_kernels());
    found.push_back(&neon_kernels());
#endif
    found.push_back(&scalar_kernels());
    return found;
  }();
  return paths;
}

const Kernels& choose_path(const std::string& wanted) {
  std::string name = wanted, from = "cpu=";
  if (name.empty()) {
    const char* forced = std::getenv("EDGEWRIGHT_CPU");
    if (forced == nullptr || *forced == '\0') return *usable_paths().front();
    name = forced;
    from = "EDGEWRIGHT_CPU=";
  }
  std::string usable;
  for (const Kernels* path : usable_paths()) {
    if (name == path->name) return *path;
    usable += (usable.empty() ? "" : ", ") + std::string(path->name);
  }
  throw UnsupportedError(from + name + ": this machine has no such path; it has " + usable);
}

}  // namespace edgewright
