// From packed slabs to mma operands: expands one group of 32 columns of a slab to the A fragments
// of two mma.m16n8k16, exactly, and multiplies.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/weight_layout.h"

namespace ultraspeed::kernels::cuda {

// A[m] is the 16 x 16 operand of mma m of a group.
using GroupFragments = uint32_t[2][4];

__device__ __forceinline__ uint32_t MultiplyBf16x2(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// `row_half` 0 holds row g, 1 row g + 8; `pairs` the four column pairs of the lane.
__device__ __forceinline__ void SetRow(GroupFragments& a, int row_half,
                                       const uint32_t (&pairs)[4]) {
#pragma unroll
  for (int q = 0; q < 4; ++q) a[q / 2][q % 2 * 2 + row_half] = pairs[q];
}

// e4m3 bits at the bottom of bf16's exponent are the value times 2^-120, subnormals included.
__device__ __forceinline__ void ExpandFp8(uint32_t w0, uint32_t w1, uint32_t (&pairs)[4]) {
  const uint32_t words[2] = {w0, w1};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t w = words[i];
    pairs[2 * i] = w & 0x87f087f0u;
    pairs[2 * i + 1] = (w << 4 & 0x80f080f0u) | (w >> 4 & 0x07000700u);
  }
}

// e2m1 bits at the bottom of bf16's exponent are the value times 2^-126, subnormals included. Nine
// operations a word, by the way its bits lie (pack.cu).
__device__ __forceinline__ void ExpandMxfp4(uint32_t w, uint32_t (&pairs)[4]) {
  constexpr uint32_t kMask = 0x81c081c0u, kMantissa = 0x00400040u;
  pairs[0] = w & kMask;
  pairs[1] = w << 6 & kMask;
  pairs[2] = __funnelshift_l(w, w, 10) & kMask;
  pairs[3] = (w << 4 & (kMask ^ kMantissa)) | (w >> 4 & kMantissa);
}

// One group of a lane, from the words of rows g and g + 8.
__device__ __forceinline__ void CopyBf16Group(uint4 low, uint4 high, GroupFragments& a) {
  SetRow(a, 0, {low.x, low.y, low.z, low.w});
  SetRow(a, 1, {high.x, high.y, high.z, high.w});
}
__device__ __forceinline__ void ExpandFp8Group(uint4 words, GroupFragments& a) {
  uint32_t pairs[4];
  ExpandFp8(words.x, words.y, pairs);
  SetRow(a, 0, pairs);
  ExpandFp8(words.z, words.w, pairs);
  SetRow(a, 1, pairs);
}
__device__ __forceinline__ void ExpandMxfp4Group(uint32_t low, uint32_t high, GroupFragments& a) {
  uint32_t pairs[4];
  ExpandMxfp4(low, pairs);
  SetRow(a, 0, pairs);
  ExpandMxfp4(high, pairs);
  SetRow(a, 1, pairs);
}

// Exponent fields of a row's four groups -> the factor of group j.
__device__ __forceinline__ float GroupFactor(uint32_t exponents, int j) {
  // A plain shift where that does: it can be a multiplication, for which there is another pipe.
  const uint32_t shifted =
      j < 3 ? exponents << (8 * j) : __funnelshift_l(exponents, exponents, 8 * j);
  return __uint_as_float(shifted & 0x7f800000u);
}

template <WeightFormat kFormat>
struct Slab {
  const uint8_t* bytes;  // shared memory
  int lane;
  uint32_t exponents[2];  // kMxfp4: of rows g and g + 8

  Slab() = default;
  __device__ __forceinline__ Slab(const uint8_t* slab, int lane_in_warp)
      : bytes(slab), lane(lane_in_warp) {
    if constexpr (kFormat == WeightFormat::kMxfp4) {
      const auto* scales = reinterpret_cast<const uint32_t*>(slab + SlabCodeBytes(kFormat));
      exponents[0] = scales[lane / 4];
      exponents[1] = scales[lane / 4 + 8];
    }
  }

