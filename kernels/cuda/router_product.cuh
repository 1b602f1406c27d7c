// The expert router's product, in one order for all its kernels (router.cu, the resident engine):
//
//   logit[e] = scale * sum over columns c of x[c] * w[e][c]
//
// with x the residual stream rounded to bf16, scale the row's norm scale, w the router's row times
// the norm's weights (folded in at load). Thus a column can be multiplied before its row's scale is
// known, by whoever has it.
//
// Columns come in tiles of 16, tiles in chunks of three. A weight is kept as the sum of two bf16
// terms, which have 17 bits of it; a chunk's products with the first terms and with the second are
// added up by the tensor cores, tiles ascending, then the two sums. Chunk c belongs to slot c % 32,
// which adds its chunks ascending; slots meet in a tree, those 16 apart first, then 8, 4, 2 and 1.
//
// Packed: [H / 16 tiles][E / 16 expert tiles][2 terms][32 lanes], an mma operand each: lane (g, t)
// has columns 2t, 2t + 1 of experts g and g + 8, then columns 2t + 8, 2t + 9.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/weight_layout.h"

namespace ultraspeed::kernels::cuda {

constexpr int kRouterTileColumns = 16;
constexpr int kRouterSlots = 32;
constexpr int kExpertTileVectors = 2 * 32;  // uint4 of a tile of 16 columns and 16 experts
static_assert(kRouterTileColumns == kTileRows, "the columns of a tile of the residual stream");

constexpr int NumExpertTiles(int num_experts) { return (num_experts + 15) / 16; }

// A chunk's products of 16 experts and eight rows: element i of lane (g, t) is of row 2t + i % 2
// and expert g + i / 2 * 8.
class RouterChunkSum {
 public:
  // Adds the products of a tile; `low`, `high`: row g's columns 2t, 2t + 1 and 2t + 8, 2t + 9.
  __device__ __forceinline__ void Add(const uint4 (&terms)[2], uint32_t low, uint32_t high) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      Mma(sums_[i], {terms[i].x, terms[i].y, terms[i].z, terms[i].w}, low, high);
  }
  __device__ __forceinline__ float Total(int i) const {
    return __fadd_rn(sums_[1][i], sums_[0][i]);
  }

 private:
  float sums_[2][4] = {};
};

}  // namespace ultraspeed::kernels::cuda
