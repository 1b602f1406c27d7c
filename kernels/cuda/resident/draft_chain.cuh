// Drafts that know the one before them: the Markov head of a block's rows, one row after the other.
//
// Each thread block has the tokens of the head's tiles that it finishes. For every row all blocks
// make the same state of the draft before, add what it makes likelier to their tokens' logits,
// publish the best of them with the sum of exp(logit), and take the best of all. What is published
// carries a mark of its own, so that nobody waits for a counter. Bytes: the head's [V, R] a row,
// from L2; what takes the time is that all wait for one warp, row after row.
//
// Top-k and top-p: of the best of all, blocks add up how many tokens are likelier and what
// probability those have. If that is too much for it to be kept, all that are no likelier than it
// are not kept either, and the best of the rest is next. Top-p's share is one of all tokens, also
// where top-k keeps only some of them: with both a draft may differ from the single operations'.
//
// Ranks do as blocks do: block 0 of each tells the others what all its blocks have found, and all
// blocks ask.
#pragma once

#include "kernels/cuda/device/tile_vector.cuh"
#include "kernels/cuda/resident/draft_odds.cuh"

namespace ultraspeed::kernels::cuda::resident {

// Warps 1 .. 11 have the tokens; warp 0 tells the other blocks and asks them. While it does, the
// others prepare the next row.
constexpr int kScoringWarps = kConsumerWarps - 1;

// What is known of tokens, of a warp or of a block: the best of them and its logit, and the sums of
// exp(logit) and exp(logit / temperature).
struct ChainBest {
  RowChoice choice = {kMinusInfinity, kNoToken};
  float logit = 0.0f;
  RowMass mass = kNoMass, scaled = kNoMass;
};
// How many tokens are likelier than a candidate, and what they weigh.
struct ChainAbove {
  float mass;
  uint32_t count;
};
struct ChainScratch {
  alignas(16) bf16 embedded[kMarkovRankMax], gated[kMarkovRankMax];
  ChainBest best[kScoringWarps];
  ChainAbove above[kConsumerWarps];
  float candidate;  // its logit
  bool is_kept;
  // Of the block's tokens, where there are filters: with the bias; as they are compared.
  float logits[kChainTokensMax], values[kChainTokensMax];
};
static_assert(sizeof(ChainScratch) <= kStagingBytes);

// Of the lanes' masses.
__device__ __forceinline__ RowMass WarpMass(RowMass mass) {
  float max = mass.max;
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, mask));
  return {max, WarpReduce(mass.sum * __expf(mass.max - max), AddFloats())};
}
__device__ __forceinline__ ChainBest WarpBest(ChainBest best, bool is_scaled) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const RowChoice theirs = {__shfl_xor_sync(kAllLanes, best.choice.value, mask),
                              __shfl_xor_sync(kAllLanes, best.choice.token, mask)};
    const float logit = __shfl_xor_sync(kAllLanes, best.logit, mask);
    const RowChoice better = Better(best.choice, theirs);
    if (better.token != best.choice.token) best.logit = logit;
    best.choice = better;
  }
  best.mass = WarpMass(best.mass);
  if (is_scaled) best.scaled = WarpMass(best.scaled);
  return best;
}

// What the head's matrix multiplies behind `token`. All consumers call it.
__device__ __forceinline__ const bf16* StateBehind(const ChainTask& task, ChainScratch& scratch,
                                                   int row, int32_t token) {
  const int warp = Thread() / kWarpLanes, lane = Thread() % kWarpLanes;
  const bf16* const source = task.previous + static_cast<int64_t>(token) * task.rank;
  for (int i = Thread(); i < task.rank; i += kConsumerThreads)
    scratch.embedded[i] = __ldg(source + i);
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  if (task.gate_previous == nullptr) return scratch.embedded;
  const size_t tile_bytes = TileBytes(WeightFormat::kBf16, task.rank);
  const float* const gates = task.gates + row * task.rank;
#pragma unroll 1
  for (int tile = warp; tile < task.rank / kTileRows; tile += kConsumerWarps) {
    const int i = tile * kTileRows + lane / 4 + lane % 2 * 8;  // of lanes with t < 2
    const float known = __ldcg(gates + i) + __ldg(task.gate_bias + i);
    const float2 sums =
        TileTimesVector(task.gate_previous + tile * tile_bytes, scratch.embedded, task.rank, lane);
    const float of_high = __shfl_sync(kAllLanes, sums.y, lane / 4 * 4);
    if (lane % 4 < 2)
      scratch.gated[i] =
          GatedElement(scratch.embedded[i], known + (lane % 4 == 0 ? sums.x : of_high));
  }
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  return scratch.gated;
}

