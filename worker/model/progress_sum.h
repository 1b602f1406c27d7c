// The progress of several ranks' loads as that of one. Owner: the executor, while it loads. Thread:
// any; calls of `sum` do not overlap.
#pragma once

#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "worker/model/load_options.h"

namespace ultraspeed::worker {

class ProgressSum {
 public:
  // `sum` may be null. It is told nothing before every rank has said how much it loads.
  ProgressSum(int num_ranks, LoadProgress sum)
      : sum_(std::move(sum)), ranks_(static_cast<size_t>(num_ranks)) {}

  // For the rank's LoadOptions. REQUIRES: this object outlives it.
  LoadProgress OfRank(int index) {
    if (!sum_) return {};
    return [this, index](int64_t bytes_done, int64_t bytes_total) {
      const std::lock_guard<std::mutex> lock(mutex_);
      ranks_[static_cast<size_t>(index)] = {bytes_done, bytes_total};
      Rank all;
      for (const Rank& rank : ranks_) {
        if (rank.bytes_total == 0) return;
        all.bytes_done += rank.bytes_done;
        all.bytes_total += rank.bytes_total;
      }
      sum_(all.bytes_done, all.bytes_total);
    };
  }

 private:
  struct Rank {
    int64_t bytes_done = 0, bytes_total = 0;
  };

  const LoadProgress sum_;
  std::mutex mutex_;
  std::vector<Rank> ranks_;  // guarded by mutex_
};

}  // namespace ultraspeed::worker
