// The round's state: drafts become tokens, choices are accepted, the host is told, and it is
// decided whether another round runs. Every block does the same for itself, from the same data;
// block 0 decides, with several ranks that of rank 0.
#pragma once

#include "kernels/cuda/resident/attend.cuh"
#include "kernels/cuda/resident/choose.cuh"

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

static __device__ __noinline__ void EmbedDraft(Block block) {
  const Phase& phase = block.PhaseOf(Role::kConsumer);
  const Program& program = block.program();
  EmbedRows(block, phase, [&](int row) {
    return row == 0                   ? EmbeddingOf(program, block.shared().state.tokens[0])
           : row < program.draft_rows ? program.mask_embedding
                                      : nullptr;
  });
  PublishRows(block, phase);
}

static __device__ __noinline__ void EmbedTarget(Block block) {
  const Phase& phase = block.PhaseOf(Role::kConsumer);
  const Program& program = block.program();
  RoundState& state = block.shared().state;
  if (program.block > 1) {
    if (Thread() == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
    NamedBarrier<kConsumerBarrier, kConsumerThreads>();
    const int row = Thread() / kWarpLanes, lane = Thread() % kWarpLanes;
    if (row > 0 && row < program.block) {
      const int32_t token = ChosenToken(block, /*is_draft=*/true, row, lane);
      if (lane == 0) state.tokens[row] = token;
    }
    NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  }
  EmbedRows(block, phase, [&](int row) {
    return row < program.block ? EmbeddingOf(program, state.tokens[row]) : nullptr;
  });
  PublishRows(block, phase);
}

// Whether the round after this one may run; `round` and `position` are its. One thread decides.
__device__ __forceinline__ bool MayRun(const Program& program, uint32_t round, int64_t position) {
  constexpr uint64_t kPatienceNs = 100'000;  // for a host that is about to raise the limit
  if (!program.holds_position && position + program.block > program.position_end) return false;
  const uint64_t begin = GlobalNanoseconds();
  while (true) {
    if (LoadFromHost(&program.control->stop) != 0) return false;
    if (round < LoadFromHost(&program.control->round_limit)) return true;
    if (GlobalNanoseconds() - begin > kPatienceNs) return false;
  }
}

// As MayRun, of all ranks: rank 0 decides, because its host alone is asked, and tells the others.
__device__ __forceinline__ bool RanksMayRun(const Block& block, uint32_t round, int64_t position) {
  const Collective& ranks = block.program().collective;
  if (ranks.num_ranks == 1) return MayRun(block.program(), round, position);
  uint32_t decision;
  if (ranks.rank == 0) {
    decision = 2 * round + (MayRun(block.program(), round, position) ? 1 : 0);
    for (int r = 0; r < ranks.num_ranks; ++r) {
      asm volatile("st.volatile.global.u32 [%0], %1;" ::"l"(&ranks.mail_push[r]->decision),
                   "r"(decision)
                   : "memory");
    }
  } else {
    block.Wait(WaitsFor::kPeers, [&] {
      decision = PollWord(&ranks.mail[0].decision);
      return decision >> 1 == (round & 0x7fffffffu);
    });
  }
  return (decision & 1) != 0;
}

static __device__ __noinline__ void Commit(Block block) {
  const Phase& phase = block.PhaseOf(Role::kConsumer);
  const Program& program = block.program();
  RoundState& state = block.shared().state;
  if (Thread() == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  const int row = Thread() / kWarpLanes, lane = Thread() % kWarpLanes;
  if (row < program.block) {
    const int32_t token = ChosenToken(block, /*is_draft=*/false, row, lane);
    if (lane == 0) state.chosen[row] = token;
  }
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  if (Thread() == 0) {
    int accepted = 0;
    while (accepted + 1 < program.block && state.tokens[accepted + 1] == state.chosen[accepted]) {
      ++accepted;
    }
    const uint32_t round = state.round;
    state.num_kept = accepted + 1;
    if (!program.holds_position) {
      state.position += accepted + 1;
      state.tokens[0] = state.chosen[accepted];
    }
    if (block.index == 0) {
      RoundRecord& record = program.results[round % kResultsMax];
      for (int i = 0; i <= accepted; ++i) record.tokens[i] = state.chosen[i];
      if (program.whole_row.wants_logprobs) {
        for (int i = 0; i <= accepted; ++i)
          record.logprobs[i] = __ldcg(program.whole_row.logprobs + i);
      }
      record.num_tokens = accepted + 1;
      record.num_experts = state.num_experts;
      record.end_ns = GlobalNanoseconds();
      StoreToHost(&record.sequence, round + 1);
      const bool runs_on = RanksMayRun(block, round + 1, state.position);
      asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(program.decision),
                   "r"(runs_on ? 1u : 0u)
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
    const bool runs_on = __ldcg(block.program().decision) != 0;
    block.shared().state.runs_on = runs_on;
    block.shared().state.round += 1;
    block.shared().state.num_experts = 0;
    if (!runs_on) block.shared().exits = 1;
  }
  PublishState();
}

}  // namespace ultraspeed::kernels::cuda::resident
