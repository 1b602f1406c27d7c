// The product for few tokens: weights pass once, at memory speed.
//
// One block per multiprocessor walks a contiguous range of units (a few row tiles of one group;
// a group is one token tile and, of a Linear too wide for shared memory, a few segments). Inputs of
// the group lie in shared memory. The blocks of a unit are dealt to the warps; each warp owns a
// ring of slabs that its lane 0 fills by bulk copies, ahead across units, so no barrier ever stops
// the stream. Partials of the blocks meet in shared memory, where one warp per 16 x 8 tile adds
// them in the fixed order. Bytes moved: the matrix, T * Kdim * 2 per multiprocessor (from L2).
#pragma once

#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/device/copy.cuh"
#include "kernels/cuda/device/grid_dependency.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/product.cuh"

namespace ultraspeed::kernels::cuda {

constexpr int kStreamWarps = 12;
constexpr int kStreamStagesMax = 8;
constexpr int kStreamSharedBytes = 227 * 1024;
constexpr int kStreamTokensMax = 8;  // of a tile, and of a Linear
constexpr int kStreamInputBytes = 100 * 1024;

// Slabs that travel as one bulk copy.
constexpr int StageSlabs(WeightFormat format) { return format == WeightFormat::kMxfp4 ? 2 : 1; }

// Sizes of a launch; a pure function of the product's shape and the tile's width.
struct StreamPlan {
  int segments_per_group;
  int num_groups_per_tile;
  int tiles_per_unit;  // row tiles
  int units_per_group;
  int input_stride;   // bytes; 64 beyond a multiple of 128, so that eight rows hit all banks
  int partial_count;  // 16 x 8 tiles of one of the two partial buffers
  int num_stages;     // of a warp's ring
};

template <WeightFormat kFormat>
StreamPlan PlanStream(const Product& p) {
  const int slabs = NumSlabs(p.num_cols);
  const int row_tiles = NumRowTiles(p.num_rows);
  const int segments = NumSegments(p);
  const int segment_bytes = p.segment_slabs * kSlabColumns * 2;
  StreamPlan plan = {};
  plan.segments_per_group =
      std::min(segments, (kStreamInputBytes / kStreamTokensMax - 64) / segment_bytes);
  KERNELS_CHECK(plan.segments_per_group, >, 0);
  plan.num_groups_per_tile = CeilDiv(segments, plan.segments_per_group);
  const int group_slabs = std::min(slabs, plan.segments_per_group * p.segment_slabs);
  const int blocks = CeilDiv(group_slabs, kBlockSlabs);
  // Two blocks a warp and unit, or more where a row tile has more.
  plan.tiles_per_unit = std::clamp(2 * kStreamWarps / blocks, 1, row_tiles);
  plan.units_per_group = CeilDiv(row_tiles, plan.tiles_per_unit);
  plan.input_stride = group_slabs * kSlabColumns * 2 + 64;
  plan.partial_count = plan.tiles_per_unit * blocks;
  const int ring_bytes = kStreamSharedBytes - plan.input_stride * kStreamTokensMax -
                         2 * plan.partial_count * 512 - kStreamWarps * kStreamStagesMax * 8;
  plan.num_stages = std::min(
      kStreamStagesMax, ring_bytes / (kStreamWarps * StageSlabs(kFormat) * SlabBytes(kFormat)));
  KERNELS_CHECK(plan.num_stages, >, 0);
  return plan;
}

// A warp's walk over its items of the units of this thread block. An item is a block of a row tile;
// items of a unit are numbered row tile by row tile and dealt to the warps in turn.
template <WeightFormat kFormat>
struct ItemCursor {
  const Product& p;
  const StreamPlan& plan;
  int warp;
  int unit, last_unit;
  // Of the unit:
  int first_row_tile = 0, num_items = 0, first_slab = 0, end_slab = 0, blocks = 1;
  int tile_step = 0, block_step = 0;  // kStreamWarps items on
  // Of the item:
  int item = 0, row_tile = 0, block = 0;

  __device__ __forceinline__ bool done() const { return unit >= last_unit; }

  __device__ __forceinline__ void EnterUnit() {
    const int part = unit / plan.units_per_group % plan.num_groups_per_tile;
    const int slabs_per_group = plan.segments_per_group * p.segment_slabs;
    first_slab = part * slabs_per_group;
    end_slab = min(NumSlabs(p.num_cols), first_slab + slabs_per_group);
    blocks = (end_slab - first_slab + kBlockSlabs - 1) / kBlockSlabs;
    first_row_tile = unit % plan.units_per_group * plan.tiles_per_unit;
    num_items = min(plan.tiles_per_unit, NumRowTiles(p.num_rows) - first_row_tile) * blocks;
    tile_step = kStreamWarps / blocks;
    block_step = kStreamWarps % blocks;
    item = warp;
    row_tile = first_row_tile + warp / blocks;
    block = warp % blocks;
  }
  __device__ __forceinline__ void NextItem() {
    item += kStreamWarps;
    row_tile += tile_step;
    block += block_step;
    if (block >= blocks) {
      block -= blocks;
      ++row_tile;
    }
  }
  __device__ __forceinline__ int block_slab() const { return first_slab + block * kBlockSlabs; }
  __device__ __forceinline__ int block_end_slab() const {
    return min(block_slab() + kBlockSlabs, end_slab);
  }
};

// Starts the bulk copies of a warp's items, in the order in which it will consume them.
template <WeightFormat kFormat>
struct Producer {
  ItemCursor<kFormat> cursor;
  uint8_t* ring;
  uint64_t* full;
  const uint8_t* matrix = nullptr;
  int slab = 0;

