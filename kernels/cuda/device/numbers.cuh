// Conversions and functions of single numbers, spelled so that no compiler option changes a bit:
// two kernels that call them with equal arguments get equal results.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/ops.h"

namespace ultraspeed::kernels::cuda {

__device__ __forceinline__ bf16 RoundToBf16(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

__device__ __forceinline__ float Bf16ToFloat(bf16 x) { return __uint_as_float(uint32_t{x} << 16); }
__device__ __forceinline__ float RoundedToBf16(float x) { return Bf16ToFloat(RoundToBf16(x)); }
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  return RoundToBf16(low) | uint32_t{RoundToBf16(high)} << 16;
}

__device__ __forceinline__ float Sigmoid(float x) {
  return __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(-x)));
}

// RMS norm of one element, before rounding: NormScale of the row's sum of squares, then the weight.
__device__ __forceinline__ float NormScale(float squares, int count, float epsilon) {
  return __fdiv_rn(1.0f,
                   __fsqrt_rn(__fadd_rn(__fdiv_rn(squares, static_cast<float>(count)), epsilon)));
}
// `x` is rounded to bf16 first where it is the residual stream: the resident engine's blocks send
// each other the stream so.
__device__ __forceinline__ float NormElement(float x, float scale, float weight) {
  return __fmul_rn(__fmul_rn(x, scale), weight);
}

// silu(gate) * up, rounded once to bf16 (docs/MODEL.md).
__device__ __forceinline__ bf16 SwiGluProduct(float gate, float up) {
  const float silu = __fdiv_rn(gate, __fadd_rn(1.0f, expf(-gate)));
  return RoundToBf16(__fmul_rn(silu, up));
}

// a / b of small numbers, 0 <= a < 2^18 and b > 0: a handful of instructions where a general
// division takes dozens, in code that others wait for.
__device__ __forceinline__ int Quotient(int a, int b) {
  return static_cast<int>(__fdividef(static_cast<float>(a) + 0.5f, static_cast<float>(b)));
}

}  // namespace ultraspeed::kernels::cuda
