// The product for many tokens: tensor cores of whole warpgroups, fed by bulk copies.
//
// A thread block walks over items, each 128 rows x one token tile: two warpgroups multiply 64 rows
// each, a warp of the third copies packed slabs and inputs into a ring of stages of 128 columns,
// ahead across items. Weights are expanded from shared memory into registers, where wgmma takes
// them; inputs lie in memory as stages need them (wide_inputs.cuh). What lies behind a tile's last
// token is never stored, nor are missing rows, which repeat the last tile. Operations: 2 * N * Kdim
// * T.
#pragma once

#include <algorithm>

#include "kernels/cuda/device/copy.cuh"
#include "kernels/cuda/device/wgmma.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/product.cuh"
#include "kernels/cuda/wide_inputs.cuh"

namespace ultraspeed::kernels::cuda {

constexpr int kWarpgroupThreads = 128;
constexpr int kWideGroups = 2;  // warpgroups that multiply
constexpr int kWideThreads = (kWideGroups + 1) * kWarpgroupThreads;
constexpr int kWideRowTiles = kWideGroups * 4;  // a warp has one

template <WeightFormat kFormat, int kTokens>
struct WideStages {
  static constexpr int kBlocks = kTokens <= 32 ? 2 : 1;  // of a multiprocessor
  static constexpr int kInputBytes = InputStageBytes(kTokens);
  static constexpr int kBytes =
      (kInputBytes + kWideRowTiles * SlabBytes(kFormat) + 1023) / 1024 * 1024;
  static constexpr int kCount = std::min(8, (227 * 1024 / kBlocks - 1024) / kBytes);
  static constexpr int kSharedBytes = kCount * (kBytes + 2 * 8);
  static_assert(kCount >= 3);
  // Registers of a thread, by role; together what a launch of kBlocks gives.
  static constexpr int kProducerRegisters = 24;
  static constexpr int kConsumerRegisters = kBlocks == 2 ? 104 : 240;
};

// Items in the order of their numbers: row blocks of a token tile, tiles, segments (of p.partials).
// A thread block has a range of them.
struct WideItems {
  const Product& p;
  int tile_tokens;
  int num_row_blocks, num_tiles, first, last;

