// The attention phases: who runs which unit, and the drafter's context.
#pragma once

#include "kernels/cuda/kv_head.cuh"
#include "kernels/cuda/resident/attention.cuh"
#include "kernels/cuda/resident/block.cuh"

namespace ultraspeed::kernels::cuda::resident {

// The pass's sequences share the blocks.
__device__ __forceinline__ PartPlan PlanOf(const Block& block, const AttentionTask& task,
                                           const RoundView& round) {
  return PartPlanOf(task, round.position, round.num_rows,
                    Quotient(block.num_blocks, block.shared().state.num_views));
}

// All consumers, after a phase's work: their global writes are seen by whoever sees the arrival.
__device__ __forceinline__ void ArriveAsConsumers(const Block& block, const Phase& phase) {
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  if (Thread() == 0) ArriveEverywhere(block.Counter(phase.arrive_counter));
}

// What units of attention need of their block: shared memory that no partial sums arrive in any
// more, and one wait for the projections, as late as a unit allows.
class UnitRunner {
 public:
  __device__ __forceinline__ UnitRunner(const Block& block, const Phase& phase)
      : block_(block), phase_(phase) {
    block.WaitForFinishers(phase);
  }
  __device__ __forceinline__ uint8_t* scratch() const { return block_.AttentionScratch(); }
  // One warp; a barrier follows.
  __device__ __forceinline__ void Wait() const {
    if (Thread() % kWarpLanes != 0) return;
    block_.WaitForArrivals(phase_.wait_counter, phase_.wait_target);
    block_.Stamp(phase_.index, kTraceInputReady);
  }

