// Which of the five tables of inner loops is in use.
//
// Thread: chosen once, at first use, from what the CPU and the operating system support;
// SetInstructionSet is for tests and benches.
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

#include "kernels/check.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/ops.h"

namespace ultraspeed::kernels {
namespace {

const KernelTable& Table(InstructionSet set) {
  switch (set) {
    case InstructionSet::kScalar:
      return kScalarKernels;
    case InstructionSet::kAvx2:
      return kAvx2Kernels;
    case InstructionSet::kAvx512:
      return kAvx512Kernels;
    case InstructionSet::kAvx512Bf16:
      return kAvx512Bf16Kernels;
    case InstructionSet::kAmxBf16:
      return kAmxBf16Kernels;
  }
  return kScalarKernels;
}

std::atomic<InstructionSet>& ActiveSet() {
  static std::atomic<InstructionSet> active(DetectInstructionSet());
  return active;
}

// Tile registers are saved with a thread only if the process has asked for them.
constexpr int kRequestStatePermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
constexpr int kTileConfigState = 17, kTileDataState = 18;

__attribute__((target("xsave"))) bool SystemSavesTiles() {
  constexpr auto kBoth = uint64_t{1} << kTileConfigState | uint64_t{1} << kTileDataState;
  return (_xgetbv(0) & kBoth) == kBoth &&
         syscall(SYS_arch_prctl, kRequestStatePermission, kTileDataState) == 0;
}

bool HasAmxBf16() {
  constexpr unsigned kOsxsave = 1u << 27;                       // leaf 1, ECX
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // leaf 7, EDX
  unsigned a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kOsxsave) == 0) return false;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  return (d & kAmxBf16) != 0 && (d & kAmxTile) != 0 && SystemSavesTiles();
}

}  // namespace

InstructionSet DetectInstructionSet() {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  const bool avx512_bf16 =
      avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
  const bool amx_bf16 = avx512_bf16 && __builtin_cpu_supports("gfni") && HasAmxBf16();
  return amx_bf16      ? InstructionSet::kAmxBf16
         : avx512_bf16 ? InstructionSet::kAvx512Bf16
         : avx512      ? InstructionSet::kAvx512
         : avx2        ? InstructionSet::kAvx2
                       : InstructionSet::kScalar;
}

InstructionSet ActiveInstructionSet() { return ActiveSet().load(std::memory_order_relaxed); }

void SetInstructionSet(InstructionSet set) {
  KERNELS_CHECK(static_cast<int>(set), <=, static_cast<int>(DetectInstructionSet()));
  ActiveSet().store(set, std::memory_order_relaxed);
}

const KernelTable& Active() { return Table(ActiveInstructionSet()); }

const char* Name(InstructionSet set) {
  switch (set) {
    case InstructionSet::kScalar:
      return "scalar";
    case InstructionSet::kAvx2:
      return "avx2";
    case InstructionSet::kAvx512:
      return "avx512";
    case InstructionSet::kAvx512Bf16:
      return "avx512_bf16";
    case InstructionSet::kAmxBf16:
      return "amx_bf16";
  }
  return "unknown";
}

}  // namespace ultraspeed::kernels
