#include "worker/cuda/round_plan.h"

#include <algorithm>
#include <utility>

namespace ultraspeed::worker::cuda {
namespace {

constexpr int64_t kPositionBoundMin = 1024;

bool IsDecode(const SequenceStep& step) { return step.sample && step.num_tokens == 1; }

// Straight lines through what rounds take at the served shape on an H200, one rank of eight
// (docs/PERFORMANCE.md): a turn of 1 or 8 rows, a pass of 1 to 32.
constexpr double kTurnMs = 3.3, kTurnRowMs = 0.35;
constexpr double kPassMs = 8.0, kPassRowMs = 0.6;

double TurnsMs(const Round& round) {
  double ms = 0;
  for (const SequenceStep& step : round.steps) ms += kTurnMs + kTurnRowMs * step.block;
  return ms;
}
double PassesMs(const Round& round) {
  double ms = 0;
  for (const PassPlan& pass : PlanPasses(round)) ms += kPassMs + kPassRowMs * pass.num_rows;
  return ms;
}

void Add(const SequenceStep& step, int step_idx, PassPlan& pass) {
  pass.steps.push_back(step_idx);
  const int num_rows = step.num_tokens + step.block - 1;
  pass.num_rows += num_rows;
  pass.rows_max = std::max(pass.rows_max, num_rows);
  pass.num_samples += step.sample ? step.block : 0;
  pass.alternatives = std::max(pass.alternatives, step.sample ? step.logprobs : 0);
  pass.position_end = std::max(pass.position_end, step.computed + num_rows);
}

}  // namespace

std::vector<PassPlan> PlanPasses(const Round& round) {
  std::vector<PassPlan> passes;
  const auto pass_of = [&](PassKind kind, int block) -> PassPlan& {
    for (PassPlan& pass : passes) {
      if (pass.kind == kind && pass.block == block) return pass;
    }
    PassPlan& pass = passes.emplace_back();
    pass.kind = kind;
    pass.block = block;
    return pass;
  };
  for (size_t i = 0; i < round.steps.size(); ++i) {
    const SequenceStep& step = round.steps[i];
    Add(step, static_cast<int>(i),
        pass_of(IsDecode(step) ? PassKind::kDecode : PassKind::kPrefill, step.block));
  }
  return passes;
}

RoundResult RoundParts::Join(RoundResult of_turns, RoundResult of_others) const {
  RoundResult result;
  auto turn = of_turns.sequences.begin(), other = of_others.sequences.begin();
  for (const bool takes_turn : in_turns)
    result.sequences.push_back(std::move(takes_turn ? *turn++ : *other++));
  return result;
}

bool TurnsPay(const RoundParts& parts) {
  if (parts.turns.steps.empty() || parts.turns.steps.size() > kTurnsMax) return false;
  Round all = parts.others;
  all.steps.insert(all.steps.end(), parts.turns.steps.begin(), parts.turns.steps.end());
  return TurnsMs(parts.turns) + PassesMs(parts.others) < PassesMs(all);
}

int64_t PositionBound(int64_t position_end, int64_t positions) {
  int64_t bound = kPositionBoundMin;
  while (bound < position_end) bound *= 2;
  return std::min(bound, positions);
}

}  // namespace ultraspeed::worker::cuda
