#include "worker/calibration.h"

#include <gtest/gtest.h>

#include "tests/worker/scripted_executor.h"

namespace ultraspeed::worker {
namespace {

// A clock that each sampled round advances by (1 + fixed + row * (rows - 1)) milliseconds, fixed
// for each sequence that drafts, and by the cost of a block for every eight rows after the first.
// Where drafts are weighed, those of a step that wants none likelier than sure are not in the rows.
DraftCost MeasuredWhenCostIs(const DraftCost& cost, const ScriptedOptions& options) {
  FakeClock clock;
  ScriptedExecutor executor(options);
  executor.before_round = [&](const Round& round) {
    double ms = 1;
    int rows = 0;
    for (const SequenceStep& step : round.steps) {
      rows += options.weighs_drafts && step.reach_min > 1 ? 1 : step.block;
      ms += step.block > 1 ? cost.fixed : 0;
    }
    clock.Advance(absl::Milliseconds(ms + cost.row * (rows - 1) + cost.block * ((rows - 1) / 8)));
  };
  return MeasureDraftCosts(executor, clock).few.cost;
}

TEST(CalibrationTest, FindsTheCostOfDrafterAndRows) {
  const DraftCost measured = MeasuredWhenCostIs({.fixed = 1.5, .row = 0.25}, {});
  EXPECT_NEAR(measured.fixed, 1.5, 1e-3);
  EXPECT_NEAR(measured.row, 0.25, 1e-3);
}

// Of rows that are verified, whatever was drafted.
TEST(CalibrationTest, FindsTheCostOfVerifiedRows) {
  const DraftCost measured =
      MeasuredWhenCostIs({.fixed = 1.5, .row = 0.25}, {.weighs_drafts = true});
  EXPECT_NEAR(measured.fixed, 1.5, 1e-3);
  EXPECT_NEAR(measured.row, 0.25, 1e-3);
  EXPECT_EQ(measured.unreached, kUnreachedOfWeighed);
  EXPECT_EQ(MeasuredWhenCostIs({}, {}).unreached, 1);
}

// Where there is room for a long sequence, what drafting costs behind it.
TEST(CalibrationTest, FindsWhatMoreTokensCost) {
  for (const bool has_room : {true, false}) {
    FakeClock clock;
    ScriptedExecutor executor({.max_batch_tokens = 64,
                               .page_tokens = 16,
                               .num_pages = has_room ? 80 : 30,
                               .context_tokens = 2048});
    executor.before_round = [&](const Round& round) {
      const SequenceStep& step = round.steps[0];
      const double thousands = step.computed < 500 ? 0.1 : 0.7;
      clock.Advance(absl::Milliseconds(2 + thousands + (step.block > 1 ? 1 + 2 * thousands : 0) +
                                       (0.5 + thousands) * (step.block - 1)));
    };
    const DraftCosts costs = MeasureDraftCosts(executor, clock);
    EXPECT_NEAR(costs.few.cost.row, 0.6 / 2.1, 0.1);
    if (!has_room) {
      EXPECT_EQ(costs.many.tokens, costs.few.tokens);
      continue;
    }
    EXPECT_EQ(costs.few.tokens, 192);
    EXPECT_EQ(costs.many.tokens, 768);
    EXPECT_NEAR(costs.many.plain_seconds, 0.0027, 0.0002);
    EXPECT_NEAR(costs.many.cost.fixed, 2.4 / 2.7, 0.2);
    EXPECT_NEAR(costs.many.cost.row, 1.2 / 2.7, 0.1);
  }
}

TEST(CalibrationTest, FreeDraftingIsFree) {
  const DraftCost measured = MeasuredWhenCostIs({}, {});
  EXPECT_NEAR(measured.fixed, 0, 1e-6);
  EXPECT_NEAR(measured.row, 0, 1e-6);
}

// Only where a round may have several, and two sequences have room.
TEST(CalibrationTest, FindsTheCostOfASecondBlock) {
  const DraftCost cost = {.fixed = 0.5, .row = 0.25, .block = 1.5};
  const auto measured = [&](const ScriptedOptions& options) {
    return MeasuredWhenCostIs(cost, options).block;
  };
  EXPECT_NEAR(measured({.decode_blocks = 2}), 1.5, 1e-3);
  EXPECT_EQ(measured({.decode_blocks = 1}), 0);
  EXPECT_EQ(measured({.max_sequences = 1, .decode_blocks = 2}), 0);
  EXPECT_EQ(measured({.max_batch_tokens = 15, .decode_blocks = 2}), 0);
  EXPECT_EQ(measured({.num_pages = 30, .decode_blocks = 2}), 0);
}

TEST(CalibrationTest, NoDrafterRunsNothing) {
  FakeClock clock;
  ScriptedExecutor executor({.draft_block = 1});
  MeasureDraftCosts(executor, clock);
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
