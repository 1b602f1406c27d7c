// Sixteen rows of a packed BF16 matrix times one vector, by one warp: a tensor core's product of
// which one of eight columns is used. For small matrices that lie in L2, without the ring.
#pragma once

#include "kernels/cuda/device/fragments.cuh"

namespace ultraspeed::kernels::cuda {

// A tile in a warp's registers, up to kGroups groups of 32 columns; requested, not waited for.
template <int kGroups>
struct HeldTile {
  uint4 low[kGroups], high[kGroups];  // the lane's columns of rows g and g + 8

  __device__ __forceinline__ void Load(const uint8_t* tile, int num_groups, int lane) {
    const auto* const words = reinterpret_cast<const uint4*>(tile) + lane;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      low[j] = j < num_groups ? __ldg(words + 2 * j * 32) : uint4{};
      high[j] = j < num_groups ? __ldg(words + (2 * j + 1) * 32) : uint4{};
    }
  }
  // What rows g (x) and g + 8 (y) of the tile give; `vector`: shared memory. Lanes with t = 0
  // have the sums, the others zeros.
  __device__ __forceinline__ float2 Times(const bf16* vector, int num_groups, int lane) const {
    float sum[4] = {};
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      if (j >= num_groups) continue;  // the same for all lanes
      const uint4 x =
          lane / 4 == 0 ? *reinterpret_cast<const uint4*>(vector + 32 * j + lane % 4 * 8) : uint4{};
      GroupFragments a;
      CopyBf16Group(low[j], high[j], a);
      MmaGroup(sum, a, x);
    }
    return {sum[0], sum[2]};
  }
};

// The same of any width, a slab at a time.
__device__ __forceinline__ float2 TileTimesVector(const uint8_t* tile, const bf16* vector,
                                                  int num_columns, int lane) {
  float2 sum = {};
  for (int column = 0; column < num_columns; column += kSlabColumns) {
    const int num_groups = min(kGroupsPerSlab, (num_columns - column) / 32);
    HeldTile<kGroupsPerSlab> slab;
    slab.Load(tile + column / kSlabColumns * SlabBytes(WeightFormat::kBf16), num_groups, lane);
    const float2 part = slab.Times(vector + column, num_groups, lane);
    sum = {sum.x + part.x, sum.y + part.y};
  }
  return sum;
}

// What the Markov head's gate leaves of an element of the token before: `gate` is all that goes
// into it.
__device__ __forceinline__ bf16 GatedElement(bf16 element, float gate) {
  return RoundToBf16(Bf16ToFloat(element) / (1.0f + __expf(-gate)));
}

}  // namespace ultraspeed::kernels::cuda
