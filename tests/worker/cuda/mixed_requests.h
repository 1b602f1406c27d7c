// Requests that come, end in the middle and follow each other, as an engine mixes them.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "tests/worker/cpu/sequence_runner.h"
#include "tests/worker/given_drafts.h"
#include "tests/worker/scripted_constraint.h"
#include "worker/model_executor.h"

namespace ultraspeed::worker {

// A plan and the tokens that it must give.
struct ExpectedRun {
  RunPlan plan;
  std::vector<int32_t> output;
  bool is_held = false;
};
// A run and what it gives now.
inline ExpectedRun Expect(Executor& executor, const RunPlan& plan, bool is_held) {
  return {plan, is_held ? RunConstrained(executor, plan).tokens : RunAlone(executor, plan),
          is_held};
}

// With both, drafts of the resident engine's Markov head may be other ones (draft_chain.cuh).
inline bool HasBothFilters(const kernels::SamplingSpec& spec) {
  return spec.temperature > 0 && spec.top_k > 0 && spec.top_p < 1.0f;
}

// A third of the steps bring drafts along, right or wrong ones, most often several in a row.
class DraftGiver {
 public:
  void Give(std::mt19937& random, const ExpectedRun& run, SequenceStep& step) {
    if (random() % 4 == 0) gives_ = random() % 3 == 0;
    if (!gives_) return;
    const size_t count = 1 + random() % 7;
    drafts_.Give(step, run.plan.prompt.size(), run.output, count,
                 random() % 2 == 0 ? count : random() % count);
  }

 private:
  GivenDrafts drafts_;
  bool gives_ = false;
};

// Runs `runs` in random order, a third of them only in part, for `num_rounds` rounds or a few more.
// `change(random, step)` may alter a step.
template <typename Change>
void RunMixedRequests(ModelExecutor& executor, const std::vector<ExpectedRun>& runs, int num_rounds,
                      Change change) {
  std::mt19937 random(1);
  DraftGiver drafts;
  int rounds_run = 0, num_finished = 0, num_aborted = 0;
  while (rounds_run < num_rounds) {
    const size_t which = random() % runs.size();
    HeldSequence sequence(executor, runs[which].plan, runs[which].is_held);
    const int abort_after = random() % 3 == 0 ? static_cast<int>(random() % 20) : num_rounds;
    int rounds = 0;
    while (!sequence.done() && rounds < abort_after) {
      Round round{.steps = {sequence.Step()}};
      drafts.Give(random, runs[which], round.steps[0]);
      change(random, round.steps[0]);
      sequence.Take(round.steps[0], executor.Run(round).sequences[0]);
      ++rounds;
    }
    rounds_run += rounds;
    if (!sequence.done()) {
      ++num_aborted;
      continue;
    }
    ++num_finished;
    ASSERT_EQ(sequence.output(), runs[which].output) << "run " << which << " after " << rounds_run;
  }
  std::printf("%d rounds, %d requests finished, %d aborted\n", rounds_run, num_finished,
              num_aborted);
  EXPECT_GT(num_aborted, 0);
}

// The same with as many requests at once as there are slots, any of which may be in a round: those
// of `runs` that name a slot follow each other in it, in random order. Some rounds ask one of them
// for alternatives.
inline void RunMixedCompany(ModelExecutor& executor, const std::vector<ExpectedRun>& runs,
                            int num_rounds) {
  struct Place {
    std::vector<size_t> runs;
    size_t which = 0;
    std::unique_ptr<HeldSequence> sequence;
    DraftGiver drafts = {};
    int rounds_left = 0;
  };
  std::mt19937 random(1);
  std::vector<Place> places(static_cast<size_t>(executor.max_sequences()));
  for (size_t i = 0; i < runs.size(); ++i)
    places[static_cast<size_t>(runs[i].plan.slot)].runs.push_back(i);
  const auto begin = [&](Place& place) {
    place.which = place.runs[random() % place.runs.size()];
    const ExpectedRun& run = runs[place.which];
    place.sequence = std::make_unique<HeldSequence>(executor, run.plan, run.is_held);
    place.rounds_left = random() % 3 == 0 ? static_cast<int>(random() % 20) + 1 : num_rounds;
  };
  for (Place& place : places) {
    ASSERT_FALSE(place.runs.empty());
    begin(place);
  }
  std::vector<int> finished_in_rounds_of(places.size() + 1), rounds_of(places.size() + 1);
  int num_aborted = 0;
  for (int i = 0; i < num_rounds; ++i) {
    Round round;
    std::vector<Place*> members;
    const uint32_t quarters = random() % 4 + 1;  // of the places, about
    for (Place& place : places) {
      if (random() % 4 >= quarters) continue;
      members.push_back(&place);
      round.steps.push_back(place.sequence->Step());
      place.drafts.Give(random, runs[place.which], round.steps.back());
    }
    if (members.empty()) continue;
    if (random() % 8 == 0) round.steps[random() % round.steps.size()].logprobs = 2;
    constexpr float kReaches[] = {0, 1e-3f, 0.2f, 0.9f};
    const float reach_min = kReaches[random() % std::size(kReaches)];
    for (SequenceStep& step : round.steps) step.reach_min = reach_min;
    ++rounds_of[members.size()];
    const RoundResult result = executor.Run(round);
    for (size_t m = 0; m < members.size(); ++m) {
      Place& place = *members[m];
      place.sequence->Take(round.steps[m], result.sequences[m]);
      if (place.sequence->done()) {
        ASSERT_EQ(place.sequence->output(), runs[place.which].output)
            << "run " << place.which << " in round " << i;
        ++finished_in_rounds_of[members.size()];
        begin(place);
      } else if (--place.rounds_left == 0) {
        ++num_aborted;
        begin(place);
      }
    }
  }
  for (size_t n = 1; n < rounds_of.size(); ++n) {
    std::printf("%d rounds of %zu, which finished %d requests\n", rounds_of[n], n,
                finished_in_rounds_of[n]);
    EXPECT_GT(finished_in_rounds_of[n], 0);
  }
  EXPECT_GT(num_aborted, 0);
}

}  // namespace ultraspeed::worker
