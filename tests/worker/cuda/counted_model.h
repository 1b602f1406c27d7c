// Models without their memory, for tests of the resident engine's schedules: an arena that only
// counts, so addresses are null unless a test puts its own.
#pragma once

#include <gtest/gtest.h>

#include <memory>

#include "tests/worker/model/synthetic_checkpoint.h"
#include "worker/cuda/cuda_executor.h"
#include "worker/cuda/resident_schedule.h"
#include "worker/model/served_shape.h"

namespace ultraspeed::worker::cuda {

inline constexpr int kNumBlocks = 132;  // of an H200
inline constexpr RoundKind kAllRounds[] = {{.draft_passes = 0, .whole_rows = false},
                                           {.draft_passes = 0, .whole_rows = true},
                                           {.draft_passes = 1, .whole_rows = false},
                                           {.draft_passes = 1, .whole_rows = true},
                                           {.draft_passes = 2, .whole_rows = false},
                                           {.draft_passes = 4, .whole_rows = true},
                                           {.draft_passes = 0, .num_bands = 2, .whole_rows = true},
                                           {.draft_passes = 2, .num_bands = 2, .whole_rows = false},
                                           {.draft_passes = 8, .num_bands = 2, .whole_rows = true}};
inline constexpr int kNumRanks = 8;
inline constexpr int64_t kPositions = 1024;

inline ModelConfig TinyMimo() {
  const absl::StatusOr<ModelConfig> config = LoadModelConfig("models/tiny-mimo");
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *config : ModelConfig{};
}
inline ModelConfig ServedRank() { return *RankOf(MimoV25ProShape(), kNumRanks); }
// One of kNumRanks: with the others, or alone in a benchmark.
inline constexpr ResidentRanks kTogether = {.num_ranks = kNumRanks, .index = 3};
inline constexpr ResidentRanks kAlone = {.num_ranks = kNumRanks, .alone = true};
inline ModelConfig WithoutDrafter(ModelConfig config) {
  config.drafter = {};
  return config;
}

// A model's places without its memory, as CudaExecutor builds them, and what a schedule is made of.
class CountedModel {
 public:
  explicit CountedModel(ModelConfig shape, const ResidentRanks& ranks = {},
                        int num_blocks = kNumBlocks)
      : config_(std::move(shape)),
        ranks_(ranks),
        num_blocks_(num_blocks),
        pack_(arena_, nullptr, nullptr),
        weights_(ShapeModelWeights(config_, pack_)),
        target_(config_, weights_.target, kLimits, arena_, workspace_) {
    if (config_.drafter.num_layers > 0) {
      drafter_ = std::make_unique<DrafterForward>(config_, weights_.drafter, weights_.target,
                                                  kLimits, arena_, workspace_);
    }
    buffers_ = std::make_unique<ResidentBuffers>(config_, weights_.target, weights_.drafter,
                                                 kPositions, ranks_, arena_);
  }

  const ModelConfig& config() const { return config_; }
  int num_blocks() const { return num_blocks_; }
  bool has_drafter() const { return drafter_ != nullptr; }
  ResidentBuffers& buffers() { return *buffers_; }
  DeviceArena& arena() { return arena_; }
  const MemoryPlan& taken() const { return arena_.taken(); }
  const ModelWeights& weights() const { return weights_; }
  const TargetForward& target() const { return target_; }
  const DrafterForward* drafter() const { return drafter_.get(); }
  ResidentRanks ranks() const { return ranks_; }

  ResidentModel Described() const {
    return {.config = config_,
            .target = weights_.target,
            .drafter = weights_.drafter,
            .target_caches = target_,
            .drafter_caches = drafter_.get(),
            .buffers = *buffers_,
            .ranks = ranks_,
            .num_blocks = num_blocks_};
  }
  ResidentSchedule Schedule(bool drafts) const {
    return Schedule(RoundKind{.draft_passes = drafts ? 1 : 0});
  }
  ResidentSchedule Schedule(const RoundKind& kind) const {
    return BuildSchedule(Described(), kind, {});
  }

 private:
  static constexpr PassLimits kLimits = {.max_sequences = 1,
                                         .max_rows = 16,
                                         .max_logits = 8,
                                         .num_pages = 16,
                                         .positions = kPositions};
  const ModelConfig config_;
  const ResidentRanks ranks_;
  const int num_blocks_;
  DeviceArena arena_;
  DevicePacker pack_;
  ModelWeights weights_;
  Workspace workspace_;
  TargetForward target_;
  std::unique_ptr<DrafterForward> drafter_;
  std::unique_ptr<ResidentBuffers> buffers_;
};

}  // namespace ultraspeed::worker::cuda
