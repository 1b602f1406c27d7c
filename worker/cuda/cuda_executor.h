// The executor on one NVIDIA GPU: target, drafter, sampling and acceptance joined into rounds that
// the host starts and waits for once. Of a whole model, or of the part of one rank of a node
// (node_executor.h): ranks run the same passes and choose the same tokens.
//
// A round is one copy of a small struct to the device, the passes, one copy back and one wait;
// draft tokens, verification and commitment never leave the device in between. Decode passes have
// fixed shapes and are captured into a CUDA graph when a shape comes for the second time. Lossless
// as the CPU executor is, and for the same reasons. Callers: the engine through Executor; bench/
// and tests also look at the rest. Thread: the engine thread only; of a node, the rank's.
#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "worker/cuda/device_memory.h"
#include "worker/cuda/device_weights.h"
#include "worker/cuda/drafter.h"
#include "worker/cuda/mask_buffer.h"
#include "worker/cuda/pass_buffers.h"
#include "worker/cuda/rank_link.h"
#include "worker/cuda/resident_engine.h"
#include "worker/cuda/round_plan.h"
#include "worker/cuda/target.h"
#include "worker/model_executor.h"

namespace ultraspeed::worker::cuda {

struct CudaOptions {
  ExecutorOptions executor;
  bool use_graphs = true;
  // How long a warp of the resident engine, or a sum over ranks, may wait before it gives up and
  // the process aborts; tools that slow the GPU down need more.
  uint64_t wait_ns_max = 4'000'000'000;
  bool use_peers = true;    // of several GPUs: NodeOptions
  int num_ranks_alone = 1;  // more than one: of so many ranks, one that stands alone (benchmarks)
};

// What a model is made of, checked against the options and the kernels.
struct ModelSource {
  ModelConfig config;  // of the whole model
  ModelConfig part;    // of a rank
  int vocabulary_used = 0;
  bool random = false;  // repeatable random weights; options.executor.model_folder is not read
};
absl::StatusOr<ModelSource> ReadSource(const CudaOptions& options);
absl::StatusOr<ModelSource> RandomSource(const ModelConfig& config, const CudaOptions& options);

// What the executor would take of device memory, a rank's of options.executor.num_ranks. Needs no
// GPU. REQUIRES: the model divides.
MemoryPlan PlanMemory(const ModelConfig& config, const CudaOptions& options);

// INVALID_ARGUMENT names the first dimension that kernels/cuda does not take.
absl::Status CheckShape(const ModelConfig& config);

// What an executor on one GPU and one on several have in common beyond ModelExecutor: which steps
// of a round go to the resident engine. The others share passes of single operations.
class GpuExecutor : public ModelExecutor {
 public:
  RoundResult Run(const Round& round) final;
  virtual const MemoryPlan& memory() const = 0;  // of one GPU
  virtual const PassBytes& bytes() const = 0;    // likewise
  // Rank 0's, which leads the others. Null if the shape or the options keep the resident engine
  // out.
  virtual ResidentEngine* resident() = 0;
  // Whether steps that it takes go there; true at first.
  void UseResident(bool use) { use_resident_ = use; }
  // Benchmarks: every layer of a pass or resident round reads as many experts, whatever the router
  // says; 0 = as routed, as at first.
  virtual void ForceDistinctExperts(int distinct) = 0;

 protected:
  // REQUIRES: resident() takes all steps, those of a round share it (ShareRound), at most kTurnsMax
  // rounds. `goes_on`: it is one round, and its sequences are likely to go on together.
  virtual std::vector<RoundResult> RunResident(const std::vector<Round>& rounds, bool goes_on) = 0;
  // REQUIRES: the resident engine has yielded.
  virtual RoundResult RunPasses(const Round& round) = 0;

 private:
  bool use_resident_ = true;
};

class CudaExecutor : public GpuExecutor {
 public:
  // As CreateCudaExecutor, on one GPU.
  static absl::StatusOr<std::unique_ptr<CudaExecutor>> Create(const CudaOptions& options);
  static absl::StatusOr<std::unique_ptr<CudaExecutor>> CreateRandom(const ModelConfig& config,
                                                                    const CudaOptions& options);
  // The part of one rank, on the GPU that is current; `load` is that rank's way of loading it.
  static absl::StatusOr<std::unique_ptr<CudaExecutor>> CreateRank(const ModelSource& source,
                                                                  const CudaOptions& options,
                                                                  const RankLink& link,
                                                                  const LoadOptions& load);
  ~CudaExecutor() override;

