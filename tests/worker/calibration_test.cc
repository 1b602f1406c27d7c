#include "worker/calibration.h"

#include <gtest/gtest.h>

#include "tests/worker/scripted_executor.h"

namespace ultraspeed::worker {
namespace {

// A clock that each sampled round advances by (1 + fixed + row * (block - 1)) milliseconds.
DraftCost MeasuredWhenCostIs(const DraftCost& cost, const ScriptedOptions& options) {
  FakeClock clock;
  ScriptedExecutor executor(options);
  executor.before_round = [&](const Round& round) {
    const SequenceStep& step = round.steps.front();
    const double drafting = step.block > 1 ? cost.fixed + cost.row * (step.block - 1) : 0;
    clock.Advance(absl::Milliseconds(1 + drafting));
  };
  return MeasureDraftCost(executor, clock);
}

TEST(CalibrationTest, FindsTheCostOfDrafterAndRows) {
  const DraftCost measured = MeasuredWhenCostIs({.fixed = 1.5, .row = 0.25}, {});
  EXPECT_NEAR(measured.fixed, 1.5, 1e-3);
  EXPECT_NEAR(measured.row, 0.25, 1e-3);
}

TEST(CalibrationTest, FreeDraftingIsFree) {
  const DraftCost measured = MeasuredWhenCostIs({}, {});
  EXPECT_NEAR(measured.fixed, 0, 1e-6);
  EXPECT_NEAR(measured.row, 0, 1e-6);
}

TEST(CalibrationTest, NoDrafterRunsNothing) {
  FakeClock clock;
  ScriptedExecutor executor({.draft_block = 1});
  MeasureDraftCost(executor, clock);
  EXPECT_EQ(executor.num_rounds, 0);
}

// The scripted executor aborts on a token beyond its pages.
TEST(CalibrationTest, StaysWithinASmallContextAndVocabulary) {
  const DraftCost measured = MeasuredWhenCostIs(
      {.fixed = 1, .row = 0.5}, {.num_pages = 32, .vocabulary = 5, .context_tokens = 256});
  EXPECT_NEAR(measured.row, 0.5, 1e-3);
}

}  // namespace
}  // namespace ultraspeed::worker
