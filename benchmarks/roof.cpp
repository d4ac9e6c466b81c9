// What this core can multiply and accumulate at most, from registers alone. Speaks as contestant.py does.
// Each call of a roof holds kCall multiply-accumulates of 8-bit values.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr long kCall = 1L << 24;

// Eight sums that do not wait for one another: registers 0 to 7; the factors are in 8 and 9.
#define EIGHT(STEP) STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7)
#define CLOBBERED \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10"

// 16-bit products of pairs, added in 32 bits: exact for any 8-bit values, widened before.
#define MADD(I) "vpmaddwd %%ymm8, %%ymm9, %%ymm10\n\tvpaddd %%ymm10, %%ymm" #I ", %%ymm" #I "\n\t"
void avx2() {
  for (long done = 0; done < kCall; done += 16 * 8) __asm__ volatile(EIGHT(MADD)::: CLOBBERED);
}

// The dot product of four bytes, exact as well.
#define DOT(I) "vpdpbusd %%zmm8, %%zmm9, %%zmm" #I "\n\t"
void avx512vnni() {
  for (long done = 0; done < kCall; done += 64 * 8) __asm__ volatile(EIGHT(DOT)::: CLOBBERED);
}

}  // namespace

int main(int, char** argv) {
  void (*roof)() = nullptr;
  if (std::strcmp(argv[1], "avx2") == 0 && __builtin_cpu_supports("avx2")) roof = avx2;
  if (std::strcmp(argv[1], "avx512vnni") == 0 && __builtin_cpu_supports("avx512vnni")) roof = avx512vnni;
  if (roof == nullptr) return 1;
  std::puts("ready");
  std::fflush(stdout);
  char line[64];
  while (std::fgets(line, sizeof line, stdin) != nullptr) {
    const int count = std::atoi(line + std::strlen("run "));
    for (int i = 0; i < count; ++i) {
      const auto start = std::chrono::steady_clock::now();
      roof();
      const auto took = std::chrono::steady_clock::now() - start;
      std::printf("%s%ld", i == 0 ? "[" : ", ",
                  static_cast<long>(std::chrono::duration_cast<std::chrono::nanoseconds>(took).count()));
    }
    std::puts("]");
    std::fflush(stdout);
  }
}
