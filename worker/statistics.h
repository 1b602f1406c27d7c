// What the forward passes of an executor read, counted as they run: the denominator of every
// bandwidth figure.
//
// Written on the engine thread; read by programs in bench/ between rounds.
#pragma once

#include <cstdint>

namespace ultraspeed::worker {

struct ForwardStatistics {
  int64_t target_passes = 0;
  int64_t target_rows = 0;
  // Packed weights, each matrix of a pass once, experts as they were routed; without experts where
  // they are not counted (ExecutorOptions::count_experts).
  int64_t target_bytes = 0;
  int64_t moe_layer_passes = 0;
  int64_t distinct_experts = 0;  // summed over moe_layer_passes; 0 where they are not counted
  int64_t drafter_passes = 0;
  int64_t drafter_bytes = 0;  // block pass, context features and the shared head
};

}  // namespace ultraspeed::worker
