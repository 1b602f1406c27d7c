// Mixture of experts of a round's rows, in two phases.
//
// Up: every cluster makes the router's logits of some experts (fp32, the order of router.cu); all
// blocks wait for each other; each chooses the top K of every row for itself, so the choice is
// never sent; the union of the chosen experts, ascending, is the list of gate-and-up tiles, and all
// rows pass through every tile (a row that did not choose the expert costs nothing but its result).
// Down: a block owns the same rows of the residual stream for all experts; its warps share the
// experts, and the results are added up for each row. Bytes: the matrices of the chosen
// experts once.
#pragma once

#include "kernels/cuda/device/dot.cuh"
#include "kernels/cuda/resident/product.cuh"

namespace ultraspeed::kernels::cuda::resident {

constexpr int kExpertsPerLane = kExpertsMax / kWarpLanes;
constexpr int kResultStride = 132;  // floats of a slot's results in the exchange area
constexpr int kDownTilesMax = kResultStride / kTileRows;
static_assert(kSlotsMax * kResultStride * sizeof(float) <= sizeof(Shared::exchange));
static_assert((kSlotsMax + 1) * kSlotStride <= kStagingBytes);

// ---- Router

// Floats of a router row that a thread block multiplies.
__device__ __forceinline__ int RouterColumns(const Share& share, int hidden) {
  return min(share.count * 2 * kSlabColumns, hidden - share.first * 2 * kSlabColumns);
}

__device__ __forceinline__ bool StreamRouter(const Block& block, const Phase& phase, int phase_idx,
                                             const Share& share, RingWriter& ring) {
  const int hidden = block.program().hidden;
  const uint32_t bytes = RouterColumns(share, hidden) * sizeof(float);
  const float* const first = phase.router + share.first * 2 * kSlabColumns;
  const TileWalk walk(block, TileOrder::kDealt, phase.num_experts);
  for (int i = 0; i < walk.end(); ++i) {
    Pace(block, phase_idx, ring);
    if (!ring.Push(first + static_cast<size_t>(walk.Tile(i)) * hidden, bytes)) return false;
  }
  return true;
}

__device__ __forceinline__ void MultiplyRouter(const Block& block, const Phase& phase,
                                               ConsumerClock& clock, const Share& share,
                                               const Team& team, int lane) {
  // A team takes every num_teams-th expert, kAtOnce of them together: a row's columns are widened
  // once. A lane has eight columns of all rows.
  constexpr int kAtOnce = 3;
  const TileWalk walk(block, TileOrder::kDealt, phase.num_experts);
  const int columns = RouterColumns(share, block.program().hidden) - team.part * 2 * kSlabColumns;
  const bool has_columns = lane * 8 < columns;  // an odd slab is half of a block
  const int column = team.part * 2 * kSlabColumns + (has_columns ? lane * 8 : 0);
  const uint32_t arrivals = EntryArrivals(max(1, share.count), team.part);
  const int stride = StagingStride(ShareSlabs(share, phase.num_slabs) * kSlabColumns);
  const uint8_t* const staged = block.shared().staging + column * 2;
  for (int first = team.works ? team.index : walk.end(); first < walk.end();
       first += kAtOnce * team.num_teams) {
    const auto number = [&](int e) { return first + e * team.num_teams; };
    float4 weights[kAtOnce][2];
#pragma unroll
    for (int e = 0; e < kAtOnce; ++e) {
      if (number(e) < walk.end()) {
        const auto* const w = reinterpret_cast<const float4*>(clock.ring.Wait(block, number(e)) +
                                                              column * sizeof(float));
        weights[e][0] = w[0];
        weights[e][1] = w[1];
      } else {  // not sent
        weights[e][0] = weights[e][1] = {};
      }
    }
    float sums[kAtOnce][kRowsMax];
#pragma unroll
    for (int row = 0; row < kRowsMax; ++row) {
      const uint4 x =
          has_columns ? *reinterpret_cast<const uint4*>(staged + row * stride) : uint4{};
#pragma unroll
      for (int e = 0; e < kAtOnce; ++e) sums[e][row] = Dot8(x, weights[e][0], weights[e][1]);
    }
#pragma unroll
    for (int e = 0; e < kAtOnce; ++e) {
      const float sum = TreeOfRows(sums[e], lane);
      const int i = number(e);
      if (i >= walk.end()) continue;
      clock.ring.Release(block, i, arrivals, lane);
      const int owner = walk.Owner(i);
      const uint32_t use = clock.exchange.Use(owner, walk.Place(i));
      WaitForExchange(block, owner, use);
      const int buffer = use % kExchangeBuffers;
      if (lane % 4 == 0) {
        auto* const place = reinterpret_cast<float*>(block.shared().exchange[buffer]) +
                            (share.first + team.part) * kRowsMax + lane / 4;
        StoreInCluster(place, sum, &block.shared().exchange_full[buffer], owner);
      }
    }
  }
  if (share.count > 0) clock.ring.Advance(walk.end());
  clock.exchange.Advance(walk);
}

// Larger floats give larger numbers; both zeros the same; 0 is below all of them.
__device__ __forceinline__ uint32_t Ascending(float x) {
  const uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0f));
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ void FinishRouter(const Block& block, const Phase& phase,
                                             FinisherClock& clock) {
  const int warp = Thread() / kWarpLanes - kFirstFinisherWarp, lane = Thread() % kWarpLanes;
  const TileWalk walk(block, TileOrder::kDealt, phase.num_experts);
  const int num_blocks = (phase.num_slabs + 1) / 2;
  for (int place = warp; place < walk.OwnedCount(block.rank); place += kFinisherWarps) {
    const int expert = walk.TileAt(block.rank, place);
    const float bias = __ldg(phase.router_bias + expert);
    const int buffer = ReceivePartials(block, clock.exchange.Use(block.rank, place),
                                       num_blocks * kRowsMax * sizeof(float), lane);
    if (lane < kRowsMax) {
      const auto* const parts =
          reinterpret_cast<const float*>(block.shared().exchange[buffer]) + lane;
      float sum = parts[0];
#pragma unroll 8
      for (int b = 1; b < num_blocks; ++b) sum = __fadd_rn(sum, parts[b * kRowsMax]);
      constexpr float kUndo = 1.0f / kInputGainFloat;  // the rows came with the experts' input gain
      const float score = Sigmoid(__fmul_rn(sum, kUndo));
      const float biased = __fadd_rn(score, bias);
      phase.router_scores[lane * phase.num_experts + expert] = {
          __float_as_uint(score), Ascending(biased == biased ? biased : kMinusInfinity)};
    }
    FreeExchange(block, buffer, lane);
  }
  clock.exchange.Advance(walk);
}

