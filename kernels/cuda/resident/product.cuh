// Matrix times rows: the task of most phases.
//
// A cluster's two thread blocks share its tiles: each multiplies half of the columns (its share),
// in blocks of two slabs, a warp each, from rows staged in shared memory. The partial sums travel
// to the block that finishes the tile, whose finisher warps add them in the order of
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
};
struct FinisherClock {
  ExchangeClock exchange;
  uint32_t sums = 0;
  uint32_t moe_layers = 0;
};

// The partial of one block of (up to) two slabs; `x` as StagedFragments.
template <WeightFormat kFormat>
__device__ __forceinline__ float4 MultiplyBlock(const uint8_t* block, int num_slabs,
                                                const uint8_t* x, int lane) {
  if constexpr (kFormat == WeightFormat::kFp8Block128) {
    // Both slabs side by side; what a missing one gives is not taken.
    float sums[2][4] = {};
    const Slab<kFormat> slabs[2] = {Slab<kFormat>(block, lane),
                                    Slab<kFormat>(block + SlabBytes(kFormat), lane)};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        GroupFragments a;
        slabs[s].Group(j, a);
        MmaGroup(sums[s], a, StagedGroup(x, 4 * s + j));
      }
    }
    const float4 first = ScaledPartial(sums[0], slabs[0].Scales());
    return num_slabs > 1 ? Add(first, ScaledPartial(sums[1], slabs[1].Scales())) : first;
  } else {
    float sum[4] = {};
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      if (s >= num_slabs) break;
      const Slab<kFormat> slab(block + s * SlabBytes(kFormat), lane);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        GroupFragments a;
        slab.Group(j, a);
        AddGroup<kFormat>(sum, slab, j, a, StagedGroup(x, 4 * s + j));
      }
    }
    return {sum[0], sum[1], sum[2], sum[3]};
  }
}

// The partials of the same block of two slabs of kTiles tiles of MXFP4: columns are read once, and
// all chains of a slab overlap: what memory holds is asked for first, scales come last.
template <int kTiles>
__device__ __forceinline__ void MultiplyBlocks(const uint8_t* const (&blocks)[kTiles],
                                               int num_slabs, const uint8_t* x, int lane,
                                               float (&sums)[kTiles][4]) {
  constexpr WeightFormat kFormat = WeightFormat::kMxfp4;
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    if (s >= num_slabs) break;
    Slab<kFormat> slabs[kTiles];
    uint4 words[kTiles][2];  // [groups 2 i, 2 i + 1]
    uint4 columns[4];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      slabs[t] = Slab<kFormat>(blocks[t] + s * SlabBytes(kFormat), lane);
      const auto* const pieces = reinterpret_cast<const uint4*>(slabs[t].bytes) + lane;
      words[t][0] = pieces[0];
      words[t][1] = pieces[kWarpLanes];
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) columns[j] = StagedGroup(x, 4 * s + j);
    float groups[4][kTiles][4] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const uint4 w = words[t][j / 2];
        uint32_t pairs[4];
        GroupFragments a;
        ExpandMxfp4(j % 2 == 0 ? w.x : w.z, pairs);
        SetRow(a, 0, pairs);
        ExpandMxfp4(j % 2 == 0 ? w.y : w.w, pairs);
        SetRow(a, 1, pairs);
        MmaGroup(groups[j][t], a, columns[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) AddScaled(sums[t], slabs[t], j, groups[j][t]);
    }
  }
}

// Where a warp finds its part of a tile in the ring, and where its partials go.
struct PieceReader {
  int entries;        // of a tile
  int entry, offset;  // the warp's, in the tile; in the entry
  uint32_t arrivals;
  int index;  // of the warp's partials, in the pass
};
template <WeightFormat kFormat>
__device__ __forceinline__ PieceReader PieceOf(const Share& share, const Team& team) {
  constexpr int kPiece = PieceBlocks(kFormat);
  const int piece = team.part / kPiece, place = team.part % kPiece;
  return {.entries = NumPieces(share, kFormat),
          .entry = piece,
          .offset = place * 2 * SlabBytes(kFormat),
          .arrivals = EntryArrivals(min(kPiece, share.count - piece * kPiece), place),
          .index = share.first - share.pass_first + team.part};
}

