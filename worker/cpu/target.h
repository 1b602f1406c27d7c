// The target model's forward pass on CPUs, with its KV cache: of the whole model, or of one rank's
// part of it.
//
// Ranks run the same pass at the same time; each holds all residuals and its own heads, columns and
// vocabulary, and they meet three times: after the embedding and, in each layer, after o_proj and
// after the MLP or the experts. Caller: CpuExecutor (and bench/ for perplexity). Reads like
// docs/MODEL.md: the residual stream is fp32; norm outputs, q, k, v, attention output and SwiGLU
// product are bf16; everything else is fp32. A row's result depends on its own sequence only.
// Thread: the engine thread; the pool's threads work inside Run.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/ops.h"
#include "kernels/thread_pool.h"
#include "worker/cpu/rank_group.h"
#include "worker/cpu/ring_snapshot.h"
#include "worker/cpu/zeroed_array.h"
#include "worker/model/config.h"
#include "worker/model/weights.h"
#include "worker/statistics.h"

namespace ultraspeed::worker {

struct CacheShape {
  int max_sequences = 0;  // slots
  int max_rows = 0;       // of one pass
  int num_pages = 0;      // of the full layers
  int page_tokens = 0;    // P
  int num_snapshots = 0;
};

// Where one sequence of a pass keeps its keys and values.
struct TargetSequence {
  int slot;
  const int32_t* pages;  // [num_pages] for the full layers
  int num_pages;
};

// Rows of one sequence ascend in position. `sequence` indexes the pass's sequences.
struct TargetRow {
  int32_t token;
  int64_t position;
  int sequence;
};

class TargetForward {
 public:
  // `config` and `weights`: of the rank's part.
  TargetForward(const ModelConfig& config, const TargetWeights& weights, const CacheShape& shape,
                kernels::ThreadPool& pool, ForwardStatistics& statistics,
                const RankLink& link = {});

  // REQUIRES: rows.size() <= max_rows; every earlier position of each sequence has been run.
  void Run(absl::Span<const TargetSequence> sequences, absl::Span<const TargetRow> rows);

  // Of the sliding layers: as Executor's SaveSnapshot and LoadSnapshot.
  void CopySnapshot(SnapshotCopy direction, int snapshot, int slot, int64_t position);

  // After Run: logits of the given rows, out[i * V + token] with V of the whole model. Ranks share
  // `out`: each fills its own part of every row.
  void Logits(absl::Span<const int> row_indices, float* out /*[n, V]*/);

  // After Run: the drafter's input of a row, bf16 [taps * H]. REQUIRES: the model has a drafter.
  const kernels::bf16* taps(int row) const {
    return taps_.data() + static_cast<size_t>(row) * tap_width_;
  }

 private:
  void Embed(absl::Span<const TargetRow> rows);
  void SetViews(size_t layer_idx, absl::Span<const TargetSequence> sequences);
  void RotateAndCache(size_t layer_idx, absl::Span<const TargetRow> rows);
  void Attend(size_t layer_idx, absl::Span<const TargetRow> rows);
  void FeedForward(size_t layer_idx, int num_rows);
  void AddToResidual(int num_rows);
  void CaptureTap(size_t layer_idx, int num_rows);
  void CountBytes(size_t layer_idx, int num_rows);

  const ModelConfig& config_;
  const TargetWeights& weights_;
  const CacheShape shape_;
  const RankLink link_;
  kernels::ThreadPool& pool_;
  ForwardStatistics& statistics_;
  int group_rows_;   // rows of one kv head's q, k and v in the fused projection
  int ring_tokens_;  // of a sliding layer
  size_t tap_width_;

  kernels::RopeTable rope_full_, rope_sliding_;
  // [L] of [pages * P, Hkv, D], or of [slots * ring + snapshots * window, Hkv, D]; values Dv.
  std::vector<ZeroedArray<kernels::bf16>> keys_;
  std::vector<ZeroedArray<kernels::bf16>> values_;

  ZeroedArray<float> residual_;          // [T, H]
  ZeroedArray<kernels::bf16> normed_;    // [T, H]
  ZeroedArray<float> qkv_;               // [T, Hkv * group_rows]
  ZeroedArray<kernels::bf16> q_;         // [T, Hq, D]
  ZeroedArray<kernels::bf16> attended_;  // [T, Hq, Dv]
  ZeroedArray<float> delta_;             // [T, H]
  ZeroedArray<kernels::bf16> taps_;      // [T, taps * H]
  std::vector<int32_t> expert_ids_;      // [T, K]
  std::vector<float> expert_weights_;    // [T, K]
  ZeroedArray<uint64_t> workspace_;
  std::vector<kernels::KvView> views_;                 // [S]
  std::vector<kernels::AttentionRow> attention_rows_;  // [T]
  std::vector<uint8_t> expert_seen_;                   // [E]
};

}  // namespace ultraspeed::worker
