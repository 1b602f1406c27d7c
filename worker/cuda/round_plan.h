// How a round is cut into passes: one for all prefill rows, then one for each block size among the
// decoding sequences, for those that have constraints and for those that bring their drafts along,
// so that every decode pass has a fixed shape.
//
// Pure; called by GpuExecutor and CudaExecutor each round.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/batch.h"

namespace ultraspeed::worker::cuda {

enum class PassKind : uint8_t { kPrefill, kDecode };

struct PassPlan {
  PassKind kind = PassKind::kPrefill;
  int block = 1;             // of every sequence of a decode pass: anchor and drafts
  std::vector<int> steps;    // [S] into Round::steps
  int num_rows = 0;          // of the target, all steps together
  int rows_max = 0;          // of one step
  int num_samples = 0;       // rows that choose a token
  int alternatives = 0;      // the most log-probability alternatives that a step asks for
  int64_t position_end = 0;  // past the last position of any row
  bool constrained = false;  // decode: all steps; prefill: some step that samples
  bool given = false;        // all steps bring their drafts along
};

// Blocks of all steps together, as the resident engine counts rows.
int NumRows(const Round& round);

// A step is decoding if it samples after its only token, the anchor.
std::vector<PassPlan> PlanPasses(const Round& round);

// A round in parts that run one after the other: rounds of the resident engine, whose sequences
// share its rows, and the steps that share passes.
struct RoundParts {
  std::vector<Round> resident;
  Round passes;
  std::vector<int> part_of;  // [S] of the round: into `resident`; kInPasses

  static constexpr int kInPasses = -1;
  // The results of all parts, in the order of the round.
  RoundResult Join(std::vector<RoundResult> of_resident, RoundResult of_passes) const;
};

// Whether the steps have room in one round of the resident engine and choose alike.
bool ShareRound(const Round& round, const SequenceStep& step);
template <typename TakesStep>
RoundParts PartsOf(const Round& round, TakesStep takes) {
  RoundParts parts;
  for (const SequenceStep& step : round.steps) {
    if (!takes(step)) {
      parts.part_of.push_back(RoundParts::kInPasses);
      parts.passes.steps.push_back(step);
      continue;
    }
    size_t part = 0;
    while (part < parts.resident.size() && !ShareRound(parts.resident[part], step)) ++part;
    if (part == parts.resident.size()) parts.resident.emplace_back();
    parts.resident[part].steps.push_back(step);
    parts.part_of.push_back(static_cast<int>(part));
  }
  return parts;
}

inline constexpr int kTurnsMax = 4;
// Whether there are rounds for the resident engine, at most kTurnsMax, and they are likely to be
// faster than all steps in passes.
bool ResidentPays(const RoundParts& parts);

// Whether the choice is among the tokens that top-k and top-p keep.
bool Filters(const kernels::SamplingSpec& spec);

// The bound that a captured pass is given for position_end: the next of a few powers of two, so
// that one graph serves many rounds and short texts do not pay for long ones.
int64_t PositionBound(int64_t position_end, int64_t positions);

}  // namespace ultraspeed::worker::cuda
