#include "worker/model/shared_reads.h"

#include <algorithm>
#include <utility>

namespace ultraspeed::worker {
namespace {

std::vector<Rank> AllRanks(int count) {
  std::vector<Rank> ranks;
  for (int i = 0; i < count; ++i) ranks.push_back({.index = i, .count = count});
  return ranks;
}

std::shared_ptr<StagingPool> NewPool(const ReadOptions& options, int num_ranks,
                                     StagingMemory memory) {
  return std::make_shared<StagingPool>(std::move(memory), options.window_bytes * num_ranks);
}

}  // namespace

SharedReads::SharedReads(int num_ranks, const ReadOptions& options, StagingMemory memory)
    : options_(options),
      pool_(NewPool(options, num_ranks, std::move(memory))),
      ranks_(AllRanks(num_ranks)) {}

SharedReads::SharedReads(const Rank& only, const ReadOptions& options, StagingMemory memory)
    : options_(options), pool_(NewPool(options, 1, std::move(memory))), ranks_({only}) {}

absl::StatusOr<std::shared_ptr<PartStream>> SharedReads::Join(
    const std::string& folder, const Checkpoint& checkpoint,
    const std::vector<TensorSpec>& tensors) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!failure_.ok()) return failure_;
  if (const auto found = streams_.find(folder); found != streams_.end()) return found->second;
  std::vector<std::string> paths;
  std::map<std::string, int> file_of_path;
  std::vector<FileRegion> regions;
  const int count = ranks_.front().count;
  for (const TensorSpec& spec : tensors) {
    const TensorView* const tensor = checkpoint.Find(spec.name);
    if (tensor == nullptr || tensor->shape.empty() || tensor->bytes == 0) continue;
    const std::string& path = checkpoint.PathOf(spec.name);
    const auto [file, is_new] = file_of_path.emplace(path, static_cast<int>(paths.size()));
    if (is_new) paths.push_back(path);
    const int64_t num_rows = tensor->shape.front();
    regions.push_back({.file = file->second,
                       .offset = tensor->file_offset,
                       .num_rows = num_rows,
                       .row_bytes = static_cast<int64_t>(tensor->bytes) / num_rows,
                       .split = count == 1 ? Split::kWhole : SplitOf(spec.name)});
  }
  absl::StatusOr<std::unique_ptr<PartStream>> stream =
      PartStream::Open(paths, std::move(regions), ranks_, options_, pool_);
  if (!stream.ok()) return stream.status();
  return streams_[folder] = *std::move(stream);
}

void SharedReads::Leave(int rank_index) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ranks_.erase(std::remove_if(ranks_.begin(), ranks_.end(),
                              [&](const Rank& rank) { return rank.index == rank_index; }),
               ranks_.end());
  for (const auto& [folder, stream] : streams_) stream->Leave(rank_index);
}

void SharedReads::Fail(const absl::Status& why) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (failure_.ok()) failure_ = why;
  for (const auto& [folder, stream] : streams_) stream->Fail(why);
}

ReadStatistics SharedReads::statistics() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  ReadStatistics sum;
  for (const auto& [folder, stream] : streams_) {
    const ReadStatistics part = stream->statistics();
    sum.bytes += part.bytes;
    sum.direct_bytes += part.direct_bytes;
  }
  return sum;
}

}  // namespace ultraspeed::worker
