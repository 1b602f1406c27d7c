// The DFlash drafter's forward pass on one GPU: one bidirectional pass over [anchor, mask x (B-1)]
// proposes the next tokens of a block.
//
// Its context (keys and values made of the target's taps) is appended for every committed row as it
// comes, also in plain rounds, so drafting never has to catch up. As TargetForward it only
// enqueues, and is the whole drafter or one rank's part. Caller: CudaExecutor. Thread: the engine
// thread.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/ops.h"
#include "worker/cuda/device_memory.h"
#include "worker/cuda/device_weights.h"
#include "worker/cuda/rank_link.h"
#include "worker/cuda/target.h"
#include "worker/model/config.h"

namespace ultraspeed::worker::cuda {

class DrafterForward {
 public:
  // The embedding and the head are the target's. REQUIRES: config has a drafter.
  DrafterForward(const ModelConfig& config, const DrafterWeights& weights,
                 const TargetWeights& target, const PassLimits& limits, DeviceArena& arena,
                 Workspace& workspace, const RankLink& link = {});

  // One pass over a whole block for each sequence; `sequences` describes the blocks: block_size
  // rows each, from the anchor's position on. Logits of the given rows of [S * B], without the
  // Markov head's bias.
  void Draft(const int32_t* anchors /*device [S]*/, const kernels::cuda::Sequences& sequences,
             const int32_t* logit_rows /*device [n]*/, int num_logits,
             float* logits /*device [n, V]*/, cudaStream_t stream);

  // Adds to the logits of drafted rows what the Markov head makes of the tokens before them.
  // `first_row`: of the last Draft's logits. REQUIRES: config.markov_rank > 0.
  void AddMarkovBias(const int32_t* previous_tokens /*device [n]*/, int first_row, int num_rows,
                     float* logits /*device [n, V]*/, cudaStream_t stream) const;

  // Keys and values of `sequences`' rows from their taps; rows of a sequence past num_rows_kept
  // (null = all are kept) leave no trace.
  void AppendContext(const kernels::bf16* taps /*device [T, taps * H]*/, int num_rows,
                     const kernels::cuda::Sequences& sequences,
                     const int32_t* num_rows_kept /*device [S] or null*/, cudaStream_t stream);

  // As TargetForward's.
  void AddSnapshotCopies(SnapshotCopy direction, int snapshot, int slot, int64_t position,
                         std::vector<kernels::cuda::Copy>& copies) const;

  // What another engine on the same caches needs.
  const kernels::cuda::KvCache& cache(size_t layer_idx) const { return caches_[layer_idx]; }
  const float* rope() const { return rope_; }
  int ring_pages() const { return static_cast<int>(rings_.ring_pages); }

  // Adds what the drafter's two passes read.
  void AddBytes(PassBytes& bytes) const;

 private:
  void Attend(size_t layer_idx, const kernels::cuda::Sequences& sequences, int num_rows,
              cudaStream_t stream);
  // What both uses of ProjectQkv have in common.
  kernels::cuda::ProjectParams Projection(size_t layer_idx,
                                          const kernels::cuda::Sequences& sequences) const;

  const DrafterConfig& config_;
  const DrafterWeights& weights_;
  const TargetWeights& target_;
  const int vocabulary_;  // of the rank's part
  const RingPlan rings_;
  Workspace& workspace_;
  const RankLink link_;

  const float* rope_;                           // [positions, rotary_dims]
  std::vector<kernels::cuda::KvCache> caches_;  // [layers], rings

  // Of the context's rows, T of a pass.
  float* features_;                 // [T, H]
  kernels::bf16* normed_features_;  // [T, H]
  float* context_kv_;               // [T, layers * 2 * Hkv * D]
  // Of the blocks' rows, S * B.
  float* residual_;          // [T, H]
  kernels::bf16* normed_;    // [T, H]
  float* qkv_;               // [T, (Hq + 2 Hkv) * D]
  kernels::bf16* q_;         // [T, Hq, D]
  kernels::bf16* block_k_;   // [T, Hkv, D]
  kernels::bf16* block_v_;   // [T, Hkv, D]
  kernels::bf16* attended_;  // [T, Hq, D]
  float* delta_;             // [T, H]
  float* gate_up_;           // [T, 2F]
  kernels::bf16* product_;   // [T, F]
  float* part_logits_;       // [logits, V of the part]; null with one rank
  float* gates_;             // [logits, R]; null: the Markov head has none
};

}  // namespace ultraspeed::worker::cuda
