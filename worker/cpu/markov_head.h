// The drafter's Markov head on CPUs (DSpark, arXiv 2607.05147): what the token before a draft makes
// likelier. Drafts of a block are so chosen one after the other, those of several sequences side by
// side. Caller: CpuExecutor. Thread: the engine thread.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/ops.h"
#include "kernels/thread_pool.h"
#include "worker/cpu/zeroed_array.h"
#include "worker/model/config.h"
#include "worker/model/weights.h"

namespace ultraspeed::worker {

// A row whose draft is next.
struct MarkovRow {
  int32_t previous;   // the token before it
  const float* gate;  // [R], of DrafterForward::Draft; not read without a gate
  float* logits;      // [V], which get the bias
};

class MarkovForward {
 public:
  // REQUIRES: config.markov_rank > 0. `weights` outlive this.
  MarkovForward(const DrafterConfig& config, const MarkovHead& weights, int max_rows,
                kernels::ThreadPool& pool);

  void AddBias(absl::Span<const MarkovRow> rows);

 private:
  const int rank_, vocabulary_, max_rows_;
  const MarkovHead& weights_;
  kernels::ThreadPool& pool_;
  ZeroedArray<kernels::bf16> embedded_;  // [T, R]
  ZeroedArray<kernels::bf16> gated_;     // [T, R]
  ZeroedArray<float> gate_;              // [T, R]
  ZeroedArray<float> bias_;              // [T, V]
};

}  // namespace ultraspeed::worker
