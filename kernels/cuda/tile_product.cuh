// The product for many tokens: a thread block makes 128 rows x kTileTokens tokens.
//
// Eight warps, 4 x 2, each 32 rows x kTileTokens / 2 tokens; weights are expanded in registers,
// once for all tokens of the warp. Packed slabs and inputs come by 16-byte asynchronous copies
// through a ring of stages of 128 columns. Two sets of accumulators: of the block (mma) and of the
// segment; segments are added to `out` itself, whose elements have one owner. Missing tokens and
// rows are computed from zeros and not stored. Operations: 2 * N * Kdim * T.
#pragma once

#include "kernels/cuda/device/copy.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/product.cuh"

namespace ultraspeed::kernels::cuda {

constexpr int kTileThreads = 256;
constexpr int kBlockRowTiles = 8;                    // row tiles of a thread block
constexpr int kInputStride = kSlabColumns * 2 + 64;  // 64: eight rows hit all banks

template <WeightFormat kFormat, int kTileTokens>
struct TileStages {
  static constexpr int kWeightBytes = kBlockRowTiles * SlabBytes(kFormat);
  static constexpr int kStageBytes = kWeightBytes + kTileTokens * kInputStride;
  static constexpr int kNumStages = kTileTokens == 128 ? 3 : 4;
  static constexpr int kSharedBytes = kNumStages * kStageBytes + kTileTokens * 8;
  static_assert(kSharedBytes <= 227 * 1024);
};

// Adds what `out` holds already: earlier segments of the same elements, written by this thread.
__device__ __forceinline__ float4 AddStored(const Product& p, const TokenTile& tile, int row_tile,
                                            int i, int g, float4 v) {
  const auto stored = [&](int token, int row) {
    if (token >= tile.count || row >= p.num_rows) return 0.0f;
    const size_t slot = SlotOf(p, tile.first + token);
    return static_cast<const float*>(p.out)[slot * p.num_rows + row];
  };
  const int row = row_tile * kTileRows + g;
  return Add({stored(i, row), stored(i + 1, row), stored(i, row + 8), stored(i + 1, row + 8)}, v);
}

// Grid: row blocks, token tiles (of a MoE the most that there can be), segments (1 unless
// p.partials).
template <WeightFormat kFormat, int kTileTokens, Epilogue kEpilogue>
static __global__ void __launch_bounds__(kTileThreads, 1)
    TileProductKernel(const __grid_constant__ Product p) {
  using Stages = TileStages<kFormat, kTileTokens>;
  constexpr int kColumnTiles = kTileTokens / 16;  // of a warp
  extern __shared__ __align__(128) uint8_t shared[];
  const bf16** const rows =
      reinterpret_cast<const bf16**>(shared + Stages::kNumStages * Stages::kStageBytes);
  if (p.tiles != nullptr && blockIdx.y >= *p.num_tiles) return;
  const TokenTile tile = TileOf(p, blockIdx.y, kTileTokens);
  const int num_slabs = NumSlabs(p.num_cols);
  const int first_row_tile = blockIdx.x * kBlockRowTiles;
  const int num_row_tiles = NumRowTiles(p.num_rows);
  const uint8_t* const matrix = p.weights + tile.expert * p.expert_bytes;
  for (int i = threadIdx.x; i < kTileTokens; i += kTileThreads) {
    rows[i] = i < tile.count ? InputOf(p, tile.first + i) : p.x;
  }
  __syncthreads();

  const int first_slab = p.partials != nullptr ? blockIdx.z * p.segment_slabs : 0;
  const int end_slab =
      p.partials != nullptr ? min(first_slab + p.segment_slabs, num_slabs) : num_slabs;

  const auto load = [&](int slab) {
    if (slab < end_slab) {
      uint8_t* const stage =
          shared + (slab - first_slab) % Stages::kNumStages * Stages::kStageBytes;
      constexpr int kSlabPieces = SlabBytes(kFormat) / 16;
      for (int i = threadIdx.x; i < kBlockRowTiles * kSlabPieces; i += kTileThreads) {
        const int row_tile = first_row_tile + i / kSlabPieces;
        const bool valid = row_tile < num_row_tiles;
        const size_t index = static_cast<size_t>(valid ? row_tile : 0) * num_slabs + slab;
        CopyAsync16(stage + i * 16, matrix + index * SlabBytes(kFormat) + i % kSlabPieces * 16,
                    valid);
      }
      for (int i = threadIdx.x; i < kTileTokens * 16; i += kTileThreads) {
        const int row = i / 16, column = slab * kSlabColumns + i % 16 * 8;
        const bool valid = row < tile.count && column < p.num_cols;
        CopyAsync16(stage + Stages::kWeightBytes + row * kInputStride + i % 16 * 16,
                    rows[row] + (valid ? column : 0), valid);
      }
    }
    CommitCopies();  // also an empty group: the count of groups is the clock
  };

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int warp_row_tile = warp / 2 * 2;  // within the thread block
  const int warp_token = warp % 2 * (kTileTokens / 2);
  float sums[2][kColumnTiles][4] = {};
  float4 block_partials[2][kColumnTiles] = {};
  float4 totals[2][kColumnTiles] = {};
#pragma unroll
  for (int s = 0; s < Stages::kNumStages - 1; ++s) load(first_slab + s);

  for (int slab = first_slab; slab < end_slab; ++slab) {
    WaitCopies<Stages::kNumStages - 2>();
    __syncthreads();  // the stage is complete, and the one before it free
    load(slab + Stages::kNumStages - 1);

    const uint8_t* const stage =
        shared + (slab - first_slab) % Stages::kNumStages * Stages::kStageBytes;
    const Slab<kFormat> weights[2] = {{stage + warp_row_tile * SlabBytes(kFormat), lane},
                                      {stage + (warp_row_tile + 1) * SlabBytes(kFormat), lane}};
    const uint8_t* const x =
        stage + Stages::kWeightBytes + (warp_token + g) * kInputStride + t * 16;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      GroupFragments a[2];
      weights[0].Group(j, a[0]);
      weights[1].Group(j, a[1]);
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        const uint4 b = GainedInput<kFormat>(
            *reinterpret_cast<const uint4*>(x + c * 8 * kInputStride + j * 64));
        AddGroup<kFormat>(sums[0][c], weights[0], j, a[0], b);
        AddGroup<kFormat>(sums[1][c], weights[1], j, a[1], b);
      }
    }

