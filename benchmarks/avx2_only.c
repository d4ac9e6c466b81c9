// Preloaded into a process, hides all that this CPU has beyond AVX2 and FMA, from every library in it: the
// CPU is told to fault on cpuid (Intel, "CPUID faulting"), and the answers are given here. So engines can be
// raced as on a CPU that has no more. What the C library chose before, as for memcpy, stays.
//
//     cc -shared -fPIC -O2 -o avx2_only.so avx2_only.c && LD_PRELOAD=./avx2_only.so PROGRAM
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef ARCH_SET_CPUID
#define ARCH_SET_CPUID 0x1012
#endif

static uint32_t bits(int count, const int* numbers) {
  uint32_t all = 0;
  for (int i = 0; i < count; ++i) all |= UINT32_C(1) << numbers[i];
  return all;
}
#define BITS(...) bits(sizeof((int[]){__VA_ARGS__}) / sizeof(int), (int[]){__VA_ARGS__})

// Clears, in the answer (eax, ebx, ecx, edx), what Intel's Software Developer's Manual, volume 2A, names at
// CPUID.
static void hide(uint32_t leaf, uint32_t subleaf, uint32_t* answer) {
  if (leaf == 7 && subleaf == 0) {
    answer[1] &= ~BITS(16, 17, 21, 26, 27, 28, 30, 31);  // AVX-512 F DQ IFMA PF ER CD BW VL
    answer[2] &= ~BITS(1, 6, 8, 11, 12, 14);             // VBMI, VBMI2, GFNI, VNNI, BITALG, VPOPCNTDQ
    answer[3] &= ~BITS(2, 3, 8, 22, 23, 24, 25);         // 4VNNIW, 4FMAPS, VP2INTERSECT, AMX, FP16
  } else if (leaf == 7 && subleaf == 1) {
    answer[0] &= ~BITS(4, 5, 21, 23);  // AVX-VNNI, AVX-512 BF16, AMX-FP16, AVX-IFMA
    answer[3] &=
        ~BITS(4, 5, 8, 10, 19, 21);  // AVX-VNNI-INT8, NE-CONVERT, AMX-COMPLEX, VNNI-INT16, AVX10, APX
  } else if (leaf == 0xD && subleaf == 0) {
    answer[0] &= ~BITS(5, 6, 7, 17, 18, 19);  // the state of AVX-512, AMX and APX
  }
}

static void on_fault(int number, siginfo_t* info, void* context) {
  (void)info;
  greg_t* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
  const uint8_t* at = (const uint8_t*)registers[REG_RIP];
  if (registers[REG_TRAPNO] != 13 || at[0] != 0x0F || at[1] != 0xA2) {  // not a refused cpuid: a real fault,
    signal(number, SIG_DFL);                                            // which ends the process
    return;
  }
  const uint32_t leaf = (uint32_t)registers[REG_RAX], subleaf = (uint32_t)registers[REG_RCX];
  uint32_t answer[4];
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1UL);
  __cpuid_count(leaf, subleaf, answer[0], answer[1], answer[2], answer[3]);
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0UL);
  hide(leaf, subleaf, answer);
  registers[REG_RAX] = answer[0];
  registers[REG_RBX] = answer[1];
  registers[REG_RCX] = answer[2];
  registers[REG_RDX] = answer[3];
  registers[REG_RIP] += 2;
}

// Threads started later inherit both.
__attribute__((constructor)) static void begin(void) {
  struct sigaction action = {0};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, NULL);
  if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0UL) != 0) {
    fputs("this CPU or kernel cannot fault on cpuid\n", stderr);
    exit(1);
  }
}