// A lane's token of a tile: what is known of it before the draft before it is. Lanes with t < 2
// have one.
struct ChainToken {
  int32_t token;  // kNoToken: none
  float logit, noise;

  ChainToken() = default;
  __device__ __forceinline__ ChainToken(const Block& block, const Phase& phase, int row, int tile,
                                        int lane) {
    const Program& program = block.program();
    const int column = tile * kTileRows + lane / 4 + lane % 2 * 8;
    token = program.first_token + column;
    logit = noise = 0.0f;
    if (lane % 4 > 1 || column >= phase.out_stride || token >= program.token_end ||
        token == program.banned_token) {
      token = kNoToken;
      return;
    }
    logit = __ldcg(phase.out + static_cast<int64_t>(row) * phase.out_stride + column);
    const RowPlace place = PlaceOf(block, phase.draft_of, row);
    const SamplingSpec& sampling = program.sequences[place.sequence].sampling;
    if (sampling.temperature > 0.0f)
      noise = PortableGumbelNoise(sampling.seed, place.position, token);
  }
  // `place`: of the token among the block's, where it is kept for filters; -1: it is not.
  __device__ __forceinline__ void Offer(float bias, float temperature, int place,
                                        ChainScratch& scratch, ChainBest& best) const {
    const float with = logit + bias;
    const bool is_one = token != kNoToken && with == with;
    const float value = temperature > 0.0f ? __fadd_rn(__fdiv_rn(with, temperature), noise) : with;
    if (place >= 0) {
      scratch.logits[place] = is_one ? with : kMinusInfinity;
      scratch.values[place] = is_one ? value : kMinusInfinity;
    }
    if (!is_one) return;
    best.mass = Together(best.mass, {with, 1.0f});
    if (place >= 0) best.scaled = Together(best.scaled, {__fdiv_rn(with, temperature), 1.0f});
    const RowChoice better = Better(best.choice, {value, token});
    if (better.token == token) best.logit = with;
    best.choice = better;
  }
};

// Tile i of the block's part of the head; of warps that have none, some tile.
__device__ __forceinline__ int OwnTile(const Block& block, const Phase& phase, int i) {
  const TileWalk walk(block, TileOrder::kDealt, phase.num_tiles);
  return i >= 0 && i < walk.OwnedCount(block.rank) ? walk.TileAt(block.rank, i) : 0;
}
__device__ __forceinline__ const uint8_t* NextOf(const Block& block, const Phase& phase,
                                                 const ChainTask& task, int tile) {
  return task.next + (block.program().first_token / kTileRows + tile) *
                         TileBytes(WeightFormat::kBf16, task.rank);
}

// The best of a row, with what `state` makes likelier, of each scoring warp in the scratch.
// `first`: of the warp's first tile. All consumers call it.
__device__ __forceinline__ void ScoreOwnTokens(const Block& block, const Phase& phase,
                                               ChainScratch& scratch, int row, const bf16* state,
                                               const ChainToken& first, bool filters) {
  const auto& task = *static_cast<const ChainTask*>(phase.x);
  const int warp = Thread() / kWarpLanes - 1, lane = Thread() % kWarpLanes;
  const TileWalk walk(block, TileOrder::kDealt, phase.num_tiles);
  const int count = warp < 0 ? 0 : walk.OwnedCount(block.rank);
  const float temperature = block.program().sequences[phase.draft_of].sampling.temperature;
  ChainBest best;
#pragma unroll 1
  for (int i = warp; i < count; i += kScoringWarps) {
    const int tile = OwnTile(block, phase, i);
    const float2 sums = TileTimesVector(NextOf(block, phase, task, tile), state, task.rank, lane);
    const float of_high = __shfl_sync(kAllLanes, sums.y, lane / 4 * 4);
    const ChainToken token = i == warp ? first : ChainToken(block, phase, row, tile, lane);
    const int place = i * kTileRows + lane / 4 + lane % 2 * 8;
    token.Offer(lane % 4 == 0 ? sums.x : of_high, temperature, filters && lane % 4 < 2 ? place : -1,
                scratch, best);
  }
  if (warp >= 0) {
    best = WarpBest(best, filters);
    if (lane == 0) scratch.best[warp] = best;
  }
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
}