__device__ __forceinline__ void ReleaseAndSend(const Block& block, ConsumerClock& clock,
                                               const TileWalk& walk, const PieceReader& piece,
                                               int number, float4 partial, int lane) {
  clock.ring.Release(block, walk.CountBefore(number) * piece.entries + piece.entry, piece.arrivals,
                     lane);
  const int owner = walk.Owner(number);
  SendPartial(block, owner, clock.exchange.Use(owner, walk.Place(number)), piece.index, partial,
              lane);
}

// What all warps together wait for before any gives an entry back must fit into the ring, beside
// the room that a piece which is not cut leaves at its end.
constexpr int TilesAtOnce(WeightFormat format) { return format == WeightFormat::kMxfp4 ? 2 : 1; }
constexpr bool FitsRing(WeightFormat format) {
  const int waited = kConsumerWarps * TilesAtOnce(format) * kBlockSlabs * SlabBytes(format);
  return waited + PieceBlocks(format) * kBlockSlabs * SlabBytes(format) <= kRingBytes;
}
static_assert(FitsRing(WeightFormat::kBf16) && FitsRing(WeightFormat::kFp8Block128) &&
              FitsRing(WeightFormat::kMxfp4));

// All tiles of the walk.
template <WeightFormat kFormat>
__device__ __forceinline__ void MultiplyTiles(const Block& block, ConsumerClock& clock,
                                              const TileWalk& walk, const Share& share,
                                              int num_slabs, const Team& team, int lane) {
  if (share.count > 0) {
    const int slabs = min(2, num_slabs - 2 * (share.first + team.part));
    const PieceReader piece = PieceOf<kFormat>(share, team);
    const uint8_t* const x = StagedFragments(block, team.part, ShareSlabs(share, num_slabs), lane);
    const auto wait = [&](int number) {
      return clock.ring.Wait(block, walk.CountBefore(number) * piece.entries + piece.entry) +
             piece.offset;
    };
    int i = team.works ? team.index : walk.end();
    if constexpr (TilesAtOnce(kFormat) == 2) {  // all of a dealt order exist
      for (; i + team.num_teams < walk.end(); i += 2 * team.num_teams) {
        const uint8_t* const data[2] = {wait(i), wait(i + team.num_teams)};
        float sums[2][4] = {};
        MultiplyBlocks<2>(data, slabs, x, lane, sums);
#pragma unroll
        for (int t = 0; t < 2; ++t) {
          ReleaseAndSend(block, clock, walk, piece, i + t * team.num_teams,
                         {sums[t][0], sums[t][1], sums[t][2], sums[t][3]}, lane);
        }
      }
    }
    for (; i < walk.end(); i += team.num_teams) {
      if (!walk.Exists(i)) continue;
      const float4 partial = MultiplyBlock<kFormat>(wait(i), slabs, x, lane);
      ReleaseAndSend(block, clock, walk, piece, i, partial, lane);
    }
    clock.ring.Advance(walk.CountBefore(walk.end()) * piece.entries);
  }
  clock.exchange.Advance(walk);
}

// ---- Roles

// The share's columns of one tile of format `format`, which begin at `data`.
__device__ __forceinline__ bool StreamTile(RingWriter& ring, const uint8_t* data,
                                           const Share& share, int share_slabs,
                                           WeightFormat format) {
  const int piece_slabs = 2 * PieceBlocks(format), slab_bytes = SlabBytes(format);
  for (int slab = 0; slab < share_slabs; slab += piece_slabs) {
    const int slabs = min(piece_slabs, share_slabs - slab);
    if (!ring.Push(data + slab * slab_bytes, slabs * slab_bytes)) return false;
  }
  return true;
}

