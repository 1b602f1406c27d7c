// What travels when data is its own flag: pairs of bf16, among which one word never occurs. Both
// ways of summing over ranks, collectives.cu and the resident engine, send these, and the resident
// engine's blocks each other (program.h).
#pragma once

#include <cstdint>

#include "kernels/cuda/device/numbers.cuh"

namespace ultraspeed::kernels::cuda {

// A word that holds it has not arrived: a minus zero above a zero, which is never sent. The least
// of all words as signed numbers, so that the least of many tells of all.
constexpr uint32_t kNotArrived = 0x80000000u;

// A pair, or an fp32 number, as it travels: that one (as a number, minus zero) as zero.
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
__device__ __forceinline__ int32_t LeastOf(uint2 words) {
  return min(static_cast<int32_t>(words.x), static_cast<int32_t>(words.y));
}
__device__ __forceinline__ int32_t LeastOf(uint4 words) {
  return min(min(static_cast<int32_t>(words.x), static_cast<int32_t>(words.y)),
             min(static_cast<int32_t>(words.z), static_cast<int32_t>(words.w)));
}
__device__ __forceinline__ bool HasArrived(uint4 words) {
  return HasArrived(static_cast<uint32_t>(LeastOf(words)));
}
// All of an array, by a tree.
template <typename Words, int kCount>
__device__ __forceinline__ bool HaveArrived(const Words (&words)[kCount]) {
  static_assert((kCount & (kCount - 1)) == 0);
  int32_t least[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) least[i] = LeastOf(words[i]);
#pragma unroll
  for (int half = kCount / 2; half > 0; half /= 2) {
#pragma unroll
    for (int i = 0; i < half; ++i) least[i] = min(least[i], least[i + half]);
  }
  return HasArrived(static_cast<uint32_t>(least[0]));
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
