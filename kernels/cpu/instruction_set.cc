// Which of the four tables of inner loops is in use.
//
// Thread: chosen once, at first use, from what the CPU and the operating system support;
// SetInstructionSet is for tests and benches.
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
  }
  return kScalarKernels;
}

std::atomic<InstructionSet>& ActiveSet() {
  static std::atomic<InstructionSet> active(DetectInstructionSet());
  return active;
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
  return avx512_bf16 ? InstructionSet::kAvx512Bf16
         : avx512    ? InstructionSet::kAvx512
         : avx2      ? InstructionSet::kAvx2
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
  }
  return "unknown";
}

}  // namespace ultraspeed::kernels
