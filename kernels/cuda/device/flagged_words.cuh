// What travels when data is its own flag: pairs of bf16, among which one word never occurs. Both
// ways of summing over ranks, collectives.cu and the resident engine, send these, and the resident
// engine's blocks each other (program.h).
#pragma once

#include <cstdint>

#include "kernels/cuda/device/numbers.cuh"

namespace ultraspeed::kernels::cuda {

// A word that holds it has not arrived: two minus zeros, which are never sent.
constexpr uint32_t kNotArrived = 0x80008000u;

// A pair as it travels: two minus zeros as zeros.
__device__ __forceinline__ uint32_t FlaggedWord(uint32_t pair) {
  return pair == kNotArrived ? 0u : pair;
}
// Two numbers, rounded, as the pair that travels; a minus zero travels as zero.
__device__ __forceinline__ uint32_t FlaggedWord(float low, float high) {
  const auto part = [](float x) -> uint32_t {
    const bf16 rounded = RoundToBf16(x);
    return rounded == 0x8000u ? 0u : rounded;
  };
  return part(low) | part(high) << 16;
}

__device__ __forceinline__ bool HasArrived(uint32_t word) { return word != kNotArrived; }
__device__ __forceinline__ bool HasArrived(uint4 words) {
  return HasArrived(words.x) && HasArrived(words.y) && HasArrived(words.z) && HasArrived(words.w);
}

// Reads of words that others may be writing, each time anew.
__device__ __forceinline__ uint32_t PollWord(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.volatile.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}
__device__ __forceinline__ uint4 PollFour(const uint32_t* words) {
  uint4 value;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(words)
               : "memory");
  return value;
}
__device__ __forceinline__ uint2 PollPair(const uint2* pair) {
  uint2 value;
  asm volatile("ld.volatile.global.v2.u32 {%0, %1}, [%2];"
               : "=r"(value.x), "=r"(value.y)
               : "l"(pair)
               : "memory");
  return value;
}

}  // namespace ultraspeed::kernels::cuda
