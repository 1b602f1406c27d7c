// One unit of a layer's attention: its pairs, its keys, its shared memory.
//
// A unit is 16 consecutive (row, q head) pairs of one kv head, in a full layer over one segment of
// 512 keys. Its keys are a list of chunks of 64: those of the cache that some pair sees, new rows
// of this round included, then for a drafter the dense block of the round. The warps attend three
// chunks of the list at once, a group: each owns 16 of the 192 keys.
#pragma once

#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/resident/attention.h"

namespace ultraspeed::kernels::cuda::resident {

constexpr int kAttentionWarps = kConsumerThreads / kWarpLanes;
constexpr int kGroupChunks = 3;
constexpr int kWarpKeys = 16;
constexpr int kWarpsPerChunk = kChunkKeys / kWarpKeys;
static_assert(kAttentionWarps == kGroupChunks * kWarpsPerChunk);

// The consumers' barrier: other warps of the thread block do other things.
__device__ __forceinline__ void AttentionBarrier() {
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumerThreads) : "memory");
}

struct Unit {
  int kv_head;
  int segment;      // full layers
  int pair_begin;   // of num_rows * group
  int num_pairs;    // 1..16
  int group;        // q heads per kv head
  int group_share;  // 65536 / group + 1: pair / group without a division
  int position, num_rows;
  bool is_full, is_drafter;
  int first, end;          // keys of the cache's positions that some pair sees: [first, end)
  int chunk_begin;         // first / 64
  int ring_begin;          // chunk_begin % ring_pages
  int num_cache_chunks;    // chunks with such keys
  int num_chunks;          // and the drafter's block
  int row_begin, row_end;  // rows of the round whose keys some pair sees

  // Row of pair `pair` of the sequence, < 128.
  __device__ __forceinline__ int RowOf(int pair) const { return pair * group_share >> 16; }
};

template <int kDim>
struct alignas(128) UnitScratch {
  bf16 values[kGroupChunks][kChunkKeys * kValueDim];  // tiles as in the cache
  // Weights of (key tile, lane), as an mma leaves them. Until a group's scores are known, the
  // keys of warp w pass through its own two key tiles.
  float4 weights[kAttentionWarps * 2][kWarpLanes];
  bf16 q[kWarpPairs * kDim];              // swizzled, row = pair of the unit
  bf16 new_keys[kRowsMax * kDim];         // swizzled, row = row of the round
  bf16 new_values[kRowsMax * kValueDim];  // plain
  float maxima[kWarpPairs][kAttentionWarps];
  float factors[kWarpPairs];  // OutputFactor
  Unit unit;                  // registers are scarce
};
static_assert(sizeof(UnitScratch<192>) <= kAttentionScratchBytes);

// Keys of the cache's positions that a row sees.
__device__ __forceinline__ int FirstKey(const AttentionTask& task, int position, int row) {
  return task.window == 0 ? 0 : max(0, position + row - task.window + 1);
}
__device__ __forceinline__ int EndKey(const AttentionTask& task, int position, int row) {
  return task.drafter ? position : position + row + 1;
}

// a / b of small numbers, 0 <= a < 2^20: a handful of instructions where an integer division takes
// dozens, in code that every warp runs before it can ask for its first key.
__device__ __forceinline__ int Quotient(int a, int b) {
  return static_cast<int>(__fdividef(static_cast<float>(a) + 0.5f, static_cast<float>(b)));
}

// Units of a layer in this round. Unit u: kv head u % Hkv, then the pair tile, then the segment.
__host__ __device__ inline int AttentionUnits(const AttentionTask& task, int64_t position,
                                              int num_rows) {
  const int group = task.num_q_heads / task.num_kv_heads;
  const int tiles = (num_rows * group + kWarpPairs - 1) / kWarpPairs;
  const int64_t segments =
      task.window > 0 ? 1 : (position + num_rows + kSegmentKeys - 1) / kSegmentKeys;
  return static_cast<int>(segments * tiles * task.num_kv_heads);
}

