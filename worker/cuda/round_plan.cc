#include "worker/cuda/round_plan.h"

#include <algorithm>
#include <utility>

#include "kernels/cuda/resident/program.h"

namespace ultraspeed::worker::cuda {
namespace {

using kernels::cuda::resident::kBandRows;

constexpr int64_t kPositionBoundMin = 1024;

bool IsDecode(const SequenceStep& step) { return step.sample && step.num_tokens == 1; }

// Straight lines through what rounds take at the served shape on an H200, one rank of eight
// (docs/PERFORMANCE.md): a round of the resident engine with its rows, bands and a drafter's pass
// for each sequence that drafts, and a pass of 1 to 32 rows.
constexpr double kResidentMs = 3.25, kResidentRowMs = 0.33, kDraftPassMs = 0.4;
constexpr double kResidentBandMs = 1.95;  // after the first
constexpr double kPassMs = 8.0, kPassRowMs = 0.38;

double ResidentMs(const Round& round) {
  const int rows = NumRows(round);
  double ms = kResidentMs + kResidentRowMs * rows + kResidentBandMs * ((rows - 1) / kBandRows);
  for (const SequenceStep& step : round.steps) ms += step.wants_drafts() ? kDraftPassMs : 0.0;
  return ms;
}
double PassesMs(const Round& round) {
  double ms = 0;
  for (const PassPlan& pass : PlanPasses(round)) ms += kPassMs + kPassRowMs * pass.num_rows;
  return ms;
}

void Add(const SequenceStep& step, int step_idx, PassPlan& pass) {
  pass.steps.push_back(step_idx);
  const int num_rows = step.rows();
  pass.num_rows += num_rows;
  pass.rows_max = std::max(pass.rows_max, num_rows);
  pass.num_samples += step.sample ? step.chosen_max() : 0;
  pass.alternatives = std::max(pass.alternatives, step.sample ? step.logprobs : 0);
  pass.position_end = std::max(pass.position_end, step.computed + num_rows);
  pass.constrained |= step.sample && step.constraint != nullptr;
}

}  // namespace

int NumRows(const Round& round) {
  int rows = 0;
  for (const SequenceStep& step : round.steps) rows += step.chosen_max();
  return rows;
}

std::vector<PassPlan> PlanPasses(const Round& round) {
  std::vector<PassPlan> passes;
  const auto pass_of = [&](const SequenceStep& step) -> PassPlan& {
    const PassKind kind = IsDecode(step) ? PassKind::kDecode : PassKind::kPrefill;
    const bool constrained = step.constraint != nullptr, given = step.brings_drafts();
    for (PassPlan& pass : passes) {
      if (pass.kind != kind || pass.block != step.chosen_max()) continue;
      if (kind == PassKind::kPrefill || (pass.constrained == constrained && pass.given == given))
        return pass;
    }
    PassPlan& pass = passes.emplace_back();
    pass.kind = kind;
    pass.block = step.chosen_max();
    pass.given = given;
    return pass;
  };
  for (size_t i = 0; i < round.steps.size(); ++i)
    Add(round.steps[i], static_cast<int>(i), pass_of(round.steps[i]));
  return passes;
}

RoundResult RoundParts::Join(std::vector<RoundResult> of_resident, RoundResult of_passes) const {
  std::vector<size_t> taken(of_resident.size());
  size_t taken_of_passes = 0;
  RoundResult result;
  for (const int part : part_of) {
    const auto p = static_cast<size_t>(part);
    result.sequences.push_back(std::move(part == kInPasses ? of_passes.sequences[taken_of_passes++]
                                                           : of_resident[p].sequences[taken[p]++]));
  }
  return result;
}

bool Filters(const kernels::SamplingSpec& spec) {
  return spec.temperature > 0 && (spec.top_k > 0 || spec.top_p < 1.0f);
}

bool ShareRound(const Round& round, const SequenceStep& step) {
  namespace resident = kernels::cuda::resident;
  return round.steps.size() < resident::kSequencesMax &&
         NumRows(round) + step.chosen_max() <= resident::kRowsMax &&
         Filters(round.steps.front().sampling) == Filters(step.sampling);
}

bool ResidentPays(const RoundParts& parts) {
  if (parts.resident.empty() || parts.resident.size() > kTurnsMax) return false;
  double ms = PassesMs(parts.passes);
  Round all = parts.passes;
  for (const Round& part : parts.resident) {
    ms += ResidentMs(part);
    all.steps.insert(all.steps.end(), part.steps.begin(), part.steps.end());
  }
  return ms < PassesMs(all);
}

int64_t PositionBound(int64_t position_end, int64_t positions) {
  int64_t bound = kPositionBoundMin;
  while (bound < position_end) bound *= 2;
  return std::min(bound, positions);
}

}  // namespace ultraspeed::worker::cuda
