// From logits to tokens: the best token of each row among a block's tiles, then among all blocks.
//
// Greedy, or Gumbel-max with the noise of kernels/gumbel.h. A maximum does not depend on the order
// in which it is found, so the choice is the one that kernels/cuda/sampling.cu makes. Ranks share
// the vocabulary: each finds the best of its part, tells it to all, and all take the best of those.
// Choices that need more than one look at a row take phases of their own in between
// (choose_whole_row.cuh), which leave the choice where ChosenToken looks for it.
#pragma once

#include "kernels/cuda/resident/rows.cuh"
#include "kernels/cuda/sampling_filter.cuh"
#include "kernels/gumbel.h"

namespace ultraspeed::kernels::cuda::resident {

__device__ __forceinline__ RowChoice Better(RowChoice a, RowChoice b) {
  const bool second = b.value > a.value || (b.value == a.value && b.token < a.token);
  return second ? b : a;
}
__device__ __forceinline__ RowChoice BetterOfLanes(RowChoice best, int mask) {
  return Better(best, {__shfl_xor_sync(kAllLanes, best.value, mask),
                       __shfl_xor_sync(kAllLanes, best.token, mask)});
}

// [blocks] of a row; `draft_of` here and below: as Phase's.
__device__ __forceinline__ RowChoice* ChoicesOf(const Block& block, int draft_of, int row) {
  return block.program().choices + ChoiceRow(draft_of, row) * block.num_blocks;
}

// Whose row it is, and the position of the token that is chosen from it.
struct RowPlace {
  int sequence;
  int64_t position;
};
__device__ __forceinline__ RowPlace PlaceOf(const Block& block, int draft_of, int row) {
  const Program& program = block.program();
  if (draft_of != kOfTarget) return {draft_of, block.shared().state.position[draft_of] + row};
  const int s = program.sequence_of[row];
  return {s, block.shared().state.position[s] + row - program.sequences[s].first_row + 1};
}

// ---- Masks

// Whether a head's rows may be held to something.
__device__ __forceinline__ bool HasMasks(const Block& block, const Phase& phase) {
  return phase.output == OutputKind::kLogits && phase.draft_of == kOfTarget &&
         block.program().masks.rows != nullptr;
}
// One thread of all ranks waits with patience only: a host that has nothing more to do with the
// sequences sends no masks. It ends the waiting of all others; what they make of the round is void.
__device__ __forceinline__ void WaitForMasks(const Block& block, int warp, int lane) {
  const Collective& ranks = block.program().collective;
  RoundState& state = block.shared().state;
  const auto are_there = [&] { return PollWord(&ranks.mail[0].num_masked) > state.round; };
  if (lane == 0 && warp == 0 && block.index == 0 && ranks.rank == 0) {
    const uint64_t patience_ns = block.program().wait_ns_max / 2, begin = GlobalNanoseconds();
    while (!are_there() && !state.is_void)
      state.is_void = GlobalNanoseconds() - begin > patience_ns;
    for (int r = 0; state.is_void && r < ranks.num_ranks; ++r) {
      asm volatile("st.volatile.global.u32 [%0], %1;" ::"l"(&ranks.mail_push[r]->num_masked),
                   "r"(kMasksOfAllRounds)
                   : "memory");
    }
  } else if (lane == 0) {
    block.Wait(WaitsFor::kMasks, are_there);
  }
  __syncwarp();
}
__device__ __forceinline__ float Masked(const Program& program, int row, int tile_token,
                                        float logit) {
  const int32_t token = program.first_token + tile_token;
  if (token >= program.token_end) return logit;  // cannot be chosen anyway
  const uint32_t word = __ldcg(program.masks.rows + row * program.masks.row_words + token / 32);
  return (word >> (token % 32) & 1) != 0 ? logit : kNeverChosen;
}
// A finished tile's logits as they may be chosen.
__device__ __forceinline__ float4 MaskedTile(const Program& program, int band, int tile, int lane,
                                             float4 v) {
  const int row = band * kBandRows + lane % 4 * 2, token = tile * kTileRows + lane / 4;
  return {Masked(program, row, token, v.x), Masked(program, row + 1, token, v.y),
          Masked(program, row, token + 8, v.z), Masked(program, row + 1, token + 8, v.w)};
}

// ---- The best of a row

// The lane's rows are 2 t and 2 t + 1 of the band.
class BestOfRows {
 public:
  // Logits of tokens tile * 16 + g (v.x, v.y of the two rows) and + 8 (v.z, v.w).
  __device__ __forceinline__ void Offer(const Block& block, int draft_of, int band, int tile,
                                        int lane, float4 v) {
    const int row = band * kBandRows + lane % 4 * 2;
    const RowPlace places[2] = {PlaceOf(block, draft_of, row), PlaceOf(block, draft_of, row + 1)};
#pragma unroll 1  // little code counts: it is fetched anew every time
    for (int half = 0; half < 2; ++half) {
      const int32_t token = block.program().first_token + tile * 16 + lane / 4 + 8 * half;
      OfferOne(block.program(), places[0], token, half == 0 ? v.x : v.z, best_[0]);
      OfferOne(block.program(), places[1], token, half == 0 ? v.y : v.w, best_[1]);
    }
  }