// ---- Choice

// Top K of one row by one warp, as router.cu's TopKKernel: ids ascending, weights.
__device__ __forceinline__ void ChooseExperts(const Block& block, const Phase& phase, int row,
                                              int lane) {
  ExpertChoice& choice = block.shared().choice;
  const int num_experts = phase.num_experts, per_row = phase.experts_per_token;
  float scores[kExpertsPerLane];
  uint32_t keys[kExpertsPerLane];
#pragma unroll
  for (int i = 0; i < kExpertsPerLane; ++i) {
    const int e = i * kWarpLanes + lane;
    const uint2 found =
        e < num_experts ? __ldcg(phase.router_scores + row * num_experts + e) : uint2{0, 0};
    scores[i] = __uint_as_float(found.x);
    keys[i] = found.y;
  }
  uint32_t taken = 0;  // bit i: expert 32 i + lane
  for (int k = 0; k < per_row; ++k) {
    uint32_t best = keys[0];
#pragma unroll
    for (int i = 1; i < kExpertsPerLane; ++i) best = max(best, keys[i]);
    const uint32_t winner = __reduce_max_sync(kAllLanes, best);
    uint32_t place = kExpertsPerLane;  // the lane's first that has it
#pragma unroll
    for (int i = kExpertsPerLane - 1; i >= 0; --i) place = keys[i] == winner ? i : place;
    const uint32_t expert = __reduce_min_sync(kAllLanes, place * kWarpLanes + lane);
    if (expert % kWarpLanes == lane) {
      taken |= 1u << (expert / kWarpLanes);
#pragma unroll
      for (int i = 0; i < kExpertsPerLane; ++i) keys[i] = i == place ? 0 : keys[i];
    }
  }

  int before = 0;
#pragma unroll
  for (int i = 0; i < kExpertsPerLane; ++i) {
    const bool mine = taken >> i & 1;
    const uint32_t lanes = __ballot_sync(kAllLanes, mine);
    if (mine) {
      const int slot = row * per_row + before + __popc(lanes & ((1u << lane) - 1));
      choice.ids[slot] = i * kWarpLanes + lane;
      choice.weights[slot] = scores[i];
    }
    before += __popc(lanes);
  }
  __syncwarp();
  float sum = 0.0f;
  for (int k = 0; k < per_row; ++k) sum += choice.weights[row * per_row + k];
  const float own = lane < per_row ? choice.weights[row * per_row + lane] : 0.0f;
  __syncwarp();
  if (lane < per_row) choice.weights[row * per_row + lane] = __fdiv_rn(own, sum + 1e-20f);
}

