// ultraspeed-bench rank: rounds of the executor at the served model's shape, one GPU's share of a
// tensor-parallel group, with made-up weights.
//
// The same rounds through the executor of single operations, in graphs, and through the resident
// engine. On one GPU, it stands for all: the resident engine writes what it would send to its peers
// to inboxes of its own, waits for it and adds it up; the executor has no collectives at all. On
// several, each holds one of num_ranks parts and sums go over the GPUs that are there.
// Single-threaded.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/ops.h"

namespace ultraspeed::bench {

struct RankOptions {
  std::string shape = "mimo-v2.5-pro";
  int num_ranks = 8;              // that the shape is divided over
  int markov_rank = 0;            // of a gated Markov head, which the release's drafter has not
  int num_gpus = 1;               // of them, that are there
  int64_t context = 4096;         // tokens before the rounds that are timed
  int prefill_tokens = 2048;      // rows of one prefill pass
  int rounds = 50;                // timed, of each kind
  int distinct_experts = 60;      // a layer, besides rounds as routed; 0 = those only
  int sequences = 1;              // up to so many in a round, besides the rounds of one
  double tokens_per_round = 6.3;  // assumed, for tokens/s
  std::string trace_file;         // of one resident round; empty = none
  bool kv_fp8 = false;
  kernels::SamplingSpec sampling = {};
};

absl::StatusOr<boost::json::object> MeasureRank(const RankOptions& options);

}  // namespace ultraspeed::bench