  __device__ __forceinline__ WideItems(const Product& product, int tokens)
      : p(product), tile_tokens(tokens) {
    num_row_blocks = (NumRowTiles(p.num_rows) + kWideRowTiles - 1) / kWideRowTiles;
    num_tiles = p.tiles != nullptr ? *p.num_tiles : (p.num_tokens + tile_tokens - 1) / tile_tokens;
    const int64_t count =
        int64_t{num_row_blocks} * num_tiles * (p.partials != nullptr ? NumSegments(p) : 1);
    first = static_cast<int>(count * blockIdx.x / gridDim.x);
    last = static_cast<int>(count * (blockIdx.x + 1) / gridDim.x);
  }
  __device__ __forceinline__ TokenTile Tile(int item) const {
    return TileOf(p, item / num_row_blocks % num_tiles, tile_tokens);
  }
  __device__ __forceinline__ int FirstRowTile(int item) const {
    return item % num_row_blocks * kWideRowTiles;
  }
  __device__ __forceinline__ int Segment(int item) const {
    return item / num_row_blocks / num_tiles;
  }
  __device__ __forceinline__ int FirstSlab(int item) const {
    return p.partials != nullptr ? Segment(item) * p.segment_slabs : 0;
  }
  __device__ __forceinline__ int EndSlab(int item) const {
    const int slabs = NumSlabs(p.num_cols);
    return p.partials != nullptr ? min(FirstSlab(item) + p.segment_slabs, slabs) : slabs;
  }
};

// The ring's stages in turn.
template <int kCount>
struct StageCursor {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Next() {
    if (++stage == kCount) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// The warp that fills the ring: its first eight lanes copy a row tile's slab each, two more inputs.
template <WeightFormat kFormat, int kTokens>
__device__ __forceinline__ void FillStages(const Product& p, uint8_t* stages, uint64_t* full,
                                           uint64_t* empty, int lane) {
  using Stages = WideStages<kFormat, kTokens>;
  if (lane >= kWideRowTiles + kInputParts) return;
  const WideItems items(p, kTokens);
  const int num_slabs = NumSlabs(p.num_cols);
  StageCursor<Stages::kCount> now;
  for (int item = items.first; item < items.last; ++item) {
    const TokenTile tile = items.Tile(item);
    const uint8_t* from;
    uint32_t bytes, step;
    int place;
    if (lane < kWideRowTiles) {
      const int row_tile = min(items.FirstRowTile(item) + lane, NumRowTiles(p.num_rows) - 1);
      bytes = step = SlabBytes(kFormat);
      from = p.weights + tile.expert * p.expert_bytes +
             static_cast<size_t>(row_tile) * num_slabs * step;
      place = Stages::kInputBytes + lane * step;
    } else {
      const int part = lane - kWideRowTiles;
      const WideInputs inputs = {tile.first_row, tile.count, num_slabs};
      bytes = inputs.part_bytes();
      step = inputs.slab_bytes();
      from = reinterpret_cast<const uint8_t*>(p.x) + inputs.Offset(0, part);
      place = part * kTokens * kInputRowBytes;
    }
    const int end_slab = items.EndSlab(item);
    for (int slab = items.FirstSlab(item); slab < end_slab; ++slab) {
      WaitBarrier(empty + now.stage, now.parity ^ 1);
      BulkCopy(stages + now.stage * Stages::kBytes + place, from + static_cast<size_t>(slab) * step,
               bytes, full + now.stage);
      now.Next();
    }
  }
}

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

// A warp's 16 rows x kTokens of the items of the thread block.
template <WeightFormat kFormat, int kTokens, Epilogue kEpilogue>
__device__ __forceinline__ void MultiplyStages(const Product& p, const uint8_t* stages,
                                               uint64_t* full, uint64_t* empty) {
  using Stages = WideStages<kFormat, kTokens>;
  constexpr int kColumnTiles = kTokens / 8;
  constexpr bool kScaledGroups = kFormat == WeightFormat::kMxfp4;
  constexpr int kBuffers = kTokens <= 64 ? 2 : 1;  // of the sums of scaled groups
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const WideItems items(p, kTokens);
  StageCursor<Stages::kCount> now;
  for (int item = items.first; item < items.last; ++item) {
    const TokenTile tile = items.Tile(item);
    const int row_tile = items.FirstRowTile(item) + warp;
    int slabs_left = items.EndSlab(item) - items.FirstSlab(item);
    int segment_slabs_left = p.segment_slabs;
    bool begins_block = true, first_segment = true;
    float sums[kColumnTiles][4];  // of a block; of a slab where slabs have scales
    float4 partials[kColumnTiles];
    float4 totals[kColumnTiles] = {};
    while (slabs_left > 0) {
      WaitBarrier(full + now.stage, now.parity);
      const uint8_t* const stage = stages + now.stage * Stages::kBytes;
      const Slab<kFormat> weights(stage + Stages::kInputBytes + warp * SlabBytes(kFormat), lane);
      const uint32_t inputs = SharedAddress(stage);
      const auto descriptor = [&](int j, int m) {
        return InputDescriptor(inputs + j / 2 * kTokens * kInputRowBytes + j % 2 * 64 + m * 32);
      };
      GroupFragments a[2];
      if constexpr (kScaledGroups) {
        if (begins_block) {
#pragma unroll
          for (int c = 0; c < kColumnTiles; ++c) Clear(sums[c]);
        }
        float groups[kBuffers][kColumnTiles][4];
        const auto add_group = [&](int j) {
          HoldSums(groups[j % kBuffers]);
#pragma unroll
          for (int c = 0; c < kColumnTiles; ++c) {
            AddScaled(sums[c], weights.exponents, j, groups[j % kBuffers][c]);
          }
        };
#pragma unroll
        for (int j = 0; j < kGroupsPerSlab; ++j) {
          weights.Group(j, a[j % 2]);
          if (kBuffers == 1 && j > 0) {
            WaitProducts<0>();
            add_group(j - 1);
          }
          FenceProducts();
          AddProduct(groups[j % kBuffers], a[j % 2][0], descriptor(j, 0), false);
          AddProduct(groups[j % kBuffers], a[j % 2][1], descriptor(j, 1), true);
          CommitProducts();
          if (kBuffers == 2 && j > 0) {
            WaitProducts<1>();
            add_group(j - 1);
          }
        }
        WaitProducts<0>();
        add_group(kGroupsPerSlab - 1);
      } else {
        const bool begins_sum = begins_block || ScalesEverySlab(kFormat);
#pragma unroll
        for (int j = 0; j < kGroupsPerSlab; ++j) {
          weights.Group(j, a[j % 2]);
          FenceProducts();
          AddProduct(sums, a[j % 2][0], descriptor(j, 0), j > 0 || !begins_sum);
          AddProduct(sums, a[j % 2][1], descriptor(j, 1), true);
          CommitProducts();
          WaitProducts<1>();
        }
        WaitProducts<0>();
        HoldSums(sums);
      }
      const float2 scales = weights.Scales();
      __syncwarp();
      if (lane == 0) Arrive(empty + now.stage);
      now.Next();
      --slabs_left;
      --segment_slabs_left;

      const bool ends_segment = segment_slabs_left == 0 || slabs_left == 0;
      if constexpr (ScalesEverySlab(kFormat)) {
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) {
          EndSlab<kFormat>(partials[c], sums[c], scales, begins_block);
        }
      }
      begins_block = !begins_block || ends_segment;  // the next slab
      if (begins_block) {
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) {
          totals[c] = Add(totals[c], EndBlock<kFormat>(partials[c], sums[c]));
        }
      }
      if (!ends_segment) continue;
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        const int token = c * 8 + 2 * t;
        float4 total = totals[c];
        totals[c] = {};
        if (kEpilogue == Epilogue::kStore && p.partials != nullptr) {
          Store<kEpilogue>(SegmentOutput(p, items.Segment(item)), tile, row_tile, token, g, total);
          continue;
        }
        if (kEpilogue == Epilogue::kStore && !first_segment) {
          total = AddStored(p, tile, row_tile, token, g, total);
        }
        Store<kEpilogue>(p, tile, row_tile, token, g, total);
      }
      segment_slabs_left = p.segment_slabs;
      first_segment = false;
    }
  }
}

