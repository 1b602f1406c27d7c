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

// A round in two parts that run one after the other: steps that take turns on the resident engine,
// and those that share passes.
struct RoundParts {
  Round turns, others;
  std::vector<bool> in_turns;  // [S] of the round

  // The results of both parts, in the order of the round.
  RoundResult Join(RoundResult of_turns, RoundResult of_others) const;
};
template <typename TakesTurns>
RoundParts PartsOf(const Round& round, TakesTurns takes_turns) {
  RoundParts parts;
  for (const SequenceStep& step : round.steps) {
    parts.in_turns.push_back(takes_turns(step));
    (parts.in_turns.back() ? parts.turns : parts.others).steps.push_back(step);
  }
  return parts;
}

inline constexpr int kTurnsMax = 4;
// Whether there are turns, at most kTurnsMax, and they are likely to be faster than all steps in
// passes, in which an expert is read once for all rows.
bool TurnsPay(const RoundParts& parts);

// The bound that a captured pass is given for position_end: the next of a few powers of two, so
// that one graph serves many rounds and short texts do not pay for long ones.
int64_t PositionBound(int64_t position_end, int64_t positions);

}  // namespace ultraspeed::worker::cuda
