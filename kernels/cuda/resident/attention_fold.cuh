// The fold of a layer's parts: what units left as partials becomes the layer's output.
#pragma once

#include "kernels/cuda/resident/attention_unit.cuh"

namespace ultraspeed::kernels::cuda::resident {

// A merged result in a warp: a lane holds value dims 4 * lane .. 4 * lane + 3.
struct LaneResult {
  Softmax state = {kNoScore, 0.0f};
  float4 values = {0.0f, 0.0f, 0.0f, 0.0f};

  __device__ __forceinline__ void Add(Softmax later, float4 later_values, float scale) {
    Factors factors;
    state = Merge(state, later, scale, factors);
    values = {MergeValue(values.x, later_values.x, factors),
              MergeValue(values.y, later_values.y, factors),
              MergeValue(values.z, later_values.z, factors),
              MergeValue(values.w, later_values.w, factors)};
  }
};

// After all units of the layer are done everywhere: folds the parts of (row, head) pair `pair` in
// [0, rows of all sequences * Hq), whose sequence has `plan`, into its output. All consumer threads
// call it. Parts that a row does not see leave its result as it was. Warps fold what comes first in
// the order (attention.cu): chunks to segments, or segments to spans; warp 0 folds what they made,
// or at once the chunks of a window. `scratch` as in AttendPart. Bytes: 528 per part.
__device__ inline void CombinePair(const AttentionTask& task, const PartPlan& plan, int pair,
                                   uint8_t* scratch) {
  constexpr int kAtOnce = kChunkPartsMax;
  constexpr int kPieces = sizeof(AttentionPartial) / 16;
  static_assert(kAtOnce * sizeof(AttentionPartial) <= kAttentionScratchBytes);
  static_assert(kChunkPartsMax <= kSpanKeys / kChunkKeys, "chunks are parts within one span only");
  static_assert(kAtOnce % (kSpanKeys / kSegmentKeys) == 0 && kAtOnce % kSegmentChunks == 0);
  auto* const parts = reinterpret_cast<AttentionPartial*>(scratch);
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
  const float scale = ScoreScale(task.score_scale);
  const AttentionPartial* const partials = &PartialOf(task, pair, 0);
  const int fold_parts = task.window > 0         ? 1
                         : plan.part_chunks == 1 ? kSegmentChunks
                                                 : kSpanKeys / kSegmentKeys;
  const Sink sink = SinkOf(task.sinks, pair - Quotient(pair, task.num_q_heads) * task.num_q_heads);
  const auto fold = [&](LaneResult& result, int begin, int end, int stride) {
#pragma unroll 4
    for (int i = begin; i < end; i += stride) {
      result.Add(parts[i].state, reinterpret_cast<const float4*>(parts[i].values)[lane], scale);
    }
  };

  LaneResult total;
  for (int first = 0; first < plan.num_parts; first += kAtOnce) {
    const int count = min(kAtOnce, plan.num_parts - first);
    if (first > 0) AttentionBarrier();
#pragma unroll 4
    for (int i = threadIdx.x; i < count * kPieces; i += kConsumerThreads) {
      CopyAsync16(scratch + i * 16, reinterpret_cast<const uint4*>(partials + first) + i, true);
    }
    CommitCopies();
    WaitCopies<0>();
    AttentionBarrier();
    if (fold_parts > 1) {
      for (int begin = warp * fold_parts; begin < count; begin += kAttentionWarps * fold_parts) {
        LaneResult result;
        fold(result, begin, min(count, begin + fold_parts), 1);
        __syncwarp();
        reinterpret_cast<float4*>(parts[begin].values)[lane] = result.values;
        if (lane == 0) parts[begin].state = result.state;
      }
      AttentionBarrier();
    }
    if (warp == 0) fold(total, 0, count, fold_parts);
  }
  if (warp != 0) return;
  const float factor = OutputFactor(total.state, scale, sink);
  reinterpret_cast<uint2*>(task.out + static_cast<int64_t>(pair) * kValueDim)[lane] = {
      OutputPair(total.values.x, total.values.y, factor),
      OutputPair(total.values.z, total.values.w, factor)};
}

}  // namespace ultraspeed::kernels::cuda::resident