template <WeightFormat kFormat, int kTokens, Epilogue kEpilogue>
static __global__ void __launch_bounds__(kWideThreads, (WideStages<kFormat, kTokens>::kBlocks))
    WideProductKernel(const __grid_constant__ Product p) {
  using Stages = WideStages<kFormat, kTokens>;
  extern __shared__ __align__(1024) uint8_t stages[];
  uint64_t* const full = reinterpret_cast<uint64_t*>(stages + Stages::kCount * Stages::kBytes);
  uint64_t* const empty = full + Stages::kCount;
  if (threadIdx.x == 0) {
    for (int s = 0; s < Stages::kCount; ++s) {
      InitBarrier(full + s, kWideRowTiles + kInputParts);  // copies
      InitBarrier(empty + s, kWideGroups * 4);             // warps
    }
    FenceBarrierInit();
  }
  __syncthreads();
  if (threadIdx.x >= kWideGroups * kWarpgroupThreads) {
    GiveRegisters<Stages::kProducerRegisters>();
    const int thread = threadIdx.x - kWideGroups * kWarpgroupThreads;
    if (thread < 32) FillStages<kFormat, kTokens>(p, stages, full, empty, thread);
  } else {
    TakeRegisters<Stages::kConsumerRegisters>();
    MultiplyStages<kFormat, kTokens, kEpilogue>(p, stages, full, empty);
  }
}

