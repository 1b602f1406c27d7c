// Mixture of experts of a round's rows, in two phases.
//
// Up: every block multiplies its own columns of the residual stream with the router and sends the
// sums to the blocks that add them up; each of those makes the scores of some experts. Every block
// chooses the top K of every row for itself, so the choice is never sent; a band's union of chosen
// experts, ascending, is its list of gate-and-up tiles, and all of its rows pass through every tile
// (a row that did not choose the expert costs nothing but its result). The first band's phase
// chooses for all of them, so the others' weights follow without a wait.
// Down: a block owns the same rows of the residual stream for all experts; its warps share the
// experts, and the results are added up for each row. Bytes: the matrices of the chosen
// experts once.
#pragma once

#include "kernels/cuda/resident/choose_experts.cuh"

namespace ultraspeed::kernels::cuda::resident {

constexpr int kResultStride = 132;  // floats of a slot's results in the exchange area
constexpr int kDownTilesMax = kResultStride / kTileRows;
static_assert(kOwnedTilesMax <= kDownTilesMax);
static_assert(kSlotsMax * kResultStride * sizeof(float) <= sizeof(Shared::exchange));
static_assert(kSlotsMax * kSlotStride <= kStagingBytes);

// ---- Up

template <int kBands>
__device__ __forceinline__ bool StreamMoeUp(const BandBlock<kBands>& block, const Phase& phase,
                                            uint32_t number, RingWriter& ring,
                                            uint32_t moe_layers) {
  const int band = block.BandOf(phase);
  const Share share = ShareOf(phase.num_slabs, 0, block.rank);
  constexpr int kSlabSize = SlabBytes(WeightFormat::kMxfp4);
  const uint32_t tile_bytes = phase.num_slabs * kSlabSize;
  const uint32_t entry_bytes = ShareSlabs(share, phase.num_slabs) * kSlabSize;
  const size_t expert_bytes = phase.expert_bytes;
  const uint8_t* const weights = phase.weights + 2 * share.first * kSlabSize;
  // Tiles cluster, cluster + num_clusters, ... of all experts' in a row.
  const int num_tiles = phase.num_tiles;
  const int expert_step = Quotient(block.num_clusters, num_tiles);
  const int tile_step = block.num_clusters - expert_step * num_tiles;
  int expert = Quotient(block.cluster, num_tiles), tile = block.cluster - expert * num_tiles;
  if (band == 0) {
    if (!StreamRouter(block, phase, number, ring) || !ring.TakeBack()) return false;
    bool chosen = false;
    block.Wait(WaitsFor::kExpertChoice, [&] {
      chosen = IsDone(&block.shared().experts_chosen, moe_layers & 1);
      return __all_sync(kAllLanes, chosen || block.shared().exits != 0) != 0;
    });
    if (!__all_sync(kAllLanes, chosen)) return false;
    ListExperts(block, block.program().num_bands);
  }
  if (share.count == 0) return true;
  const ExpertList& list = block.shared().lists[band];
  const int num_experts = list.num_experts;
#pragma unroll 1
  while (expert < num_experts) {
    const uint8_t* const data = weights + list.experts[expert] * expert_bytes;
    if (!ring.Push(data + tile * tile_bytes, entry_bytes)) return false;
    tile += tile_step;
    const bool wraps = tile >= num_tiles;
    tile -= wraps ? num_tiles : 0;
    expert += expert_step + wraps;
  }
  return true;
}

template <int kBands>
__device__ __forceinline__ void MultiplyMoeUp(const BandBlock<kBands>& block, const Phase& phase,
                                              ConsumerClock& clock, const Share& share,
                                              const Team& team, int lane) {
  const int band = block.BandOf(phase);
  if (band == 0) {
    ClearChoices(block);
    NamedBarrier<kConsumerBarrier, kConsumerThreads>();
    ChooseExperts(block, phase);
  }
  if (Thread() == 0) block.Stamp(phase.index, kTraceInputReady);
  const TileWalk walk(block, TileOrder::kDealt,
                      block.shared().choices[band].num_experts * phase.num_tiles);
  MultiplyExpertTiles(block, clock, walk, share, phase.num_slabs, team, lane);
}

// Whether the cluster has tiles of a band whose experts are known. If not, it must not look for the
// band's rows: nobody waits for it before they make room for the next ones.
__device__ __forceinline__ bool HasExpertTiles(const Block& block, const Phase& phase) {
  return block.cluster < block.shared().choices[phase.band].num_experts * phase.num_tiles;
}

// Phases that multiply staged rows.
template <int kBands>
__device__ __forceinline__ void ConsumeProduct(const BandBlock<kBands>& block, const Phase& phase,
                                               ConsumerClock& clock) {
  const int warp = Thread() / kWarpLanes, lane = Thread() % kWarpLanes;
  const int band = block.BandOf(phase);
  if (phase.kind == PhaseKind::kMoeUp && band > 0 && !HasExpertTiles(block, phase)) return;
  for (int pass = 0; pass < NumPasses(phase.num_slabs); ++pass) {
    // The staging area is written again only when all warps are done with it.
    if (pass > 0) NamedBarrier<kConsumerBarrier, kConsumerThreads>();
    if (phase.kind == PhaseKind::kMoeUp && band == 0) {
      MultiplyRouter(block, phase, clock, warp, lane);
      MakeScales(block, phase);
    }
    // What does not depend on the input comes first: everybody waits for that.
    const Share share = ShareOf(phase.num_slabs, pass, block.rank);
    const Team team = TeamOf(warp, share.count);
    const TileWalk walk(block, phase.order, phase.num_tiles);
    StageInput(block, phase, pass);
    if (phase.kind == PhaseKind::kMoeUp) {
      MultiplyMoeUp(block, phase, clock, share, team, lane);
    } else {
      if (pass == 0 && Thread() == 0) block.Stamp(phase.index, kTraceInputReady);
      MultiplyProduct(block, phase, clock, walk, share, team, lane);
    }
  }
}

// Gate (rows g) times up (rows g + 8) of the rows that chose the expert. A lane and the one four
// further have neighbouring columns of two rows: each sends the pair of one row.
__device__ __forceinline__ void SendActivations(const Block& block, const Phase& phase, int tile,
                                                int lane, float4 v) {
  const int expert = Quotient(tile, phase.num_tiles);
  const bool takes_odd = lane / 4 % 2 != 0;
  const uint32_t even = SwiGluProduct(v.x, v.z), odd = SwiGluProduct(v.y, v.w);
  const uint32_t other = __shfl_xor_sync(kAllLanes, takes_odd ? even : odd, 4);
  const uint32_t pair = takes_odd ? other | odd << 16 : even | other << 16;
  const int slot = block.shared().choices[phase.band].slot_of[expert][lane % 4 * 2 + takes_odd];
  if (slot < 0) return;
  const int pair_idx = (tile - expert * phase.num_tiles) * 4 + lane / 8;
  __stcg(MoeActivations(block, phase, phase.band) + slot * (phase.ffn_width / 2) + pair_idx,
         FlaggedWord(MultiplyBf16x2(pair, kInputGain)));
}

template <int kBands>
__device__ __forceinline__ void FinishMoeUp(const BandBlock<kBands>& block,
                                            ExchangeClock& exchange) {
  const Phase& phase = block.PhaseOf(Role::kFinisher);
  const int warp = Thread() / kWarpLanes - kFirstFinisherWarp, lane = Thread() % kWarpLanes;
  const int of_phase = block.BandOf(phase);
  if (of_phase == 0) {
#pragma unroll 1
    for (int band = 0; band < kBands; ++band) FinishRouter(block, phase, band);
    NamedBarrier<kFinisherBarrier, kFinisherThreads>();
    if (warp == 0 && lane == 0) {
      block.WaitForInput(phase);
      Announce(block.Counter(phase.inner_counter));
    }
    block.WaitBarrier(WaitsFor::kExpertChoice, &block.shared().slots_known,
                      block.SinceStart(&Tally::moe_layers, phase) & 1);
    EmptyOtherMail(block, phase);
  }
  const Share share = ShareOf(phase.num_slabs, 0, block.rank);
  const TileWalk walk(block, TileOrder::kDealt,
                      block.shared().choices[of_phase].num_experts * phase.num_tiles);
  for (int place = warp; place < walk.OwnedCount(block.rank); place += kFinisherWarps) {
    TileSum sum = {};
    const int buffer = ReceivePartials(block, exchange.Use(block.rank, place),
                                       share.pass_count * 32 * sizeof(float4), lane);
    AddPartials(block, buffer, share, kPassBlocks, lane, sum);
    FreeExchange(block, buffer, lane);
    SendActivations(block, phase, walk.TileAt(block.rank, place), lane, sum.total);
  }
  exchange.Advance(walk);
}

// ---- Down

constexpr int kDownGroup = 4;  // experts of an entry: starting one costs the producer much the same
static_assert(kConsumerWarps % kDownGroup == 0);

// The block's tiles of every expert, an entry for a few of them.
__device__ __forceinline__ bool StreamMoeDown(const Block& block, const Phase& phase,
                                              RingWriter& ring, int lane) {
  const TileWalk walk(block, TileOrder::kOwned, phase.num_tiles);
  const int count = walk.OwnedCount(block.rank);
  if (count == 0) return true;
  const int tile_bytes = phase.num_slabs * SlabBytes(WeightFormat::kMxfp4);
  const ExpertList& list = block.shared().lists[phase.band];
  const int num_experts = list.num_experts;
  const size_t expert_bytes = phase.expert_bytes;
  const uint8_t* const tiles =
      phase.weights + static_cast<size_t>(walk.FirstOwned(block.rank)) * tile_bytes;
#pragma unroll 1
  for (int i = 0; i < num_experts; i += kDownGroup) {
    const int group = min(kDownGroup, num_experts - i);
    const int expert = list.experts[i + min(lane, group - 1)];
    if (!ring.PushSeveral(group, count * tile_bytes, tiles + expert * expert_bytes)) return false;
  }
  return true;
}

// A warp's part of the mail: the rows of one expert, on their way into the staging area. A lane
// has the row lane / 4 of the round, if that chose the expert.
class ExpertRows {
 public:
  __device__ __forceinline__ ExpertRows(const Block& block, const Phase& phase, int lane)
      : from_(reinterpret_cast<const uint8_t*>(MoeActivations(block, phase, phase.band)) +
              lane % 4 * 16),
        staged_(block.shared().staging + lane % 4 * 16),
        row_bytes_(phase.ffn_width * sizeof(bf16)) {}

