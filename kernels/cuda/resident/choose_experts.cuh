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
                                             uint32_t number, RingWriter& ring) {
  const TileWalk walk = OwnedTiles(block);
  const int count = walk.OwnedCount(block.rank);
  const uint32_t tile_floats = NumExpertTiles(phase.num_experts) * kExpertTileVectors * 4;
  const float* tile = phase.router + static_cast<size_t>(walk.FirstOwned(block.rank)) * tile_floats;
  for (int i = 0; i < count; ++i, tile += tile_floats) {
    Pace(block, number, ring);
    if (!ring.Push(tile, tile_floats * sizeof(float))) return false;
  }
  return true;
}

// A chunk's products of one band's columns, which begin at the block's tile `first`; the chunk's
// weights begin with entry `entry`.
__device__ __forceinline__ void MultiplyRouterChunk(const Block& block, const Phase& phase,
                                                    const RingReader& ring, int band, int first,
                                                    int num_tiles, uint32_t entry, int warp,
                                                    int lane) {
  constexpr int kAtOnce = 2;  // tiles of 16 experts
  const int num_chunks = NumRouterChunks(block.program().hidden / kTileRows);
  const int num_expert_tiles = NumExpertTiles(phase.num_experts);
  const int g = lane / 4, t = lane % 4;
  uint32_t* const chunk =
      RouterPartials(block, phase, band) + first / kRouterChunkTiles * kBandRows + 2 * t;
#pragma unroll 1
  for (int experts = warp; experts < num_expert_tiles; experts += kAtOnce * kConsumerWarps) {
    RouterChunkSum sums[kAtOnce];
#pragma unroll 1  // its code is fetched anew in every layer
    for (int j = 0; j < num_tiles; ++j) {
      const auto* const columns = block.shared().owned[band][(first + j) % kOwnedTilesMax][g] + t;
      const uint32_t low = columns[0], high = columns[4];
      const auto* const tile = reinterpret_cast<const uint4*>(ring.At(block, entry + j)) + lane;
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
        __stcg(reinterpret_cast<uint2*>(chunk + expert * num_chunks * kBandRows),
               uint2{word(0), word(1)});
      }
    }
  }
}

template <int kBands>
__device__ __forceinline__ void MultiplyRouter(const BandBlock<kBands>& block, const Phase& phase,
                                               ConsumerClock& clock, int warp, int lane) {
  const TileWalk walk = OwnedTiles(block);
  const int count = walk.OwnedCount(block.rank), first = walk.FirstOwned(block.rank);
  block.WaitForFinishers(phase);  // whose columns these are
  __syncwarp();
#pragma unroll 1
  for (int begin = 0; begin < count; begin += kRouterChunkTiles) {
    const int num_tiles = min(kRouterChunkTiles, count - begin);
    const bool has_entry = lane < num_tiles;
    clock.ring.WaitForLanes(block, has_entry, begin + lane);
#pragma unroll 1
    for (int band = 0; band < kBands; ++band) {
      MultiplyRouterChunk(block, phase, clock.ring, band, first + begin, num_tiles, begin, warp,
                          lane);
    }
    __syncwarp();
    if (has_entry) clock.ring.ReleaseAsLane(block, begin + lane, 1);
  }
  clock.ring.Advance(count);
}

constexpr uint32_t kNoExpert = 1;
// Larger floats give larger numbers; both zeros the same; all are above kNoExpert.
__device__ __forceinline__ uint32_t Ascending(float x) {
  const uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0f));
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

