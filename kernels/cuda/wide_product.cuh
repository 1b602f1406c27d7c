// The product for many tokens: tensor cores of whole warpgroups, fed by bulk copies.
//
// A thread block walks over items, each 128 rows x one token tile: two warpgroups multiply 64 rows
// each, the third copies packed slabs and inputs into a ring of stages of 128 or 256 columns, ahead
// across items. Weights are expanded from shared memory into registers, where wgmma takes
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

constexpr int kWideGroups = 2;  // warpgroups that multiply
constexpr int kWideThreads = (kWideGroups + 1) * kWarpgroupThreads;
constexpr int kWideRowTiles = kWideGroups * 4;  // a warp has one

template <WeightFormat kFormat, int kTokens>
struct WideStages {
  static constexpr int kBlocks =  // of a multiprocessor
      kTokens <= 32 && kFormat != WeightFormat::kBf16 ? 2 : 1;
  // Small slabs travel in pairs: a bulk copy costs its issuer as much as some hundred bytes.
  static constexpr int kSlabs = kFormat == WeightFormat::kMxfp4 && kTokens <= 64 ? kBlockSlabs : 1;
  static constexpr int kInputBytes = kSlabs * kTokens * kInputParts * kInputRowBytes;
  static constexpr int kRowTileBytes = kSlabs * SlabBytes(kFormat);
  static constexpr int kBytes = (kInputBytes + kWideRowTiles * kRowTileBytes + 1023) / 1024 * 1024;
  static constexpr int kCount = std::min(8, (227 * 1024 / kBlocks - 1024) / kBytes);
  static constexpr int kSharedBytes = kCount * (kBytes + 2 * 8);
  static constexpr int kCopies = kWideRowTiles + 1;  // of a stage: row tiles, inputs
  static_assert(kCount >= 3);
  // Registers of a thread, by role; together what a launch of kBlocks gives.
  static constexpr int kProducerRegisters = 24;
  static constexpr int kConsumerRegisters = kBlocks == 2 ? 104 : 240;
};

// A thread block's walk over its items: units of a few row blocks of one token tile, every
// gridDim.x-th of them, so that blocks that run at one time share inputs. Units are numbered along
// a tile, then tiles, then segments (of p.partials).
struct WideItems {
  const Product& p;
  int tile_tokens, num_row_blocks, unit_row_blocks, tile_units, num_tiles;
  int unit, row_block, end_row_block, segment;
  TokenTile tile;  // of the item
  bool enters_tile = true;

  __device__ __forceinline__ WideItems(const Product& product, int tokens)
      : p(product), tile_tokens(tokens), unit(static_cast<int>(blockIdx.x)) {
    num_row_blocks = (NumRowTiles(p.num_rows) + kWideRowTiles - 1) / kWideRowTiles;
    // Experts have many tiles: down's row blocks go through the same few inputs.
    unit_row_blocks = p.tiles != nullptr ? max(1, num_row_blocks / 4) : 1;
    tile_units = (num_row_blocks + unit_row_blocks - 1) / unit_row_blocks;
    num_tiles = p.tiles != nullptr ? *p.num_tiles : (p.num_tokens + tile_tokens - 1) / tile_tokens;
    EnterUnit();
  }
  __device__ __forceinline__ bool done() const {
    return unit >= tile_units * num_tiles * (p.partials != nullptr ? NumSegments(p) : 1);
  }
  __device__ __forceinline__ void Next() {
    enters_tile = ++row_block == end_row_block;
    if (!enters_tile) return;
    unit += static_cast<int>(gridDim.x);
    EnterUnit();
  }
  __device__ __forceinline__ int FirstRowTile() const { return row_block * kWideRowTiles; }
  __device__ __forceinline__ int FirstSlab() const {
    return p.partials != nullptr ? segment * p.segment_slabs : 0;
  }
  __device__ __forceinline__ int EndSlab() const {
    const int slabs = NumSlabs(p.num_cols);
    return p.partials != nullptr ? min(FirstSlab() + p.segment_slabs, slabs) : slabs;
  }