// The best of the block's tokens that are likelier than the candidate, likewise. Filters only.
__device__ __forceinline__ void ScoreLikelier(const Block& block, const Phase& phase,
                                              ChainScratch& scratch, float candidate) {
  const int warp = Thread() / kWarpLanes - 1, lane = Thread() % kWarpLanes;
  const TileWalk walk(block, TileOrder::kDealt, phase.num_tiles);
  const int count = warp < 0 ? 0 : walk.OwnedCount(block.rank) * kTileRows;
  ChainBest best;
#pragma unroll 1
  for (int i = warp * kWarpLanes + lane; i < count; i += kScoringWarps * kWarpLanes) {
    if (!(scratch.logits[i] > candidate)) continue;
    const int column = OwnTile(block, phase, i / kTileRows) * kTileRows + i % kTileRows;
    const int32_t token = block.program().first_token + column;
    const RowChoice better = Better(best.choice, {scratch.values[i], token});
    if (better.token == token) best.logit = scratch.logits[i];
    best.choice = better;
  }
  if (warp >= 0) {
    best = WarpBest(best, false);
    if (lane == 0) scratch.best[warp] = best;
  }
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
}

// What of the block's tokens is likelier than the candidate; of each warp in the scratch. All
// consumers call it. `log_scaled`: logarithm of what all tokens weigh.
__device__ __forceinline__ void CountLikelier(const Block& block, const Phase& phase,
                                              ChainScratch& scratch, float log_scaled) {
  const int warp = Thread() / kWarpLanes, lane = Thread() % kWarpLanes;
  const TileWalk walk(block, TileOrder::kDealt, phase.num_tiles);
  const int count = walk.OwnedCount(block.rank) * kTileRows;
  const float temperature = block.program().sequences[phase.draft_of].sampling.temperature;
  ChainAbove above = {0.0f, 0u};
  for (int i = Thread(); i < count; i += kConsumerThreads) {
    if (!(scratch.logits[i] > scratch.candidate)) continue;
    above.mass += __expf(scratch.logits[i] / temperature - log_scaled);
    above.count += 1;
  }
  above.mass = WarpReduce(above.mass, AddFloats());
  above.count = __reduce_add_sync(kAllLanes, above.count);
  if (lane == 0) scratch.above[warp] = above;
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
}

// ---- Between blocks

// Words of a row, of each kind one of each block. The first has the token and a short mark beside
// its value, the others their value and a mark.
enum ChainWord { kChainChoice, kChainLogit, kChainMass, kChainScaled, kChainAbove };
static_assert(kChainAbove + 1 == kChainWords);
constexpr uint32_t kChainTokenBits = 20, kChainNoToken = (1u << kChainTokenBits) - 1;

// A row's words for one candidate: every block has read those of the candidate, or of the round,
// before when it publishes its own.
class ChainMail {
 public:
  __device__ __forceinline__ ChainMail(const Block& block, const Phase& phase, int row,
                                       uint32_t candidate)
      : block_(block),
        row_(phase.draft_of * kBandRows + row),
        words_(static_cast<const ChainTask*>(phase.x)->words +
               static_cast<int64_t>(row_) * kChainWords * block.num_blocks),
        mark_(block.shared().state.round * kChainCandidatesMax + candidate + 1) {}

  // By one warp, which has it all.
  __device__ __forceinline__ void Publish(const ChainBest& best, int lane) const {
    if (lane <= kChainScaled) Store(lane, WordOf(best, lane));
  }
  __device__ __forceinline__ void Publish(ChainAbove above, int lane) const {
    if (lane == 0) Store(kChainAbove, WordOf(above));
  }