  __device__ __forceinline__ void Start() {
    if (cursor.done()) return;
    EnterUnit();
    SkipToItem();
  }
  // Fills `stage` with the next slabs, if there are any left.
  __device__ __forceinline__ void Fill(int stage, int lane) {
    constexpr int kStageBytes = StageSlabs(kFormat) * SlabBytes(kFormat);
    if (cursor.done()) return;
    const int count = min(StageSlabs(kFormat), cursor.block_end_slab() - slab);
    if (lane == 0) {
      const size_t index =
          static_cast<size_t>(cursor.row_tile) * NumSlabs(cursor.p.num_cols) + slab;
      BulkCopy(ring + stage * kStageBytes, matrix + index * SlabBytes(kFormat),
               count * SlabBytes(kFormat), full + stage);
    }
    slab += count;
    if (slab < cursor.block_end_slab()) return;
    cursor.NextItem();
    SkipToItem();
  }

 private:
  __device__ __forceinline__ void EnterUnit() {
    const Product& p = cursor.p;
    cursor.EnterUnit();
    const int tile = cursor.unit / cursor.plan.units_per_group / cursor.plan.num_groups_per_tile;
    matrix = p.weights + (p.tiles != nullptr ? p.tiles[tile].expert : 0) * p.expert_bytes;
  }
  // Units too small for this warp are passed over.
  __device__ __forceinline__ void SkipToItem() {
    while (cursor.item >= cursor.num_items) {
      ++cursor.unit;
      if (cursor.done()) return;
      EnterUnit();
    }
    slab = cursor.block_slab();
  }
};

// Rows of x of a group's tokens and columns into shared memory; columns past Kdim are zero, rows
// past the last token keep what was there (a token never sees its neighbours).
template <WeightFormat kFormat>
__device__ __forceinline__ void LoadInputs(const Product& p, const TokenTile& tile, int first_slab,
                                           int end_slab, int stride, uint8_t* inputs) {
  const int pieces = (end_slab - first_slab) * (kSlabColumns * 2 / 16);
  for (int i = threadIdx.x; i < tile.count * pieces; i += kStreamWarps * 32) {
    const int row = i / pieces, piece = i % pieces;
    const int column = first_slab * kSlabColumns + piece * 8;
    const bool valid = column < p.num_cols;
    CopyAsync16(inputs + row * stride + piece * 16,
                InputOf(p, tile.first + row) + (valid ? column : 0), valid);
  }
  CommitCopies();
  WaitCopies<0>();
  if constexpr (HasInputGain(kFormat)) {
    for (int i = threadIdx.x; i < tile.count * pieces; i += kStreamWarps * 32) {  // its own
      auto* const piece = reinterpret_cast<uint4*>(inputs + i / pieces * stride + i % pieces * 16);
      *piece = GainedInput<kFormat>(*piece);
    }
  }
}

template <WeightFormat kFormat, Epilogue kEpilogue>
static __global__ void __launch_bounds__(kStreamWarps * 32, 1)
    StreamProductKernel(const __grid_constant__ Product p,
                        const __grid_constant__ StreamPlan plan) {
  constexpr int kStageBytes = StageSlabs(kFormat) * SlabBytes(kFormat);
  extern __shared__ __align__(128) uint8_t shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  uint8_t* const inputs = shared;
  float4* const partials = reinterpret_cast<float4*>(inputs + kStreamTokensMax * plan.input_stride);
  uint8_t* const rings = reinterpret_cast<uint8_t*>(partials + 2 * plan.partial_count * 32);
  uint8_t* const ring = rings + warp * plan.num_stages * kStageBytes;
  uint64_t* const full =
      reinterpret_cast<uint64_t*>(rings + kStreamWarps * plan.num_stages * kStageBytes) +
      warp * plan.num_stages;
  if (lane == 0) {
    for (int s = 0; s < plan.num_stages; ++s) InitBarrier(full + s);
    FenceBarrierInit();
  }
  __syncwarp();
  AllowNextKernel();
  if (p.tiles != nullptr) WaitForEarlierKernels();  // the tiles say which weights

  const int num_token_tiles =
      p.tiles != nullptr ? *p.num_tiles : (p.num_tokens + kStreamTokensMax - 1) / kStreamTokensMax;
  const int64_t num_units =
      int64_t{num_token_tiles} * plan.num_groups_per_tile * plan.units_per_group;
  const int first_unit = static_cast<int>(num_units * blockIdx.x / gridDim.x);
  const int last_unit = static_cast<int>(num_units * (blockIdx.x + 1) / gridDim.x);

  Producer<kFormat> producer = {{p, plan, warp, first_unit, last_unit}, ring, full};
  producer.Start();
  for (int s = 0; s < plan.num_stages; ++s) producer.Fill(s, lane);
  if (p.tiles == nullptr) WaitForEarlierKernels();

  ItemCursor<kFormat> now = {p, plan, warp, first_unit, last_unit};
  int stage = 0;
  uint32_t parity = 0;
  int group = -1;
  TokenTile tile = {};
  for (int unit = first_unit; unit < last_unit; ++unit) {
    now.unit = unit;
    now.EnterUnit();
    if (unit / plan.units_per_group != group) {
      group = unit / plan.units_per_group;
      tile = TileOf(p, group / plan.num_groups_per_tile, kStreamTokensMax);
      __syncthreads();  // nobody reads the previous group's inputs any more
      LoadInputs<kFormat>(p, tile, now.first_slab, now.end_slab, plan.input_stride, inputs);
      __syncthreads();
    }
    float4* const buffer = partials + (unit & 1) * plan.partial_count * 32;

    for (; now.item < now.num_items; now.NextItem()) {
      float sum[4] = {};
      float4 partial = {};
      const int end_slab = now.block_end_slab();
      for (int slab = now.block_slab(); slab < end_slab;) {
        WaitBarrier(full + stage, parity);
#pragma unroll
        for (int i = 0; i < StageSlabs(kFormat); ++i) {
          if (slab < end_slab) {
            const Slab<kFormat> weights(ring + stage * kStageBytes + i * SlabBytes(kFormat), lane);
            const uint8_t* const x = inputs + g * plan.input_stride +
                                     (slab - now.first_slab) * (kSlabColumns * 2) + t * 16;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              GroupFragments a;
              weights.Group(j, a);
              AddGroup<kFormat>(sum, weights, j, a, *reinterpret_cast<const uint4*>(x + j * 64));
            }
            EndSlab<kFormat>(partial, sum, weights.Scales(), slab == now.block_slab());
            if constexpr (ScalesEverySlab(kFormat)) Clear(sum);
            ++slab;
          }
        }
        __syncwarp();  // every lane has read the stage
        producer.Fill(stage, lane);
        if (++stage == plan.num_stages) {
          stage = 0;
          parity ^= 1;
        }
      }
      buffer[now.item * 32 + lane] = EndBlock<kFormat>(partial, sum);
    }
    __syncthreads();

    // One warp adds the partials of a 16 x 8 tile. The other buffer is free for the next unit; this
    // one is written again only after the next barrier.
    const int segment_blocks = p.segment_slabs / kBlockSlabs;
    const int2 slots = SlotsOf(p, tile, 2 * t);
    const int num_sums = now.num_items / now.blocks;
    for (int i = (warp + unit) % kStreamWarps; i < num_sums; i += kStreamWarps) {
      const int row_tile = now.first_row_tile + i;
      const float4* const terms = buffer + i * now.blocks * 32 + lane;
      float4 sum = {};
      for (int begin = 0; begin < now.blocks; begin += segment_blocks) {
        float4 total = {};
        const int end = min(begin + segment_blocks, now.blocks);
#pragma unroll 8
        for (int b = begin; b < end; ++b) total = Add(total, terms[b * 32]);
        if (kEpilogue == Epilogue::kStore && p.partials != nullptr) {
          const int segment = (now.first_slab / kBlockSlabs + begin) / segment_blocks;
          Store<kEpilogue>(SegmentOutput(p, segment), tile, slots, row_tile, 2 * t, g, total);
        } else {
          sum = begin == 0 ? total : Add(sum, total);
        }
      }
      if (p.partials == nullptr) Store<kEpilogue>(p, tile, slots, row_tile, 2 * t, g, sum);
    }
  }
}

// Of a MoE the work is known on the device only: the grid is one block per multiprocessor anyway.
template <WeightFormat kFormat, Epilogue kEpilogue>
static void LaunchStreamProduct(const Product& p, cudaStream_t stream) {
  const StreamPlan plan = PlanStream<kFormat>(p);
  if (p.partials == nullptr) KERNELS_CHECK(plan.num_groups_per_tile, ==, 1);
  const auto kernel = StreamProductKernel<kFormat, kEpilogue>;
  static OncePerDevice configured;
  AllowSharedMemory(configured, kernel, kStreamSharedBytes, "StreamProductKernel shared memory");
  LaunchEarly(kernel, NumMultiprocessors(), kStreamWarps * 32, kStreamSharedBytes, stream, p, plan);
}

}  // namespace ultraspeed::kernels::cuda
