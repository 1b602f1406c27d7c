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
static_assert(kSlotsMax * kSlotStride <= kStagingBytes);

// ---- Router

// Floats of a router row that a thread block multiplies.
__device__ __forceinline__ int RouterColumns(const Share& share, int hidden) {
  return min(share.count * 2 * kSlabColumns, hidden - share.first * 2 * kSlabColumns);
}

__device__ __forceinline__ bool StreamRouter(const Block& block, const Phase& phase,
                                             const Share& share, RingWriter& ring) {
  const int hidden = block.program().hidden;
  const uint32_t bytes = RouterColumns(share, hidden) * sizeof(float);
  const float* const first = phase.router + share.first * 2 * kSlabColumns;
  const TileWalk walk(block, TileOrder::kDealt, phase.num_experts);
  for (int i = 0; i < walk.end(); ++i) {
    Pace(block, phase, ring);
    if (!ring.Push(first + static_cast<size_t>(walk.Tile(i)) * hidden, bytes)) return false;
  }
  return true;
}

__device__ __forceinline__ void MultiplyRouter(const Block& block, const Phase& phase,
                                               ConsumerClock& clock, const Share& share,
                                               const Team& team, int lane) {
  // A team takes every num_teams-th expert, kAtOnce of them together: a row's columns are widened
  // once, and what a warp does for an expert lanes do side by side. A lane has eight columns of all
  // rows.
  constexpr int kAtOnce = 3;
  const TileWalk walk(block, TileOrder::kDealt, phase.num_experts);
  const int columns = RouterColumns(share, block.program().hidden) - team.part * 2 * kSlabColumns;
  const bool has_columns = lane * 8 < columns;  // an odd slab is half of a block
  const int column = team.part * 2 * kSlabColumns + (has_columns ? lane * 8 : 0);
  const uint32_t arrivals = EntryArrivals(max(1, share.count), team.part);
  const int stride = StagingStride(ShareSlabs(share, phase.num_slabs) * kSlabColumns);
  const uint8_t* const staged = block.shared().staging + column * 2;
  Shared& shared = block.shared();
#pragma unroll 1  // its code is fetched anew in every layer
  for (int first = team.works ? team.index : walk.end(); first < walk.end();
       first += kAtOnce * team.num_teams) {
    const auto number = [&](int e) { return first + e * team.num_teams; };
    const bool has_entry = lane < kAtOnce && number(lane) < walk.end();
    clock.ring.WaitForLanes(block, has_entry, number(lane));
    float4 weights[kAtOnce][2];
#pragma unroll
    for (int e = 0; e < kAtOnce; ++e) {  // one that was not sent is multiplied like the first
      const int i = number(e) < walk.end() ? number(e) : first;
      const auto* const w =
          reinterpret_cast<const float4*>(clock.ring.At(block, i) + column * sizeof(float));
      weights[e][0] = w[0];
      weights[e][1] = w[1];
    }
    float sums[kAtOnce][kRowsMax];
#pragma unroll
    for (int row = 0; row < kRowsMax; ++row) {
      const uint4 x =
          has_columns ? *reinterpret_cast<const uint4*>(staged + row * stride) : uint4{};
#pragma unroll
      for (int e = 0; e < kAtOnce; ++e) sums[e][row] = Dot8(x, weights[e][0], weights[e][1]);
    }
    const float sum = TreesOfRows(sums, lane);
    __syncwarp();
    if (has_entry) clock.ring.ReleaseAsLane(block, number(lane), arrivals);

    const int i = number(lane % 4 == 0 ? 0 : lane % 4 == 2 ? 1 : 2);  // the expert that it has
    const bool sends = lane % 4 < 3 && i < walk.end();
    const int owner = walk.Owner(i), place = walk.Place(i);
    const uint32_t use = clock.exchange.Use(owner, place);
    const int buffer = use % kExchangeBuffers;
    block.Wait(WaitsFor::kExchangeFree, [&] {
      const bool is_free = !sends || place < kExchangeBuffers ||
                           IsDone(&shared.exchange_free[owner][buffer], use / kExchangeBuffers & 1);
      return __all_sync(kAllLanes, is_free) != 0;
    });
    if (sends) {
      auto* const to = reinterpret_cast<float*>(shared.exchange[buffer]) +
                       (share.first + team.part) * kRowsMax + lane / 4;
      StoreInCluster(to, sum, &shared.exchange_full[buffer], owner);
    }
  }
  if (share.count > 0) clock.ring.Advance(walk.end());
  clock.exchange.Advance(walk);
}

// ---- Mail between blocks (MoeMail)

