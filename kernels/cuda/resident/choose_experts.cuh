// Which experts a round's rows go through: the router's logits, shared out over all blocks, and the
// choice, which every block makes for itself.
#pragma once

#include "kernels/cuda/forced_experts.cuh"
#include "kernels/cuda/resident/moe_mail.cuh"
#include "kernels/cuda/resident/product.cuh"
#include "kernels/cuda/router_product.cuh"

namespace ultraspeed::kernels::cuda::resident {

constexpr int kExpertsPerLane = kExpertsMax / kWarpLanes;

// ---- Router: router_product.cuh. A block multiplies the columns that it finished in the phase
// before, so its product begins before the rows have reached anyone; an expert's sums over chunks
// meet in one block.

// Of the block's chunks of the residual stream.
__device__ __forceinline__ TileWalk OwnedTiles(const Block& block) {
  return TileWalk(block, TileOrder::kOwned, block.program().hidden / kTileRows);
}

__device__ __forceinline__ bool StreamRouter(const Block& block, const Phase& phase,
                                             RingWriter& ring) {
  const TileWalk walk = OwnedTiles(block);
  const int count = walk.OwnedCount(block.rank);
  const uint32_t tile_floats = NumExpertTiles(phase.num_experts) * kExpertTileVectors * 4;
  const float* tile = phase.router + static_cast<size_t>(walk.FirstOwned(block.rank)) * tile_floats;
  for (int i = 0; i < count; ++i, tile += tile_floats) {
    Pace(block, phase, ring);
    if (!ring.Push(tile, tile_floats * sizeof(float))) return false;
  }
  return true;
}

__device__ __forceinline__ void MultiplyRouter(const Block& block, const Phase& phase,
                                               ConsumerClock& clock, int warp, int lane) {
  constexpr int kAtOnce = 2;  // tiles of 16 experts
  const TileWalk walk = OwnedTiles(block);
  const int count = walk.OwnedCount(block.rank), first = walk.FirstOwned(block.rank);
  const int num_chunks = NumRouterChunks(block.program().hidden / kTileRows);
  const int num_expert_tiles = NumExpertTiles(phase.num_experts);
  const int g = lane / 4, t = lane % 4;
  block.WaitForFinishers(phase);  // whose columns these are
  __syncwarp();
#pragma unroll 1
  for (int begin = 0; begin < count; begin += kRouterChunkTiles) {
    const int num_tiles = min(kRouterChunkTiles, count - begin);
    const bool has_entry = lane < num_tiles;
    clock.ring.WaitForLanes(block, has_entry, begin + lane);
    uint32_t* const chunk =
        RouterPartials(block, phase) + (first + begin) / kRouterChunkTiles * kRowsMax + 2 * t;
#pragma unroll 1
    for (int experts = warp; experts < num_expert_tiles; experts += kAtOnce * kConsumerWarps) {
      RouterChunkSum sums[kAtOnce];
#pragma unroll 1  // its code is fetched anew in every layer
      for (int j = 0; j < num_tiles; ++j) {
        const auto* const columns =
            block.shared().owned[(first + begin + j) % kOwnedTilesMax][g] + t;
        const uint32_t low = columns[0], high = columns[4];
        const auto* const tile =
            reinterpret_cast<const uint4*>(clock.ring.At(block, begin + j)) + lane;
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {  // one that is not there is multiplied like the last
          const int at = min(experts + i * kConsumerWarps, num_expert_tiles - 1);
          const uint4* const operands = tile + at * kExpertTileVectors;
          const uint4 terms[2] = {operands[0], operands[32]};
          sums[i].Add(terms, low, high);
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int expert = (experts + i * kConsumerWarps) * 16 + half * 8 + g;
          if (expert >= phase.num_experts) continue;
          const auto word = [&](int row) {
            return FlaggedWord(__float_as_uint(sums[i].Total(2 * half + row)));
          };
          __stcg(reinterpret_cast<uint2*>(chunk + expert * num_chunks * kRowsMax),
                 uint2{word(0), word(1)});
        }
      }
    }
    __syncwarp();
    if (has_entry) clock.ring.ReleaseAsLane(block, begin + lane, 1);
  }
  clock.ring.Advance(count);
}

// Larger floats give larger numbers; both zeros the same; 0 is below all of them.
__device__ __forceinline__ uint32_t Ascending(float x) {
  const uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0f));
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

