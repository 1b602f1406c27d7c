// Products of bf16 rows with fp32 weights, in one order that the expert router's kernels share.
#pragma once

#include <cstdint>

namespace ultraspeed::kernels::cuda {

// Adds the products of eight consecutive columns, ascending.
__device__ __forceinline__ float Dot8(uint4 x, float4 low, float4 high, float sum) {
  const auto even = [](uint32_t pair) { return __uint_as_float(pair << 16); };
  const auto odd = [](uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); };
  sum = __fmaf_rn(even(x.x), low.x, sum);
  sum = __fmaf_rn(odd(x.x), low.y, sum);
  sum = __fmaf_rn(even(x.y), low.z, sum);
  sum = __fmaf_rn(odd(x.y), low.w, sum);
  sum = __fmaf_rn(even(x.z), high.x, sum);
  sum = __fmaf_rn(odd(x.z), high.y, sum);
  sum = __fmaf_rn(even(x.w), high.z, sum);
  return __fmaf_rn(odd(x.w), high.w, sum);
}

// Adds what the four lanes of a quad hold; all of them get the sum.
__device__ __forceinline__ float QuadSum(float sum) {
  sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 1));
  return __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 2));
}

}  // namespace ultraspeed::kernels::cuda
