// Sweeps over the instruction sets of this machine.
#pragma once

#include <vector>

#include "kernels/ops.h"

namespace ultraspeed::kernels {

// Those that give equal bits together, the first one's order of sums before AMX's own.
inline std::vector<std::vector<InstructionSet>> InstructionSetsByOrder() {
  std::vector<std::vector<InstructionSet>> orders(1);
  for (int i = 0; i <= static_cast<int>(DetectInstructionSet()); ++i) {
    const auto set = static_cast<InstructionSet>(i);
    if (set == InstructionSet::kAmxBf16) orders.emplace_back();
    orders.back().push_back(set);
  }
  return orders;
}

// Calls test() once with every instruction set that this machine has.
template <typename Test>
void ForEachInstructionSet(Test test) {
  for (const std::vector<InstructionSet>& sets : InstructionSetsByOrder()) {
    for (InstructionSet set : sets) {
      SetInstructionSet(set);
      test(set);
    }
  }
  SetInstructionSet(DetectInstructionSet());
}

// Calls test(set, want) with every instruction set; want is what make_want() gives with the first
// set of the same order.
template <typename MakeWant, typename Test>
void ForEachOrder(MakeWant make_want, Test test) {
  for (const std::vector<InstructionSet>& sets : InstructionSetsByOrder()) {
    SetInstructionSet(sets.front());
    const auto want = make_want();
    for (InstructionSet set : sets) {
      SetInstructionSet(set);
      test(set, want);
    }
  }
  SetInstructionSet(DetectInstructionSet());
}

}  // namespace ultraspeed::kernels
