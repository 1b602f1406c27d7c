// Products of bf16 rows with fp32 weights, in one order that the expert router's kernels share: in
// a block of 256 columns each eight consecutive columns are added up, ascending, and the 32 sums
// meet in a tree: sums 16 apart first, then 8, 4, 2 and 1.
#pragma once

#include <cstdint>

namespace ultraspeed::kernels::cuda {

// The products of eight consecutive columns.
__device__ __forceinline__ float Dot8(uint4 x, float4 low, float4 high) {
  const auto even = [](uint32_t pair) { return __uint_as_float(pair << 16); };
  const auto odd = [](uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); };
  float sum = __fmul_rn(even(x.x), low.x);
  sum = __fmaf_rn(odd(x.x), low.y, sum);
  sum = __fmaf_rn(even(x.y), low.z, sum);
  sum = __fmaf_rn(odd(x.y), low.w, sum);
  sum = __fmaf_rn(even(x.z), high.x, sum);
  sum = __fmaf_rn(odd(x.z), high.y, sum);
  sum = __fmaf_rn(even(x.w), high.z, sum);
  return __fmaf_rn(odd(x.w), high.w, sum);
}

// The tree's end: adds what the four lanes of a quad hold; all of them get the sum.
__device__ __forceinline__ float QuadSum(float sum) {
  sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 2));
  return __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 1));
}

// The tree for eight rows at once, lane l holding the rows' l-th sums: row l / 4's for lane l.
__device__ __forceinline__ float TreeOfRows(float (&sums)[8], int lane) {
#pragma unroll
  for (int half = 4; half >= 1; half /= 2) {
    const bool upper = (lane & 4 * half) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float kept = upper ? sums[i + half] : sums[i], sent = upper ? sums[i] : sums[i + half];
      sums[i] = __fadd_rn(kept, __shfl_xor_sync(0xffffffffu, sent, 4 * half));
    }
  }
  return QuadSum(sums[0]);
}

}  // namespace ultraspeed::kernels::cuda