// Of the phase's layer, or of the one after it.
__device__ __forceinline__ uint2* MoeScores(const Block& block, const Phase& phase, int later = 0) {
  const MoeMail& mail = block.program().moe;
  const uint32_t layer = block.SinceStart(&Tally::moe_layers, phase) + later;
  return mail.scores + layer % 2 * kNumScores;
}
__device__ __forceinline__ uint32_t* MoeActivations(const Block& block, const Phase& phase,
                                                    int later = 0) {
  const MoeMail& mail = block.program().moe;
  const uint32_t layer = block.SinceStart(&Tally::moe_layers, phase) + later;
  return mail.activations + layer % 2 * mail.num_activations;
}

// The finishers of all blocks empty the mail of the layer before, which everybody has read, for the
// layer after this one: who writes it then has seen this block arrive in between.
__device__ __forceinline__ void EmptyOtherMail(const Block& block, const Phase& phase) {
  const MoeMail& mail = block.program().moe;
  const auto fill = [&](void* words, size_t bytes, uint32_t value) {
    const uint32_t count = bytes / sizeof(uint4);
    const uint32_t thread = Thread() - kFirstFinisherWarp * kWarpLanes;
    for (uint32_t i = block.index + thread * block.num_blocks; i < count;
         i += kFinisherThreads * block.num_blocks) {
      static_cast<uint4*>(words)[i] = {value, value, value, value};
    }
  };
  fill(MoeScores(block, phase, 1), kNumScores * sizeof(uint2), 0);
  fill(MoeActivations(block, phase, 1), mail.num_activations * sizeof(uint32_t), kNotArrived);
}

// Larger floats give larger numbers; both zeros the same; 0 is below all of them.
__device__ __forceinline__ uint32_t Ascending(float x) {
  const uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0f));
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ void FinishRouter(const Block& block, const Phase& phase,
                                             ExchangeClock& exchange) {
  const int warp = Thread() / kWarpLanes - kFirstFinisherWarp, lane = Thread() % kWarpLanes;
  const TileWalk walk(block, TileOrder::kDealt, phase.num_experts);
  const int num_blocks = (phase.num_slabs + 1) / 2;
  for (int place = warp; place < walk.OwnedCount(block.rank); place += kFinisherWarps) {
    const int expert = walk.TileAt(block.rank, place);
    const float bias = __ldg(phase.router_bias + expert);
    const int buffer = ReceivePartials(block, exchange.Use(block.rank, place),
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
      MoeScores(block, phase)[lane * kExpertsMax + expert] = {
          __float_as_uint(score), Ascending(biased == biased ? biased : kMinusInfinity)};
    }
    FreeExchange(block, buffer, lane);
  }
  exchange.Advance(walk);
}

// ---- Choice

// Top K of one row by one warp, as router.cu's TopKKernel: ids ascending, weights.
__device__ __forceinline__ void ChooseExperts(const Block& block, const Phase& phase, int row,
                                              int lane) {
  ExpertChoice& choice = block.shared().choice;
  const int num_experts = phase.num_experts, per_row = phase.experts_per_token;
  const uint2* const mail = MoeScores(block, phase) + row * kExpertsMax + lane;
  uint2 found[kExpertsPerLane];             // score, key
  block.Wait(WaitsFor::kOtherBlocks, [&] {  // all requested before the first is looked at
#pragma unroll
    for (int i = 0; i < kExpertsPerLane; ++i) found[i] = PollPair(mail + i * kWarpLanes);
    bool arrived = true;
#pragma unroll
    for (int i = 0; i < kExpertsPerLane; ++i) {
      arrived &= found[i].y != 0 || i * kWarpLanes + lane >= num_experts;
    }
    return __all_sync(kAllLanes, arrived) != 0;
  });
  // A lane offers its largest key that is not taken, the first of equals, and has the second ready.
  struct Offer {
    uint32_t key = 0, score = 0;
    int expert = 0;
  } best, second;
  const auto is_larger = [](uint2 candidate, const Offer& than) { return candidate.y > than.key; };
#pragma unroll
  for (int i = 0; i < kExpertsPerLane; ++i) {
    const Offer here = {found[i].y, found[i].x, i * kWarpLanes + lane};
    const bool first = is_larger(found[i], best);
    second = first ? best : is_larger(found[i], second) ? here : second;
    best = first ? here : best;
  }
  Offer mine;          // lane k's: the k-th choice
  uint32_t taken = 0;  // bit i: expert 32 i + lane
#pragma unroll 1
  for (int k = 0; k < per_row; ++k) {
    const uint32_t winner = __reduce_max_sync(kAllLanes, best.key);
    const int expert =
        static_cast<int>(__reduce_min_sync(kAllLanes, best.key == winner ? best.expert : ~0u));
    const uint32_t score = __shfl_sync(kAllLanes, best.score, expert % kWarpLanes);
    if (lane == k) mine = {winner, score, expert};
    if (expert % kWarpLanes == lane) {
      taken |= 1u << (expert / kWarpLanes);
      best = second;
      second = {};
      if (best.key == 0) {  // the second is gone too
#pragma unroll
        for (int i = 0; i < kExpertsPerLane; ++i) {
          if ((taken >> i & 1) == 0 && is_larger(found[i], best)) {
            best = {found[i].y, found[i].x, i * kWarpLanes + lane};
          }
        }
      }
    }
    __syncwarp();
  }

  int place = 0;  // of the lane's choice, ids ascending
#pragma unroll
  for (int k = 0; k < kSlotsMax / kRowsMax; ++k) {
    const int other = __shfl_sync(kAllLanes, mine.expert, k);
    place += k < per_row && other < mine.expert;
  }
  const int slot = row * per_row + place;
  if (lane < per_row) {
    choice.ids[slot] = mine.expert;
    choice.weights[slot] = __uint_as_float(mine.score);
  }
  __syncwarp();
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < kSlotsMax / kRowsMax; ++k) {  // all requested before the first is added
    if (k < per_row) sum += choice.weights[row * per_row + k];
  }
  __syncwarp();
  if (lane < per_row) {
    choice.weights[slot] = __fdiv_rn(__uint_as_float(mine.score), sum + 1e-20f);
  }
}