// A benchmark's choice: row r takes experts so that all rows together take
// `forced_distinct_experts`, spread over the experts and moving from layer to layer.
__device__ __forceinline__ void ForceExperts(const Block& block, const Phase& phase, int phase_idx,
                                             int row, int lane) {
  ExpertChoice& choice = block.shared().choice;
  const int per_row = phase.experts_per_token, distinct = block.program().forced_distinct_experts;
  if (lane >= per_row) return;
  const int which = (row * per_row + lane) % distinct;
  choice.ids[row * per_row + lane] =
      (which * phase.num_experts / distinct + phase_idx * 37 + block.shared().state.round * 11) %
      phase.num_experts;
}

// All consumers call it before they meet for MakeChoice, while the scores are not there yet.
__device__ __forceinline__ void ClearChoice(const Block& block) {
  const int thread = Thread();
  ExpertChoice& choice = block.shared().choice;
  if (thread < kExpertsMax / 32) choice.chosen[thread] = 0;
  for (int i = thread; i < kSlotsMax * kRowsMax / 4; i += kConsumerThreads) {
    reinterpret_cast<uint32_t*>(choice.slot_of)[i] = 0xffffffffu;
  }
}

// Choice of all rows, then the list of experts and who of them serves whom. All consumers call it.
__device__ __forceinline__ void MakeChoice(const Block& block, const Phase& phase, int phase_idx) {
  const int thread = Thread(), warp = thread / kWarpLanes, lane = thread % kWarpLanes;
  ExpertChoice& choice = block.shared().choice;
  const int num_rows = block.program().block, per_row = phase.experts_per_token;
  if (warp < num_rows) {
    ChooseExperts(block, phase, warp, lane);
    if (block.program().forced_distinct_experts > 0) {
      __syncwarp();
      ForceExperts(block, phase, phase_idx, warp, lane);
    }
    __syncwarp();
    if (lane < per_row) {
      const int expert = choice.ids[warp * per_row + lane];
      atomicOr(&choice.chosen[expert / 32], 1u << (expert % 32));
    }
  }
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  // Place of an expert in the list: the chosen ones before it.
  const auto place_of = [&](int e) {
    int place = 0;
#pragma unroll
    for (int w = 0; w < kExpertsMax / 32; ++w) {
      const uint32_t before = w < e / 32 ? ~0u : w == e / 32 ? (1u << (e % 32)) - 1 : 0u;
      place += __popc(choice.chosen[w] & before);
    }
    return place;
  };
  if (thread < num_rows * per_row) {
    const int expert = choice.ids[thread], place = place_of(expert);
    choice.experts[place] = expert;
    choice.slot_of[place][Quotient(thread, per_row)] = static_cast<int8_t>(thread);
  }
  if (thread == 0) {
    choice.num_experts =
        place_of(kExpertsMax - 1) + static_cast<int>(choice.chosen[kExpertsMax / 32 - 1] >> 31);
    block.shared().state.num_experts += choice.num_experts;
  }
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  if (thread == 0) Arrive(&block.shared().experts_ready, 1);
}

// ---- Up

