// What the ranks of one process share while they load a model together: the streams of its two
// folders and their staging memory.
//
// Made before the ranks' threads start; each passes it on in LoadOptions. When one rank's load
// fails, those of the others end with the same status, because nobody needs them any more. A rank
// that cannot even begin to load must say so with Fail. Thread: any.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/model/checkpoint.h"
#include "worker/model/part_stream.h"
#include "worker/model/tensor_list.h"

namespace ultraspeed::worker {

class SharedReads {
 public:
  // All ranks 0 .. num_ranks - 1, or with `only` that one alone.
  SharedReads(int num_ranks, const ReadOptions& options, StagingMemory memory = PlainStaging());
  SharedReads(const Rank& only, const ReadOptions& options, StagingMemory memory = PlainStaging());

  const ReadOptions& options() const { return options_; }
  const std::shared_ptr<StagingPool>& pool() const { return pool_; }

  // The stream of `tensors` of `folder`, opened by the first rank that comes; all ranks name the
  // same. Tensors that are missing are left out, for the loader to refuse.
  absl::StatusOr<std::shared_ptr<PartStream>> Join(const std::string& folder,
                                                   const Checkpoint& checkpoint,
                                                   const std::vector<TensorSpec>& tensors);
  // This rank has its weights from elsewhere and joins no further stream.
  void Leave(int rank_index);
  void Fail(const absl::Status& why);

  // Of all streams so far.
  ReadStatistics statistics() const;
  int64_t staging_bytes_max() const { return pool_->bytes_held_max(); }

 private:
  const ReadOptions options_;
  const std::shared_ptr<StagingPool> pool_;
  mutable std::mutex mutex_;
  std::vector<Rank> ranks_;  // that have not left; guarded by mutex_
  std::map<std::string, std::shared_ptr<PartStream>> streams_;  // by folder; guarded by mutex_
  absl::Status failure_;                                        // likewise
};

}  // namespace ultraspeed::worker
