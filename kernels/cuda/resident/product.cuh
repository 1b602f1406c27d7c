// Matrix times rows: the task of most phases.
//
// A cluster's four thread blocks share its tiles: each multiplies a quarter of the columns (its
// share), in blocks of two slabs, a warp each, with the rows' columns in registers. The partial
// sums travel to the block that finishes the tile, whose finisher warps add them in the order of
// weight_layout.h. Bytes: the matrix once; the rows from L2, once per cluster.
#pragma once

#include "kernels/cuda/device/fragments.cuh"
#include "kernels/cuda/resident/choose.cuh"
#include "kernels/cuda/resident/ring.cuh"
#include "kernels/cuda/resident/rows.cuh"

namespace ultraspeed::kernels::cuda::resident {

// What a role carries from phase to phase.
struct ConsumerClock {
  RingReader ring;
  ExchangeClock exchange;
  uint32_t products = 0;  // phases with finishers' work so far
  uint32_t sums = 0;      // over ranks
  uint32_t moe_layers = 0;
};
struct FinisherClock {
  ExchangeClock exchange;
  uint32_t sums = 0;
  uint32_t moe_layers = 0;
};

// Adds the four groups of a slab. MXFP4 groups have sums of their own: two at a time, so that their
// chains overlap.
template <WeightFormat kFormat>
__device__ __forceinline__ void AddGroups(float (&sum)[4], const Slab<kFormat>& weights,
                                          const uint4* x) {
  if constexpr (kFormat == WeightFormat::kMxfp4) {
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      GroupFragments a, b;
      weights.Group(j, a);
      weights.Group(j + 1, b);
      float first[4] = {}, second[4] = {};
      Mma(first, a[0], x[j].x, x[j].y);
      Mma(second, b[0], x[j + 1].x, x[j + 1].y);
      Mma(first, a[1], x[j].z, x[j].w);
      Mma(second, b[1], x[j + 1].z, x[j + 1].w);
      AddScaled(sum, weights, j, first);
      AddScaled(sum, weights, j + 1, second);
    }
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      GroupFragments a;
      weights.Group(j, a);
      MmaGroup(sum, a, x[j]);
    }
  }
}

// The partial of one block of (up to) two slabs.
template <WeightFormat kFormat>
__device__ __forceinline__ float4 MultiplyBlock(const uint8_t* slabs, int num_slabs,
                                                const InputFragments& x, int lane) {
  float sum[4] = {};
  float4 partial = {};
  const Slab<kFormat> first(slabs, lane);
  AddGroups<kFormat>(sum, first, x);
  EndSlab<kFormat>(partial, sum, first.Scales(), true);
  if (num_slabs > 1) {
    const Slab<kFormat> second(slabs + SlabBytes(kFormat), lane);
    AddGroups<kFormat>(sum, second, x + 4);
    EndSlab<kFormat>(partial, sum, second.Scales(), false);
  }
  return EndBlock<kFormat>(partial, sum);
}

// All tiles of the walk: `team` and `x` of this warp.
template <WeightFormat kFormat>
__device__ __forceinline__ void MultiplyTiles(const Block& block, ConsumerClock& clock,
                                              const TileWalk& walk, const Share& share,
                                              int num_slabs, const Team& team,
                                              const InputFragments& x, int lane) {
  if (share.count > 0) {
    const int slabs = min(2, num_slabs - 2 * (share.first + team.part));
    const int offset = team.part * 2 * SlabBytes(kFormat);
    const int index = share.first - share.pass_first + team.part;  // of the partial, in the pass
    for (int i = team.works ? team.index : walk.end(); i < walk.end(); i += team.num_teams) {
      if (!walk.Exists(i)) continue;
      const int entry = walk.CountBefore(i);
      const uint8_t* const data = clock.ring.Wait(block, entry) + offset;
      const float4 partial = MultiplyBlock<kFormat>(data, slabs, x, lane);
      clock.ring.Release(block, entry, team.arrivals, lane);
      SendPartial(block, walk.Owner(i), clock.exchange.Use(walk.Owner(i), walk.Place(i)), index,
                  partial, lane);
    }
    clock.ring.Advance(walk.CountBefore(walk.end()));
  }
  clock.exchange.Advance(walk);
}

// ---- Roles

__device__ __forceinline__ bool StreamTiles(RingWriter& ring, const TileWalk& walk,
                                            const uint8_t* weights, const Share& share,
                                            int num_slabs, int slab_bytes) {
  if (share.count == 0) return true;
  const uint32_t bytes = ShareSlabs(share, num_slabs) * slab_bytes;
  const size_t tile_bytes = static_cast<size_t>(num_slabs) * slab_bytes;
  const uint8_t* const first = weights + static_cast<size_t>(2 * share.first) * slab_bytes;
  for (int i = 0; i < walk.end(); ++i) {
    if (walk.Exists(i) && !ring.Push(first + walk.Tile(i) * tile_bytes, bytes)) return false;
  }
  return true;
}

__device__ __forceinline__ bool StreamProduct(const Block& block, const Phase& phase,
                                              RingWriter& ring) {
  for (int pass = 0; pass < NumPasses(phase.num_slabs); ++pass) {
    const Share share = ShareOf(phase.num_slabs, pass, block.rank);
    if (!StreamTiles(ring, TileWalk(block, phase.order, phase.num_tiles), phase.weights, share,
                     phase.num_slabs, SlabBytes(phase.format))) {
      return false;
    }
  }
  return true;
}