// A band's scores: a warp has an expert; lane l, slot l. Then row l / 4.
__device__ __forceinline__ void FinishRouter(const Block& block, const Phase& phase, int band) {
  constexpr int kChunksPerSlot =
      NumRouterChunks(kPassBlocks * kBlockSlabs * kSlabColumns / kTileRows) / kRouterSlots;
  const int warp = Thread() / kWarpLanes - kFirstFinisherWarp, lane = Thread() % kWarpLanes;
  const int num_chunks = NumRouterChunks(block.program().hidden / kTileRows);
  // Before the rows there is no use in asking.
  if (lane == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
  __syncwarp();
  // Priorities are read by fours: those behind the last expert's are there, and the least of all.
  for (int expert = block.index + warp * block.num_blocks; expert < (phase.num_experts + 3) / 4 * 4;
       expert += kFinisherWarps * block.num_blocks) {
    if (expert >= phase.num_experts) {
      if (lane < kBandRows)
        MoePriorities(block, phase, band)[lane * kExpertsMax + expert] = kNoExpert;
      continue;
    }
    const float bias = __ldg(phase.router_bias + expert);
    const uint32_t* const slot =
        RouterPartials(block, phase, band) + (expert * num_chunks + lane) * kBandRows;
    uint4 parts[kChunksPerSlot][2] = {};
    block.Wait(WaitsFor::kOtherBlocks, [&] {  // all requested before the first is looked at
#pragma unroll
      for (int i = 0; i < kChunksPerSlot; ++i) {
        if (i * kRouterSlots + lane >= num_chunks) continue;
        parts[i][0] = PollFour(slot + i * kRouterSlots * kBandRows);
        parts[i][1] = PollFour(slot + i * kRouterSlots * kBandRows + 4);
      }
      bool arrived = true;
#pragma unroll
      for (int i = 0; i < kChunksPerSlot; ++i) arrived &= HaveArrived(parts[i]);
      return __all_sync(kAllLanes, arrived) != 0;
    });
    float sums[kBandRows] = {};
#pragma unroll
    for (int i = 0; i < kChunksPerSlot; ++i) {
      const uint32_t words[kBandRows] = {parts[i][0].x, parts[i][0].y, parts[i][0].z,
                                         parts[i][0].w, parts[i][1].x, parts[i][1].y,
                                         parts[i][1].z, parts[i][1].w};
#pragma unroll
      for (int row = 0; row < kBandRows; ++row)
        sums[row] = __fadd_rn(sums[row], __uint_as_float(words[row]));
    }
#pragma unroll
    for (int half = kBandRows / 2; half >= 1; half /= 2) {  // slots 4 * half apart
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
    block.WaitForScales(phase);
    const int row = lane / 4;
    const float score = Sigmoid(__fmul_rn(block.shared().scale[band * kBandRows + row], sum));
    const float biased = __fadd_rn(score, bias);
    if (lane % 4 == 0) {
      const int at = row * kExpertsMax + expert;
      MoePriorities(block, phase, band)[at] = Ascending(biased == biased ? biased : kMinusInfinity);
      MoeScores(block, phase, band)[at] = FlaggedWord(__float_as_uint(score));
    }
    __syncwarp();
  }
}

// ---- Choice

// A warp reads a row's priorities in vectors of 128: a lane has experts 4 * lane + (0..3) of each.
constexpr int kVectorExperts = 4 * kWarpLanes;
constexpr int kVectorsPerLane = kExpertsMax / kVectorExperts;
static_assert(kExpertsMax % kVectorExperts == 0);

// A row's top K, as router.cu's TopKKernel: lane k returns the k-th choice. One warp.
__device__ __forceinline__ int TopExperts(const Block& block, const Phase& phase, int band, int row,
                                          int lane) {
  const uint32_t* const mail = MoePriorities(block, phase, band) + row * kExpertsMax + 4 * lane;
  uint4 priorities[kVectorsPerLane] = {};
  block.Wait(WaitsFor::kOtherBlocks, [&] {  // all requested before the first is looked at
#pragma unroll
    for (int i = 0; i < kVectorsPerLane; ++i) {
      if (i * kVectorExperts + 4 * lane < phase.num_experts)
        priorities[i] = PollFour(mail + i * kVectorExperts);
    }
    bool arrived = true;
#pragma unroll
    for (int i = 0; i < kVectorsPerLane; ++i) {
      const bool is_there =
          min(min(priorities[i].x, priorities[i].y), min(priorities[i].z, priorities[i].w)) != 0;
      arrived &= is_there || i * kVectorExperts + 4 * lane >= phase.num_experts;
    }
    return __all_sync(kAllLanes, arrived) != 0;
  });
  // A lane offers the largest priority that is not taken, the first of equals, and has the second
  // ready.
  struct Offer {
    uint32_t priority = 0;
    int expert = 0;
  } best, second;
  const auto priority_of = [&](int i) {
    const uint4& v = priorities[i / 4];
    return i % 4 == 0 ? v.x : i % 4 == 1 ? v.y : i % 4 == 2 ? v.z : v.w;
  };
  const auto expert_of = [&](int i) { return i / 4 * kVectorExperts + 4 * lane + i % 4; };
#pragma unroll
  for (int i = 0; i < kExpertsPerLane; ++i) {
    const Offer here = {priority_of(i), expert_of(i)};
    const bool first = here.priority > best.priority;
    second = first ? best : here.priority > second.priority ? here : second;
    best = first ? here : best;
  }
  int mine = 0;
  uint32_t taken = 0;  // bit i: expert_of(i)
#pragma unroll 1
  for (int k = 0; k < phase.experts_per_token; ++k) {
    const uint32_t winner = __reduce_max_sync(kAllLanes, best.priority);
    const int expert =
        static_cast<int>(__reduce_min_sync(kAllLanes, best.priority == winner ? best.expert : ~0u));
    if (lane == k) mine = expert;
    if (best.priority == winner && best.expert == expert) {
      taken |= 1u << (expert / kVectorExperts * 4 + expert % 4);
      best = second;
      second = {};
      if (best.priority == 0) {  // the second is gone, too
#pragma unroll
        for (int i = 0; i < kExpertsPerLane; ++i) {
          if ((taken >> i & 1) == 0 && priority_of(i) > best.priority)
            best = {priority_of(i), expert_of(i)};
        }
      }
    }
    __syncwarp();
  }
  return mine;
}

// What of a row's choice nobody else waits for: its ids, which come as they were chosen, ascending,
// and their weights.
__device__ __forceinline__ void WeighChoice(const Block& block, const Phase& phase, int band,
                                            int row, int lane) {
  ExpertChoice& choice = block.shared().choices[band];
  const int per_row = phase.experts_per_token;
  const int expert = lane < per_row ? choice.ids[row * per_row + lane] : 0;
  float score = 0.0f;
  if (lane < per_row) {  // on its way when its priority is there
    const uint32_t* const mail = MoeScores(block, phase, band) + row * kExpertsMax + expert;
    uint32_t word = kNotArrived;
    block.Wait(WaitsFor::kOtherBlocks, [&] { return HasArrived(word = PollWord(mail)); });
    score = __uint_as_float(word);
  }
  __syncwarp();
  int place = 0;  // of the lane's choice, ids ascending
#pragma unroll
  for (int k = 0; k < kSlotsMax / kBandRows; ++k) {
    const int other = __shfl_sync(kAllLanes, expert, k);
    place += k < per_row && other < expert;
  }
  const int slot = row * per_row + place;
  if (lane < per_row) {
    choice.ids[slot] = expert;
    choice.weights[slot] = score;
  }
  __syncwarp();
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < kSlotsMax / kBandRows; ++k) {  // all requested before the first is added
    if (k < per_row) sum += choice.weights[row * per_row + k];
  }
  __syncwarp();
  if (lane < per_row) choice.weights[slot] = __fdiv_rn(score, sum + 1e-20f);
}

// A benchmark's choice number `lane` of a row, other experts in every layer and round
// (forced_experts.cuh).
__device__ __forceinline__ int ForceExpert(const Block& block, const Phase& phase, int band,
                                           int row, int lane) {
  const int shift =
      (phase.index + band) * 37 + static_cast<int>(block.shared().state.round % 1024) * 11;
  return ForcedExpert(row * phase.experts_per_token + lane, block.program().forced_distinct_experts,
                      phase.num_experts, shift);
}

// All consumers call it before they meet for ChooseExperts, while the scores are not there yet.
template <int kBands>
__device__ __forceinline__ void ClearChoices(const BandBlock<kBands>& block) {
  const int thread = Thread();
#pragma unroll 1
  for (int band = 0; band < kBands; ++band) {
    ExpertChoice& choice = block.shared().choices[band];
    if (thread < kExpertWords) choice.chosen[thread] = 0;
    for (int i = thread; i < kSlotsMax * kBandRows / 4; i += kConsumerThreads) {
      reinterpret_cast<uint32_t*>(choice.slot_of)[i] = 0xffffffffu;
    }
  }
}

// Choice of all verified rows of all bands: first which experts, which is all that the producer
// needs, then who of them serves whom. All consumers call it.
template <int kBands>
__device__ __forceinline__ void ChooseExperts(const BandBlock<kBands>& block, const Phase& phase) {
  const int thread = Thread(), warp = thread / kWarpLanes, lane = thread % kWarpLanes;
  const int num_rows = block.program().num_rows, per_row = phase.experts_per_token;
  const uint32_t verified = block.shared().state.verified;
#pragma unroll 1
  for (int of_pass = warp; of_pass < num_rows; of_pass += kConsumerWarps) {
    const int band = kBands == 1 ? 0 : of_pass / kBandRows, row = of_pass - band * kBandRows;
    int expert = TopExperts(block, phase, band, row, lane);
    if (block.program().forced_distinct_experts > 0)
      expert = ForceExpert(block, phase, band, row, lane);
    ExpertChoice& choice = block.shared().choices[band];
    if (lane < per_row) choice.ids[row * per_row + lane] = expert;
    // A branch of its own, which lanes might take apart, would cost far more than a useless choice.
    if (lane < ((verified >> of_pass & 1) != 0 ? per_row : 0))
      atomicOr(&choice.chosen[expert / 32], 1u << (expert % 32));
  }
  __syncwarp();
  if (lane == 0) Arrive(&block.shared().experts_chosen, 1);
  // Until everybody has read the rows and the mail of the layer before: then both may be written.
  if (thread == kConsumerThreads - 1)
    block.WaitForArrivals(phase.inner_counter, phase.inner_target);
  __syncwarp();
#pragma unroll 1
  for (int of_pass = warp; of_pass < num_rows; of_pass += kConsumerWarps) {
    const int band = kBands == 1 ? 0 : of_pass / kBandRows, row = of_pass - band * kBandRows;
    WeighChoice(block, phase, band, row, lane);
  }
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  // A band's warps: a thread for each choice; the last warp counts the experts meanwhile.
  constexpr int kWarpsOfBand = kConsumerWarps / kBands;
  static_assert(kSlotsMax <= (kWarpsOfBand - 1) * kWarpLanes);
  const int band = kBands == 1 ? 0 : warp / kWarpsOfBand;
  const int slot = thread - band * kWarpsOfBand * kWarpLanes;
  ExpertChoice& choice = block.shared().choices[band];
  // Place of an expert among the chosen ones: how many are before it.
  const auto place_of = [&](int e) {
    int place = 0;
#pragma unroll
    for (int w = 0; w < kExpertWords; ++w) {
      const uint32_t before = w < e / 32 ? ~0u : w == e / 32 ? (1u << (e % 32)) - 1 : 0u;
      place += __popc(choice.chosen[w] & before);
    }
    return place;
  };
  const int row = Quotient(slot, per_row);
  if (row < kBandRows && (verified >> (band * kBandRows + row) & 1) != 0) {
    choice.slot_of[place_of(choice.ids[slot])][row] = static_cast<int8_t>(slot);
  }
  if (slot == (kWarpsOfBand - 1) * kWarpLanes) {
    choice.num_experts =
        place_of(kExpertsMax - 1) + static_cast<int>(choice.chosen[kExpertWords - 1] >> 31);
    atomicAdd(&block.shared().state.num_experts, choice.num_experts);
  }
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  if (thread == 0) Arrive(&block.shared().slots_known, 1);
}

// The producer's list of what was chosen: a lane has a word of the set.
__device__ __forceinline__ void ListExperts(const Block& block, int num_bands) {
  const int lane = Thread() % kWarpLanes;
  static_assert(kExpertWords <= kWarpLanes);
#pragma unroll 1
  for (int band = 0; band < num_bands; ++band) {
    ExpertList& list = block.shared().lists[band];
    uint32_t word = lane < kExpertWords ? block.shared().choices[band].chosen[lane] : 0;
    const int count = __popc(word);
    int end = count;  // of the lane's part of the list
#pragma unroll
    for (int distance = 1; distance < kExpertWords; distance *= 2) {
      const int before = __shfl_up_sync(kAllLanes, end, distance);
      if (lane >= distance) end += before;
    }
    for (int place = end - count; word != 0; word &= word - 1)
      list.experts[place++] = 32 * lane + __ffs(static_cast<int>(word)) - 1;
    if (lane == kExpertWords - 1) list.num_experts = end;
    __syncwarp();
  }
}

}  // namespace ultraspeed::kernels::cuda::resident