  // Of all blocks, by one warp.
  __device__ __forceinline__ ChainBest TakeBest(int lane, bool is_scaled) const {
    ChainBest best;
    ForEachBlock<kChainScaled + 1>(
        kChainChoice, is_scaled ? kChainScaled + 1 : kChainMass + 1, lane,
        [&](const uint2(&words)[kChainScaled + 1]) {
          const uint32_t token = words[kChainChoice].y & kChainNoToken;
          best.mass = Together(best.mass, {__uint_as_float(words[kChainMass].x), 1.0f});
          if (is_scaled)
            best.scaled = Together(best.scaled, {__uint_as_float(words[kChainScaled].x), 1.0f});
          if (token == kChainNoToken) return;
          const RowChoice theirs = {__uint_as_float(words[kChainChoice].x),
                                    static_cast<int32_t>(token)};
          best.choice = Better(best.choice, theirs);
          if (best.choice.token == theirs.token) best.logit = __uint_as_float(words[kChainLogit].x);
        });
    return WarpBest(best, is_scaled);
  }
  __device__ __forceinline__ ChainAbove TakeAbove(int lane) const {
    ChainAbove above = {0.0f, 0u};
    ForEachBlock<1>(kChainAbove, 1, lane, [&](const uint2(&words)[1]) {
      above.mass += __uint_as_float(words[0].x);
      above.count += words[0].y >> 16;
    });
    return {WarpReduce(above.mass, AddFloats()), __reduce_add_sync(kAllLanes, above.count)};
  }

  // Of all ranks, likewise; in: of this one's blocks.
  __device__ __forceinline__ ChainBest BestOfRanks(const ChainBest& own, int lane,
                                                   bool is_scaled) const {
    constexpr int kKinds = kChainScaled + 1;
    static_assert(kKinds * kRanksMax == kWarpLanes);
    const int kind = lane % kKinds;
    const uint2 word = TellRanks(lane / kKinds, kind, WordOf(own, kind));
    const auto of_kind = [&](int k) {
      return __uint_as_float(__shfl_sync(kAllLanes, word.x, lane / kKinds * kKinds + k));
    };
    const float logit = of_kind(kChainLogit), mass = of_kind(kChainMass),
                scaled = of_kind(kChainScaled);
    ChainBest best;
    if (kind == 0 && lane / kKinds < block_.program().collective.num_ranks) {
      const uint32_t token = word.y & kChainNoToken;
      best = {.choice = {__uint_as_float(word.x),
                         token == kChainNoToken ? kNoToken : static_cast<int32_t>(token)},
              .logit = logit,
              .mass = {mass, 1.0f},
              .scaled = {scaled, 1.0f}};
    }
    return WarpBest(best, is_scaled);
  }
  // Of a row that is not drafted any more: nobody asks.
  __device__ __forceinline__ void TellRanksNothing(const ChainBest& nothing, int lane) const {
    constexpr int kKinds = kChainScaled + 1;
    const Collective& ranks = block_.program().collective;
    if (block_.index != 0 || lane / kKinds >= ranks.num_ranks) return;
    StoreToRank(lane / kKinds, lane % kKinds, WordOf(nothing, lane % kKinds));
    if (lane % kKinds == 0) StoreToRank(lane / kKinds, kChainAbove, WordOf(ChainAbove{0.0f, 0u}));
  }
  __device__ __forceinline__ ChainAbove AboveOfRanks(ChainAbove own, int lane) const {
    const uint2 word = TellRanks(lane, kChainAbove, WordOf(own));
    const bool is_one = lane < block_.program().collective.num_ranks;
    return {WarpReduce(is_one ? __uint_as_float(word.x) : 0.0f, AddFloats()),
            __reduce_add_sync(kAllLanes, is_one ? word.y >> 16 : 0u)};
  }