// p.x: arranged inputs (ArrangeInputs) of tiles of kTokens.
template <WeightFormat kFormat, int kTokens, Epilogue kEpilogue>
static void LaunchWideProduct(const Product& p, int num_token_tiles_max, cudaStream_t stream) {
  using Stages = WideStages<kFormat, kTokens>;
  const auto kernel = WideProductKernel<kFormat, kTokens, kEpilogue>;
  static OncePerDevice configured;
  configured.Run([&] {
    CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   Stages::kSharedBytes),
              "WideProductKernel shared memory");
  });
  const int64_t num_items = int64_t{CeilDiv(NumRowTiles(p.num_rows), kWideRowTiles)} *
                            num_token_tiles_max * (p.partials != nullptr ? NumSegments(p) : 1);
  const auto grid = static_cast<unsigned>(
      std::min<int64_t>(num_items, int64_t{NumMultiprocessors()} * Stages::kBlocks));
  kernel<<<grid, kWideThreads, Stages::kSharedBytes, stream>>>(p);
  CheckLaunch("WideProductKernel");
}

// ---- Inputs

// Grid: tiles, slabs. A thread has a group of 32 columns of a token.
template <WeightFormat kFormat>
static __global__ void ArrangeInputsKernel(const __grid_constant__ Product p, int tile_tokens,
                                           uint8_t* arranged) {
  const int slab = blockIdx.y;
  if (p.tiles != nullptr && blockIdx.x >= *p.num_tiles) return;
  const TokenTile tile = TileOf(p, blockIdx.x, tile_tokens);
  const WideInputs inputs = {tile.first_row, tile.count, NumSlabs(p.num_cols)};
  for (int i = threadIdx.x; i < tile.count * kGroupsPerSlab; i += blockDim.x) {
    const int token = i / kGroupsPerSlab, group = i % kGroupsPerSlab;
    const int column = slab * kSlabColumns + group * 32;
    uint4 lanes[4] = {};
    if (column < p.num_cols) {
      const auto* const from =
          reinterpret_cast<const uint4*>(InputOf(p, tile.first + token) + column);
#pragma unroll
      for (int t = 0; t < 4; ++t) lanes[t] = GainedInput<kFormat>(from[t]);
    }
    const auto piece = [&](int q) -> uint4& {
      return *reinterpret_cast<uint4*>(
          arranged + inputs.PieceOffset(slab, group / 2, token, group % 2 * 4 + q));
    };
    piece(0) = {lanes[0].x, lanes[1].x, lanes[2].x, lanes[3].x};
    piece(1) = {lanes[0].y, lanes[1].y, lanes[2].y, lanes[3].y};
    piece(2) = {lanes[0].z, lanes[1].z, lanes[2].z, lanes[3].z};
    piece(3) = {lanes[0].w, lanes[1].w, lanes[2].w, lanes[3].w};
  }
}

// Arranges the inputs of a product, times the format's gain, and makes them its x.
template <WeightFormat kFormat>
static void ArrangeInputs(Product& p, int tile_tokens, int num_tiles_max, void* arranged,
                          cudaStream_t stream) {
  const int threads = std::min(tile_tokens, 64) * kGroupsPerSlab;
  const dim3 grid(num_tiles_max, NumSlabs(p.num_cols));
  ArrangeInputsKernel<kFormat>
      <<<grid, threads, 0, stream>>>(p, tile_tokens, static_cast<uint8_t*>(arranged));
  CheckLaunch("ArrangeInputsKernel");
  p.x = static_cast<const bf16*>(arranged);
}

}  // namespace ultraspeed::kernels::cuda
