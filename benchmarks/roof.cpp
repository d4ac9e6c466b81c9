// What this core can multiply and accumulate at most, from registers alone. Speaks as contestant.py does.
// Each call of a roof holds kCall multiply-accumulates of 8-bit values.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr long kCall = 1L << 24;

// Twelve sums that do not wait for one another, which hides a latency of five cycles at two a cycle:
// registers 0 to 11; the factors are in 12 and 13.
#define TWELVE(STEP) \
  STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7) STEP(8) STEP(9) STEP(10) STEP(11)
#define CLOBBERED                                                                                            \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
      "xmm13", "xmm14", "xmm15"

// 16-bit products of pairs, added in 32 bits: exact for any 8-bit values, widened before.
#define MADD(I) "vpmaddwd %%ymm12, %%ymm13, %%ymm14\n\tvpaddd %%ymm14, %%ymm" #I ", %%ymm" #I "\n\t"
void avx2() {
  for (long done = 0; done < kCall; done += 16 * 12) __asm__ volatile(TWELVE(MADD)::: CLOBBERED);
}

// Products of bytes, added in 16 bits two or four at a time: exact for weights that are chosen so.
#define PAIRS(I)                             \
  "vpmaddubsw %%ymm12, %%ymm13, %%ymm14\n\t" \
  "vpmaddwd %%ymm12, %%ymm14, %%ymm14\n\t"   \
  "vpaddd %%ymm14, %%ymm" #I ", %%ymm" #I "\n\t"
void avx2_pairs() {
  for (long done = 0; done < kCall; done += 32 * 12) __asm__ volatile(TWELVE(PAIRS)::: CLOBBERED);
}

#define QUADS(I)                             \
  "vpmaddubsw %%ymm12, %%ymm13, %%ymm14\n\t" \
  "vpmaddubsw %%ymm13, %%ymm12, %%ymm15\n\t" \
  "vpaddw %%ymm14, %%ymm15, %%ymm14\n\t"     \
  "vpmaddwd %%ymm12, %%ymm14, %%ymm14\n\t"   \
  "vpaddd %%ymm14, %%ymm" #I ", %%ymm" #I "\n\t"
void avx2_quads() {
  for (long done = 0; done < kCall; done += 64 * 12) __asm__ volatile(TWELVE(QUADS)::: CLOBBERED);
}

// The dot product of four bytes, exact for any.
#define DOT(I) "vpdpbusd %%zmm12, %%zmm13, %%zmm" #I "\n\t"
void avx512vnni() {
  for (long done = 0; done < kCall; done += 64 * 12) __asm__ volatile(TWELVE(DOT)::: CLOBBERED);
}

}  // namespace

int main(int, char** argv) {
  void (*roof)() = nullptr;
  if (__builtin_cpu_supports("avx2")) {
    if (std::strcmp(argv[1], "avx2") == 0) roof = avx2;
    if (std::strcmp(argv[1], "avx2-pairs") == 0) roof = avx2_pairs;
    if (std::strcmp(argv[1], "avx2-quads") == 0) roof = avx2_quads;
  }
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
