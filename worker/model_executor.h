// An executor that runs a real model: what the two of them (worker/cpu, worker/cuda) share, and
// what benchmarks, evaluation and tests look at beyond the engine's interface.
//
// Thread: the engine thread only.
#pragma once

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "worker/batch.h"
#include "worker/executor.h"
#include "worker/statistics.h"

namespace ultraspeed::worker {

inline constexpr int kPageTokens = 64;  // P, of both executors

// Pages that so many tokens fill, the last one in part.
constexpr int64_t PagesOf(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

// Positions that the ring of a window holds: the window behind a page's border, the pass or the
// page of tokens that may follow before a snapshot is taken there, and rows that were rejected or
// that the resident engine ran ahead.
constexpr int64_t RingTokens(int window, int max_batch_tokens) {
  return int64_t{window} + std::max(max_batch_tokens, kPageTokens) + 3 * kDraftBlockMax;
}

class ModelExecutor : public Executor {
 public:
  virtual const ForwardStatistics& statistics() const = 0;

  // Runs the step's tokens like a round that neither drafts nor samples, and gives the target's
  // logits after each of them. REQUIRES: as Run; step.block == 1.
  virtual void Logits(const SequenceStep& step, float* out /*[num_tokens, V]*/) = 0;
};

// INVALID_ARGUMENT names the option, its value and its bounds.
absl::Status ValidateOptions(const ExecutorOptions& options);

// Aborts with the operands if the round breaks what Executor::Run requires of the engine.
void CheckRound(const Round& round, const Executor& executor);
// Likewise for Save- and LoadSnapshot.
void CheckSnapshot(int snapshot, int slot, int64_t position, const Executor& executor);

}  // namespace ultraspeed::worker