 private:
  __device__ __forceinline__ void EnterUnit() {
    if (done()) return;
    const int tile_index = unit / tile_units;
    row_block = unit % tile_units * unit_row_blocks;
    end_row_block = min(row_block + unit_row_blocks, num_row_blocks);
    segment = tile_index / num_tiles;
    tile = TileOf(p, tile_index % num_tiles, tile_tokens);
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

// The warpgroup that fills the ring: two lanes of each warp copy row tiles, another inputs.
template <WeightFormat kFormat, int kTokens>
__device__ __forceinline__ void FillStages(const Product& p, uint8_t* stages, uint64_t* full,
                                           uint64_t* empty, int warp, int lane) {
  using Stages = WideStages<kFormat, kTokens>;
  constexpr int kRowTilesPerWarp = kWideRowTiles / 4;
  const bool copies_inputs = lane == kRowTilesPerWarp && warp == 0;
  if (lane >= kRowTilesPerWarp && !copies_inputs) return;
  const int tile_of_block = warp * kRowTilesPerWarp + lane;
  const int num_slabs = NumSlabs(p.num_cols);
  StageCursor<Stages::kCount> now;
  for (WideItems items(p, kTokens); !items.done(); items.Next()) {
    const WideInputs inputs = {items.tile.first_row, items.tile.count, num_slabs};
    const uint8_t* from;
    if (copies_inputs) {
      from = reinterpret_cast<const uint8_t*>(p.x) + inputs.Offset(0, 0);
    } else {
      const int row_tile = min(items.FirstRowTile() + tile_of_block, NumRowTiles(p.num_rows) - 1);
      from = p.weights + items.tile.expert * p.expert_bytes +
             static_cast<size_t>(row_tile) * num_slabs * SlabBytes(kFormat);
    }
    const uint32_t slab_bytes = copies_inputs ? inputs.slab_bytes() : SlabBytes(kFormat);
    const int place =
        copies_inputs ? 0 : Stages::kInputBytes + tile_of_block * Stages::kRowTileBytes;
    const int end_slab = items.EndSlab();
    for (int slab = items.FirstSlab(); slab < end_slab; slab += Stages::kSlabs) {
      WaitBarrier(empty + now.stage, now.parity ^ 1);
      BulkCopy(stages + now.stage * Stages::kBytes + place,
               from + static_cast<size_t>(slab) * slab_bytes,
               min(Stages::kSlabs, end_slab - slab) * slab_bytes, full + now.stage);
      now.Next();
    }
  }
}

// The two warpgroups take turns at the tensor cores where each has much to do between its products:
// side by side they would both multiply and then both not. Group 0 begins.
struct Turns {
  int group;

  // `taken`: whether Wait and Pass will be called.
  __device__ __forceinline__ Turns(int warpgroup, bool taken) : group(warpgroup) {
    if (taken && group == 1) Pass();
  }
  __device__ __forceinline__ void Wait() const {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(kWideGroups * kWarpgroupThreads)
                 : "memory");
  }
  __device__ __forceinline__ void Pass() const {
    asm volatile("bar.arrive %0, %1;" ::"r"(2 - group), "n"(kWideGroups * kWarpgroupThreads)
                 : "memory");
  }
};

// A warp's sums over the columns of an item: 16 rows x kTokens, as lanes hold mma results.
template <WeightFormat kFormat, int kTokens>
struct WideSums {
  static constexpr int kColumnTiles = kTokens / 8;
  static constexpr bool kScalesGroups = kFormat == WeightFormat::kMxfp4;
  static constexpr bool kTakesTurns = ScalesEverySlab(kFormat) && kTokens == 128;
  // Sums of groups that are on their way at once, where groups have scales.
  static constexpr int kGroupBuffers = kTokens == 16 ? 4 : kTokens <= 64 ? 2 : 1;

  float sums[kColumnTiles][4];    // of a block; of a slab where slabs have scales
  float4 partials[kColumnTiles];  // of a block, where slabs have scales
  float4 totals[kColumnTiles];    // of a segment

  // Where a slab's inputs are: the descriptor of the first part, how far the second is from it.
  struct Inputs {
    uint64_t descriptor;
    uint32_t part_stride;  // in 16 bytes
  };

