// Requests that come, end in the middle and follow each other, as an engine mixes them.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "tests/worker/cpu/sequence_runner.h"

namespace ultraspeed::worker {

// A plan and the tokens that it must give.
struct ExpectedRun {
  RunPlan plan;
  std::vector<int32_t> output;
};

// Runs `runs` in random order, a third of them only in part, for `num_rounds` rounds or a few more.
// `change(random, step)` may alter a step.
template <typename Change>
void RunMixedRequests(ModelExecutor& executor, const std::vector<ExpectedRun>& runs, int num_rounds,
                      Change change) {
  std::mt19937 random(1);
  int rounds_run = 0, num_finished = 0, num_aborted = 0;
  while (rounds_run < num_rounds) {
    const size_t which = random() % runs.size();
    RunningSequence sequence(executor, runs[which].plan);
    const int abort_after = random() % 3 == 0 ? static_cast<int>(random() % 20) : num_rounds;
    int rounds = 0;
    while (!sequence.done() && rounds < abort_after) {
      Round round{.steps = {sequence.Step()}};
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

}  // namespace ultraspeed::worker
