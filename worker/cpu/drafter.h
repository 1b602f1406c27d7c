// The DFlash drafter's forward pass on CPUs: one bidirectional pass over [anchor, mask x (B-1)]
// proposes the next tokens of a block.
//
// It sees the past only through the target's tapped residuals, turned into keys and values of every
// draft layer (KV injection). Taps of committed rows are stored as they come (AddTaps, a copy) and
// turned into keys and values when the sequence next drafts, so a sequence that never drafts pays
// nothing. Rings keep what the last `window` positions need, as in target.h. Of the whole drafter
// or of one rank's part, as TargetForward. Caller: CpuExecutor. Thread: the engine thread.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/ops.h"
#include "kernels/thread_pool.h"
#include "worker/cpu/rank_group.h"
#include "worker/cpu/target.h"
#include "worker/cpu/zeroed_array.h"
#include "worker/model/config.h"
#include "worker/model/weights.h"
#include "worker/statistics.h"

namespace ultraspeed::worker {

// The newest committed token of a sequence: taps exist for all positions before it, none for it.
struct DraftAnchor {
  int slot;
  int64_t position;
  int32_t token;
  int num_drafts;  // 1..B-1: how many of the block's rows get logits, the first ones
};

// All its matrices, from bf16.
void RoundToFp8(DrafterWeights& drafter);

class DrafterForward {
 public:
  // The embedding and the head are the target's, or copies. REQUIRES: config has a drafter.
  DrafterForward(const ModelConfig& config, const DrafterWeights& weights,
                 const std::vector<kernels::bf16>& embedding, const kernels::PackedMatrix& head,
                 const CacheShape& shape, kernels::ThreadPool& pool, ForwardStatistics& statistics,
                 const RankLink& link = {});

  void ResetSlot(int slot);
  // As Executor's SaveSnapshot and LoadSnapshot.
  void SaveSnapshot(int snapshot, int slot, int64_t position);
  void LoadSnapshot(int snapshot, int slot, int64_t position);

  // Taps of the next `count` committed rows of a slot. REQUIRES: `position` continues the slot's
  // last call.
  void AddTaps(int slot, int64_t position, const kernels::bf16* taps /*[count, taps * H]*/,
               int count);

  // Logits of the drafted rows, anchor after anchor, each num_drafts rows: row j chooses the token
  // at anchor.position + 1 + j, without what the Markov head makes of the token before it; `gates`:
  // of that head, if it has a gate. V of the whole model; ranks share `logits` and `gates`.
  void Draft(absl::Span<const DraftAnchor> anchors, float* logits /*[sum of num_drafts, V]*/,
             float* gates /*[sum of num_drafts, R]*/);

 private:
  struct Slot {
    int64_t taps_end = 0;     // taps were given for positions below this
    int64_t context_end = 0;  // keys and values exist for (the last window of) positions below this
  };
  struct ContextRow {
    int slot;
    int64_t position;
  };

  void CatchUp(absl::Span<const DraftAnchor> anchors);
  void AppendContext(absl::Span<const ContextRow> rows);
  void EmbedBlocks(absl::Span<const DraftAnchor> anchors);
  void ProjectBlock(const DrafterLayer& layer, absl::Span<const DraftAnchor> anchors);
  void Attend(size_t layer_idx, absl::Span<const DraftAnchor> anchors);
  void HeadLogits(absl::Span<const DraftAnchor> anchors, float* logits, float* gates);
  void AddToResidual(int num_rows);
  // Of a slot's tap rows; its keys and values of a layer, which refers to `slot`.
  size_t RingRow(int slot, int64_t position) const;
  kernels::KvView CacheOf(const int& slot, size_t layer_idx);
  void CopySnapshot(SnapshotCopy direction, int snapshot, int slot, int64_t position);

  const DrafterConfig& config_;
  const DrafterWeights& weights_;
  const std::vector<kernels::bf16>& embedding_;
  const kernels::PackedMatrix& head_;
  const int vocabulary_;  // of the rank's part
  const RankLink link_;
  const CacheShape shape_;
  const int ring_tokens_;
  const size_t tap_width_;
  const int max_rows_;
  kernels::ThreadPool& pool_;
  ForwardStatistics& statistics_;
  kernels::RopeTable rope_;

  std::vector<Slot> slots_;
  std::vector<int64_t> snapshot_context_end_;       // [snapshots] of the slot when it was saved
  ZeroedArray<kernels::bf16> pending_taps_;         // [slots * ring + snapshots * window, taps * H]
  std::vector<ZeroedArray<kernels::bf16>> keys_;    // [layers] of [likewise, Hkv, D]
  std::vector<ZeroedArray<kernels::bf16>> values_;  // [layers] of [likewise, Hkv, D]

  ZeroedArray<kernels::bf16> taps_;      // [T, taps * H]
  ZeroedArray<float> context_kv_;        // [T, layers * 2 * Hkv * D]
  ZeroedArray<float> residual_;          // [T, H]
  ZeroedArray<kernels::bf16> normed_;    // [T, H]
  ZeroedArray<float> qkv_;               // [T, (Hq + 2 Hkv) * D]
  ZeroedArray<kernels::bf16> q_;         // [T, Hq, D]
  ZeroedArray<kernels::bf16> block_k_;   // [anchors, Hkv, B, D]
  ZeroedArray<kernels::bf16> block_v_;   // likewise
  ZeroedArray<kernels::bf16> attended_;  // [T, Hq, D]
  ZeroedArray<float> delta_;             // [T, H]
  ZeroedArray<uint64_t> workspace_;
  std::vector<kernels::KvView> views_;
  std::vector<kernels::AttentionRow> attention_rows_;
  std::vector<ContextRow> context_rows_;
};

}  // namespace ultraspeed::worker