 private:
  __device__ __forceinline__ uint2 WordOf(const ChainBest& best, int kind) const {
    const uint32_t token =
        best.choice.token == kNoToken ? kChainNoToken : static_cast<uint32_t>(best.choice.token);
    if (kind == kChainLogit) return {__float_as_uint(best.logit), mark_};
    if (kind == kChainMass) return {__float_as_uint(LogOf(best.mass)), mark_};
    if (kind == kChainScaled) return {__float_as_uint(LogOf(best.scaled)), mark_};
    return {__float_as_uint(best.choice.value), token | ShortMark()};
  }
  __device__ __forceinline__ uint2 WordOf(ChainAbove above) const {
    return {__float_as_uint(above.mass), min(above.count, 0xffffu) << 16 | LowMark()};
  }
  __device__ __forceinline__ bool IsThere(int kind, uint2 word) const {
    if (kind == kChainChoice) return (word.y & ~kChainNoToken) == ShortMark();
    if (kind == kChainAbove) return (word.y & 0xffffu) == LowMark();
    return word.y == mark_;
  }
  __device__ __forceinline__ void StoreToRank(int rank, int kind, uint2 word) const {
    asm volatile("st.volatile.global.v2.u32 [%0], {%1, %2};" ::"l"(
                     &block_.program().collective.mail_push[rank]->chain[row_][kind]),
                 "r"(word.x), "r"(word.y)
                 : "memory");
  }
  // A lane's word to rank `rank`, and that rank's.
  __device__ __forceinline__ uint2 TellRanks(int rank, int kind, uint2 word) const {
    const Collective& ranks = block_.program().collective;
    uint2 theirs = {};
    if (rank < ranks.num_ranks) {
      if (block_.index == 0) StoreToRank(rank, kind, word);
      block_.Wait(WaitsFor::kPeers, [&] {
        theirs = PollPair(&ranks.mail[rank].chain[row_][kind]);
        return IsThere(kind, theirs);
      });
    }
    __syncwarp();
    return theirs;
  }
  __device__ __forceinline__ uint32_t ShortMark() const {
    return (mark_ % ((1u << (32 - kChainTokenBits)) - 1) + 1) << kChainTokenBits;  // never 0
  }
  __device__ __forceinline__ uint32_t LowMark() const { return mark_ % 0xffffu + 1; }
  __device__ __forceinline__ void Store(int kind, uint2 word) const {
    asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(
                     words_ + kind * block_.num_blocks + block_.index),
                 "r"(word.x), "r"(word.y)
                 : "memory");
  }
  // Calls body(words) with `num_kinds` words of every block from kind `first` on, when they are
  // there. A lane asks for several blocks' before it looks at any.
  template <int kKinds, typename Body>
  __device__ __forceinline__ void ForEachBlock(int first, int num_kinds, int lane,
                                               Body body) const {
    constexpr int kAhead = 5;  // of an H200's 132 blocks, all
#pragma unroll 1
    for (int begin = lane; begin < block_.num_blocks; begin += kAhead * kWarpLanes) {
      uint2 words[kAhead][kKinds];
      block_.Wait(WaitsFor::kOtherBlocks, [&] {
        bool all = true;
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
#pragma unroll
          for (int k = 0; k < kKinds; ++k) {
            const int b = min(begin + i * kWarpLanes, block_.num_blocks - 1);
            words[i][k] =
                k < num_kinds ? PollPair(words_ + (first + k) * block_.num_blocks + b) : uint2{};
          }
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
#pragma unroll
          for (int k = 0; k < kKinds; ++k) all &= k >= num_kinds || IsThere(first + k, words[i][k]);
        }
        return all;
      });
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (begin + i * kWarpLanes < block_.num_blocks) body(words[i]);
      }
    }
    __syncwarp();
  }

  const Block& block_;
  const int row_;
  uint2* const words_;
  const uint32_t mark_;
};

// ---- The phase

// The best of the scoring warps, by one warp.
__device__ __forceinline__ ChainBest OwnBest(const ChainScratch& scratch, int lane,
                                             bool is_scaled) {
  ChainBest best;
  if (lane < kScoringWarps) best = scratch.best[lane];
  return WarpBest(best, is_scaled);
}

// Whether the filters keep the candidate that is behind `above`.
__device__ __forceinline__ bool IsKept(const SamplingSpec& sampling, ChainAbove above) {
  return (sampling.top_k == 0 || above.count < static_cast<uint32_t>(sampling.top_k)) &&
         (sampling.top_p >= 1.0f || above.mass < sampling.top_p);
}

