// A block of a tile (16 rows x two slabs) on its way through a warp: codes from the ring times the
// rows' columns in registers, the block's partial out. Where a row has an odd number of slabs the
// last one is a block of its own.
#pragma once

#include "kernels/cuda/device/fragments.cuh"
#include "kernels/cuda/resident/rows.cuh"

namespace ultraspeed::kernels::cuda::resident {

// The lane's columns of a block of two slabs, groups of 32 columns ascending: a warp keeps its
// block of the rows in registers for all tiles.
using Columns = uint4[2 * kGroupsPerSlab];
__device__ __forceinline__ void LoadColumns(const uint8_t* fragments, int num_slabs, Columns& x) {
#pragma unroll
  for (int i = 0; i < 2 * kGroupsPerSlab; ++i) {
    x[i] = i < num_slabs * kGroupsPerSlab ? StagedGroup(fragments, i) : uint4{};
  }
}

// The partial of one block of (up to) two slabs of a tile.
template <WeightFormat kFormat>
__device__ __forceinline__ float4 MultiplyBlock(const uint8_t* block, int num_slabs,
                                                const Columns& x, int lane) {
  if constexpr (kFormat == WeightFormat::kFp8Block128) {
    // Both slabs side by side; what a missing one gives is not taken.
    float sums[2][4] = {};
    const Slab<kFormat> slabs[2] = {Slab<kFormat>(block, lane),
                                    Slab<kFormat>(block + SlabBytes(kFormat), lane)};
#pragma unroll
    for (int j = 0; j < kGroupsPerSlab; ++j) {
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        GroupFragments a;
        slabs[s].Group(j, a);
        MmaGroup(sums[s], a, x[kGroupsPerSlab * s + j]);
      }
    }
    const float4 first = ScaledPartial(sums[0], slabs[0].Scales());
    return num_slabs > 1 ? Add(first, ScaledPartial(sums[1], slabs[1].Scales())) : first;
  } else {
    static_assert(kFormat == WeightFormat::kBf16);  // MXFP4: ExpertBlock
    float sum[4] = {};
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      if (s >= num_slabs) break;
      const Slab<kFormat> slab(block + s * SlabBytes(kFormat), lane);
#pragma unroll
      for (int j = 0; j < kGroupsPerSlab; ++j) {
        GroupFragments a;
        slab.Group(j, a);
        MmaGroup(sum, a, x[kGroupsPerSlab * s + j]);
      }
    }
    return {sum[0], sum[1], sum[2], sum[3]};
  }
}

// A block of MXFP4. The experts' loops are bound by how many of their instructions wait for the one
// before, so the steps are apart: a block's first slab is read while the block before is finished,
// and sums are scaled long after the products.
class ExpertBlock {
 public:
  __device__ __forceinline__ void ReadFirst(const uint8_t* block, int lane) {
    ReadCodes(block, lane, first_);
  }
  // After ReadFirst of the same block, whose last slab begins `last_slab` bytes on (0: it has one,
  // which is read twice; columns that are missing are zeros). `all_read` is called when the block's
  // memory may be given back.
  template <typename AllRead>
  __device__ __forceinline__ void Multiply(const uint8_t* block, int last_slab, const Columns& x,
                                           int lane, AllRead all_read) {
    Codes second;
    ReadCodes(block + last_slab, lane, second);
    const Slab<kFormat> first_slab(block, lane);
    last_slab_ = Slab<kFormat>(block + last_slab, lane);
    float groups[kGroupsPerSlab][4];
    MultiplySlab(first_, x, 0, groups);
    all_read();
    MultiplySlab(second, x, kGroupsPerSlab, last_);
    Clear(sum_);
    Scale(first_slab, groups, sum_);
  }
  // Of the block that was multiplied last.
  __device__ __forceinline__ float4 Partial() const {
    float sum[4] = {sum_[0], sum_[1], sum_[2], sum_[3]};
    Scale(last_slab_, last_, sum);
    return {sum[0], sum[1], sum[2], sum[3]};
  }

 private:
  static constexpr WeightFormat kFormat = WeightFormat::kMxfp4;
  using Codes = uint4[2];  // of groups 2 i, 2 i + 1

  static __device__ __forceinline__ void ReadCodes(const uint8_t* slab, int lane, Codes& codes) {
    const auto* const words = reinterpret_cast<const uint4*>(slab) + lane;
    codes[0] = words[0];
    codes[1] = words[kWarpLanes];
  }
  static __device__ __forceinline__ void MultiplySlab(const Codes& codes, const Columns& x,
                                                      int first_group,
                                                      float (&groups)[kGroupsPerSlab][4]) {
#pragma unroll
    for (int j = 0; j < kGroupsPerSlab; ++j) {
      const uint4 w = codes[j / 2];
      GroupFragments a;
      ExpandMxfp4Group(j % 2 == 0 ? w.x : w.z, j % 2 == 0 ? w.y : w.w, a);
      Clear(groups[j]);
      MmaGroup(groups[j], a, x[first_group + j]);
    }
  }
  static __device__ __forceinline__ void Scale(const Slab<kFormat>& slab,
                                               const float (&groups)[kGroupsPerSlab][4],
                                               float (&sum)[4]) {
#pragma unroll
    for (int j = 0; j < kGroupsPerSlab; ++j) AddScaled(sum, slab.exponents, j, groups[j]);
  }

  Codes first_;
  float sum_[4], last_[kGroupsPerSlab][4];
  Slab<kFormat> last_slab_;  // its exponents
};

}  // namespace ultraspeed::kernels::cuda::resident
