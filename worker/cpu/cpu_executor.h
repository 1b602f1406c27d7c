// The executor on CPUs: target, drafter and sampling joined into rounds, by one rank or by several
// that share the model as GPUs would.
//
// Callers: the engine through Executor; bench/ and tests also look at statistics(). Speculation is
// lossless because a row's numbers depend on nothing beside its own sequence, and because drafter
// and target choose with the same noise at the same position. The drafter's mask token and the ids
// past the tokenizer's last are never chosen. Thread: the engine thread only.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/thread_pool.h"
#include "worker/cpu/drafter.h"
#include "worker/cpu/markov_head.h"
#include "worker/cpu/rank_group.h"
#include "worker/cpu/target.h"
#include "worker/model/weights.h"
#include "worker/model_executor.h"
#include "worker/statistics.h"

namespace ultraspeed::worker {

class CpuExecutor : public ModelExecutor {
 public:
  // As CreateCpuExecutor.
  static absl::StatusOr<std::unique_ptr<CpuExecutor>> Create(const ExecutorOptions& options);

  const ModelConfig& config() const override { return config_; }
  int max_sequences() const override { return shape_.max_sequences; }
  int max_batch_tokens() const override { return shape_.max_rows; }
  int page_tokens() const override { return shape_.page_tokens; }
  int num_pages() const override { return shape_.num_pages; }
  int vocabulary_used() const override { return vocabulary_used_; }
  std::string device() const override;
  bool weighs_drafts() const override { return true; }
  // However long a drafter's block is.
  int given_drafts_max() const override { return kDraftBlockMax - 1; }
  int num_snapshots() const override { return shape_.num_snapshots; }
  void ResetSlot(int slot) override;
  void SaveSnapshot(int snapshot, int slot, int64_t position) override;
  void LoadSnapshot(int snapshot, int slot, int64_t position) override;
  RoundResult Run(const Round& round) override;
  const ForwardStatistics& statistics() const override { return statistics_; }
  void Logits(const SequenceStep& step, float* out) override;

  // Rank 0's; the whole model where it is the only one.
  const ModelWeights& weights() const { return ranks_.front()->weights; }
  kernels::ThreadPool& pool() { return ranks_.front()->pool; }
  TargetForward& target() { return ranks_.front()->target; }

 private:
  // A part of the model, with the threads that compute it.
  struct RankModel {
    RankModel(const ModelConfig& part_config, ModelWeights loaded,
              kernels::PackedMatrix head_for_drafter, const CacheShape& shape, int num_threads,
              const RankLink& link);

    const ModelConfig part;
    const ModelWeights weights;
    const kernels::PackedMatrix drafter_head;  // empty: the drafter uses the target's
    kernels::ThreadPool pool;
    ForwardStatistics statistics;
    TargetForward target;
    std::unique_ptr<DrafterForward> drafter;  // null when the model has none
  };

  // One row of logits that is to become a token.
  struct Choice {
    const SequenceStep* step;
    int64_t position;  // of the token being chosen
    bool want_logprob;
    std::shared_ptr<const grammar::TokenMask> allowed;  // null: all tokens
    float* logits = nullptr;                            // [V]
    float* noise = nullptr;                             // [V]; null: not made yet
    kernels::TokenChoice chosen = {};
  };
  // A sequence whose drafts are being chosen.
  struct Drafting {
    size_t sequence, first_choice;
    float log_least, log_reach_min, log_reach;
  };

  CpuExecutor(ModelConfig config, const CacheShape& shape, int num_ranks, int vocabulary_used);
  absl::Status Load(const ExecutorOptions& options);

  void RunTarget();
  void TargetLogits(absl::Span<const int> rows, float* out);
  void AddTaps(int slot, int64_t position, int first_row, int count);
  void SumStatistics();
  void DraftTokens(const Round& round);
  float* TakeLogits();
  void SampleAll();
  bool TakeDraft(Drafting& drafting, size_t j);
  void SampleBehindDrafts(size_t j);
  void MakeNoise();
  void GatherRows(const Round& round);
  void ChooseTokens(const Round& round);
  RoundResult Accept(const Round& round);
  void Sample(absl::Span<Choice* const> choices);

  const ModelConfig config_;  // of the whole model
  const CacheShape shape_;
  const int vocabulary_used_;
  RankGroup group_;
  std::vector<std::unique_ptr<RankModel>> ranks_;
  std::unique_ptr<MarkovForward> markov_;  // null where the drafter has no such head
  ForwardStatistics statistics_;           // of all ranks together: the bytes are sums

  size_t sample_workspace_bytes_;
  std::vector<uint8_t> sample_workspace_;     // one per sampled row
  std::vector<float> logits_;                 // [sampled rows, V]
  std::vector<float> gates_;                  // [drafted rows, R], of the Markov head
  std::vector<std::vector<int32_t>> drafts_;  // [S][block - 1]
  std::vector<TargetSequence> sequences_;
  std::vector<TargetRow> rows_;
  std::vector<int> first_row_;     // [S] of the step's rows
  std::vector<int> sampled_rows_;  // into rows_
  std::vector<Choice> choices_;    // one per sampled row
  std::vector<Choice*> to_sample_;
  std::vector<Drafting> drafting_;  // in the order of their rows
  std::vector<MarkovRow> markov_rows_;
  std::vector<float> noise_;  // [to_sample_, V]
};

}  // namespace ultraspeed::worker