  // Writes the block's best of every row. All finishers call it.
  __device__ __forceinline__ void Publish(const Block& block, int draft_of, int band, int warp,
                                          int lane) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int mask = 4; mask <= 16; mask *= 2) best_[i] = BetterOfLanes(best_[i], mask);
      if (lane < 4) block.shared().best[warp][lane * 2 + i] = best_[i];
    }
    NamedBarrier<kFinisherBarrier, kFinisherThreads>();
    if (warp != 0 || lane >= kBandRows) return;
    RowChoice best = block.shared().best[0][lane];
#pragma unroll
    for (int w = 1; w < kFinisherWarps; ++w) best = Better(best, block.shared().best[w][lane]);
    ChoicesOf(block, draft_of, band * kBandRows + lane)[block.index] = best;
  }

 private:
  __device__ static __forceinline__ void OfferOne(const Program& program, const RowPlace& place,
                                                  int32_t token, float logit, RowChoice& best) {
    if (token >= program.token_end || token == program.banned_token || logit != logit) return;
    float value = logit;
    const SamplingSpec& sampling = program.sequences[place.sequence].sampling;
    if (sampling.temperature > 0.0f && !program.whole_row.filters) {
      value = __fadd_rn(__fdiv_rn(logit, sampling.temperature),
                        PortableGumbelNoise(sampling.seed, place.position, token));
    }
    best = Better(best, {value, token});
  }

  RowChoice best_[2] = {{kMinusInfinity, kNoToken}, {kMinusInfinity, kNoToken}};
};

// Tells every rank `word` of choice row `which`, by one warp of every block; lane r returns rank
// r's, when `has_arrived(its word)`, the others nothing. A word is written again one round later,
// when this rank has taken part in sums of that round, for which all its blocks have to have passed
// here.
template <typename Predicate>
__device__ __forceinline__ uint2 TellRanks(const Block& block,
                                           uint2 (RankMail::*words)[kChoiceRows], int which,
                                           int lane, uint2 word, Predicate has_arrived) {
  const Collective& ranks = block.program().collective;
  uint2 theirs = {};
  if (lane < ranks.num_ranks) {
    if (block.index == 0) {
      asm volatile("st.volatile.global.v2.u32 [%0], {%1, %2};" ::"l"(
                       &(ranks.mail_push[lane]->*words)[which]),
                   "r"(word.x), "r"(word.y)
                   : "memory");
    }
    block.Wait(WaitsFor::kPeers, [&] {
      theirs = PollPair(&(ranks.mail[lane].*words)[which]);
      return has_arrived(theirs);
    });
  }
  __syncwarp();
  return theirs;
}

// The best of all ranks for row `row`; `best`: of this rank.
__device__ __forceinline__ RowChoice BestOfRanks(const Block& block, int draft_of, int row,
                                                 int lane, RowChoice best) {
  constexpr uint32_t kTokenBits = 20, kTokenMask = (1u << kTokenBits) - 1;
  constexpr uint32_t kMarks = (1u << (32 - kTokenBits)) - 1;  // 1 .. kMarks; 0 is the empty word's
  const uint32_t mark = block.shared().state.round % kMarks + 1;
  const uint32_t token = best.token == kNoToken ? kTokenMask : static_cast<uint32_t>(best.token);
  const uint2 word = TellRanks(block, &RankMail::choices, ChoiceRow(draft_of, row), lane,
                               {__float_as_uint(best.value), token | mark << kTokenBits},
                               [&](uint2 theirs) { return theirs.y >> kTokenBits == mark; });
  RowChoice theirs = {kMinusInfinity, kNoToken};
  if (lane < block.program().collective.num_ranks && (word.y & kTokenMask) != kTokenMask)
    theirs = {__uint_as_float(word.x), static_cast<int32_t>(word.y & kTokenMask)};
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) theirs = BetterOfLanes(theirs, mask);
  return theirs;
}

// The best of all blocks for row `row`, by one warp.
__device__ __forceinline__ RowChoice BestOfBlocks(const Block& block, int draft_of, int row,
                                                  int lane) {
  const RowChoice* const choices = ChoicesOf(block, draft_of, row);
  RowChoice best = {kMinusInfinity, kNoToken};
  for (int b = lane; b < block.num_blocks; b += kWarpLanes) {
    const float2 raw = __ldcg(reinterpret_cast<const float2*>(choices + b));
    best = Better(best, {raw.x, __float_as_int(raw.y)});
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) best = BetterOfLanes(best, mask);
  return best;
}

// What is chosen when nothing can be is token 0.
__device__ __forceinline__ int32_t TokenOrFirst(RowChoice best) {
  return best.token == kNoToken ? 0 : best.token;
}

// The best of all blocks, and of all ranks, for row `row`, by one warp.
__device__ __forceinline__ RowChoice ChoiceOf(const Block& block, int draft_of, int row, int lane) {
  const Program& program = block.program();
  const RowChoice best = BestOfBlocks(block, draft_of, row, lane);
  if (program.collective.num_ranks == 1 || program.whole_row.in_use) return best;
  return BestOfRanks(block, draft_of, row, lane, best);
}

}  // namespace ultraspeed::kernels::cuda::resident
