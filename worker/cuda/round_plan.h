// How a round is cut into passes: one for all prefill rows, then one for each block size among the
// decoding sequences, so that every decode pass has a fixed shape.
//
// Pure; called by CudaExecutor each round.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/batch.h"

namespace ultraspeed::worker::cuda {

enum class PassKind : uint8_t { kPrefill, kDecode };

struct PassPlan {
  PassKind kind = PassKind::kPrefill;
  int block = 1;             // of every sequence of a decode pass
  std::vector<int> steps;    // [S] into Round::steps
  int num_rows = 0;          // of the target, all steps together
  int rows_max = 0;          // of one step
  int num_samples = 0;       // rows that choose a token
  int alternatives = 0;      // the most log-probability alternatives that a step asks for
  int64_t position_end = 0;  // past the last position of any row
};

// A step is decoding if it samples after its only token, the anchor.
std::vector<PassPlan> PlanPasses(const Round& round);

// The bound that a captured pass is given for position_end: the next of a few powers of two, so
// that one graph serves many rounds and short texts do not pay for long ones.
int64_t PositionBound(int64_t position_end, int64_t positions);

}  // namespace ultraspeed::worker::cuda