 private:
  const Block& block_;
  const Phase& phase_;
};

// Runs the units of the pass's sequences, dealt over `num_members` blocks of which this one is
// `member`, and arrives. `plan_of(round)` knows how many a sequence has; `attend(round, plan, unit,
// wait)` runs one. A block that has no unit in this round waits all the same: arrivals are in
// order.
template <typename PlanFn, typename AttendFn>
__device__ __forceinline__ void RunUnits(const Block& block, const Phase& phase,
                                         const UnitRunner& runner, int member, int num_members,
                                         PlanFn plan_of, AttendFn attend) {
  const auto wait = [&] { runner.Wait(); };
  int unit = member;
#pragma unroll 1
  for (;; unit += num_members) {
    const RoundState& state = block.shared().state;
    int s = 0, of_sequence = unit;
    auto plan = plan_of(state.views[0]);
    while (of_sequence >= plan.num_units) {
      of_sequence -= plan.num_units;
      if (++s == state.num_views) break;
      plan = plan_of(state.views[s]);
    }
    if (s == state.num_views) break;
    attend(state.views[s], plan, of_sequence, wait);
    NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  }
  if (unit == member && Thread() < kWarpLanes) runner.Wait();
  ArriveAsConsumers(block, phase);
}

template <int kDim>
__device__ __noinline__ void AttendWindows(Block block) {
  struct WindowPlan {
    int num_units;
  };
  const Phase& phase = block.PhaseOf(Role::kConsumer);
  const AttentionTask& task = phase.attention;
  // Units are dealt to clusters first, so that few of them slow down no cluster twice.
  const int member = block.rank * block.num_clusters + block.cluster;
  if (member >= phase.attention_units_max) return;  // arrives nowhere: never has a unit
  const UnitRunner runner(block, phase);
  RunUnits(
      block, phase, runner, member, min(phase.attention_units_max, block.num_blocks),
      [&](const RoundView& round) -> WindowPlan { return {WindowUnits(task, round.num_rows)}; },
      [&](const RoundView& round, WindowPlan, int unit, const auto& wait) {
        AttendWindow<kDim>(task, round, unit, runner.scratch(), wait);
      });
}

template <int kDim>
__device__ __noinline__ void AttendParts(Block block) {
  const Phase& phase = block.PhaseOf(Role::kConsumer);
  const AttentionTask& task = phase.attention;
  const UnitRunner runner(block, phase);
  RunUnits(
      block, phase, runner, block.index, block.num_blocks,
      [&](const RoundView& round) { return PlanOf(block, task, round); },
      [&](const RoundView& round, const PartPlan& plan, int unit, const auto& wait) {
        AttendPart<kDim>(task, round, plan, unit, runner.scratch(), wait);
      });
}

// Whether the layer is attended in segments in this round.
__device__ __forceinline__ bool InSegments(const Block& block, const AttentionTask& task) {
  return task.has_parts && task.window == 0 && block.shared().state.has_segments;
}
// Calls `run(work, share)` with the block's share of the pass's units in segments, if it has any.
template <typename RunFn>
__device__ __forceinline__ bool RunSegments(const Block& block, const AttentionTask& task,
                                            RunFn run) {
  const RoundState& state = block.shared().state;
  const auto plan_of = [&](const RoundView& round) { return PlanOf(block, task, round); };
  const SegmentWork<decltype(plan_of)> work = {state.views, state.num_views, plan_of};
  const UnitShare share = ShareOfUnits(work, block.index, block.num_blocks);
  if (share.begin == share.end) return false;
  run(work, share);
  return true;
}

template <int kDim>
__device__ __noinline__ void AttendInSegments(Block block) {
  const Phase& phase = block.PhaseOf(Role::kConsumer);
  const UnitRunner runner(block, phase);
  const bool ran = RunSegments(block, phase.attention, [&](const auto& work, UnitShare share) {
    AttendSegments<kDim>(phase.attention, work, share, runner.scratch(), [&] { runner.Wait(); });
  });
  if (!ran && Thread() < kWarpLanes) runner.Wait();
  ArriveAsConsumers(block, phase);
}
// The finishers' part.
template <int kDim>
__device__ __noinline__ void LoadInSegments(Block block) {
  const Phase& phase = block.PhaseOf(Role::kFinisher);
  const auto wait = [&] {
    if (Thread() % kWarpLanes == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
  };
  RunSegments(block, phase.attention, [&](const auto& work, UnitShare share) {
    LoadSegments<kDim>(phase.attention, work, share, block.AttentionScratch(), wait);
  });
}

// By the shape of the heads and, in parts, by their size.
template <int kDim>
__device__ __forceinline__ void AttendOfDim(const Block& block) {
  const AttentionTask& task = block.PhaseOf(Role::kConsumer).attention;
  if (!task.has_parts) {
    AttendWindows<kDim>(block);
  } else if (InSegments(block, task)) {
    AttendInSegments<kDim>(block);
  } else {
    AttendParts<kDim>(block);
  }
}
__device__ __forceinline__ void Attend(const Block& block) {
  if (block.PhaseOf(Role::kConsumer).attention.qk_head_dim == 192) {
    AttendOfDim<192>(block);
  } else {
    AttendOfDim<128>(block);
  }
}
__device__ __forceinline__ void Load(const Block& block) {
  const AttentionTask& task = block.PhaseOf(Role::kFinisher).attention;
  if (!InSegments(block, task)) return;
  if (task.qk_head_dim == 192) {
    LoadInSegments<192>(block);
  } else {
    LoadInSegments<128>(block);
  }
}

static __device__ __noinline__ void Combine(Block block) {
  const Phase& phase = block.PhaseOf(Role::kConsumer);
  const Program& program = block.program();
  const AttentionTask& task = phase.attention;
  uint8_t* const scratch = block.AttentionScratch();
  const bool drafts = phase.draft_of != kOfTarget;
  const int num_pairs = (drafts ? program.draft_rows : program.num_rows) * task.num_q_heads;
  const auto view_of = [&](int pair) -> int {
    return drafts ? 0 : program.sequence_of[Quotient(pair, task.num_q_heads)];
  };
  const auto plan_of = [&](int view) {
    return PlanOf(block, task, block.shared().state.views[view]);
  };
  int planned = view_of(min(block.index, num_pairs - 1));
  PartPlan plan = plan_of(planned);
  if (Thread() == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
#pragma unroll 1
  for (int pair = block.index; pair < num_pairs; pair += block.num_blocks) {
    if (view_of(pair) != planned) plan = plan_of(planned = view_of(pair));
    CombinePair(task, plan, pair, scratch);
    NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  }
  ArriveAsConsumers(block, phase);
}

// Keys and values of the committed rows into the drafter's cache: a warp per head, row and kind.
static __device__ __noinline__ void Append(Block block) {
  const Phase& phase = block.PhaseOf(Role::kConsumer);
  if (Thread() == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  const int warp = Thread() / kWarpLanes, lane = Thread() % kWarpLanes;
  const RoundState& state = block.shared().state;
  const Program& program = block.program();
  const int kv_heads = phase.append_tasks[0].num_kv_heads, num_rows = program.num_rows;
  const int num_works = phase.num_append_tasks * kv_heads * 2 * num_rows;
  for (int i = block.index + warp * block.num_blocks; i < num_works;
       i += kConsumerWarps * block.num_blocks) {
    const int row = i % num_rows, rest = i / num_rows;
    const int s = program.sequence_of[row], of_block = row - program.sequences[s].first_row;
    if (of_block >= state.num_kept[s]) continue;
    const Sequences sequence = {.num_sequences = 1,
                                .rows_max = kBandRows,
                                .position_end_max = 0,
                                .first_row = nullptr,
                                .num_rows = nullptr,
                                .position = nullptr,
                                .full_pages = nullptr,
                                .full_pages_stride = 0,
                                .slot = &program.sequences[s].slot};
    // The committed rows begin where the round did.
    const int64_t begin = state.position[s] - (program.holds_position ? 0 : state.num_kept[s]);
    const bool is_v = rest % 2 != 0;
    const int h = rest / 2 % kv_heads;
    const AttentionTask& task = phase.append_tasks[rest / 2 / kv_heads];
    const int dim = task.qk_head_dim;  // = v's
    const int64_t position = begin + of_block;
    const Head head = {.in = task.qkv + static_cast<int64_t>(row) * task.row_width +
                             (is_v ? kv_heads + h : h) * dim,
                       .norm = is_v ? nullptr : task.k_norm,
                       .cosine = is_v ? nullptr : task.rope + position * task.rotary_dims,
                       .dim = dim,
                       .rotary_dims = task.rotary_dims,
                       .factor = task.value_scale};
    const float scale = head.norm == nullptr ? 1.0f : HeadScale(head, task.epsilon);
    const int64_t tile = TileOffset(PageOf(sequence, KvPlace::kRing, task.ring_pages, 0, position),
                                    h, kv_heads, dim);
    for (int d = lane; d < dim; d += kWarpLanes) {
      StoreCached(is_v ? task.cache.v : task.cache.k, task.cache.format, tile,
                  static_cast<int>(position % kPageTokens), d, dim, HeadElement(head, d, scale));
    }
  }
}

}  // namespace ultraspeed::kernels::cuda::resident
