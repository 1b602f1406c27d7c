// Matrix times rows: the task of most phases.
//
// A cluster's two thread blocks share its tiles: each multiplies half of the columns (its share),
// in blocks of two slabs, a warp each, from rows staged in shared memory. The partial sums travel
// to the block that finishes the tile, whose finisher warps add them in the order of
// weight_layout.h. Bytes: the matrix once; the rows from L2, once per cluster.
#pragma once

#include "kernels/cuda/resident/block_product.cuh"
#include "kernels/cuda/resident/draft_odds.cuh"
#include "kernels/cuda/resident/ring.cuh"
#include "kernels/cuda/resident/rows.cuh"

namespace ultraspeed::kernels::cuda::resident {

// What a consumer carries from phase to phase; a finisher, the exchange's alone.
struct ConsumerClock {
  RingReader ring;
  ExchangeClock exchange;
};

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

// What all warps together wait for before any gives an entry back must fit into the ring, beside
// the room that a piece which is not cut leaves at its end.
constexpr bool FitsRing(WeightFormat format) {
  return (kConsumerWarps + PieceBlocks(format)) * kBlockSlabs * SlabBytes(format) <= kRingBytes;
}
static_assert(FitsRing(WeightFormat::kBf16) && FitsRing(WeightFormat::kFp8Block128) &&
              FitsRing(WeightFormat::kMxfp4));

// All tiles of the walk. `num_free`: the first of them find the room for their partials free.
template <WeightFormat kFormat>
__device__ __forceinline__ void MultiplyTiles(const Block& block, ConsumerClock& clock,
                                              const TileWalk& walk, const Share& share,
                                              int num_slabs, int num_free, const Team& team,
                                              int lane) {
  if (share.count > 0) {
    const int slabs = min(2, num_slabs - 2 * (share.first + team.part));
    const PieceReader piece = PieceOf<kFormat>(share, team);
    Columns x;
    LoadColumns(StagedFragments(block, team.part, ShareSlabs(share, num_slabs), lane), slabs, x);
#pragma unroll 1  // the loop has to fit into the nearest instruction cache, with the finishers' one
    for (int i = team.works ? team.index : walk.end(); i < walk.end(); i += team.num_teams) {
      if (!walk.Exists(i)) continue;
      const uint32_t entry = walk.CountBefore(i) * piece.entries + piece.entry;
      const uint8_t* const data = clock.ring.Wait(block, entry) + piece.offset;
      const float4 partial = MultiplyBlock<kFormat>(data, slabs, x, lane);
      clock.ring.Release(block, entry, piece.arrivals, lane);
      const ExchangeSlot slot = clock.exchange.SlotOf(i);
      if (i >= num_free) {
        block.Wait(WaitsFor::kExchangeFree, [&] { return IsDone(slot.Free(block)); });
        __syncwarp();
      }
      SendPartial(block, slot, piece.index, partial, lane);
    }
    clock.ring.Advance(walk.CountBefore(walk.end()) * piece.entries);
  }
  clock.exchange.Advance(walk);
}

// The same for experts, whose tiles are dealt: all numbers of the walk exist. They are many, and
// what a warp waits for between two of them it asks for together; all lanes' answers end the inner
// loop. A branch that lanes might take apart, or the code of a wait within the loop, costs as much
// as the products of a group of columns.
__device__ __forceinline__ void MultiplyExpertTiles(const Block& block, ConsumerClock& clock,
                                                    const TileWalk& walk, const Share& share,
                                                    int num_slabs, const Team& team, int lane) {
  if (share.count > 0) {
    const int slabs = min(2, num_slabs - 2 * (share.first + team.part));
    const int last_slab = (slabs - 1) * SlabBytes(WeightFormat::kMxfp4);
    const PieceReader piece = PieceOf<WeightFormat::kMxfp4>(share, team);
    Columns x;
    LoadColumns(StagedFragments(block, team.part, ShareSlabs(share, num_slabs), lane), slabs, x);
    ExpertBlock weights;
    const uint8_t* data = nullptr;
    ExchangeSlot slot = {};
    const uint32_t end = walk.end();
    uint32_t next = team.works ? team.index : end;
    const auto read_next = [&] {
      data = clock.ring.At(block, next) + piece.offset;
      weights.ReadFirst(data, lane);
    };
    const auto send = [&] { SendPartial(block, slot, piece.index, weights.Partial(), lane); };
    // Lane 0 answers for the weights of the next tile, the others for the room for the partial.
    const auto is_ready = [&] {
      const BarrierPhase weights_there = clock.ring.Full(block, next);
      return IsDone(lane == 0 && next < end ? weights_there : slot.Free(block));
    };
    bool goes_on = __any_sync(kAllLanes, next < end);
    if (goes_on) {
      clock.ring.Wait(block, next);
      read_next();
    }
    while (goes_on) {
      for (;;) {
        const uint32_t entry = next;
        slot = clock.exchange.SlotOf(next);
        next += team.num_teams;
        bool ready = false;
        weights.Multiply(data, last_slab, x, lane, [&] {
          ready = is_ready();
          clock.ring.Release(block, entry, piece.arrivals, lane);
        });
        if (!__all_sync(kAllLanes, ready && next < end)) break;
        read_next();
        send();
      }
      block.Wait(WaitsFor::kWeights, [&] { return __all_sync(kAllLanes, is_ready()) != 0; });
      goes_on = __any_sync(kAllLanes, next < end);
      if (goes_on) read_next();
      send();
    }
    clock.ring.Advance(end);
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

// Weights that come long before their input are not in a hurry, and what the blocks tell each other
// meanwhile is: one copy at a time. `number`, here and below: of the product's first phase, which
// has its input when all bands have theirs.
__device__ __forceinline__ void Pace(const Block& block, uint32_t number, RingWriter& ring) {
  if (!block.HasInput(number)) ring.WaitForCopies(0);
}

__device__ __forceinline__ bool StreamProduct(const Block& block, const Phase& phase,
                                              uint32_t number, RingWriter& ring) {
  const TileWalk walk(block, phase.order, phase.num_tiles);
  const int slab_bytes = SlabBytes(phase.format);
  const size_t tile_bytes = static_cast<size_t>(phase.num_slabs) * slab_bytes;
  for (int pass = 0; pass < NumPasses(phase.num_slabs); ++pass) {
    const Share share = ShareOf(phase.num_slabs, pass, block.rank);
    if (share.count == 0) continue;
    const int share_slabs = ShareSlabs(share, phase.num_slabs);
    const uint8_t* const first = phase.weights + static_cast<size_t>(2 * share.first) * slab_bytes;
    // A head is bound by its reading; its first copies are few beside the rest.
    const bool is_short = walk.end() * share_slabs * slab_bytes <= 2 * kRingBytes;
    for (int i = 0; i < walk.end(); ++i) {
      if (is_short) Pace(block, number, ring);
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
  constexpr int kAtOnce = 6;  // read side by side
  const float4* partials = &block.shared().exchange[buffer][0][lane];
  int until_border = segment_blocks;
  if (share.pass_first > 0) {
    const int over = share.pass_first + segment_blocks - 1;
    until_border = Quotient(over, segment_blocks) * segment_blocks - share.pass_first;
  }
#pragma unroll 1
  for (int b = 0; b < share.pass_count;) {
    if (until_border == 0) {
      const bool ends_first = share.pass_first + b == segment_blocks;
      tile.sum = ends_first ? tile.total : Add(tile.sum, tile.total);
      tile.total = {};
      until_border = segment_blocks;
    }
    const int count = min(min(until_border, share.pass_count - b), kAtOnce);
    float4 next[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) next[i] = i < count ? partials[i * kWarpLanes] : float4{};
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (i < count) tile.total = Add(tile.total, next[i]);
    }
    b += count;
    until_border -= count;
    partials += count * kWarpLanes;
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
__device__ __forceinline__ void FinishTile(const Block& block, const Phase& phase, int band,
                                           int tile, int lane, float4 before, float4 v,
                                           BestOfRows& best) {
  if (phase.output == OutputKind::kResidual) {
    AddToResidual(block, phase, tile, before, v);
  } else if (phase.output == OutputKind::kFeatures) {
    for (int copy = 0; copy < phase.num_copies; ++copy) {
      WriteResidualTile(block, phase, band, tile + copy * phase.num_tiles, lane, v);
    }
  } else {
    StoreTile(phase.out, phase.out_stride, phase.num_rows, tile, lane, v);
    if (phase.output == OutputKind::kLogits) best.Offer(block, phase.draft_of, band, tile, lane, v);
  }
}

template <int kBands>
__device__ __forceinline__ void FinishProduct(const BandBlock<kBands>& block,
                                              ExchangeClock& exchange) {
  const Phase& phase = block.PhaseOf(Role::kFinisher);
  const int thread = Thread();
  const int warp = thread / kWarpLanes - kFirstFinisherWarp, lane = thread % kWarpLanes;
  const int num_passes = NumPasses(phase.num_slabs);
  const TileWalk walk(block, phase.order, phase.num_tiles);
  const int count = walk.OwnedCount(block.rank);
  const bool has_masks = HasMasks(block, phase);
  if (has_masks) WaitForMasks(block, warp, lane);
  BestOfRows best;
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
      const int buffer = ReceivePartials(block, exchange.Use(block.rank, place),
                                         share.pass_count * 32 * sizeof(float4), lane);
      AddPartials(block, buffer, share, phase.segment_blocks, lane, sum);
      FreeExchange(block, buffer, lane);
      if (!last) {
        carry[0] = sum.total;
        carry[32] = sum.sum;
        continue;
      }
      const bool one_segment = (phase.num_slabs + 1) / 2 <= phase.segment_blocks;
      float4 v = one_segment ? sum.total : Add(sum.sum, sum.total);
      if (has_masks) v = MaskedTile(block.program(), block.BandOf(phase), tile, lane, v);
      FinishTile(block, phase, block.BandOf(phase), tile, lane, before, v, best);
    }
    exchange.Advance(walk);
  }
  if (phase.output != OutputKind::kLogits) return;
  best.Publish(block, phase.draft_of, block.BandOf(phase), warp, lane);
  if (PublishesMass(block, phase.draft_of))
    PublishMasses(block, phase.draft_of, phase.out, phase.out_stride, walk);
}

template <int kBands>
__device__ __forceinline__ void MultiplyProduct(const BandBlock<kBands>& block, const Phase& phase,
                                                ConsumerClock& clock, const TileWalk& walk,
                                                const Share& share, const Team& team, int lane) {
  // All blocks have finished what was before, if not this product's earlier passes and bands.
  const int num_free = share.pass_first > 0 || block.BandOf(phase) > 0 ? 0 : kExchangeCycle;
  if (phase.format == WeightFormat::kBf16) {
    MultiplyTiles<WeightFormat::kBf16>(block, clock, walk, share, phase.num_slabs, num_free, team,
                                       lane);
  } else {  // only experts are MXFP4
    MultiplyTiles<WeightFormat::kFp8Block128>(block, clock, walk, share, phase.num_slabs, num_free,
                                              team, lane);
  }
}

}  // namespace ultraspeed::kernels::cuda::resident