__device__ __forceinline__ bool StreamProduct(const Block& block, const Phase& phase,
                                              RingWriter& ring) {
  const TileWalk walk(block, phase.order, phase.num_tiles);
  const int slab_bytes = SlabBytes(phase.format);
  const size_t tile_bytes = static_cast<size_t>(phase.num_slabs) * slab_bytes;
  for (int pass = 0; pass < NumPasses(phase.num_slabs); ++pass) {
    const Share share = ShareOf(phase.num_slabs, pass, block.rank);
    if (share.count == 0) continue;
    const int share_slabs = ShareSlabs(share, phase.num_slabs);
    const uint8_t* const first = phase.weights + static_cast<size_t>(2 * share.first) * slab_bytes;
    for (int i = 0; i < walk.end(); ++i) {
      if (walk.Exists(i) &&
          !StreamTile(ring, first + walk.Tile(i) * tile_bytes, share, share_slabs, phase.format)) {
        return false;
      }
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
  const float4* const partials = &block.shared().exchange[buffer][0][lane];
  int border = Quotient(share.pass_first + segment_blocks - 1, segment_blocks) * segment_blocks;
#pragma unroll 6
  for (int b = 0; b < share.pass_count; ++b) {
    const int index = share.pass_first + b;
    if (index == border) {
      border += segment_blocks;
      if (index > 0) {
        tile.sum = index == segment_blocks ? tile.total : AddTiles(tile.sum, tile.total);
        tile.total = {};
      }
    }
    tile.total = AddTiles(tile.total, partials[b * kWarpLanes]);
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

// A finished tile goes where the phase's output goes.
__device__ __forceinline__ void FinishTile(const Block& block, const Phase& phase, uint32_t sums,
                                           int tile, int lane, float4 before, float4 v,
                                           BestOfRows& best) {
  if (phase.output == OutputKind::kResidual) {
    AddToResidual(block, phase, sums, tile, before, v);
  } else if (phase.output == OutputKind::kFeatures) {
    for (int copy = 0; copy < phase.num_copies; ++copy) {
      WriteResidualTile(phase, block.program().hidden, tile + copy * phase.num_tiles, lane, v);
    }
  } else {
    StoreTile(phase.out, phase.out_stride, phase.num_rows, tile, lane, v);
    if (phase.output == OutputKind::kLogits) best.Offer(block.program(), tile, lane, v);
  }
}

__device__ __forceinline__ void FinishProduct(const Block& block, int which, FinisherClock& clock) {
  const Phase& phase = block.PhaseOf(Role::kFinisher, which);
  const int thread = Thread();
  const int warp = thread / kWarpLanes - kFirstFinisherWarp, lane = thread % kWarpLanes;
  const int num_passes = NumPasses(phase.num_slabs);
  if (phase.input == InputKind::kNorm) MakeScales(block, phase);  // of one pass (resident_schedule)
  const TileWalk walk(block, phase.order, phase.num_tiles);
  const int count = walk.OwnedCount(block.rank);
  BestOfRows best(block.program(), block.shared().state, phase.is_draft, lane);
#pragma unroll 1
  for (int pass = 0; pass < num_passes; ++pass) {
    const Share share = ShareOf(phase.num_slabs, pass, block.rank);
#pragma unroll 1
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
}

__device__ __forceinline__ void MultiplyProduct(const Block& block, const Phase& phase,
                                                ConsumerClock& clock, const Share& share,
                                                const Team& team, int lane) {
  const TileWalk walk(block, phase.order, phase.num_tiles);
  if (phase.format == WeightFormat::kBf16) {
    MultiplyTiles<WeightFormat::kBf16>(block, clock, walk, share, phase.num_slabs, team, lane);
  } else {  // only experts are MXFP4
    MultiplyTiles<WeightFormat::kFp8Block128>(block, clock, walk, share, phase.num_slabs, team,
                                              lane);
  }
}

}  // namespace ultraspeed::kernels::cuda::resident