    const int slabs_done = slab + 1 - first_slab;
    const bool ends_block = slabs_done % kBlockSlabs == 0 || slab + 1 == end_slab;
    if (ends_block || ScalesEverySlab(kFormat)) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const float2 scales = weights[m].Scales();
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) {
          EndSlab<kFormat>(block_partials[m][c], sums[m][c], scales, slabs_done % kBlockSlabs == 1);
          if (!ends_block) continue;
          totals[m][c] = Add(totals[m][c], EndBlock<kFormat>(block_partials[m][c], sums[m][c]));
          for (float& sum : sums[m][c]) sum = 0.0f;
        }
      }
    }
    if (slabs_done % p.segment_slabs == 0 || slab + 1 == end_slab) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const int row_tile = first_row_tile + warp_row_tile + m;
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) {
          const int column = warp_token + c * 8 + 2 * t;
          float4 total = totals[m][c];
          totals[m][c] = {};
          if (kEpilogue == Epilogue::kStore && p.partials != nullptr) {
            Store<kEpilogue>(SegmentOutput(p, blockIdx.z), tile, row_tile, column, g, total);
            continue;
          }
          if (kEpilogue == Epilogue::kStore && slabs_done > p.segment_slabs) {
            total = AddStored(p, tile, row_tile, column, g, total);
          }
          Store<kEpilogue>(p, tile, row_tile, column, g, total);
        }
      }
    }
  }
}

template <WeightFormat kFormat, int kTileTokens, Epilogue kEpilogue>
static void LaunchTileProduct(const Product& p, int num_token_tiles_max, cudaStream_t stream) {
  constexpr int kSharedBytes = TileStages<kFormat, kTileTokens>::kSharedBytes;
  const auto kernel = TileProductKernel<kFormat, kTileTokens, kEpilogue>;
  static OncePerDevice configured;
  configured.Run([&] {
    CheckCuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
        "TileProductKernel shared memory");
  });
  const dim3 grid(CeilDiv(NumRowTiles(p.num_rows), kBlockRowTiles), num_token_tiles_max,
                  p.partials != nullptr ? NumSegments(p) : 1);
  kernel<<<grid, kTileThreads, kSharedBytes, stream>>>(p);
  CheckLaunch("TileProductKernel");
}

}  // namespace ultraspeed::kernels::cuda