__device__ __forceinline__ bool StreamMoeUp(const Block& block, const Phase& phase, int phase_idx,
                                            RingWriter& ring, uint32_t moe_layers) {
  const Share share = ShareOf(phase.num_slabs, 0, block.rank);
  if (share.count > 0 && !StreamRouter(block, phase, phase_idx, share, ring)) return false;
  bool chosen = false;
  block.Wait(WaitsFor::kExpertChoice, [&] {
    chosen = IsDone(&block.shared().experts_ready, moe_layers & 1);
    return chosen || block.shared().exits != 0;
  });
  if (!chosen) return false;
  if (share.count == 0) return true;
  constexpr int kSlabSize = SlabBytes(WeightFormat::kMxfp4);
  const int num_tiles = phase.num_tiles, share_slabs = ShareSlabs(share, phase.num_slabs);
  const uint32_t tile_bytes = phase.num_slabs * kSlabSize;
  const size_t expert_bytes = phase.expert_bytes;
  const uint8_t* const weights = phase.weights + 2 * share.first * kSlabSize;
  const ExpertChoice& choice = block.shared().choice;
  const int num_experts = choice.num_experts;
  // Tiles cluster, cluster + num_clusters, ... of all experts' in a row.
  int expert = 0;
  for (int tile = block.cluster;; tile += block.num_clusters) {
    for (; tile >= num_tiles; tile -= num_tiles) ++expert;
    if (expert >= num_experts) return true;
    const uint8_t* const data = weights + choice.experts[expert] * expert_bytes;
    if (!StreamTile(ring, data + tile * tile_bytes, share, share_slabs, WeightFormat::kMxfp4)) {
      return false;
    }
  }
}

__device__ __forceinline__ void MultiplyMoeUp(const Block& block, const Phase& phase, int phase_idx,
                                              ConsumerClock& clock, const Share& share,
                                              const Team& team, int lane) {
  MultiplyRouter(block, phase, clock, share, team, lane);
  ClearChoice(block);
  if (Thread() == 0) block.WaitForArrivals(phase.inner_counter, phase.inner_target);
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  MakeChoice(block, phase, phase_idx);
  if (Thread() == 0) block.Stamp(phase_idx, kTraceInputReady);
  const TileWalk walk(block, TileOrder::kDealt,
                      block.shared().choice.num_experts * phase.num_tiles);
  MultiplyExpertTiles(block, clock, walk, share, phase.num_slabs, team, lane);
}

// Phases that multiply staged rows.
__device__ __forceinline__ void ConsumeProduct(const Block& block, const Phase& phase,
                                               int phase_idx, ConsumerClock& clock) {
  const int warp = Thread() / kWarpLanes, lane = Thread() % kWarpLanes;
  for (int pass = 0; pass < NumPasses(phase.num_slabs); ++pass) {
    // The staging area is written again only when all warps are done with it.
    if (pass > 0) NamedBarrier<kConsumerBarrier, kConsumerThreads>();
    const Share share = ShareOf(phase.num_slabs, pass, block.rank);
    StageInput(block, phase, share);
    if (pass == 0 && Thread() == 0) block.shared().staged_phase = phase_idx;
    const Team team = TeamOf(warp, share.count);
    if (phase.kind == PhaseKind::kMoeUp) {
      MultiplyMoeUp(block, phase, phase_idx, clock, share, team, lane);
    } else {
      if (pass == 0 && Thread() == 0) block.Stamp(phase_idx, kTraceInputReady);
      MultiplyProduct(block, phase, clock, share, team, lane);
    }
  }
  if (phase.output == OutputKind::kResidual) clock.sums += 1;
}

// Gate (rows g) times up (rows g + 8) of the rows that chose the expert.
__device__ __forceinline__ void StoreActivations(const Block& block, const Phase& phase, int tile,
                                                 int lane, float4 v) {
  const int expert = Quotient(tile, phase.num_tiles);
  const int8_t* const slot_of = block.shared().choice.slot_of[expert];
  const int column = (tile - expert * phase.num_tiles) * 8 + lane / 4, row = lane % 4 * 2;
  if (column >= phase.ffn_width) return;
  if (slot_of[row] >= 0) {
    phase.activations[slot_of[row] * phase.ffn_width + column] = SwiGluProduct(v.x, v.z);
  }
  if (slot_of[row + 1] >= 0) {
    phase.activations[slot_of[row + 1] * phase.ffn_width + column] = SwiGluProduct(v.y, v.w);
  }
}