  // Adds the columns of kSlabs slabs, of which the first begins a block or does not.
  template <int kSlabs, bool kBeginsBlock>
  __device__ __forceinline__ void AddSlabs(const Slab<kFormat> (&weights)[kSlabs],
                                           const Inputs& inputs, const Turns& turns) {
    if constexpr (kScalesGroups) {
      AddScaledGroups<kSlabs, kBeginsBlock>(weights, inputs);
    } else {
      static_assert(kSlabs == 1);
      AddGroups<kBeginsBlock>(weights[0], inputs, turns);
    }
  }
  __device__ __forceinline__ void EndBlocks() {
#pragma unroll
    for (int c = 0; c < kColumnTiles; ++c) {
      totals[c] = Add(totals[c], EndBlock<kFormat>(partials[c], sums[c]));
    }
  }

 private:
  template <bool kBeginsBlock>
  __device__ __forceinline__ void AddGroups(const Slab<kFormat>& weights, const Inputs& inputs,
                                            const Turns& turns) {
    constexpr bool kBeginsSum = kBeginsBlock || ScalesEverySlab(kFormat);
    GroupFragments a[2];
    if constexpr (kTakesTurns) turns.Wait();
#pragma unroll
    for (int j = 0; j < kGroupsPerSlab; ++j) {
      weights.Group(j, a[j % 2]);
      FenceProducts();
      AddProducts(sums, a[j % 2], inputs, j, j > 0 || !kBeginsSum);
      CommitProducts();
      if (j > 0) WaitProducts<1>();
    }
    if constexpr (kTakesTurns) turns.Pass();
    WaitProducts<0>();
    HoldSums(sums);
    if constexpr (ScalesEverySlab(kFormat)) {
      const float2 scales = weights.Scales();
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        EndSlab<kFormat>(partials[c], sums[c], scales, kBeginsBlock);
      }
    }
  }

  // Both products of group j of the first slab or of the one behind it.
  static __device__ __forceinline__ void AddProducts(float (&to)[kColumnTiles][4],
                                                     const GroupFragments& a, const Inputs& inputs,
                                                     int j, bool accumulate) {
    const uint64_t group =
        inputs.descriptor + j / 2 * inputs.part_stride + j % 2 * (kInputRowBytes / 2 / 16);
    AddProduct(to, a[0], group, accumulate);
    AddProduct(to, a[1], group + 32 / 16, true);
  }

  // While the products of some groups are on their way, the sums of those before are scaled.
  template <int kSlabs, bool kBeginsBlock>
  __device__ __forceinline__ void AddScaledGroups(const Slab<kFormat> (&weights)[kSlabs],
                                                  const Inputs& inputs) {
    constexpr int kGroups = kSlabs * kGroupsPerSlab, kBuffers = kGroupBuffers;
    float groups[kBuffers][kColumnTiles][4];
    GroupFragments a[std::max(kBuffers, 2)];
    const auto slab = [&](int j) -> const Slab<kFormat>& { return weights[j / kGroupsPerSlab]; };
    const auto add = [&](int j) {
      HoldSums(groups[j % kBuffers]);
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        if (kBeginsBlock && j == 0) Clear(sums[c]);
        AddScaled(sums[c], slab(j).exponents, j % kGroupsPerSlab, groups[j % kBuffers][c]);
      }
    };
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      // With one buffer the next weights are expanded while the last products are on their way.
      if (kBuffers == 1) slab(j).Group(j % kGroupsPerSlab, a[j % 2]);
      if (j >= kBuffers) {
        WaitProducts<kBuffers - 1>();
        add(j - kBuffers);
      }
      if (kBuffers > 1) slab(j).Group(j % kGroupsPerSlab, a[j % kBuffers]);
      FenceProducts();
      AddProducts(groups[j % kBuffers], a[j % std::max(kBuffers, 2)], inputs, j, false);
      CommitProducts();
    }
#pragma unroll
    for (int j = kGroups - kBuffers; j < kGroups; ++j) {
      if (j == kGroups - kBuffers) WaitProducts<kBuffers - 1>();
      if (j > kGroups - kBuffers) WaitProducts<0>();
      add(j);
    }
  }
};

