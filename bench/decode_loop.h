// Prompts through an executor, without engine, scheduler or gRPC: what the arithmetic alone can do.
// Used by ultraspeed-bench and ultraspeed-eval. Single-threaded.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "worker/executor.h"
#include "worker/output_constraint.h"
#include "worker/speculation.h"
#include "worker/statistics.h"

namespace ultraspeed::bench {

struct DecodeOptions {
  int max_tokens = 128;
  int block = 1;      // 1 = plain, else the drafter's block
  int sequences = 1;  // side by side; they divide the block's rows, as under the scheduler
  worker::DraftCosts draft_costs = {};  // decide which drafts are verified; none: all
  bool looks_up = false;                // drafts in the text, where it repeats itself
  bool chooses_blocks = false;          // by cost, as the scheduler does; plain ones among them
  kernels::SamplingSpec sampling = {};
  worker::OutputGrammar output = {};                      // of every completion
  const worker::ForwardStatistics* statistics = nullptr;  // the executor's; null = no byte counts
  std::function<void(size_t)> on_prompt_started = [](size_t) {};
};

struct DecodeOutcome {
  // [prompts] completions; each ends with an end-of-text token or at max_tokens.
  std::vector<std::vector<int32_t>> texts;
  int64_t tokens = 0;            // without the first of each text, which is prefill's
  int64_t rounds = 0;            // decode rounds, prefill excluded
  int64_t sequence_rounds = 0;   // the same, counted for each sequence in them
  int64_t rows = 0;              // of those rounds: anchors and verified drafts
  int64_t looked_up_rounds = 0;  // sequence rounds whose drafts were looked up
  int64_t looked_up_tokens = 0;  // of those rounds
  double seconds = 0;            // of the rounds above, and of taking in what they chose
  int64_t prompt_tokens = 0;
  double prompt_seconds = 0;  // from there to the first token of each text
  int64_t weight_bytes = 0;   // packed weights that those rounds read, experts as they were routed
};

// Runs all prompts, `sequences` at a time: who is done makes room for the next prompt. REQUIRES: no
// prompt is empty; sequences <= max_sequences; prompt + max_tokens within the context and an even
// share of the pages.
DecodeOutcome Decode(worker::Executor& executor, const std::vector<std::vector<int32_t>>& prompts,
                     const DecodeOptions& options);

}  // namespace ultraspeed::bench