__device__ __forceinline__ void FinishMoeUp(const Block& block, int which, FinisherClock& clock) {
  const Phase& phase = block.PhaseOf(Role::kFinisher, which);
  const int warp = Thread() / kWarpLanes - kFirstFinisherWarp, lane = Thread() % kWarpLanes;
  MakeScales(block, phase);
  FinishRouter(block, phase, clock);
  NamedBarrier<kFinisherBarrier, kFinisherThreads>();
  if (warp == 0 && lane == 0) ArriveEverywhere(block.Counter(phase.inner_counter));
  block.WaitBarrier(WaitsFor::kExpertChoice, &block.shared().experts_ready, clock.moe_layers & 1);
  const Share share = ShareOf(phase.num_slabs, 0, block.rank);
  const TileWalk walk(block, TileOrder::kDealt,
                      block.shared().choice.num_experts * phase.num_tiles);
  for (int place = warp; place < walk.OwnedCount(block.rank); place += kFinisherWarps) {
    TileSum sum = {};
    const int buffer = ReceivePartials(block, clock.exchange.Use(block.rank, place),
                                       share.pass_count * 32 * sizeof(float4), lane);
    AddPartials(block, buffer, share, kPassBlocks, lane, sum);
    FreeExchange(block, buffer, lane);
    StoreActivations(block, phase, walk.TileAt(block.rank, place), lane, sum.total);
  }
  clock.exchange.Advance(walk);
}

// ---- Down

constexpr int kDownGroup = 4;  // experts of an entry: starting one costs the producer much the same
static_assert(kConsumerWarps % kDownGroup == 0);

// The block's tiles of every expert, an entry for a few of them.
__device__ __forceinline__ bool StreamMoeDown(const Block& block, const Phase& phase,
                                              RingWriter& ring) {
  const TileWalk walk(block, TileOrder::kOwned, phase.num_tiles);
  const int count = walk.OwnedCount(block.rank);
  if (count == 0) return true;
  const int tile_bytes = phase.num_slabs * SlabBytes(WeightFormat::kMxfp4);
  const ExpertChoice& choice = block.shared().choice;
  const int num_experts = choice.num_experts;
  const size_t expert_bytes = phase.expert_bytes;
  const uint8_t* const tiles =
      phase.weights + static_cast<size_t>(walk.FirstOwned(block.rank)) * tile_bytes;
  for (int i = 0; i < num_experts; i += kDownGroup) {
    const int group = min(kDownGroup, num_experts - i);
    const auto piece = [&](int e) { return tiles + choice.experts[i + e] * expert_bytes; };
    if (!ring.PushSeveral(group, count * tile_bytes, piece)) return false;
  }
  return true;
}

