#include "worker/cuda/node_executor.h"

#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "worker/cuda/staging.h"
#include "worker/model/progress_sum.h"
#include "worker/model/shared_reads.h"

namespace ultraspeed::worker::cuda {
namespace {

// Ranks that differ would go on with caches of different texts.
void CheckSame(const RoundResult& a, const RoundResult& b) {
  KERNELS_CHECK(a.sequences.size(), ==, b.sequences.size());
  for (size_t s = 0; s < a.sequences.size(); ++s) {
    const std::vector<ChosenToken>&x = a.sequences[s].chosen, &y = b.sequences[s].chosen;
    KERNELS_CHECK(x.size(), ==, y.size());
    for (size_t i = 0; i < x.size(); ++i) KERNELS_CHECK(x[i].token, ==, y[i].token);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<NodeExecutor>> NodeExecutor::Create(const CudaOptions& options) {
  return Build(ReadSource(options), options);
}

absl::StatusOr<std::unique_ptr<NodeExecutor>> NodeExecutor::CreateRandom(
    const ModelConfig& config, const CudaOptions& options) {
  return Build(RandomSource(config, options), options);
}

NodeExecutor::NodeExecutor(std::unique_ptr<NodeGroup> group)
    : group_(std::move(group)), ranks_(static_cast<size_t>(group_->num_ranks())) {}

absl::StatusOr<std::unique_ptr<NodeExecutor>> NodeExecutor::Build(
    const absl::StatusOr<ModelSource>& source, CudaOptions options) {
  if (!source.ok()) return source.status();
  const int num_ranks = options.executor.num_ranks;
  absl::StatusOr<std::unique_ptr<NodeGroup>> group = NodeGroup::Create(
      {.num_ranks = num_ranks, .wait_ns_max = options.wait_ns_max, .use_peers = options.use_peers});
  if (!group.ok()) return group.status();
  // The resident engine writes into its peers' memory.
  options.executor.resident = options.executor.resident && (*group)->has_peers();
  std::unique_ptr<NodeExecutor> executor(new NodeExecutor(*std::move(group)));
  if (absl::Status status = executor->Load(*source, options); !status.ok()) return status;
  std::vector<ResidentEngine*> engines;
  for (const auto& rank : executor->ranks_) engines.push_back(rank->resident());
  if (engines.front() != nullptr) ResidentEngine::Join(engines, *executor->group_);
  return executor;
}

absl::Status NodeExecutor::Load(const ModelSource& source, const CudaOptions& options) {
  const int num_ranks = group_->num_ranks();
  SharedReads reads(num_ranks, options.executor.reads, PinnedStaging());
  ProgressSum progress(num_ranks, options.executor.progress);
  std::mutex mutex;
  absl::Status failure;  // the first one, which ends the other ranks' loads too
  group_->Run([&](int index) {
    const Rank rank = {.index = index, .count = num_ranks};
    LoadOptions load = options.executor.load();
    load.rank = rank;
    load.shared = &reads;
    load.progress = progress.OfRank(index);
    absl::StatusOr<std::unique_ptr<CudaExecutor>> executor =
        CudaExecutor::CreateRank(source, options, {.group = group_.get(), .rank = rank}, load);
    if (executor.ok()) {
      ranks_[static_cast<size_t>(index)] = *std::move(executor);
      return;
    }
    {
      const std::lock_guard<std::mutex> lock(mutex);
      if (failure.ok()) {
        failure = absl::Status(executor.status().code(),
                               absl::StrCat("GPU ", index, ": ", executor.status().message()));
      }
    }
    reads.Fail(executor.status());  // it may have come before this rank began to load
  });
  return failure;
}

NodeExecutor::~NodeExecutor() {
  if (ranks_.front() != nullptr && resident() != nullptr) resident()->Yield();
  group_->Run([this](int rank) { ranks_[static_cast<size_t>(rank)].reset(); });
}

std::string NodeExecutor::device() const {
  const char* const resident = ranks_.front()->resident() == nullptr ? ", no resident engine" : "";
  return absl::StrCat(group_->num_ranks(), " GPUs: ", ranks_.front()->device(), "; ",
                      group_->description(), resident);
}

void NodeExecutor::ResetSlot(int slot) {
  for (const auto& rank : ranks_) rank->ResetSlot(slot);
}

void NodeExecutor::CopySnapshot(SnapshotCopy direction, int snapshot, int slot, int64_t position) {
  if (resident() != nullptr) resident()->Yield();
  group_->Run([&](int rank) {
    ranks_[static_cast<size_t>(rank)]->CopySnapshot(direction, snapshot, slot, position);
  });
}

void NodeExecutor::ForceDistinctExperts(int distinct) {
  for (const auto& rank : ranks_) rank->ForceDistinctExperts(distinct);
}

std::vector<RoundResult> NodeExecutor::RunResident(const std::vector<Round>& rounds, bool goes_on) {
  std::vector<RoundResult> results = ranks_.front()->RunResident(rounds, goes_on);
  SumStatistics();
  return results;
}

RoundResult NodeExecutor::RunPasses(const Round& round) {
  std::vector<RoundResult> results(ranks_.size());
  group_->Run([&](int rank) {
    results[static_cast<size_t>(rank)] = ranks_[static_cast<size_t>(rank)]->RunPasses(round);
  });
  for (size_t rank = 1; rank < results.size(); ++rank) CheckSame(results[0], results[rank]);
  SumStatistics();
  return std::move(results[0]);
}

void NodeExecutor::Logits(const SequenceStep& step, float* out) {
  if (resident() != nullptr) resident()->Yield();
  group_->Run([&](int rank) {
    ranks_[static_cast<size_t>(rank)]->Logits(step, rank == 0 ? out : nullptr);
  });
  SumStatistics();
}

// All ranks read equally much.
void NodeExecutor::SumStatistics() {
  statistics_ = ranks_.front()->statistics();
  statistics_.target_bytes *= group_->num_ranks();
  statistics_.drafter_bytes *= group_->num_ranks();
}

}  // namespace ultraspeed::worker::cuda