// A warp has an expert; lane l, slot l. Then row l / 4.
__device__ __forceinline__ void FinishRouter(const Block& block, const Phase& phase) {
  constexpr int kChunksPerSlot =
      NumRouterChunks(kPassBlocks * kBlockSlabs * kSlabColumns / kTileRows) / kRouterSlots;
  const int warp = Thread() / kWarpLanes - kFirstFinisherWarp, lane = Thread() % kWarpLanes;
  const int num_chunks = NumRouterChunks(block.program().hidden / kTileRows);
  // Before the rows there is no use in asking.
  if (lane == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
  __syncwarp();
  for (int expert = block.index + warp * block.num_blocks; expert < phase.num_experts;
       expert += kFinisherWarps * block.num_blocks) {
    const float bias = __ldg(phase.router_bias + expert);
    const uint32_t* const slot =
        RouterPartials(block, phase) + (expert * num_chunks + lane) * kRowsMax;
    uint4 parts[kChunksPerSlot][2] = {};
    block.Wait(WaitsFor::kOtherBlocks, [&] {  // all requested before the first is looked at
#pragma unroll
      for (int i = 0; i < kChunksPerSlot; ++i) {
        if (i * kRouterSlots + lane >= num_chunks) continue;
        parts[i][0] = PollFour(slot + i * kRouterSlots * kRowsMax);
        parts[i][1] = PollFour(slot + i * kRouterSlots * kRowsMax + 4);
      }
      bool arrived = true;
#pragma unroll
      for (int i = 0; i < kChunksPerSlot; ++i) arrived &= HaveArrived(parts[i]);
      return __all_sync(kAllLanes, arrived) != 0;
    });
    float sums[kRowsMax] = {};
#pragma unroll
    for (int i = 0; i < kChunksPerSlot; ++i) {
      const uint32_t words[kRowsMax] = {parts[i][0].x, parts[i][0].y, parts[i][0].z, parts[i][0].w,
                                        parts[i][1].x, parts[i][1].y, parts[i][1].z, parts[i][1].w};
#pragma unroll
      for (int row = 0; row < kRowsMax; ++row)
        sums[row] = __fadd_rn(sums[row], __uint_as_float(words[row]));
    }
#pragma unroll
    for (int half = kRowsMax / 2; half >= 1; half /= 2) {  // slots 4 * half apart
      const bool upper = (lane & 4 * half) != 0;
#pragma unroll
      for (int i = 0; i < half; ++i) {
        const float kept = upper ? sums[i + half] : sums[i],
                    sent = upper ? sums[i] : sums[i + half];
        sums[i] = __fadd_rn(kept, __shfl_xor_sync(kAllLanes, sent, 4 * half));
      }
    }
    float sum = sums[0];
#pragma unroll
    for (int mask = 2; mask >= 1; mask /= 2)
      sum = __fadd_rn(sum, __shfl_xor_sync(kAllLanes, sum, mask));
    block.WaitForInput(phase);  // the rows' scales
    const int row = lane / 4;
    const float score = Sigmoid(__fmul_rn(block.shared().scale[row], sum));
    const float biased = __fadd_rn(score, bias);
    if (lane % 4 == 0) {
      MoeScores(block, phase)[row * kExpertsMax + expert] = {
          __float_as_uint(score), Ascending(biased == biased ? biased : kMinusInfinity)};
    }
    __syncwarp();
  }
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

// A benchmark's choice for a row, other experts in every layer and round (forced_experts.cuh).
__device__ __forceinline__ void ForceExperts(const Block& block, const Phase& phase, int row,
                                             int lane) {
  const int per_row = phase.experts_per_token, slot = row * per_row + lane;
  if (lane >= per_row) return;
  const int shift = phase.index * 37 + static_cast<int>(block.shared().state.round % 1024) * 11;
  block.shared().choice.ids[slot] =
      ForcedExpert(slot, block.program().forced_distinct_experts, phase.num_experts, shift);
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
  const int num_rows = block.program().num_rows, per_row = phase.experts_per_token;
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