  __device__ __forceinline__ void Group(int j, GroupFragments& a) const {
    if constexpr (kFormat == WeightFormat::kBf16) {
      const auto* const words = reinterpret_cast<const uint4*>(bytes) + 2 * j * 32 + lane;
      CopyBf16Group(words[0], words[32], a);
    } else if constexpr (kFormat == WeightFormat::kFp8Block128) {
      ExpandFp8Group(reinterpret_cast<const uint4*>(bytes)[j * 32 + lane], a);
    } else {
      const uint2 v = reinterpret_cast<const uint2*>(bytes)[(j / 2 * 32 + lane) * 2 + j % 2];
      ExpandMxfp4Group(v.x, v.y, a);
    }
  }

  // Scales of the block that ends with this slab: rows g, rows g + 8.
  __device__ __forceinline__ float2 Scales() const {
    if constexpr (kFormat != WeightFormat::kFp8Block128) return {1.0f, 1.0f};
    const float2 scales = *reinterpret_cast<const float2*>(bytes + SlabCodeBytes(kFormat));
    return {__fmul_rn(scales.x, kFp8ScaleGain), __fmul_rn(scales.y, kFp8ScaleGain)};
  }
};

// The partial of a block: its sum times its scale, for rows g (x, y) and g + 8 (z, w).
__device__ __forceinline__ float4 ScaledPartial(const float (&sum)[4], float2 scales) {
  return {__fmul_rn(scales.x, sum[0]), __fmul_rn(scales.x, sum[1]), __fmul_rn(scales.y, sum[2]),
          __fmul_rn(scales.y, sum[3])};
}

__device__ __forceinline__ float4 Add(float4 a, float4 b) {
  return {__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w)};
}

__device__ __forceinline__ void Clear(float (&sum)[4]) {
#pragma unroll
  for (float& element : sum) element = 0.0f;
}

// Adds the scaled sum of a slab to its block's partial, where a slab has scales of its own; the next
// slab's sum starts from zero.
template <WeightFormat kFormat>
__device__ __forceinline__ void EndSlab(float4& partial, const float (&sum)[4], float2 scales,
                                        bool first_of_block) {
  if constexpr (ScalesEverySlab(kFormat)) {
    const float4 scaled = ScaledPartial(sum, scales);
    partial = first_of_block ? scaled : Add(partial, scaled);
  }
}
// The partial of a block whose slabs have all ended.
template <WeightFormat kFormat>
__device__ __forceinline__ float4 EndBlock(float4 partial, const float (&sum)[4]) {
  return ScalesEverySlab(kFormat) ? partial : float4{sum[0], sum[1], sum[2], sum[3]};
}

// Both mma of a group for eight tokens; `x` holds the lane's eight columns of token g.
__device__ __forceinline__ void MmaGroup(float (&sum)[4], const GroupFragments& a, uint4 x) {
  Mma(sum, a[0], x.x, x.y);
  Mma(sum, a[1], x.z, x.w);
}

// Adds the sum of group j, times its rows' scales, to a block's sum.
__device__ __forceinline__ void AddScaled(float (&sum)[4], const uint32_t (&exponents)[2], int j,
                                          const float (&group)[4]) {
  const float low = GroupFactor(exponents[0], j);
  const float high = GroupFactor(exponents[1], j);
  sum[0] = __fmaf_rn(low, group[0], sum[0]);
  sum[1] = __fmaf_rn(low, group[1], sum[1]);
  sum[2] = __fmaf_rn(high, group[2], sum[2]);
  sum[3] = __fmaf_rn(high, group[3], sum[3]);
}

// Adds group j of a slab to a block's sum.
template <WeightFormat kFormat>
__device__ __forceinline__ void AddGroup(float (&sum)[4], const Slab<kFormat>& weights, int j,
                                         const GroupFragments& a, uint4 x) {
  if constexpr (kFormat == WeightFormat::kMxfp4) {
    float group[4] = {};
    MmaGroup(group, a, x);
    AddScaled(sum, weights.exponents, j, group);
  } else {
    MmaGroup(sum, a, x);
  }
}

// Eight input columns as a product of this format takes them.
template <WeightFormat kFormat>
__device__ __forceinline__ uint4 GainedInput(uint4 x) {
  if constexpr (!HasInputGain(kFormat)) return x;
  return {MultiplyBf16x2(x.x, kInputGain), MultiplyBf16x2(x.y, kInputGain),
          MultiplyBf16x2(x.z, kInputGain), MultiplyBf16x2(x.w, kInputGain)};
}

}  // namespace ultraspeed::kernels::cuda
