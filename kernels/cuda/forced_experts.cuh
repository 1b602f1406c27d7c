// Benchmarks' choice of experts, by rule instead of by router, so that a round reads as many as one
// wants: choice `slot` (row * K + k) of all takes one of `distinct` experts, which are spread over
// the layer's and moved by `shift`.
#pragma once

#include "kernels/cuda/device/numbers.cuh"

namespace ultraspeed::kernels::cuda {

__device__ __forceinline__ int ForcedExpert(int slot, int distinct, int num_experts, int shift) {
  const auto remainder = [](int a, int b) { return a - Quotient(a, b) * b; };
  return remainder(Quotient(remainder(slot, distinct) * num_experts, distinct) + shift,
                   num_experts);
}

}  // namespace ultraspeed::kernels::cuda