  __device__ __forceinline__ void Request(int slot) const {
    if (slot >= 0) {
#pragma unroll
      for (int j = 0; j < 2 * kGroupsPerSlab; ++j) {  // past the width: zeros
        CopyAsync16(staged_ + slot * kSlotStride + j * 64, from_ + slot * row_bytes_ + j * 64,
                    j * 64 < row_bytes_);
      }
    }
    CommitCopies();
  }
  // Whether the lane's part of what was requested had been sent by then; rows that did not choose
  // the expert are zeros.
  __device__ __forceinline__ bool Take(int slot, Columns& x) const {
    WaitCopies<0>();
#pragma unroll
    for (int j = 0; j < 2 * kGroupsPerSlab; ++j) {
      x[j] = slot >= 0 ? StagedGroup(staged_ + slot * kSlotStride, j) : uint4{};
    }
    return HaveArrived(x);
  }

 private:
  const uint8_t* const from_;
  uint8_t* const staged_;
  const int row_bytes_;
};

// Expert i is warp i % kConsumerWarps's, with all of the block's tiles. Its rows may still be under
// way when its turn comes: the phase before ends while this one goes on.
__device__ __forceinline__ void MultiplyDown(const Block& block, const Phase& phase,
                                             ConsumerClock& clock, int lane) {
  const TileWalk walk(block, TileOrder::kOwned, phase.num_tiles);
  const int count = walk.OwnedCount(block.rank);
  if (count == 0) return;
  const ExpertChoice& choice = block.shared().choices[phase.band];
  const int num_experts = choice.num_experts;
  const int tile_bytes = phase.num_slabs * SlabBytes(WeightFormat::kMxfp4);
  const int last_slab = (phase.num_slabs - 1) * SlabBytes(WeightFormat::kMxfp4);
  auto* const results = reinterpret_cast<float*>(block.shared().exchange) + lane / 4;
  const ExpertRows rows(block, phase, lane);
  const uint32_t products_before = block.SinceStart(&Tally::products, phase);
  const auto request = [&](int i) {
    if (i < num_experts) rows.Request(choice.slot_of[i][lane / 4]);
  };
  Columns x;
  // Results lie where the sums of the phase before did: its finishers must be done.
  const auto is_ready = [&](int i) {
    const bool has_weights = clock.ring.IsThere(block, i / kDownGroup);
    const bool has_rows = rows.Take(choice.slot_of[i][lane / 4], x);
    return has_weights && has_rows && block.FinishersAreDone(products_before);
  };
  int i = Thread() / kWarpLanes;
  request(i);
  while (__any_sync(kAllLanes, i < num_experts)) {
#pragma unroll 1
    for (; i < num_experts; i += kConsumerWarps) {
      const int8_t* const slot_of = choice.slot_of[i];
      if (!__all_sync(kAllLanes, is_ready(i))) break;
      request(i + kConsumerWarps);
      const int even = slot_of[lane % 4 * 2], odd = slot_of[lane % 4 * 2 + 1];
      const int place = i % kDownGroup;
      const uint8_t* data = clock.ring.At(block, i / kDownGroup) + place * count * tile_bytes;
      ExpertBlock weights;
      weights.ReadFirst(data, lane);
#pragma unroll 1
      for (int tile = 0; tile < count; ++tile, data += tile_bytes) {
        weights.Multiply(data, last_slab, x, lane, [] {});
        if (tile + 1 < count) weights.ReadFirst(data + tile_bytes, lane);
        const float4 v = weights.Partial();
        const auto store = [&](int to_slot, float low, float high) {
          if (to_slot < 0) return;
          float* const result = results + to_slot * kResultStride + tile * kTileRows;
          result[0] = low;
          result[8] = high;
        };
        store(even, v.x, v.z);
        store(odd, v.y, v.w);
      }
      const int readers = min(kDownGroup, num_experts - (i - place));
      clock.ring.Release(block, i / kDownGroup, EntryArrivals(readers, place), lane);
    }
    if (__any_sync(kAllLanes, i < num_experts)) {
      block.Wait(WaitsFor::kExpertRows, [&] {
        request(i);
        return __all_sync(kAllLanes, is_ready(i)) != 0;
      });
    }
  }
  clock.ring.Advance((num_experts + kDownGroup - 1) / kDownGroup);
}

// The block's tiles of the residual stream. A tile takes a round trip to the other ranks, so all of
// them are finished at once: by the finishers, and by consumers that have multiplied theirs.
constexpr int kDownWarps = kFinisherWarps + kConsumerWarps;
static __device__ __noinline__ void FinishDown(Block block, int role, int member) {
  const Phase& phase = block.PhaseOf(static_cast<Role>(role));
  const int lane = Thread() % kWarpLanes;
  const TileWalk walk(block, TileOrder::kOwned, phase.num_tiles);
  const int count = walk.OwnedCount(block.rank), first = walk.FirstOwned(block.rank);
  const int per_row = phase.experts_per_token, row = lane % 4 * 2;
  const auto* const results = reinterpret_cast<const float*>(block.shared().exchange);
  const ExpertChoice& choice = block.shared().choices[phase.band];
  const uint32_t verified = block.shared().state.verified >> phase.band * kBandRows;
  float4 before = {};
  if (member < count)
    before = ReadResidualTile(phase, block.program().hidden, first + member, lane);
  NamedBarrier<kWorkerBarrier, kWorkerThreads>();  // all experts' results are there
  for (int i = member; i < count; i += kDownWarps) {
    float4 sum = {};
    const int column = i * 16 + lane / 4;
#pragma unroll 2  // little code counts more than its speed: it is fetched anew every time
    for (int k = 0; k < per_row; ++k) {
      const auto add = [&](int r, float& low, float& high) {
        if ((verified >> r & 1) == 0) return;  // it chose nothing
        const int slot = r * per_row + k;
        const float weight = choice.weights[slot];
        low = __fmaf_rn(weight, results[slot * kResultStride + column], low);
        high = __fmaf_rn(weight, results[slot * kResultStride + column + 8], high);
      };
      add(row, sum.x, sum.z);
      add(row + 1, sum.y, sum.w);
    }
    if (i != member) before = ReadResidualTile(phase, block.program().hidden, first + i, lane);
    AddToResidual(block, phase, first + i, before, sum);
  }
}

__device__ __forceinline__ void ConsumeMoeDown(const Block& block, ConsumerClock& clock) {
  const Phase& phase = block.PhaseOf(Role::kConsumer);
  const int thread = Thread(), lane = thread % kWarpLanes;
  if (thread == 0) block.Stamp(phase.index, kTraceInputReady);
  MultiplyDown(block, phase, clock, lane);
  if (thread == 0) block.Stamp(phase.index, kTraceWorkDone);
  FinishDown(block, static_cast<int>(Role::kConsumer), kFinisherWarps + Thread() / kWarpLanes);
  NamedBarrier<kWorkerBarrier, kWorkerThreads>();
}

__device__ __forceinline__ void FinishMoeDown(const Block& block) {
  FinishDown(block, static_cast<int>(Role::kFinisher), Thread() / kWarpLanes - kFirstFinisherWarp);
}

}  // namespace ultraspeed::kernels::cuda::resident
