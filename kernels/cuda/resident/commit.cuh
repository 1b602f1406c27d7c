// The round's state: drafts become tokens, choices are accepted, the host is told, and it is
// decided whether another round runs. Every block does the same for itself, from the same data;
// block 0 decides, with several ranks that of rank 0.
#pragma once

#include "kernels/cuda/resident/attend.cuh"
#include "kernels/cuda/resident/draft_odds.cuh"

namespace ultraspeed::kernels::cuda::resident {

// In the memory of the rank that has it, which is read once a round.
__device__ __forceinline__ const bf16* EmbeddingOf(const Program& program, int32_t token) {
  const int rank = token / program.vocabulary;
  if (token < 0 || rank >= kRanksMax || program.collective.embedding[rank] == nullptr)
    return nullptr;
  return program.collective.embedding[rank] +
         static_cast<int64_t>(token - rank * program.vocabulary) * program.hidden;
}

// All consumers and finishers: the round's state and the block's rows may be read.
__device__ __forceinline__ void PublishState() { NamedBarrier<kWorkerBarrier, kWorkerThreads>(); }
__device__ __forceinline__ void PublishRows(const Block& block, const Phase& phase) {
  PublishState();
  if (Thread() == 0) ArriveEverywhere(block.Counter(phase.arrive_counter));
}

// ---- Drafts

// Which rows of a sequence the target's pass verifies: up to the first draft that is not likely
// enough to be reached.
__device__ __forceinline__ void FindVerified(const Program& program, int s, RoundState& state) {
  const RoundSequence& sequence = program.sequences[s];
  const int bound = program.forced_verified_rows > 0
                        ? min(program.forced_verified_rows, sequence.block)
                        : sequence.block;
  const float least = __logf(LeastDraftOdds(sequence.sampling));
  int count = 1;
  float log_reach = 0.0f;
  for (; count < bound; ++count) {
    if (!program.weighs_drafts || sequence.is_given) continue;
    log_reach += fmaxf(state.logprobs[sequence.first_row + count], least);
    if (log_reach < state.log_reach_min) break;
  }
  state.num_verified[s] = static_cast<uint8_t>(count);
  state.verified |= ((1u << count) - 1) << sequence.first_row;
}

// What was drafted becomes the target's rows. All consumers call it.
__device__ __forceinline__ void TakeDrafts(const Block& block) {
  const Program& program = block.program();
  RoundState& state = block.shared().state;
  const int lane = Thread() % kWarpLanes;
  const int end = program.chains_drafts ? 0 : program.num_rows;  // kChain has chosen them
#pragma unroll 1
  for (int row = Thread() / kWarpLanes; row < end; row += kConsumerWarps) {
    const int s = program.sequence_of[row], of_block = row - program.sequences[s].first_row;
    if (of_block == 0 || program.sequences[s].is_given) continue;
    const RowChoice choice = ChoiceOf(block, s, of_block, lane);
    float logprob = 0.0f;
    if (program.weighs_drafts) logprob = DraftLogprob(block, s, of_block, lane, choice);
    if (lane == 0) {
      state.tokens[row] = TokenOrFirst(choice);
      state.logprobs[row] = logprob;
    }
  }
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  if (Thread() == 0) {
    state.verified = 0;
    for (int s = 0; s < program.num_sequences; ++s) FindVerified(program, s, state);
  }
}

// The residual stream's rows of the pass that begins: a sequence's anchor and masks, or all anchors
// and drafts, which are chosen here.
static __device__ __noinline__ void Embed(Block block) {
  const Phase& phase = block.PhaseOf(Role::kConsumer);
  const Program& program = block.program();
  RoundState& state = block.shared().state;
  if (Thread() == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  const bool drafts = phase.draft_of != kOfTarget;
  if (!drafts) TakeDrafts(block);
  if (Thread() == 0) {
    const int first = drafts ? phase.draft_of : 0;
    state.num_views = drafts ? 1 : program.num_sequences;
    for (int i = 0; i < state.num_views; ++i) {
      const RoundSequence& sequence = program.sequences[first + i];
      state.views[i] = {.position = state.position[first + i],
                        .pages = sequence.pages,
                        .num_rows = drafts ? program.draft_rows : state.num_verified[i],
                        .first_row = drafts ? 0 : sequence.first_row,
                        .slot = sequence.slot};
    }
  }
  const int anchor_row = drafts ? program.sequences[phase.draft_of].first_row : 0;
#pragma unroll 1
  for (int band = 0; band < (drafts ? 1 : program.num_bands); ++band) {
    EmbedRows(block, phase, band, [&](int row) -> const bf16* {
      if (row >= (drafts ? program.draft_rows : program.num_rows)) return nullptr;
      if (drafts && row > 0) return program.mask_embedding;
      return EmbeddingOf(program, state.tokens[anchor_row + row]);
    });
  }
  PublishRows(block, phase);
  const bool is_held = !drafts && program.masks.rows != nullptr;
  if (is_held && block.index == 0 && Thread() == 0) {
    RoundRecord& record = program.results[state.round % kResultsMax];
    for (int row = 0; row < program.num_rows; ++row) record.rows[row] = state.tokens[row];
    StoreToHost(&record.rows_mark, state.round + 1);
  }
}

// Whether the round after this one may run; `round` is its, as is the state. One thread decides.
__device__ __forceinline__ bool MayRun(const Program& program, uint32_t round,
                                       const RoundState& state) {
  if (state.is_void) return false;
  constexpr uint64_t kPatienceNs = 100'000;  // for a host that is about to raise the limit
  for (int s = 0; s < program.num_sequences && !program.holds_position; ++s) {
    const RoundSequence& sequence = program.sequences[s];
    if (state.position[s] + sequence.block > sequence.position_end) return false;
  }
  const uint64_t begin = GlobalNanoseconds();
  while (true) {
    if (LoadFromHost(&program.control->stop) != 0) return false;
    if (round < LoadFromHost(&program.control->round_limit)) return true;
    if (GlobalNanoseconds() - begin > kPatienceNs) return false;
  }
}

// As MayRun, of all ranks: rank 0 decides, because its host alone is asked, and tells the others.
__device__ __forceinline__ Decision DecideRound(const Block& block, uint32_t round) {
  const Program& program = block.program();
  const Collective& ranks = program.collective;
  const RoundState& state = block.shared().state;
  uint2 word;
  if (ranks.rank == 0) {
    // On its way while the host is asked whether to run.
    const float log_reach_min = LoadAloneFromHost(&program.control->log_reach_min);
    word = {2 * round + (MayRun(program, round, state) ? 1 : 0), __float_as_uint(log_reach_min)};
    for (int r = 0; r < ranks.num_ranks && ranks.num_ranks > 1; ++r) {
      asm volatile("st.volatile.global.v2.u32 [%0], {%1, %2};" ::"l"(&ranks.mail_push[r]->decision),
                   "r"(word.x), "r"(word.y)
                   : "memory");
    }
  } else {
    block.Wait(WaitsFor::kPeers, [&] {
      word = PollPair(&ranks.mail[0].decision);
      return word.x >> 1 == (round & 0x7fffffffu);
    });
  }
  return {word.x & 1, __uint_as_float(word.y)};
}

// Drafts that are what the target chose, and its choice after the last of them.
__device__ __forceinline__ void Accept(const Program& program, int s, RoundState& state) {
  const RoundSequence& sequence = program.sequences[s];
  int32_t* const tokens = state.tokens + sequence.first_row;
  const int32_t* const chosen = state.chosen + sequence.first_row;
  int accepted = 0;
  while (accepted + 1 < state.num_verified[s] && tokens[accepted + 1] == chosen[accepted])
    ++accepted;
  state.num_kept[s] = accepted + 1;
  if (program.holds_position) return;
  state.position[s] += accepted + 1;
  state.has_segments |= HasSegments(state.position[s] + sequence.block);
  tokens[0] = chosen[accepted];
}

__device__ __forceinline__ void TellHost(const Program& program, const RoundState& state,
                                         RoundRecord& record) {
  if (state.is_void) {
    StoreToHost(&record.mark, kVoidMark);
    return;
  }
  for (int row = 0; row < program.num_rows; ++row) {
    record.tokens[row] = state.chosen[row];
    if (program.whole_row.wants_logprobs)
      record.logprobs[row] = __ldcg(program.whole_row.logprobs + row);
  }
  for (int s = 0; s < program.num_sequences; ++s) {
    record.num_verified[s] = state.num_verified[s];
    record.num_tokens[s] = state.num_kept[s];
  }
  record.num_experts = state.num_experts;
  record.end_ns = GlobalNanoseconds();
  StoreToHost(&record.mark, state.round + 1);
}

static __device__ __noinline__ void Commit(Block block) {
  const Phase& phase = block.PhaseOf(Role::kConsumer);
  const Program& program = block.program();
  RoundState& state = block.shared().state;
  if (Thread() == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  const int lane = Thread() % kWarpLanes;
#pragma unroll 1
  for (int row = Thread() / kWarpLanes; row < program.num_rows; row += kConsumerWarps) {
    const int32_t token = TokenOrFirst(ChoiceOf(block, kOfTarget, row, lane));
    if (lane == 0) state.chosen[row] = token;
  }
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  if (Thread() == 0) {
    for (int s = 0; s < program.num_sequences; ++s) Accept(program, s, state);
    if (block.index == 0) {
      const uint32_t round = state.round;
      TellHost(program, state, program.results[round % kResultsMax]);
      const Decision decision = DecideRound(block, round + 1);
      asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(program.decision),
                   "r"(decision.runs_on), "r"(__float_as_uint(decision.log_reach_min))
                   : "memory");
      ArriveEverywhere(block.Counter(phase.arrive_counter));
    }
  }
  PublishState();
}

// Learns the decision; finishers wait at the same barrier.
static __device__ __noinline__ void EndRound(Block block) {
  if (Thread() == 0) {
    block.WaitForArrivals(block.program().decision_counter, block.program().decision_target);
    const uint2 decision = __ldcg(reinterpret_cast<const uint2*>(block.program().decision));
    const bool runs_on = decision.x != 0;
    block.shared().state.runs_on = runs_on;
    block.shared().state.log_reach_min = __uint_as_float(decision.y);
    block.shared().state.round += 1;
    block.shared().state.num_experts = 0;
    if (!runs_on) block.shared().exits = 1;
  }
  PublishState();
}

}  // namespace ultraspeed::kernels::cuda::resident