  const ModelConfig& config() const override { return config_; }
  int max_sequences() const override { return options_.executor.max_sequences; }
  int max_batch_tokens() const override { return options_.executor.max_batch_tokens; }
  int page_tokens() const override { return kPageTokens; }
  int num_pages() const override { return limits_.num_pages; }
  int num_snapshots() const override { return limits_.num_snapshots; }
  int vocabulary_used() const override { return vocabulary_used_; }
  std::string device() const override { return device_; }
  void ResetSlot(int slot) override;
  void SaveSnapshot(int snapshot, int slot, int64_t position) override {
    CopySnapshot(SnapshotCopy::kSave, snapshot, slot, position);
  }
  void LoadSnapshot(int snapshot, int slot, int64_t position) override {
    CopySnapshot(SnapshotCopy::kLoad, snapshot, slot, position);
  }
  const ForwardStatistics& statistics() const override { return statistics_; }
  // `out` may be null on all ranks but one: all have the same.
  void Logits(const SequenceStep& step, float* out) override;
  const MemoryPlan& memory() const override { return arena_->taken(); }
  const PassBytes& bytes() const override { return bytes_; }
  int decode_blocks() const override {
    return model_->resident == nullptr ? 1 : kernels::cuda::resident::kBandsMax;
  }
  bool weighs_drafts() const override { return model_->resident != nullptr; }
  ResidentEngine* resident() override { return model_->resident.get(); }
  void ForceDistinctExperts(int distinct) override;
  // Public for an executor of several ranks.
  void CopySnapshot(SnapshotCopy direction, int snapshot, int slot, int64_t position);
  std::vector<RoundResult> RunResident(const std::vector<Round>& rounds, bool goes_on) override;
  RoundResult RunPasses(const Round& round) override;

 private:
  // Everything in device memory, built in one order over a counting arena and over a real one.
  struct Model {
    Model(const ModelConfig& config, const ModelConfig& part, ModelWeights loaded,
          const CudaOptions& options, const PassLimits& limits, int vocabulary_used,
          const RankLink& link, DeviceArena& arena, cudaStream_t stream);

    ModelWeights weights;
    Workspace workspace;
    TargetForward target;
    std::unique_ptr<DrafterForward> drafter;   // null when the model has none
    std::unique_ptr<ResidentEngine> resident;  // null: rounds run as graphs
    int num_counted_layers;                    // MoE layers whose distinct experts are counted
    PassBuffers prefill;
    std::vector<PassBuffers> decode;  // [block - 1]
    int32_t* row_indices;             // [rows] 0, 1, 2, ...
    float* logits;                    // [max_logits, V of the whole model]
    MaskBuffer masks;                 // of constraints, for as many rows
  };
  friend MemoryPlan PlanMemory(const ModelConfig& config, const CudaOptions& options);

  // Of a decode pass. Where steps have constraints, the host makes masks between draft and target.
  enum class DecodePart : uint8_t { kAll, kDraft, kMaskedTarget };
  // Sequences, block, position bound, part; whether drafts are given.
  using GraphKey = std::tuple<int, int, int64_t, DecodePart, bool>;
  struct Graph {
    int num_uses = 0;
    cudaGraphExec_t executable = nullptr;
  };

  CudaExecutor(const ModelSource& source, const CudaOptions& options, const RankLink& link);
  // Plans, checks and takes the memory, and fills the weights.
  absl::Status Build(bool random, const LoadOptions& load);

  PassBuffers& BuffersOf(const PassPlan& pass);
  void FillInput(const Round& round, const PassPlan& pass, PassBuffers& buffers);
  void Enqueue(const Round& round, const PassPlan& pass, PassBuffers& buffers);
  void EnqueuePrefill(const PassPlan& pass, PassBuffers& buffers);
  void EnqueueDraft(int num_sequences, int block, int64_t position_bound, PassBuffers& buffers);
  void EnqueueTarget(int num_sequences, int block, int64_t position_bound, bool masked,
                     PassBuffers& buffers);
  void EnqueueDecode(const GraphKey& key, PassBuffers& buffers);
  void LaunchDecode(const GraphKey& key, PassBuffers& buffers);
  // Waits for the pass's drafts, if it has any.
  void UploadMasks(const Round& round, const PassPlan& pass, const PassBuffers& buffers);
  void Mask(int num_rows);  // logits, by the masks uploaded last
  void Choose(float* logits, const kernels::cuda::SampleRow* rows, int num_rows, int32_t* tokens,
              float* logprobs);
  void ChooseInTurn(int num_sequences, int block, PassBuffers& buffers);
  void DropGraphs();
  void Wait();
  void Collect(const Round& round, const PassPlan& pass, const PassBuffers& buffers,
               RoundResult& result) const;
  void Count(const PassPlan& pass, const PassBuffers& buffers);
  // `distinct_experts` of all layers together.
  void CountRows(int num_rows, int num_samples, int draft_passes, int64_t distinct_experts);

  const ModelConfig config_;  // of the whole model
  const ModelConfig part_;    // of this rank
  const RankLink link_;
  const CudaOptions options_;
  const PassLimits limits_;
  const int vocabulary_used_;
  int32_t banned_token_;  // the drafter's mask, -1 = none
  std::string device_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t round_done_ = nullptr;
  std::unique_ptr<DeviceArena> arena_;
  std::unique_ptr<Model> model_;
  std::map<GraphKey, Graph> graphs_;
  PassBytes bytes_;
  ForwardStatistics statistics_;
  std::vector<uint8_t> expert_seen_;  // [E]
};

}  // namespace ultraspeed::worker::cuda