// Adds what `out` holds already: earlier segments of the same elements, written by this thread.
__device__ __forceinline__ float4 AddStored(const Product& p, const TokenTile& tile, int2 slots,
                                            int row_tile, int i, int g, float4 v) {
  const auto stored = [&](int c, int row) {
    if (i + c >= tile.count || row >= p.num_rows) return 0.0f;
    const auto slot = static_cast<size_t>(c == 0 ? slots.x : slots.y);
    return static_cast<const float*>(p.out)[slot * p.num_rows + row];
  };
  const int row = row_tile * kTileRows + g;
  return Add({stored(0, row), stored(1, row), stored(0, row + 8), stored(1, row + 8)}, v);
}

// A warp's 16 rows x kTokens of the items of the thread block.
template <WeightFormat kFormat, int kTokens, Epilogue kEpilogue>
__device__ __forceinline__ void MultiplyStages(const Product& p, const uint8_t* stages,
                                               uint64_t* full, uint64_t* empty) {
  using Stages = WideStages<kFormat, kTokens>;
  using Sums = WideSums<kFormat, kTokens>;
  constexpr int kColumnTiles = Sums::kColumnTiles;
  // Slots are asked for before they are needed, where there are registers for them.
  constexpr bool kKeepsSlots = kEpilogue == Epilogue::kStore && kTokens <= 64;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const Turns turns(warp / 4, Sums::kTakesTurns);
  StageCursor<Stages::kCount> now;
  int2 slots[kKeepsSlots ? kColumnTiles : 1];
  for (WideItems items(p, kTokens); !items.done(); items.Next()) {
    const TokenTile& tile = items.tile;
    const int row_tile = items.FirstRowTile() + warp;
    if (kKeepsSlots && items.enters_tile) {
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        slots[kKeepsSlots ? c : 0] = SlotsOf(p, tile, c * 8 + 2 * t);
      }
    }
    const uint32_t part_stride = WideInputs::Rows(tile.count) * (kInputRowBytes / 16);
    Sums sums;
    // The next kSlabs slabs, of one stage.
    const auto add_slabs = [&]<int kSlabs, bool kBeginsBlock>() {
      WaitBarrier(full + now.stage, now.parity);
      const uint8_t* const stage = stages + now.stage * Stages::kBytes;
      const uint8_t* const first = stage + Stages::kInputBytes + warp * Stages::kRowTileBytes;
      Slab<kFormat> weights[kSlabs];
#pragma unroll
      for (int i = 0; i < kSlabs; ++i) weights[i] = {first + i * SlabBytes(kFormat), lane};
      sums.template AddSlabs<kSlabs, kBeginsBlock>(
          weights, {InputDescriptor(SharedAddress(stage)), part_stride}, turns);
      Arrive(empty + now.stage);
      now.Next();
    };
    int slabs_left = items.EndSlab() - items.FirstSlab();
    for (bool first_segment = true; slabs_left > 0; first_segment = false) {
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) sums.totals[c] = {};
      int segment_left = min(p.segment_slabs, slabs_left);
      slabs_left -= segment_left;
      for (; segment_left > 0; segment_left -= kBlockSlabs) {
        if (Stages::kSlabs > 1 && segment_left > 1) {
          add_slabs.template operator()<Stages::kSlabs, true>();
        } else {
          add_slabs.template operator()<1, true>();
          if (segment_left > 1) add_slabs.template operator()<1, false>();
        }
        sums.EndBlocks();
      }
      const Product& to = p.partials != nullptr ? SegmentOutput(p, items.segment) : p;
      const bool adds = kEpilogue == Epilogue::kStore && p.partials == nullptr && !first_segment;
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        const int token = c * 8 + 2 * t;
        const int2 pair = kKeepsSlots ? slots[kKeepsSlots ? c : 0] : SlotsOf(p, tile, token);
        float4 total = sums.totals[c];
        if (adds) total = AddStored(p, tile, pair, row_tile, token, g, total);
        Store<kEpilogue>(to, tile, pair, row_tile, token, g, total);
      }
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
      InitBarrier(full + s, Stages::kCopies);
      InitBarrier(empty + s, kWideGroups * kWarpgroupThreads);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  if (threadIdx.x >= kWideGroups * kWarpgroupThreads) {
    GiveRegisters<Stages::kProducerRegisters>();
    FillStages<kFormat, kTokens>(p, stages, full, empty, threadIdx.x / 32 - kWideGroups * 4,
                                 threadIdx.x % 32);
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
  AllowSharedMemory(configured, kernel, Stages::kSharedBytes, "WideProductKernel shared memory");
  const int64_t num_items = int64_t{CeilDiv(NumRowTiles(p.num_rows), kWideRowTiles)} *
                            num_token_tiles_max * (p.partials != nullptr ? NumSegments(p) : 1);
  const auto grid = static_cast<unsigned>(
      std::min<int64_t>(num_items, int64_t{NumMultiprocessors()} * Stages::kBlocks));
  kernel<<<grid, kWideThreads, Stages::kSharedBytes, stream>>>(p);
  CheckLaunch("WideProductKernel");
}

