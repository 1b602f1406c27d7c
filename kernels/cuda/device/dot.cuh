// Products of bf16 rows with fp32 weights, in one order that the expert router's kernels share: in
// a block of 256 columns each eight consecutive columns are added up, ascending, and the 32 sums
// meet in a tree: sums 16 apart first, then 8, 4, 2 and 1.
#pragma once

#include <cstdint>

namespace ultraspeed::kernels::cuda {

// Adds the products of four consecutive columns to `sum`, which begins at zero.
__device__ __forceinline__ float AddDot4(uint2 x, float4 w, float sum) {
  const auto even = [](uint32_t pair) { return __uint_as_float(pair << 16); };
  const auto odd = [](uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); };
  sum = __fmaf_rn(even(x.x), w.x, sum);
  sum = __fmaf_rn(odd(x.x), w.y, sum);
  sum = __fmaf_rn(even(x.y), w.z, sum);
  return __fmaf_rn(odd(x.y), w.w, sum);
}
// The products of eight consecutive columns.
__device__ __forceinline__ float Dot8(uint4 x, float4 low, float4 high) {
  return AddDot4({x.z, x.w}, high, AddDot4({x.x, x.y}, low, 0.0f));
}

// The tree's end: adds what the four lanes of a quad hold; all of them get the sum.
__device__ __forceinline__ float QuadSum(float sum) {
  sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 2));
  return __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 1));
}

// The trees of three experts for eight rows at once, lane l holding the l-th sums. In the end it
// has row l / 4's for expert 0 if l % 4 = 0, for expert 1 if l % 4 = 2, else for expert 2.
__device__ __forceinline__ float TreesOfRows(float (&sums)[3][8], int lane) {
  const auto meet = [](bool upper, float low, float high, int mask) {
    const float kept = upper ? high : low, sent = upper ? low : high;
    return __fadd_rn(kept, __shfl_xor_sync(0xffffffffu, sent, mask));
  };
#pragma unroll
  for (int e = 0; e < 3; ++e) {
#pragma unroll
    for (int half = 4; half >= 1; half /= 2) {
#pragma unroll
      for (int i = 0; i < half; ++i) {
        sums[e][i] = meet((lane & 4 * half) != 0, sums[e][i], sums[e][i + half], 4 * half);
      }
    }
  }
  const float first_two = meet((lane & 2) != 0, sums[0][0], sums[1][0], 2);
  const float third = __fadd_rn(sums[2][0], __shfl_xor_sync(0xffffffffu, sums[2][0], 2));
  return meet((lane & 1) != 0, first_two, third, 1);
}

}  // namespace ultraspeed::kernels::cuda
