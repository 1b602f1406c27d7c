// Ranks of one model on CPUs: their threads, and the sum over ranks that joins them.
//
// The same division as over GPUs (worker/model/sharding_plan.h) on memory that all ranks see. A sum
// is added in rank order, ((r0 + r1) + r2) + ..., element by element, so it has the same bits on
// every rank and in every run, whatever the threads' timing and whatever rows are beside it. Owner:
// CpuExecutor. Thread: Run on the engine thread; Sum inside Run, on the ranks' threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "worker/model/sharding_plan.h"
#include "worker/rank_threads.h"

namespace ultraspeed::worker {

class RankGroup {
 public:
  // `sum_count_max`: the most numbers of one Sum.
  RankGroup(int num_ranks, size_t sum_count_max);

  int num_ranks() const { return threads_.num_ranks(); }

  // As RankThreads::Run.
  void Run(const std::function<void(int rank)>& work) { threads_.Run(work); }

  // Replaces every rank's data by the sum over ranks. REQUIRES: called by every rank of one Run,
  // equally often, with equal counts.
  void Sum(int rank, float* data /*[count]*/, size_t count);

 private:
  std::vector<float*> parts_;       // [ranks] data of the Sum in progress
  std::vector<float> sums_[2];      // in turns: a slow rank may still copy out of the last one
  std::vector<uint64_t> num_sums_;  // [ranks], each its own
  RankThreads threads_;
};

// One rank's end of its group; of a model that is not divided, nothing.
struct RankLink {
  RankGroup* group = nullptr;  // null when rank.count is 1
  Rank rank = {};

  void Sum(float* data, size_t count) const {
    if (group != nullptr) group->Sum(rank.index, data, count);
  }
};

}  // namespace ultraspeed::worker
