// What travels between ranks when data is its own flag: pairs of bf16, among which one word never
// occurs. Both ways of summing over ranks, collectives.cu and the resident engine, send these.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/numbers.cuh"

namespace ultraspeed::kernels::cuda {

// An inbox word that holds it has not arrived: two minus zeros, which are never sent.
constexpr uint32_t kNotArrived = 0x80008000u;

// Two numbers as the pair that travels; a minus zero travels as zero.
__device__ __forceinline__ uint32_t PairWord(float low, float high) {
  const auto part = [](float x) -> uint32_t {
    const bf16 rounded = RoundToBf16(x);
    return rounded == 0x8000u ? 0u : rounded;
  };
  return part(low) | part(high) << 16;
}

}  // namespace ultraspeed::kernels::cuda
