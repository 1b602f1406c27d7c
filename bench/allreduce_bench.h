// ultraspeed-bench allreduce: the sums over the GPUs of a node that every layer waits for twice.
//
// Correctness first: thousands of sums and gathers of every size, each checked bit for bit on every
// GPU. Then times by size, ours beside NCCL's, in replayed graphs.
#pragma once

#include <boost/json.hpp>
#include <cstdint>

#include "absl/status/statusor.h"

namespace ultraspeed::bench {

struct AllReduceOptions {
  int num_gpus = 2;
  int64_t num_calls = 100'000;  // checked, of each rank
};

// INTERNAL if any element was wrong.
absl::StatusOr<boost::json::object> MeasureAllReduce(const AllReduceOptions& options);

}  // namespace ultraspeed::bench