__device__ inline Unit UnitAt(const AttentionTask& task, const RoundView& round, int index) {
  Unit unit;
  unit.is_full = task.window == 0;
  unit.is_drafter = task.drafter;
  unit.group = Quotient(task.num_q_heads, task.num_kv_heads);
  unit.group_share = Quotient(1 << 16, unit.group) + 1;
  int tile = Quotient(index, task.num_kv_heads);
  unit.kv_head = index - tile * task.num_kv_heads;
  unit.segment = 0;
  if (unit.is_full) {
    const int tiles = (round.num_rows * unit.group + kWarpPairs - 1) / kWarpPairs;
    unit.segment = Quotient(tile, tiles);
    tile -= unit.segment * tiles;
  }
  unit.pair_begin = tile * kWarpPairs;
  unit.num_pairs = min(kWarpPairs, round.num_rows * unit.group - unit.pair_begin);
  unit.position = static_cast<int>(round.position);
  unit.num_rows = round.num_rows;
  unit.first = FirstKey(task, unit.position, unit.RowOf(unit.pair_begin));
  unit.end = EndKey(task, unit.position, unit.RowOf(unit.pair_begin + unit.num_pairs - 1));
  if (unit.is_full) {
    unit.first = max(unit.first, unit.segment * kSegmentKeys);
    unit.end = min(unit.end, (unit.segment + 1) * kSegmentKeys);
  }
  const bool sees_cache = unit.first < unit.end;
  unit.chunk_begin = unit.first / kChunkKeys;
  unit.ring_begin = 0;
  if (task.place == KvPlace::kRing) {
    unit.ring_begin =
        unit.chunk_begin - Quotient(unit.chunk_begin, task.ring_pages) * task.ring_pages;
  }
  unit.num_cache_chunks =
      sees_cache ? (unit.end + kChunkKeys - 1) / kChunkKeys - unit.chunk_begin : 0;
  unit.num_chunks = unit.num_cache_chunks + (unit.is_drafter ? 1 : 0);
  const bool sees_rows = sees_cache && unit.end > unit.position;
  unit.row_begin = unit.is_drafter || !sees_rows ? 0 : max(0, unit.first - unit.position);
  unit.row_end = unit.is_drafter ? unit.num_rows : sees_rows ? unit.end - unit.position : 0;
  return unit;
}

// A chunk of the list; past its end, one without keys.
struct Chunk {
  int begin;       // its first key: a position of the cache, or 0 for the drafter's block
  int first, end;  // keys that some pair sees: [first, end)
  int first_new;   // key of row 0 of this round: from here on the cache is not read
};
__device__ __forceinline__ Chunk ChunkAt(const Unit& unit, int index) {
  if (index < unit.num_cache_chunks) {
    return {(unit.chunk_begin + index) * kChunkKeys, unit.first, unit.end, unit.position};
  }
  if (index < unit.num_chunks) return {0, 0, unit.num_rows, 0};
  return {0, 0, 0, 0};
}

// Bit c * 4 + i: whether some pair sees one of the 16 keys from 16 i on of chunk c of the group.
__device__ __forceinline__ uint32_t SeenSteps(const Unit& unit, int group) {
  uint32_t seen = 0;
#pragma unroll
  for (int c = 0; c < kGroupChunks; ++c) {
    const Chunk chunk = ChunkAt(unit, group * kGroupChunks + c);
    const int first = max(chunk.first - chunk.begin, 0) / kWarpKeys;
    const int end = (min(chunk.end - chunk.begin, kChunkKeys) + kWarpKeys - 1) / kWarpKeys;
    seen |= ((1u << end) - (1u << first)) << (c * kWarpsPerChunk);
  }
  return seen;
}

// First of the warp's 16 keys in its chunk of a group.
__device__ __forceinline__ int FirstKeyOfWarp(const Chunk& chunk) {
  return chunk.begin + static_cast<int>(threadIdx.x) / kWarpLanes % kWarpsPerChunk * kWarpKeys;
}

// Page of cache chunk `index` of the list. A ring holds all of them, so none wraps twice.
__device__ __forceinline__ int PageOfChunk(const AttentionTask& task, const RoundView& round,
                                           const Unit& unit, int index) {
  if (task.place == KvPlace::kPaged) return __ldcg(round.pages + unit.chunk_begin + index);
  const int page = unit.ring_begin + index;
  return round.slot * task.ring_pages + (page < task.ring_pages ? page : page - task.ring_pages);
}

// Pages of the chunks of a group; 0 where no cache chunk is.
struct GroupPages {
  int page[kGroupChunks];
};
__device__ __forceinline__ GroupPages PagesOf(const AttentionTask& task, const RoundView& round,
                                              const Unit& unit, int group) {
  GroupPages pages;
#pragma unroll
  for (int c = 0; c < kGroupChunks; ++c) {
    const int index = group * kGroupChunks + c;
    pages.page[c] = index < unit.num_cache_chunks ? PageOfChunk(task, round, unit, index) : 0;
  }
  return pages;
}

}  // namespace ultraspeed::kernels::cuda::resident