// Partial sums of a tile, added in order; what earlier passes gave is carried in `sum`.
struct TileSum {
  float4 total, sum;  // of the segment, of the segments before
};
__device__ __forceinline__ void AddPartials(const Block& block, int buffer, const Share& share,
                                            int segment_blocks, int lane, TileSum& tile) {
#pragma unroll 8
  for (int b = 0; b < share.pass_count; ++b) {
    const int index = share.pass_first + b;
    if (index > 0 && index % segment_blocks == 0) {
      tile.sum = index == segment_blocks ? tile.total : AddTiles(tile.sum, tile.total);
      tile.total = {};
    }
    tile.total = AddTiles(tile.total, block.shared().exchange[buffer][b][lane]);
  }
}

__device__ __forceinline__ void StoreTile(float* out, int stride, int num_rows, int tile, int lane,
                                          float4 v) {
  const int column = tile * 16 + lane / 4;
  float* const low = out + static_cast<int64_t>(lane % 4 * 2) * stride + column;
  if (column < num_rows) {
    low[0] = v.x;
    low[stride] = v.y;
  }
  if (column + 8 < num_rows) {
    low[8] = v.z;
    low[stride + 8] = v.w;
  }
}

__device__ __forceinline__ void FinishTile(const Block& block, const Phase& phase, uint32_t sums,
                                           int tile, int lane, float4 before, float4 v,
                                           BestOfRows& best) {
  switch (phase.output) {
    case OutputKind::kStore:
      return StoreTile(phase.out, phase.out_stride, phase.num_rows, tile, lane, v);
    case OutputKind::kResidual:
      return AddToResidual(block, phase, sums, tile, lane, before, v);
    case OutputKind::kFeatures:
      for (int copy = 0; copy < phase.num_copies; ++copy) {
        WriteResidualTile(phase, block.program().hidden, tile + copy * phase.num_tiles, lane, v);
      }
      return;
    case OutputKind::kLogits:
      StoreTile(phase.out, phase.out_stride, phase.num_rows, tile, lane, v);
      return best.Offer(block.program(), tile, lane, v);
  }
}

static __device__ __noinline__ void FinishProduct(Block block, int which,
                                                  FinisherClock& kept_clock) {
  const Phase& phase = block.PhaseOf(Role::kFinisher, which);
  FinisherClock clock = kept_clock;
  const int warp = threadIdx.x / kWarpLanes - kFirstFinisherWarp, lane = threadIdx.x % kWarpLanes;
  const int num_passes = NumPasses(phase.num_slabs);
  const TileWalk walk(block, phase.order, phase.num_tiles);
  const int count = walk.OwnedCount(block.rank);
  BestOfRows best(block.program(), block.shared().state, phase.is_draft, lane);
  for (int pass = 0; pass < num_passes; ++pass) {
    const Share share = ShareOf(phase.num_slabs, pass, block.rank);
    for (int place = warp; place < count; place += kFinisherWarps) {
      const int tile = walk.TileAt(block.rank, place);
      const bool last = pass + 1 == num_passes;
      float4 before = {};
      if (last && phase.output == OutputKind::kResidual) {
        before = ReadResidualTile(phase, block.program().hidden, tile, lane);
      }
      float4* const carry = phase.carry + static_cast<int64_t>(tile) * 64 + lane;
      TileSum sum = {};
      if (pass > 0) sum = {carry[0], carry[32]};
      const int buffer = ReceivePartials(block, clock.exchange.Use(block.rank, place),
                                         share.pass_count * 32 * sizeof(float4), lane);
      AddPartials(block, buffer, share, phase.segment_blocks, lane, sum);
      FreeExchange(block, buffer, lane);
      if (!last) {
        carry[0] = sum.total;
        carry[32] = sum.sum;
        continue;
      }
      const bool one_segment = (phase.num_slabs + 1) / 2 <= phase.segment_blocks;
      FinishTile(block, phase, clock.sums, tile, lane, before,
                 one_segment ? sum.total : AddTiles(sum.sum, sum.total), best);
    }
    clock.exchange.Advance(walk);
  }
  if (phase.output == OutputKind::kResidual) clock.sums += 1;
  if (phase.output == OutputKind::kLogits) best.Publish(block, warp, lane, phase.is_draft);
  kept_clock = clock;
}

static __device__ __noinline__ void ConsumeProduct(Block block, int which, int phase_idx,
                                                   ConsumerClock& kept_clock) {
  const Phase& phase = block.PhaseOf(Role::kConsumer, which);
  ConsumerClock clock = kept_clock;
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
  for (int pass = 0; pass < NumPasses(phase.num_slabs); ++pass) {
    const Share share = ShareOf(phase.num_slabs, pass, block.rank);
    StageInput(block, which, share);
    if (pass == 0 && threadIdx.x == 0) block.Stamp(phase_idx, kTraceInputReady);
    const Team team = TeamOf(warp, share.count);
    InputFragments x;
    LoadFragments(block, team.part,
                  share.count == 0 ? 0 : phase.num_slabs - 2 * (share.first + team.part),
                  ShareSlabs(share, phase.num_slabs) * kSlabColumns, lane, x);
    const TileWalk walk(block, phase.order, phase.num_tiles);
    switch (phase.format) {
      case WeightFormat::kBf16:
        MultiplyTiles<WeightFormat::kBf16>(block, clock, walk, share, phase.num_slabs, team, x,
                                           lane);
        break;
      case WeightFormat::kFp8Block128:
        MultiplyTiles<WeightFormat::kFp8Block128>(block, clock, walk, share, phase.num_slabs, team,
                                                  x, lane);
        break;
      case WeightFormat::kMxfp4:  // only experts are
        break;
    }
    // The staging area is written again only once all warps have their fragments.
  }
  if (phase.output == OutputKind::kResidual) clock.sums += 1;
  kept_clock = clock;
}

}  // namespace ultraspeed::kernels::cuda::resident
