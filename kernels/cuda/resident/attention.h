// What an attention phase of the resident engine is about: shared by the host, which fills it, and
// by the device code in attention.cuh.
#pragma once

#include <cstdint>

#include "kernels/cuda/ops.h"

namespace ultraspeed::kernels::cuda::resident {

constexpr int kBandRows =
    8;  // rows that products multiply at once; at most, of a sequence in a round
constexpr int kBandsMax = 2;
constexpr int kRowsMax = kBandsMax * kBandRows;  // of a round, all sequences'
constexpr int kConsumerThreads = 384;            // of a thread block, together in one unit of work
constexpr int kAttentionScratchBytes = 86528;    // shared memory of a unit, 128-byte aligned
constexpr int kRotaryDims = 64;                  // the only AttentionTask::rotary_dims
constexpr int kWindowWhole = 128;                // windows up to this are not cut into parts
constexpr int kAttentionSegmentKeys = 256;       // kSegmentKeys of full layers
constexpr int kChunkPartsMax = 128;  // a full layer of more chunks of 64 keys has segments as parts

// Whether a layer's keys are cut into parts whose results another phase folds. window 0 = full.
constexpr bool HasParts(int window, bool drafter) {
  return drafter || window == 0 || window > kWindowWhole;
}
// Parts of one row and head over up to `positions` positions, at most.
constexpr int AttentionPartsMax(int window, bool drafter, int64_t positions) {
  constexpr int kChunkKeys = 64;
  if (!HasParts(window, drafter)) return 0;
  if (window > 0) return (window + kBandRows) / kChunkKeys + 2 + (drafter ? 1 : 0);
  const int segments =
      static_cast<int>((positions + kAttentionSegmentKeys - 1) / kAttentionSegmentKeys);
  return segments > kChunkPartsMax ? segments : kChunkPartsMax;
}

// A sequence of a round, for one kind of layer.
struct RoundView {
  int64_t position;      // of its first row, which is how many positions are cached
  const int32_t* pages;  // kPaged: page of position p is pages[p / 64]
  int num_rows;          // 1..kBandRows
  int first_row;         // of all rows of the task; other rows are counted from it
  int32_t slot;          // kRing: index of the sequence's ring
};

// One layer's attention. The rows' fused projections come in fp32; rotary, norms, the value scale
// and rounding are part of it, as is writing keys and values into the cache.
struct AttentionTask {
  const float* qkv;  // [kRowsMax, row_width]
  int row_width;
  int group_stride;  // as ProjectParams: 0 = all q heads, all k heads, all v heads
  int num_q_heads, num_kv_heads, qk_head_dim, rotary_dims;
  const float* rope;    // [positions, rotary_dims]: cosines, then sines
  const float* q_norm;  // [D] or null
  const float* k_norm;  // [D] or null
  float epsilon;
  float value_scale;
  KvCache cache;        // kBf16
  KvPlace place;        // kPaged: full layer; kRing: windowed
  int ring_pages;       // kRing
  int window;           // 0 = full
  const float* sinks;   // [Hq] or null
  float score_scale;    // 1 / sqrt(D)
  bool drafter;         // keys of the block are dense, seen both ways, not cached
  bool has_parts;       // HasParts(window, drafter)
  void* partials;       // has_parts: AttentionPartial [kRowsMax * Hq, partials_stride]
  int partials_stride;  // at least AttentionPartsMax of the longest context
  bf16* out;            // [kRowsMax, Hq, Dv]
};

// Units of a sequence in a layer without parts: 16 (row, q head) pairs and a quarter of the value
// dims each.
constexpr int kWindowQuarters = 4;
constexpr int WindowUnits(const AttentionTask& task, int num_rows) {
  const int pairs = num_rows * (task.num_q_heads / task.num_kv_heads);
  return (pairs + 15) / 16 * task.num_kv_heads * kWindowQuarters;
}

}  // namespace ultraspeed::kernels::cuda::resident
