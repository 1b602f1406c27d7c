// How a layer's attention of a round is cut into units, one a thread block at a time, and which
// keys each sees.
//
// Pairs are (row, q head) of one kv head, row by row; 16 of them are a tile, the rows of an mma. A
// window of at most 128 keys is attended whole: a unit is one tile, all of its keys and a quarter
// of the value dims, so that keys and values fit a block's shared memory. Other layers are cut into
// parts, a chunk of 64 keys or a segment of 256 each, and a drafter's own block is the last part: a
// unit is up to four tiles, which share the keys, and one part; its results are partials that
// CombinePair (attention_fold.cuh) folds.
#pragma once

#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/device/numbers.cuh"
#include "kernels/cuda/resident/attention.h"

namespace ultraspeed::kernels::cuda::resident {

constexpr int kAttentionWarps = kConsumerThreads / kWarpLanes;
constexpr int kStepKeys = 16;  // an mma adds up the weighted values of so many
constexpr int kChunkSteps = kChunkKeys / kStepKeys;
constexpr int kUnitTilesMax = 4;
constexpr int kSegmentChunks = kSegmentKeys / kChunkKeys;
static_assert(kSegmentKeys == kAttentionSegmentKeys);

// The consumers' barrier: other warps of the thread block do other things.
__device__ __forceinline__ void AttentionBarrier() {
  __syncwarp();
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumerThreads) : "memory");
}

// Keys of the cache's positions that a row sees.
__host__ __device__ inline int FirstKey(const AttentionTask& task, int position, int row) {
  const int first = position + row - task.window + 1;
  return task.window == 0 || first < 0 ? 0 : first;
}
__host__ __device__ inline int EndKey(const AttentionTask& task, int position, int row) {
  return task.drafter ? position : position + row + 1;
}

// The q heads that share a kv head.
struct Group {
  int size;
  int share;  // 65536 / size + 1: pair / size without a division

  // Row of pair `pair` of a kv head, < 128.
  __device__ __forceinline__ int RowOf(int pair) const { return pair * share >> 16; }
};
__device__ __forceinline__ Group GroupOf(const AttentionTask& task) {
  const int size = Quotient(task.num_q_heads, task.num_kv_heads);
  return {size, Quotient(1 << 16, size) + 1};
}

// Page of the cache with the keys of chunk `chunk`.
__device__ __forceinline__ int PageOfChunk(const AttentionTask& task, const RoundView& round,
                                           int chunk) {
  if (task.place == KvPlace::kPaged) return __ldcg(round.pages + chunk);
  return round.slot * task.ring_pages + chunk - Quotient(chunk, task.ring_pages) * task.ring_pages;
}

// ---- Layers whose window is attended whole

// Some pair of a tile sees up to kWindowWhole + 7 keys, which begin anywhere in a step.
constexpr int kWindowKeys = kWindowWhole + kBandRows - 1;
constexpr int kWindowStepsMax = (kWindowKeys + 2 * (kStepKeys - 1)) / kStepKeys;
constexpr int kWindowRows = (kWindowKeys + 2 * 7) / 8 * 8;  // of whole mma tiles of 8 keys
constexpr int kWindowSlots = 4 * kChunkSteps;               // steps of the chunks that hold them
constexpr int kQuarterDims = kValueDim / kWindowQuarters;
static_assert(kWindowStepsMax + kChunkSteps - 1 <= kWindowSlots);

struct WindowUnit {
  int kv_head;
  int quarter;     // of the value dims
  int pair_begin;  // of the kv head's pairs
  int num_pairs;   // 1..16
  int position;
  int first, end;          // keys that some pair sees: [first, end)
  int first_step;          // first / 16
  int num_steps;           // with such keys
  int row_begin, row_end;  // rows of the round whose keys some pair sees

  // The key in row 0 of the shared tiles.
  __device__ __forceinline__ int RowZero() const { return first / 8 * 8; }
};

// Unit u: kv head u % Hkv, then the quarter, then the tile.
__device__ inline WindowUnit WindowUnitAt(const AttentionTask& task, const RoundView& round,
                                          const Group& group, int index) {
  WindowUnit unit;
  const int rest = Quotient(index, task.num_kv_heads);
  unit.kv_head = index - rest * task.num_kv_heads;
  unit.quarter = rest % kWindowQuarters;
  unit.pair_begin = rest / kWindowQuarters * kWarpPairs;
  unit.num_pairs = min(kWarpPairs, round.num_rows * group.size - unit.pair_begin);
  unit.position = static_cast<int>(round.position);
  const int last_row = group.RowOf(unit.pair_begin + unit.num_pairs - 1);
  unit.first = FirstKey(task, unit.position, group.RowOf(unit.pair_begin));
  unit.end = EndKey(task, unit.position, last_row);
  unit.first_step = unit.first / kStepKeys;
  unit.num_steps = (unit.end + kStepKeys - 1) / kStepKeys - unit.first_step;
  unit.row_begin = max(0, unit.first - unit.position);
  unit.row_end = last_row + 1;
  return unit;
}