// Expert i is warp i % kConsumerWarps's, with all of the block's tiles.
__device__ __forceinline__ void MultiplyDown(const Block& block, const Phase& phase,
                                             ConsumerClock& clock, int lane) {
  const TileWalk walk(block, TileOrder::kOwned, phase.num_tiles);
  const int count = walk.OwnedCount(block.rank);
  if (count == 0) return;
  const ExpertChoice& choice = block.shared().choice;
  const int warp = Thread() / kWarpLanes,
            tile_bytes = phase.num_slabs * SlabBytes(WeightFormat::kMxfp4);
  auto* const results = reinterpret_cast<float*>(block.shared().exchange) + lane / 4;
#pragma unroll 1
  for (int i = warp; i < choice.num_experts; i += kConsumerWarps) {
    const int8_t* const slot_of = choice.slot_of[i];
    const int slot =
        slot_of[lane / 4];  // a row that did not choose the expert has the last, of zeros
    const uint8_t* const fragments =
        block.shared().staging + (slot < 0 ? kSlotsMax : slot) * kSlotStride + lane % 4 * 16;
    Columns x;
    LoadColumns(fragments, phase.num_slabs, x);
    const int even = slot_of[lane % 4 * 2], odd = slot_of[lane % 4 * 2 + 1];
    const int place = i % kDownGroup;
    const uint8_t* data = clock.ring.Wait(block, i / kDownGroup) + place * count * tile_bytes;
    ExpertBlock weights;
    weights.ReadFirst(data, lane);
#pragma unroll 1
    for (int tile = 0; tile < count; ++tile, data += tile_bytes) {
      weights.Multiply(data, phase.num_slabs, x, lane, [] {});
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
    const int readers = min(kDownGroup, choice.num_experts - (i - place));
    clock.ring.Release(block, i / kDownGroup, EntryArrivals(readers, place), lane);
  }
  clock.ring.Advance((choice.num_experts + kDownGroup - 1) / kDownGroup);
}

// The block's tiles of the residual stream. A tile takes a round trip to the other ranks, so all of
// them are finished at once: by the finishers, and by consumers that have multiplied theirs.
constexpr int kDownWarps = kFinisherWarps + kConsumerWarps;
static __device__ __noinline__ void FinishDown(Block block, int role, int which, uint32_t sums,
                                               int member) {
  const Phase& phase = block.PhaseOf(static_cast<Role>(role), which);
  const int lane = Thread() % kWarpLanes;
  const TileWalk walk(block, TileOrder::kOwned, phase.num_tiles);
  const int count = walk.OwnedCount(block.rank), first = walk.FirstOwned(block.rank);
  const int per_row = phase.experts_per_token, row = lane % 4 * 2;
  const auto* const results = reinterpret_cast<const float*>(block.shared().exchange);
  const ExpertChoice& choice = block.shared().choice;
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
        if (r >= block.program().block) return;
        const int slot = r * per_row + k;
        const float weight = choice.weights[slot];
        low = __fmaf_rn(weight, results[slot * kResultStride + column], low);
        high = __fmaf_rn(weight, results[slot * kResultStride + column + 8], high);
      };
      add(row, sum.x, sum.z);
      add(row + 1, sum.y, sum.w);
    }
    if (i != member) before = ReadResidualTile(phase, block.program().hidden, first + i, lane);
    AddToResidual(block, phase, sums, first + i, before, sum);
  }
}

__device__ __forceinline__ void ConsumeMoeDown(const Block& block, int which, int phase_idx,
                                               ConsumerClock& clock) {
  const Phase& phase = block.PhaseOf(Role::kConsumer, which);
  const int thread = Thread(), lane = thread % kWarpLanes;
  if (thread == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  // A warp per slot; what is past the width is zeros.
  const int num_slots = block.program().block * phase.experts_per_token;
  if (lane * 8 < phase.num_slabs * kSlabColumns) {
#pragma unroll 2
    for (int slot = thread / kWarpLanes; slot < num_slots; slot += kConsumerWarps) {
      const auto* const row =
          reinterpret_cast<const uint4*>(phase.activations + slot * phase.ffn_width);
      *reinterpret_cast<uint4*>(block.shared().staging + slot * kSlotStride + lane * 16) =
          lane * 8 < phase.ffn_width ? GainedEight(__ldcg(row + lane), kInputGain) : uint4{};
    }
  }
  if (thread < kSlotStride / 16) {  // the row of those that did not choose an expert
    reinterpret_cast<uint4*>(block.shared().staging + kSlotsMax * kSlotStride)[thread] = {};
  }
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  if (thread == 0) block.Stamp(phase_idx, kTraceInputReady);
  MultiplyDown(block, phase, clock, lane);
  if (thread == 0) block.Stamp(phase_idx, kTraceWorkDone);
  FinishDown(block, static_cast<int>(Role::kConsumer), which, clock.sums,
             kFinisherWarps + Thread() / kWarpLanes);
  NamedBarrier<kWorkerBarrier, kWorkerThreads>();
  clock.sums += 1;
}

__device__ __forceinline__ void FinishMoeDown(const Block& block, int which, FinisherClock& clock) {
  FinishDown(block, static_cast<int>(Role::kFinisher), which, clock.sums,
             Thread() / kWarpLanes - kFirstFinisherWarp);
  clock.sums += 1;
  clock.moe_layers += 1;
}

}  // namespace ultraspeed::kernels::cuda::resident
