// ultraspeed-bench rank: rounds of the executor at the served model's shape, one GPU's share of a
// tensor-parallel group, with made-up weights.
//
// Measures what one rank does between its all-reduces; there is only one GPU, so no collective runs
// and the figures say so. Single-threaded.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace ultraspeed::bench {

struct RankOptions {
  std::string shape = "mimo-v2.5-pro";
  int num_ranks = 8;
  int64_t context = 4096;    // tokens before the rounds that are timed
  int prefill_tokens = 512;  // rows of one prefill pass
  int rounds = 50;           // timed, of each kind
  bool kv_fp8 = false;
};

absl::StatusOr<boost::json::object> MeasureRank(const RankOptions& options);

}  // namespace ultraspeed::bench
