// One sequence at a time through an executor, without engine, scheduler or gRPC: what the
// arithmetic alone can do. Used by ultraspeed-bench and ultraspeed-eval. Single-threaded.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/executor.h"
#include "worker/statistics.h"

namespace ultraspeed::bench {

struct DecodeOptions {
  int max_tokens = 128;
  int block = 1;  // 1 = plain, else the drafter's block
  kernels::SamplingSpec sampling;
  const worker::ForwardStatistics* statistics = nullptr;  // the executor's; null = no byte counts
};

struct DecodeOutcome {
  std::vector<int32_t> tokens;  // completion, ends before an end-of-text token's successor
  int64_t rounds = 0;           // decode rounds, prefill excluded
  double decode_seconds = 0;    // of the rounds above
  int64_t weight_bytes = 0;  // packed weights that those rounds read, experts as they were routed
};

// Runs `prompt` in slot 0 to an end-of-text token or max_tokens. REQUIRES: prompt not empty, prompt
// + max_tokens within the context.
DecodeOutcome Decode(worker::Executor& executor, const std::vector<int32_t>& prompt,
                     const DecodeOptions& options);

}  // namespace ultraspeed::bench