// A benchmark's choice: row r takes experts so that all rows together take
// `forced_distinct_experts`, spread over the experts and moving from layer to layer.
__device__ __forceinline__ void ForceExperts(const Block& block, const Phase& phase, int row,
                                             int lane) {
  ExpertChoice& choice = block.shared().choice;
  const int per_row = phase.experts_per_token, distinct = block.program().forced_distinct_experts;
  if (lane >= per_row) return;
  const int which = (row * per_row + lane) % distinct;
  choice.ids[row * per_row + lane] =
      (which * phase.num_experts / distinct + phase.index * 37 + block.shared().state.round * 11) %
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
__device__ __forceinline__ void MakeChoice(const Block& block, const Phase& phase) {
  const int thread = Thread(), warp = thread / kWarpLanes, lane = thread % kWarpLanes;
  ExpertChoice& choice = block.shared().choice;
  const int num_rows = block.program().block, per_row = phase.experts_per_token;
  if (warp < num_rows) {
    ChooseExperts(block, phase, warp, lane);
    if (block.program().forced_distinct_experts > 0) {
      __syncwarp();
      ForceExperts(block, phase, warp, lane);
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

__device__ __forceinline__ bool StreamMoeUp(const Block& block, const Phase& phase,
                                            RingWriter& ring, uint32_t moe_layers) {
  const Share share = ShareOf(phase.num_slabs, 0, block.rank);
  if (share.count > 0 && !StreamRouter(block, phase, share, ring)) return false;
  bool chosen = false;
  block.Wait(WaitsFor::kExpertChoice, [&] {
    chosen = IsDone(&block.shared().experts_ready, moe_layers & 1);
    return __all_sync(kAllLanes, chosen || block.shared().exits != 0) != 0;
  });
  if (!__all_sync(kAllLanes, chosen)) return false;
  if (share.count == 0) return true;
  constexpr int kSlabSize = SlabBytes(WeightFormat::kMxfp4);
  static_assert(PieceBlocks(WeightFormat::kMxfp4) >= kShareBlocksMax);  // a tile is one entry
  const uint32_t tile_bytes = phase.num_slabs * kSlabSize;
  const uint32_t entry_bytes = ShareSlabs(share, phase.num_slabs) * kSlabSize;
  const size_t expert_bytes = phase.expert_bytes;
  const uint8_t* const weights = phase.weights + 2 * share.first * kSlabSize;
  const ExpertChoice& choice = block.shared().choice;
  const int num_experts = choice.num_experts, num_tiles = phase.num_tiles;
  // Tiles cluster, cluster + num_clusters, ... of all experts' in a row.
  const int expert_step = Quotient(block.num_clusters, num_tiles);
  const int tile_step = block.num_clusters - expert_step * num_tiles;
  int expert = Quotient(block.cluster, num_tiles), tile = block.cluster - expert * num_tiles;
#pragma unroll 1
  while (expert < num_experts) {
    const uint8_t* const data = weights + choice.experts[expert] * expert_bytes;
    if (!ring.Push(data + tile * tile_bytes, entry_bytes)) return false;
    tile += tile_step;
    const bool wraps = tile >= num_tiles;
    tile -= wraps ? num_tiles : 0;
    expert += expert_step + wraps;
  }
  return true;
}

__device__ __forceinline__ void MultiplyMoeUp(const Block& block, const Phase& phase,
                                              ConsumerClock& clock, const Share& share,
                                              const Team& team, int lane) {
  MultiplyRouter(block, phase, clock, share, team, lane);
  ClearChoice(block);
  if (Thread() == 0) block.WaitForArrivals(phase.inner_counter, phase.inner_target);
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  MakeChoice(block, phase);
  if (Thread() == 0) block.Stamp(phase.index, kTraceInputReady);
  const TileWalk walk(block, TileOrder::kDealt,
                      block.shared().choice.num_experts * phase.num_tiles);
  MultiplyExpertTiles(block, clock, walk, share, phase.num_slabs, team, lane);
}

// Phases that multiply staged rows.
__device__ __forceinline__ void ConsumeProduct(const Block& block, const Phase& phase,
                                               ConsumerClock& clock) {
  const int warp = Thread() / kWarpLanes, lane = Thread() % kWarpLanes;
  for (int pass = 0; pass < NumPasses(phase.num_slabs); ++pass) {
    // The staging area is written again only when all warps are done with it.
    if (pass > 0) NamedBarrier<kConsumerBarrier, kConsumerThreads>();
    StageInput(block, phase, pass);
    const Share share = ShareOf(phase.num_slabs, pass, block.rank);
    if (pass == 0 && Thread() == 0) block.shared().staged_phase = phase.index;
    const Team team = TeamOf(warp, share.count);
    if (phase.kind == PhaseKind::kMoeUp) {
      MultiplyMoeUp(block, phase, clock, share, team, lane);
    } else {
      if (pass == 0 && Thread() == 0) block.Stamp(phase.index, kTraceInputReady);
      MultiplyProduct(block, phase, clock, share, team, lane);
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
  const int slot = block.shared().choice.slot_of[expert][lane % 4 * 2 + takes_odd];
  if (slot < 0) return;
  const int pair_idx = (tile - expert * phase.num_tiles) * 4 + lane / 8;
  __stcg(MoeActivations(block, phase) + slot * (phase.ffn_width / 2) + pair_idx,
         FlaggedWord(MultiplyBf16x2(pair, kInputGain)));
}

__device__ __forceinline__ void FinishMoeUp(const Block& block, ExchangeClock& exchange) {
  const Phase& phase = block.PhaseOf(Role::kFinisher);
  const int warp = Thread() / kWarpLanes - kFirstFinisherWarp, lane = Thread() % kWarpLanes;
  FinishRouter(block, phase, exchange);
  NamedBarrier<kFinisherBarrier, kFinisherThreads>();
  if (warp == 0 && lane == 0) {
    block.WaitForInput(phase);
    Announce(block.Counter(phase.inner_counter));
  }
  block.WaitBarrier(WaitsFor::kExpertChoice, &block.shared().experts_ready,
                    block.SinceStart(&Tally::moe_layers, phase) & 1);
  EmptyOtherMail(block, phase);
  const Share share = ShareOf(phase.num_slabs, 0, block.rank);
  const TileWalk walk(block, TileOrder::kDealt,
                      block.shared().choice.num_experts * phase.num_tiles);
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
  const ExpertChoice& choice = block.shared().choice;
  const int num_experts = choice.num_experts;
  const size_t expert_bytes = phase.expert_bytes;
  const uint8_t* const tiles =
      phase.weights + static_cast<size_t>(walk.FirstOwned(block.rank)) * tile_bytes;
#pragma unroll 1
  for (int i = 0; i < num_experts; i += kDownGroup) {
    const int group = min(kDownGroup, num_experts - i);
    const int expert = choice.experts[i + min(lane, group - 1)];
    if (!ring.PushSeveral(group, count * tile_bytes, tiles + expert * expert_bytes)) return false;
  }
  return true;
}

// A warp's part of the mail: the rows of one expert, on their way into the staging area. A lane
// has the row lane / 4 of the round, if that chose the expert.
class ExpertRows {
 public:
  __device__ __forceinline__ ExpertRows(const Block& block, const Phase& phase, int lane)
      : from_(reinterpret_cast<const uint8_t*>(MoeActivations(block, phase)) + lane % 4 * 16),
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
  const ExpertChoice& choice = block.shared().choice;
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