// ---- Inputs

constexpr int kArrangedSlabs = 4;  // of a thread

// Lane t of four has words [0, 4) of row t; afterwards it has word t of the four rows.
__device__ __forceinline__ uint4 Transpose(uint4 w, int t) {
  const auto exchange = [](uint32_t x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); };
  const bool odd = t % 2 == 1, upper = t >= 2;
  const uint32_t a = exchange(odd ? w.x : w.y, 1), b = exchange(odd ? w.z : w.w, 1);
  (odd ? w.x : w.y) = a;
  (odd ? w.z : w.w) = b;
  const uint32_t c = exchange(upper ? w.x : w.z, 2), d = exchange(upper ? w.y : w.w, 2);
  (upper ? w.x : w.z) = c;
  (upper ? w.y : w.w) = d;
  return w;
}

// Grid: tiles, groups of slabs. A thread has eight columns of a token in each of its slabs.
template <WeightFormat kFormat>
static __global__ void ArrangeInputsKernel(const __grid_constant__ Product p, int tile_tokens,
                                           uint8_t* arranged) {
  constexpr int kLanes = kSlabColumns / 8;
  if (p.tiles != nullptr && blockIdx.x >= *p.num_tiles) return;
  const TokenTile tile = TileOf(p, blockIdx.x, tile_tokens);
  const WideInputs inputs = {tile.first_row, tile.count, NumSlabs(p.num_cols)};
  const int lane = threadIdx.x % kLanes, first_slab = blockIdx.y * kArrangedSlabs;
  for (int first = 0; first < tile.count; first += blockDim.x / kLanes) {  // whole warps
    const int token = first + threadIdx.x / kLanes;
    const bf16* const row = InputOf(p, tile.first + min(token, tile.count - 1));
    uint4 words[kArrangedSlabs] = {};
#pragma unroll
    for (int i = 0; i < kArrangedSlabs; ++i) {
      const int column = (first_slab + i) * kSlabColumns + lane * 8;
      if (column < p.num_cols) words[i] = *reinterpret_cast<const uint4*>(row + column);
    }
#pragma unroll
    for (int i = 0; i < kArrangedSlabs; ++i) {
      const int slab = first_slab + i;
      const uint4 piece = Transpose(GainedInput<kFormat>(words[i]), lane % 4);
      if (token >= tile.count || slab >= inputs.num_slabs) continue;
      *reinterpret_cast<uint4*>(arranged + inputs.PieceOffset(slab, lane / 8, token, lane % 8)) =
          piece;
    }
  }
}

// Arranges the inputs of a product, times the format's gain, and makes them its x.
template <WeightFormat kFormat>
static void ArrangeInputs(Product& p, int tile_tokens, int num_tiles_max, void* arranged,
                          cudaStream_t stream) {
  const int threads = std::min(tile_tokens, 16) * (kSlabColumns / 8);
  const dim3 grid(num_tiles_max, CeilDiv(NumSlabs(p.num_cols), kArrangedSlabs));
  ArrangeInputsKernel<kFormat>
      <<<grid, threads, 0, stream>>>(p, tile_tokens, static_cast<uint8_t*>(arranged));
  CheckLaunch("ArrangeInputsKernel");
  p.x = static_cast<const bf16*>(arranged);
}

}  // namespace ultraspeed::kernels::cuda
