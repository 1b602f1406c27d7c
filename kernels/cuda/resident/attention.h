// What an attention phase of the resident engine is about: shared by the host, which fills it, and
// by the device code in attention.cuh.
#pragma once

#include <cstdint>

#include "kernels/cuda/ops.h"

namespace ultraspeed::kernels::cuda::resident {

constexpr int kRowsMax = 8;                    // rows of a round: the anchor and the drafts
constexpr int kConsumerThreads = 384;          // of a thread block, together in one unit of work
constexpr int kAttentionScratchBytes = 73728;  // shared memory of a unit, 128-byte aligned
constexpr int kRotaryDims = 64;                // the only AttentionTask::rotary_dims

// The sequence of a round, for one kind of layer.
struct RoundView {
  int64_t position;      // of row 0, which is how many positions are cached
  int num_rows;          // 1..kRowsMax
  int32_t slot;          // kRing: index of the sequence's ring
  const int32_t* pages;  // kPaged: page of position p is pages[p / 64]
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
  void* partials;       // full layers: AttentionPartial [kRowsMax * Hq, partials_stride]
  int partials_stride;  // segments of the longest context
  bf16* out;            // [kRowsMax, Hq, Dv]
};

}  // namespace ultraspeed::kernels::cuda::resident
