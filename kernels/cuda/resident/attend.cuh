// The attention phases: who runs which unit, and the drafter's context.
#pragma once

#include "kernels/cuda/kv_head.cuh"
#include "kernels/cuda/resident/attention.cuh"
#include "kernels/cuda/resident/block.cuh"

namespace ultraspeed::kernels::cuda::resident {

__device__ __forceinline__ RoundView ViewOf(const Block& block, bool drafter) {
  return {.position = block.shared().state.position,
          .num_rows = drafter ? block.program().draft_rows : block.program().block,
          .slot = block.program().slot,
          .pages = block.program().pages};
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
  __device__ __forceinline__ uint8_t* scratch() const {
    return reinterpret_cast<uint8_t*>(block_.shared().exchange);
  }
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

// Runs `attend(unit, wait)` for units first, first + stride, ... and arrives. A block that has no
// unit in this round waits all the same: arrivals are in order.
template <typename AttendFn>
__device__ __forceinline__ void RunUnits(const Block& block, const Phase& phase,
                                         const UnitRunner& runner, int first, int num_units,
                                         AttendFn attend) {
  bool waited = false;
  const auto wait = [&] {
    if (!waited) runner.Wait();
  };
#pragma unroll 1
  for (int unit = first; unit < num_units; unit += block.num_blocks) {
    attend(unit, wait);
    waited = true;
    NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  }
  if (!waited && Thread() < kWarpLanes) runner.Wait();
  ArriveAsConsumers(block, phase);
}

template <int kDim>
__device__ __noinline__ void AttendWindows(Block block) {
  const Phase& phase = block.PhaseOf(Role::kConsumer);
  const AttentionTask& task = phase.attention;
  // Units are dealt to clusters first, so that few of them slow down no cluster twice.
  const int first = block.rank * block.num_clusters + block.cluster;
  if (first >= phase.attention_units_max) return;  // arrives nowhere: never has a unit
  const RoundView round = ViewOf(block, task.drafter);
  const UnitRunner runner(block, phase);
  RunUnits(block, phase, runner, first, WindowUnits(task, round.num_rows),
           [&](int unit, const auto& wait) {
             AttendWindow<kDim>(task, round, unit, runner.scratch(), wait);
           });
}

template <int kDim, bool kOneChunk>
__device__ __noinline__ void AttendParts(Block block) {
  const Phase& phase = block.PhaseOf(Role::kConsumer);
  const AttentionTask& task = phase.attention;
  const RoundView round = ViewOf(block, task.drafter);
  const PartPlan plan = PartPlanOf(task, round.position, round.num_rows, block.num_blocks);
  const UnitRunner runner(block, phase);
  RunUnits(block, phase, runner, block.index, plan.num_units, [&](int unit, const auto& wait) {
    AttendPart<kDim, kOneChunk>(task, round, plan, unit, runner.scratch(), wait);
  });
}

// By the shape of the heads and, in parts, by their size: both leave out code and registers.
template <int kDim>
__device__ __forceinline__ void AttendOfDim(const Block& block) {
  const AttentionTask& task = block.PhaseOf(Role::kConsumer).attention;
  if (!task.has_parts) {
    AttendWindows<kDim>(block);
    return;
  }
  const RoundView round = ViewOf(block, task.drafter);
  if (PartChunks(task, static_cast<int>(round.position), round.num_rows) == 1) {
    AttendParts<kDim, true>(block);
  } else {
    AttendParts<kDim, false>(block);
  }
}
__device__ __forceinline__ void Attend(const Block& block) {
  if (block.PhaseOf(Role::kConsumer).attention.qk_head_dim == 192) {
    AttendOfDim<192>(block);
  } else {
    AttendOfDim<128>(block);
  }
}

static __device__ __noinline__ void Combine(Block block) {
  const Phase& phase = block.PhaseOf(Role::kConsumer);
  const AttentionTask& task = phase.attention;
  const RoundView round = ViewOf(block, task.drafter);
  const PartPlan plan = PartPlanOf(task, round.position, round.num_rows, block.num_blocks);
  uint8_t* const scratch = reinterpret_cast<uint8_t*>(block.shared().exchange);
  if (Thread() == 0) block.WaitForArrivals(phase.wait_counter, phase.wait_target);
  NamedBarrier<kConsumerBarrier, kConsumerThreads>();
  const int num_pairs = round.num_rows * task.num_q_heads;
  for (int pair = block.index; pair < num_pairs; pair += block.num_blocks) {
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
  const Sequences sequences = {.num_sequences = 1,
                               .rows_max = kRowsMax,
                               .position_end_max = 0,
                               .first_row = nullptr,
                               .num_rows = nullptr,
                               .position = nullptr,
                               .full_pages = nullptr,
                               .full_pages_stride = 0,
                               .slot = &block.program().slot};
  const int kv_heads = phase.append_tasks[0].num_kv_heads;
  const int num_works = phase.num_append_tasks * kv_heads * 2 * state.num_kept;
  // The committed rows begin where the round did.
  const int64_t begin =
      block.program().holds_position ? state.position : state.position - state.num_kept;
  for (int i = block.index + warp * block.num_blocks; i < num_works;
       i += kConsumerWarps * block.num_blocks) {
    const int row = i % state.num_kept, rest = i / state.num_kept;
    const bool is_v = rest % 2 != 0;
    const int h = rest / 2 % kv_heads;
    const AttentionTask& task = phase.append_tasks[rest / 2 / kv_heads];
    const int dim = task.qk_head_dim;  // = v's
    const int64_t position = begin + row;
    const Head head = {.in = task.qkv + static_cast<int64_t>(row) * task.row_width +
                             (is_v ? kv_heads + h : h) * dim,
                       .norm = is_v ? nullptr : task.k_norm,
                       .cosine = is_v ? nullptr : task.rope + position * task.rotary_dims,
                       .dim = dim,
                       .rotary_dims = task.rotary_dims,
                       .factor = task.value_scale};
    const float scale = head.norm == nullptr ? 1.0f : HeadScale(head, task.epsilon);
    const int64_t tile = TileOffset(PageOf(sequences, KvPlace::kRing, task.ring_pages, 0, position),
                                    h, kv_heads, dim);
    for (int d = lane; d < dim; d += kWarpLanes) {
      StoreCached(is_v ? task.cache.v : task.cache.k, task.cache.format, tile,
                  static_cast<int>(position % kPageTokens), d, dim, HeadElement(head, d, scale));
    }
  }
}

}  // namespace ultraspeed::kernels::cuda::resident