// ---- Layers in parts

// How a layer is cut in this round: a function of the round and of the number of thread blocks. It
// does not touch the results' bits.
struct PartPlan {
  int chunk_begin;  // the first that some row sees
  int num_chunks;   // with cached keys or new rows that some row sees
  int part_chunks;  // of a part: 1 or kSegmentChunks
  int num_cache_parts;
  int num_parts;    // and a drafter's block
  int unit_tiles;   // of a unit: 1, 2 or 4
  int unit_groups;  // of a kv head: ceil(tiles / unit_tiles)
  int num_units;
};
// Whether full layers of so many keys have segments as parts.
__host__ __device__ constexpr bool HasSegments(int64_t num_keys) {
  return num_keys > kChunkPartsMax * kChunkKeys;
}
// Chunks of a part.
__host__ __device__ inline int PartChunks(const AttentionTask& task, int position, int num_rows) {
  const int end = EndKey(task, position, num_rows - 1);
  return task.window == 0 && HasSegments(end) ? kSegmentChunks : 1;
}
__host__ __device__ inline PartPlan PartPlanOf(const AttentionTask& task, int64_t position,
                                               int num_rows, int num_blocks) {
  PartPlan plan;
  const int begin = static_cast<int>(position);
  const int first = FirstKey(task, begin, 0), end = EndKey(task, begin, num_rows - 1);
  plan.chunk_begin = first / kChunkKeys;
  plan.num_chunks = first < end ? (end + kChunkKeys - 1) / kChunkKeys - plan.chunk_begin : 0;
  plan.part_chunks = PartChunks(task, begin, num_rows);
  plan.num_cache_parts = (plan.num_chunks + plan.part_chunks - 1) / plan.part_chunks;
  plan.num_parts = plan.num_cache_parts + (task.drafter ? 1 : 0);
  const int pairs = num_rows * (task.num_q_heads / task.num_kv_heads);
  const int tiles = (pairs + kWarpPairs - 1) / kWarpPairs;
  // Small units while there are blocks for them; a segment's have a tile for each warp that scores.
  plan.unit_tiles = kUnitTilesMax;
  while (plan.part_chunks == 1 && plan.unit_tiles > 1 &&
         plan.num_parts * task.num_kv_heads *
                 ((tiles * 2 + plan.unit_tiles - 1) / plan.unit_tiles) <=
             num_blocks) {
    plan.unit_tiles /= 2;
  }
  plan.unit_groups = (tiles + plan.unit_tiles - 1) / plan.unit_tiles;
  plan.num_units = plan.num_parts * task.num_kv_heads * plan.unit_groups;
  return plan;
}

struct PartUnit {
  int kv_head;
  int part;
  int pair_begin;              // of the kv head's pairs
  int num_pairs;               // 1..64
  int chunk_begin, chunk_end;  // a drafter's block: 0, 1
  bool is_block;
};

// Unit u: part u % parts, then the kv head, then the tiles.
__device__ __forceinline__ PartUnit PartUnitAt(const AttentionTask& task, const RoundView& round,
                                               const PartPlan& plan, const Group& group,
                                               int index) {
  PartUnit unit;
  const int rest = Quotient(index, plan.num_parts);
  unit.part = index - rest * plan.num_parts;
  const int tiles = Quotient(rest, task.num_kv_heads);
  unit.kv_head = rest - tiles * task.num_kv_heads;
  const int unit_pairs = plan.unit_tiles * kWarpPairs;
  unit.pair_begin = tiles * unit_pairs;
  unit.num_pairs = min(unit_pairs, round.num_rows * group.size - unit.pair_begin);
  unit.is_block = unit.part >= plan.num_cache_parts;
  unit.chunk_begin = unit.is_block ? 0 : plan.chunk_begin + unit.part * plan.part_chunks;
  unit.chunk_end =
      unit.is_block ? 1
                    : min(unit.chunk_begin + plan.part_chunks, plan.chunk_begin + plan.num_chunks);
  return unit;
}

__device__ __forceinline__ AttentionPartial& PartialOf(const AttentionTask& task, int row_head,
                                                       int part) {
  return static_cast<AttentionPartial*>(
      task.partials)[static_cast<int64_t>(row_head) * task.partials_stride + part];
}
// Of pair `pair` of the unit; null past its last.
__device__ __forceinline__ AttentionPartial* PartialOfPair(const AttentionTask& task,
                                                           const RoundView& round,
                                                           const Group& group, const PartUnit& unit,
                                                           int pair) {
  if (pair >= unit.num_pairs) return nullptr;
  const int row = group.RowOf(unit.pair_begin + pair);
  return &PartialOf(task,
                    (round.first_row + row) * task.num_q_heads + unit.kv_head * group.size +
                        unit.pair_begin + pair - row * group.size,
                    unit.part);
}

}  // namespace ultraspeed::kernels::cuda::resident
