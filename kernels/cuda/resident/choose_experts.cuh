// Which experts a round's rows go through: the router's logits, shared out over all blocks, and the
// choice, which every block makes for itself.
#pragma once

#include "kernels/cuda/device/dot.cuh"
#include "kernels/cuda/resident/moe_mail.cuh"
#include "kernels/cuda/resident/product.cuh"

namespace ultraspeed::kernels::cuda::resident {

constexpr int kExpertsPerLane = kExpertsMax / kWarpLanes;

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

}  // namespace ultraspeed::kernels::cuda::resident
