// The executor on several GPUs of one node, which share a model as worker/model/sharding_plan.h
// says.
//
// Every GPU has a CudaExecutor of its part and a thread. All run the same rounds: they hold the
// same residual stream, gather the same logits and choose the same tokens, so nothing but sums and
// logits passes between them and the host compares what it gets. Rounds of a single sequence run on
// the resident engine, one kernel on each GPU, started and stopped by rank 0's. Caller: the engine
// through Executor. Thread: the engine thread only; it is rank 0's.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "worker/cuda/cuda_executor.h"
#include "worker/cuda/node_group.h"

namespace ultraspeed::worker::cuda {

class NodeExecutor : public GpuExecutor {
 public:
  // options.executor.num_ranks GPUs. As NodeGroup::Create and CudaExecutor::Create.
  static absl::StatusOr<std::unique_ptr<NodeExecutor>> Create(const CudaOptions& options);
  static absl::StatusOr<std::unique_ptr<NodeExecutor>> CreateRandom(const ModelConfig& config,
                                                                    const CudaOptions& options);
  ~NodeExecutor() override;

  const ModelConfig& config() const override { return ranks_.front()->config(); }
  int max_sequences() const override { return ranks_.front()->max_sequences(); }
  int max_batch_tokens() const override { return ranks_.front()->max_batch_tokens(); }
  int decode_blocks() const override { return ranks_.front()->decode_blocks(); }
  bool weighs_drafts() const override { return ranks_.front()->weighs_drafts(); }
  int page_tokens() const override { return ranks_.front()->page_tokens(); }
  int num_pages() const override { return ranks_.front()->num_pages(); }
  int num_snapshots() const override { return ranks_.front()->num_snapshots(); }
  int vocabulary_used() const override { return ranks_.front()->vocabulary_used(); }
  std::string device() const override;
  void ResetSlot(int slot) override;
  void SaveSnapshot(int snapshot, int slot, int64_t position) override {
    CopySnapshot(SnapshotCopy::kSave, snapshot, slot, position);
  }
  void LoadSnapshot(int snapshot, int slot, int64_t position) override {
    CopySnapshot(SnapshotCopy::kLoad, snapshot, slot, position);
  }
  const ForwardStatistics& statistics() const override { return statistics_; }
  void Logits(const SequenceStep& step, float* out) override;
  const MemoryPlan& memory() const override { return ranks_.front()->memory(); }
  const PassBytes& bytes() const override { return ranks_.front()->bytes(); }
  ResidentEngine* resident() override { return ranks_.front()->resident(); }
  void ForceDistinctExperts(int distinct) override;

 private:
  std::vector<RoundResult> RunResident(const std::vector<Round>& rounds, bool goes_on) override;
  RoundResult RunPasses(const Round& round) override;
  void CopySnapshot(SnapshotCopy direction, int snapshot, int slot, int64_t position);
  explicit NodeExecutor(std::unique_ptr<NodeGroup> group);
  static absl::StatusOr<std::unique_ptr<NodeExecutor>> Build(
      const absl::StatusOr<ModelSource>& source, CudaOptions options);
  // Every rank's part at once, each on its own thread.
  absl::Status Load(const ModelSource& source, const CudaOptions& options);
  void SumStatistics();

  std::unique_ptr<NodeGroup> group_;
  std::vector<std::unique_ptr<CudaExecutor>> ranks_;
  ForwardStatistics statistics_;  // of all ranks together: the bytes are sums
};

}  // namespace ultraspeed::worker::cuda
