// The target model's forward pass on one GPU: rows in, residual stream, taps and logits out. Of the
// whole model, or of one rank's part.
//
// Ranks run the same pass at the same time; each holds all residuals and its own heads, columns and
// vocabulary. They meet after the embedding, in each layer after o_proj and after the MLP or the
// experts, and in Logits.
//
// Only enqueues on a stream and reads positions, tokens and page tables from device memory, so a
// pass of fixed shape can be captured into a CUDA graph. Owns the target's KV pages, rings and
// activations, all in the executor's arena. Caller: CudaExecutor. Thread: the engine thread.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/ops.h"
#include "worker/cuda/device.h"
#include "worker/cuda/device_memory.h"
#include "worker/cuda/device_weights.h"
#include "worker/cuda/rank_link.h"
#include "worker/cuda/ring_snapshot.h"
#include "worker/model/config.h"

namespace ultraspeed::worker::cuda {

// What bounds every pass.
struct PassLimits {
  int max_sequences = 0;  // slots
  int max_rows = 0;       // of one pass
  int max_logits = 0;     // rows of one call of Logits
  int num_pages = 0;      // of the full layers
  int num_snapshots = 0;
  int64_t positions = 0;  // past the last position of any row
  kernels::cuda::KvFormat kv_format = kernels::cuda::KvFormat::kBf16;
};

// Rings of RingTokens (model_executor.h) in whole pages.
RingPlan PlanRings(int window, const PassLimits& limits);

class TargetForward {
 public:
  // `config` and `weights`: of the rank's part.
  TargetForward(const ModelConfig& config, const TargetWeights& weights, const PassLimits& limits,
                DeviceArena& arena, Workspace& workspace, const RankLink& link = {});

  // REQUIRES: num_rows <= max_rows; every earlier position of each sequence has been run.
  void Run(const int32_t* tokens /*device [T]*/, int num_rows,
           const kernels::cuda::Sequences& sequences, cudaStream_t stream);

  // Appends what SaveSnapshot and LoadSnapshot of Executor copy of the sliding layers.
  void AddSnapshotCopies(SnapshotCopy direction, int snapshot, int slot, int64_t position,
                         std::vector<kernels::cuda::Copy>& copies) const;

  // After Run: logits of the given rows, V of the whole model.
  void Logits(const int32_t* rows /*device [n]*/, int num_logits, float* out /*device [n, V]*/,
              cudaStream_t stream);

  // After Run, in device memory.
  const kernels::bf16* taps() const { return taps_; }        // [T, taps * H]
  const int32_t* expert_ids() const { return expert_ids_; }  // [MoE layers, T, K]
  int num_moe_layers() const { return num_moe_layers_; }
  // Benchmarks: every layer of a pass reads as many experts, whatever the router says; 0 = as
  // routed.
  void ForceDistinctExperts(int distinct) { forced_distinct_experts_ = distinct; }
  // What another engine on the same caches needs of layer `layer_idx`.
  const kernels::cuda::KvCache& cache(size_t layer_idx) const { return caches_[layer_idx]; }
  const float* rope(size_t layer_idx) const { return full(layer_idx) ? rope_full_ : rope_sliding_; }
  int ring_pages() const { return static_cast<int>(rings_.ring_pages); }
  // Adds what the target's passes read.
  void AddBytes(PassBytes& bytes) const;

 private:
  void ProjectAndCache(size_t layer_idx, int num_rows, const kernels::cuda::Sequences& sequences,
                       cudaStream_t stream);
  void Attend(size_t layer_idx, const kernels::cuda::Sequences& sequences, cudaStream_t stream);
  void FeedForward(size_t layer_idx, int num_rows, int moe_layer, cudaStream_t stream);
  int TapOffset(size_t layer_idx) const;  // -1 = not tapped
  bool full(size_t layer_idx) const { return config_.attention[layer_idx] == AttentionKind::kFull; }

  const ModelConfig& config_;
  const TargetWeights& weights_;
  const RingPlan rings_;  // of the sliding layers
  const int tap_width_;
  Workspace& workspace_;
  const RankLink link_;
  int num_moe_layers_ = 0;
  int forced_distinct_experts_ = 0;

  const float* rope_full_;                      // [positions, rotary_dims]
  const float* rope_sliding_;                   // likewise
  std::vector<kernels::cuda::KvCache> caches_;  // [L]

  float* residual_;          // [T, H]
  kernels::bf16* normed_;    // [T, H]
  float* scales_;            // [T] of normed_
  float* qkv_;               // [T, Hkv * group rows]
  kernels::bf16* q_;         // [T, Hq, D]
  kernels::bf16* attended_;  // [T, Hq, Dv]
  float* delta_;             // [T, H]
  kernels::bf16* taps_;      // [T, taps * H]; null without a drafter
  float* gate_up_;           // [T, 2F] of the dense layers
  kernels::bf16* product_;   // [T, F] of the dense layers
  int32_t* expert_ids_;      // [MoE layers, T, K]
  float* expert_weights_;    // [T, K]
  float* part_logits_;       // [logits, V of the part]; null with one rank
};

// Logits of normed rows: `part`, where the rank's own go first, may be null with one rank.
void HeadLogits(const kernels::cuda::Matrix& head, const kernels::bf16* normed /*[n, H]*/,
                int num_logits, float* part /*[n, V of the part]*/, float* out /*[n, V]*/,
                void* workspace, const RankLink& link, cudaStream_t stream);

// One rope table in device memory, [positions, rotary_dims].
const float* UploadRope(double theta, int rotary_dims, int64_t positions, DeviceArena& arena);
// One layer's cache of `tokens` tokens in whole pages.
kernels::cuda::KvCache TakeKvCache(MemoryKind kind, kernels::cuda::KvFormat format,
                                   int64_t num_pages, int num_kv_heads, int qk_head_dim,
                                   int v_head_dim, DeviceArena& arena);

}  // namespace ultraspeed::worker::cuda
