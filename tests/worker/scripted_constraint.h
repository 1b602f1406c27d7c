// A constraint without a grammar: at each place about a third of the tokens, by the place and the
// token before; at some places any, which have no mask.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "tests/worker/cpu/sequence_runner.h"
#include "worker/batch.h"

namespace ultraspeed::worker {

class ScriptedConstraint final : public TokenConstraint {
 public:
  explicit ScriptedConstraint(int vocabulary) : vocabulary_(vocabulary) {}

  static bool IsFree(size_t place) { return place % 5 == 3; }
  static bool Allows(size_t place, int32_t before, int32_t token) {
    if (IsFree(place)) return true;
    const auto n = static_cast<uint32_t>(place * 7919) + static_cast<uint32_t>(before) * 104729u +
                   static_cast<uint32_t>(token) * 2654435761u;
    return (n >> 7) % 3 == 0;
  }
  // What was chosen is allowed where it stands.
  static bool Allows(const std::vector<int32_t>& tokens) {
    int32_t before = -1;
    for (size_t i = 0; i < tokens.size(); before = tokens[i++]) {
      if (!Allows(i, before, tokens[i])) return false;
    }
    return true;
  }

  void Commit(int32_t token) { committed_.push_back(token); }
  Masks AllowedTokens(absl::Span<const int32_t> drafts) const override {
    Masks masks;
    size_t place = committed_.size();
    int32_t before = committed_.empty() ? -1 : committed_.back();
    for (size_t i = 0;; ++i, ++place) {
      masks.push_back(IsFree(place) ? nullptr : MaskOf(place, before));
      if (i == drafts.size() || !Allows(place, before, drafts[i])) return masks;
      before = drafts[i];
    }
  }

 private:
  std::shared_ptr<const grammar::TokenMask> MaskOf(size_t place, int32_t before) const {
    grammar::TokenMask mask(vocabulary_);
    for (int32_t token = 0; token < vocabulary_; ++token) {
      if (Allows(place, before, token)) mask.Allow(token);
    }
    return std::make_shared<const grammar::TokenMask>(std::move(mask));
  }

  const int vocabulary_;
  std::vector<int32_t> committed_;
};

// A sequence that is held to such a constraint, or is not.
class HeldSequence {
 public:
  HeldSequence(Executor& executor, const RunPlan& plan, bool is_held = true)
      : sequence_(executor, plan), is_held_(is_held), constraint_(executor.vocabulary_used()) {}

  bool done() const { return sequence_.done(); }
  std::vector<int32_t> output() const { return sequence_.output(); }
  SequenceStep Step() const {
    SequenceStep step = sequence_.Step();
    if (is_held_) step.constraint = &constraint_;
    return step;
  }
  void Take(const SequenceStep& step, const SequenceResult& result) {
    for (const ChosenToken& chosen : result.chosen) constraint_.Commit(chosen.token);
    sequence_.Take(step, result);
  }

 private:
  RunningSequence sequence_;
  const bool is_held_;
  ScriptedConstraint constraint_;
};

struct ConstrainedRun {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  int num_accepted = 0;
};

// Runs the plan under such a constraint; `beside` runs without one in the same rounds, to its end.
inline ConstrainedRun RunConstrained(Executor& executor, const RunPlan& plan,
                                     RunningSequence* beside = nullptr, int logprobs = -1) {
  HeldSequence sequence(executor, plan);
  ConstrainedRun run;
  while (!sequence.done() || (beside != nullptr && !beside->done())) {
    Round round;
    const bool runs = !sequence.done(), others_run = beside != nullptr && !beside->done();
    if (runs) {
      round.steps.push_back(sequence.Step());
      round.steps[0].logprobs = logprobs;
    }
    if (others_run) round.steps.push_back(beside->Step());
    const RoundResult result = executor.Run(round);
    if (runs) {
      for (const ChosenToken& chosen : result.sequences[0].chosen)
        run.logprobs.push_back(chosen.logprob);
      run.num_accepted += result.sequences[0].num_accepted;
      sequence.Take(round.steps[0], result.sequences[0]);
    }
    if (others_run) beside->Take(round.steps.back(), result.sequences.back());
  }
  run.tokens = sequence.output();
  run.logprobs.resize(run.tokens.size());
  return run;
}

}  // namespace ultraspeed::worker