// Among the block's tokens that were scored, and all others', the one that filters keep; the same
// in all blocks. All consumers call it; warp 0 has the result.
__device__ __forceinline__ ChainBest ChooseKept(const Block& block, const Phase& phase,
                                                ChainScratch& scratch, int row, bool filters) {
  const int warp = Thread() / kWarpLanes, lane = Thread() % kWarpLanes;
  const bool has_ranks = block.program().collective.num_ranks > 1;
  ChainBest chosen;
#pragma unroll 1
  for (uint32_t candidate = 0;; ++candidate) {
    const ChainMail mail(block, phase, row, candidate);
    if (warp == 0) {
      const bool is_first = candidate == 0;
      mail.Publish(OwnBest(scratch, lane, filters && is_first), lane);
      ChainBest best = mail.TakeBest(lane, filters && is_first);
      if (has_ranks) best = mail.BestOfRanks(best, lane, filters && is_first);
      chosen.choice = best.choice;
      chosen.logit = best.logit;
      if (is_first) {
        chosen.mass = best.mass;
        chosen.scaled = best.scaled;
      }
      if (lane == 0) scratch.candidate = chosen.logit;
    }
    if (!filters) return chosen;
    const float log_scaled = LogOf(chosen.scaled);  // of warp 0
    if (Thread() == 0) scratch.above[0].mass = log_scaled;
    NamedBarrier<kConsumerBarrier, kConsumerThreads>();
    const float total = scratch.above[0].mass;
    NamedBarrier<kConsumerBarrier, kConsumerThreads>();
    CountLikelier(block, phase, scratch, total);
    if (warp == 0) {
      ChainAbove above = lane < kConsumerWarps ? scratch.above[lane] : ChainAbove{0.0f, 0u};
      above = {WarpReduce(above.mass, AddFloats()), __reduce_add_sync(kAllLanes, above.count)};
      mail.Publish(above, lane);
      above = mail.TakeAbove(lane);
      if (has_ranks) above = mail.AboveOfRanks(above, lane);
      const SamplingSpec& sampling = block.program().sequences[phase.draft_of].sampling;
      if (lane == 0)
        scratch.is_kept = candidate + 1 == kChainCandidatesMax || IsKept(sampling, above);
    }
    NamedBarrier<kConsumerBarrier, kConsumerThreads>();
    if (scratch.is_kept) return chosen;
    ScoreLikelier(block, phase, scratch, scratch.candidate);
  }
}

// Drafts of a sequence, up to one that is too unlikely to be reached. All consumers call it.
static __device__ __noinline__ void ChainDrafts(Block block) {
  const Phase& phase = block.PhaseOf(Role::kConsumer);
  const Program& program = block.program();
  const auto& task = *static_cast<const ChainTask*>(phase.x);
  RoundState& state = block.shared().state;
  auto& scratch = *reinterpret_cast<ChainScratch*>(block.shared().staging);
  const RoundSequence& sequence = program.sequences[phase.draft_of];
  int32_t* const tokens = state.tokens + sequence.first_row;
  float* const logprobs = state.logprobs + sequence.first_row;
  const int warp = Thread() / kWarpLanes, lane = Thread() % kWarpLanes;
  const float least = __logf(LeastDraftOdds(sequence.sampling));
  const bool filters = program.whole_row.filters;
  if (Thread() == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  const int first_tile = OwnTile(block, phase, warp - 1);
  ChainToken first(block, phase, 1, first_tile, lane);
  float log_reach = 0.0f;
  int row = 1;
#pragma unroll 1
  while (row < sequence.block) {
    NamedBarrier<kConsumerBarrier, kConsumerThreads>();  // the draft before is there
    if (row > 1) log_reach += fmaxf(logprobs[row - 1], least);
    if (program.weighs_drafts && log_reach < state.log_reach_min) break;
    ScoreOwnTokens(block, phase, scratch, row, StateBehind(task, scratch, row, tokens[row - 1]),
                   first, filters);
    const ChainBest best = ChooseKept(block, phase, scratch, row, filters);
    if (warp == 0) {
      if (lane == 0) {
        tokens[row] = TokenOrFirst(best.choice);
        logprobs[row] = best.logit - LogOf(best.mass);
      }
    }
    if (++row < sequence.block) first = ChainToken(block, phase, row, first_tile, lane);
  }
  // Rows that are not drafted any more are published all the same, so that no word is older than a
  // round.
  for (int rest = row; warp == 0 && rest < sequence.block; ++rest) {
    ChainBest nothing;
    nothing.mass = nothing.scaled = {0.0f, 1.0f};
    const ChainMail mail(block, phase, rest, kChainCandidatesMax - 1);
    mail.Publish(nothing, lane);
    mail.Publish(ChainAbove{0.0f, 0u}, lane);
    if (block.program().collective.num_ranks > 1) mail.TellRanksNothing(nothing, lane);
  }
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
}

}  // namespace ultraspeed::kernels::cuda::resident
