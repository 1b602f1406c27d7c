#include "worker/speculation.h"

#include <gtest/gtest.h>

#include <cmath>

namespace ultraspeed::worker {
namespace {

std::vector<int> Rows(const std::vector<RowShare>& division) {
  std::vector<int> rows;
  for (const RowShare& share : division) rows.push_back(share.rows());
  return rows;
}

TEST(ChooseBlockTest, DraftsMoreWhenMoreIsAccepted) {
  EXPECT_EQ(ChooseBlock(0.95, 8, kServedShapeDraftCost), 8);
  EXPECT_LE(ChooseBlock(0.5, 8, DraftCost{.fixed = 0.1, .row = 0.086}), 4);
  EXPECT_EQ(ChooseBlock(0.02, 8, kServedShapeDraftCost), 1);
  int last = 1;
  for (int percent = 1; percent < 100; ++percent) {
    const int block = ChooseBlock(percent / 100.0, 8, kServedShapeDraftCost);
    EXPECT_GE(block, last) << "at acceptance " << percent << "%";
    last = block;
  }
}

TEST(ChooseBlockTest, StaysWithinTheBound) {
  for (int block_max = 1; block_max <= kDraftBlockMax; ++block_max) {
    EXPECT_EQ(ChooseBlock(0.99, block_max, DraftCost{}), block_max);
    EXPECT_GE(ChooseBlock(0.3, block_max, kServedShapeDraftCost), 1);
    EXPECT_LE(ChooseBlock(0.3, block_max, kServedShapeDraftCost), block_max);
  }
}

TEST(ChooseBlockTest, CostlyDrafterIsNotRun) {
  EXPECT_EQ(ChooseBlock(0.9, 8, DraftCost{.fixed = 8, .row = 0}), 1);
}

TEST(ChooseBlockTest, CostlyRowsAreNotDrafted) {
  EXPECT_EQ(ChooseBlock(0.9, 8, DraftCost{.fixed = 0, .row = 1}), 1);
}

// One block where drafts are doubtful, several where they are good and a block costs little; a
// sequence alone has one.
TEST(DivideRowsTest, SeveralBlocksPayWhereDraftsAreGood) {
  const auto divide = [](const std::vector<double>& acceptances, int blocks_max,
                         double block_cost) {
    std::vector<Drafting> sequences;
    for (const double acceptance : acceptances)
      sequences.push_back({.acceptance = acceptance, .bound = 8});
    return Rows(DivideRows(sequences, {.block_max = 8, .blocks_max = blocks_max, .rows_max = 64},
                           {.fixed = 0.1, .row = 0.086, .block = block_cost}));
  };
  EXPECT_EQ(divide({0.97}, 2, 0), (std::vector<int>{8}));
  EXPECT_EQ(divide({0.97, 0.97}, 1, 0), (std::vector<int>{4, 4}));
  EXPECT_EQ(divide({0.97, 0.97}, 2, 0.54), (std::vector<int>{8, 8}));
  EXPECT_EQ(divide({0.85, 0.85}, 2, 0.54), (std::vector<int>{4, 4}));
  EXPECT_EQ(divide({0.85, 0.85}, 2, 0), (std::vector<int>{8, 8}));
  EXPECT_EQ(divide({0.97, 0.97, 0.97, 0.97}, 2, 0.54), (std::vector<int>{4, 4, 4, 4}));
  EXPECT_EQ(divide({0.97, 0.97, 0.97, 0.97}, 2, 5), (std::vector<int>{2, 2, 2, 2}));
}

TEST(DivideRowsTest, NoBoundIsPassed) {
  const std::vector<Drafting> sequences = {
      {.acceptance = 0.99, .bound = 3}, {.acceptance = 0.99, .bound = 8}, {.acceptance = 0.99}};
  for (int rows_max = 3; rows_max <= 16; ++rows_max) {
    const std::vector<int> rows =
        Rows(DivideRows(sequences, {.block_max = 8, .blocks_max = 2, .rows_max = rows_max}, {}));
    ASSERT_EQ(rows.size(), 3u);
    EXPECT_LE(rows[0], 3);
    EXPECT_EQ(rows[2], 1);
    EXPECT_LE(rows[0] + rows[1] + rows[2], rows_max);
    EXPECT_GE(std::min(rows[0], rows[1]), 1);
  }
}

TEST(ChooseBlockTest, InCompanyADraftHasToBeWorthMore) {
  const DraftCost alone = {.fixed = 0.4, .row = 0.02};
  EXPECT_DOUBLE_EQ(InCompany(alone, 1).fixed, alone.fixed);
  EXPECT_DOUBLE_EQ(InCompany(alone, 1).row, alone.row);
  // Four plain rows take 1.06 of one, so a sequence's share is 0.265.
  EXPECT_NEAR(InCompany(alone, 4).fixed, 0.4 / 0.265, 1e-9);
  EXPECT_NEAR(InCompany(alone, 4).row, 0.02 / 0.265, 1e-9);
  EXPECT_EQ(ChooseBlock(0.8, 8, InCompany(alone, 1)), 8);
  EXPECT_EQ(ChooseBlock(0.8, 4, InCompany(alone, 2)), 4);
  EXPECT_EQ(ChooseBlock(0.8, 2, InCompany(alone, 4)), 1);
  // Where rows cost as much as rounds nothing is shared.
  EXPECT_DOUBLE_EQ(InCompany({.fixed = 0.5, .row = 1}, 8).fixed, 0.5);
}

// Rows that are cut when their drafts are unlikely cost little, so a long block is worth trying
// where a short one is if all are verified.
TEST(ChooseBlockTest, DraftsThatAreWeighedMayBeMany) {
  const DraftCost all = {.fixed = 0.1, .row = 0.086},
                  weighed = {.fixed = 0.1, .row = 0.086, .block = 0, .unreached = 0.25};
  EXPECT_EQ(ChooseBlock(0.6, 8, all), 4);
  EXPECT_EQ(ChooseBlock(0.6, 8, weighed), 8);
  EXPECT_EQ(ChooseBlock(0.02, 8, weighed), 1);
  EXPECT_EQ(ChooseBlock(0.9, 8, DraftCost{.fixed = 0, .row = 1, .block = 0, .unreached = 0.25}), 1);
}

// Seconds are straight lines through two points, so costs, which are shares of a plain round, are
// not.
TEST(DraftCostsTest, FollowTheLength) {
  const DraftCosts costs({.tokens = 100,
                          .plain_seconds = 1,
                          .cost = {.fixed = 2, .row = 0.5, .block = 1, .unreached = 0.25}},
                         {.tokens = 300,
                          .plain_seconds = 2,
                          .cost = {.fixed = 3, .row = 0.75, .block = 0.25, .unreached = 0.25}});
  for (const int64_t tokens : {0, 100}) {
    EXPECT_DOUBLE_EQ(costs.At(tokens).fixed, 2);
    EXPECT_DOUBLE_EQ(costs.At(tokens).row, 0.5);
  }
  EXPECT_DOUBLE_EQ(costs.At(200).fixed, (2 + 6) / 2.0 / 1.5);
  EXPECT_DOUBLE_EQ(costs.At(300).fixed, 3);
  EXPECT_DOUBLE_EQ(costs.At(300).row, 0.75);
  EXPECT_DOUBLE_EQ(costs.At(500).fixed, (2 + 2 * 4) / 3.0);
  EXPECT_DOUBLE_EQ(costs.At(500).block, 1 / 3.0);  // it does not fall below its seconds
  EXPECT_DOUBLE_EQ(costs.At(900).fixed, (2 + 4 * 4) / 5.0);
  EXPECT_DOUBLE_EQ(costs.At(1'000'000).fixed, costs.At(900).fixed);  // no further
  EXPECT_EQ(costs.At(500).unreached, 0.25);
  const DraftCosts everywhere = DraftCost{.fixed = 0.3, .row = 0.1};
  EXPECT_EQ(everywhere.At(0).fixed, 0.3);
  EXPECT_EQ(everywhere.At(100'000).row, 0.1);
}

// A row whose draft is just that likely to be reached leaves tokens per cost as they are, alone and
// in company, whatever share of the unreached rows is verified.
TEST(ReachMinTest, IsWhereARowStopsToPay) {
  for (const DraftCost& cost : {kServedShapeDraftCost, DraftCost{.fixed = 0.7, .row = 0.05}}) {
    for (const double acceptance : {0.3, 0.8, 0.95}) {
      const double tokens = (1 - std::pow(acceptance, 8)) / (1 - acceptance);
      const double rows = tokens + cost.unreached * (8 - tokens);
      const double alone = 1 + cost.fixed + (rows - 1) * cost.row;
      const Drafting drafting = {.acceptance = acceptance, .bound = 8};
      const double reach = ReachMin({drafting}, {{.block = 8}}, 8, cost);
      EXPECT_NEAR((tokens + reach) / (alone + cost.row), tokens / alone, 1e-12);
      const double two = 1 + 2 * cost.fixed + (2 * rows - 1) * cost.row + cost.block;
      EXPECT_NEAR(ReachMin({drafting, drafting}, {{.block = 8}, {.block = 8}}, 8, cost),
                  cost.row * 2 * tokens / two, 1e-12);
    }
  }
  EXPECT_EQ(ReachMin({{.acceptance = 0.9}}, {{.block = 8}}, 8, DraftCost{.fixed = 0.1, .row = 0}),
            0);
}

// Drafts from a text cost their rows only, so they win where they are as good as the drafter's, as
// many as pay for their row.
TEST(ChooseLookedUpTest, WeighsTheTextAgainstTheDrafter) {
  const auto choose = [](double drafter, double text, int num_drafts, const DraftCost& cost) {
    return ChooseLookedUp({.acceptance = drafter,
                           .bound = 16,
                           .looked_up = {.acceptance = text, .num_drafts = num_drafts}},
                          ChooseBlock(drafter, 8, cost), 15, cost);
  };
  const DraftCost cost = {.fixed = 0.1, .row = 0.086, .block = 0, .unreached = 0.25};
  EXPECT_EQ(choose(0.9, 0.97, 7, cost), 7);
  EXPECT_EQ(choose(0.9, 0.97, 3, cost), 0);  // three drafts are less than seven
  EXPECT_EQ(choose(0.9, 0.6, 15, cost), 0);
  EXPECT_EQ(choose(0.9, 0.97, 0, cost), 0);
  EXPECT_EQ(choose(0.05, 0.05, 15, cost), 0);
  EXPECT_GT(choose(0.5, 0.7, 15, cost), 0);
  EXPECT_LT(choose(0.5, 0.7, 15, cost), 8);  // later rows would not be reached
  // Where rows cost nothing all are worth it, where they cost a round none is.
  EXPECT_EQ(choose(0.5, 0.9, 15, {.fixed = 0.1}), 15);
  EXPECT_EQ(choose(0.5, 0.9, 15, {.fixed = 0.1, .row = 1}), 0);
}

TEST(DivideRowsTest, OneAloneMayBringMoreThanABlock) {
  const Drafting repeating = {
      .acceptance = 0.5, .bound = 16, .looked_up = {.acceptance = 0.98, .num_drafts = 15}};
  const DraftCost cost = {.fixed = 0.5, .row = 0.05};
  const auto divide = [&](const std::vector<Drafting>& sequences, int rows_max) {
    return Rows(DivideRows(
        sequences, {.block_max = 8, .blocks_max = 1, .rows_max = rows_max, .looked_up_max = 15},
        cost));
  };
  EXPECT_EQ(divide({repeating}, 64), (std::vector<int>{16}));
  EXPECT_EQ(divide({repeating}, 5), (std::vector<int>{5}));
  EXPECT_EQ(divide({repeating, repeating}, 64), (std::vector<int>{4, 4}));
  Drafting ending = repeating;
  ending.bound = 3;
  EXPECT_EQ(divide({ending}, 64), (std::vector<int>{3}));
  ending.bound = 1;
  EXPECT_EQ(divide({ending}, 64), (std::vector<int>{1}));
}

TEST(AcceptanceTotalsTest, CountsBySourceAndPosition) {
  AcceptanceTotals totals;
  totals.Record({.chosen = {}, .num_drafted = 7, .num_accepted = 2, .took_own = false});
  totals.Record({.chosen = {}, .num_drafted = 15, .num_accepted = 9, .took_own = true});
  totals.Record({.chosen = {}, .num_drafted = 0, .num_accepted = 0, .took_own = false});
  EXPECT_EQ(totals.rounds, 2);  // a plain one drafts nothing
  EXPECT_EQ(totals.of_drafter.verified, 7);
  EXPECT_EQ(totals.of_drafter.accepted, 2);
  EXPECT_EQ(totals.of_text.verified, 15);
  EXPECT_EQ(totals.of_text.accepted, 9);
  EXPECT_EQ(totals.accepted_at[0], 2);
  EXPECT_EQ(totals.accepted_at[1], 2);
  EXPECT_EQ(totals.accepted_at[2], 1);
  EXPECT_EQ(totals.accepted_at[8], 1);
}

TEST(SpeculationStateTest, FollowsRecentAcceptance) {
  SpeculationState state;
  const double prior = state.acceptance();
  for (int i = 0; i < 30; ++i) state.Record(7, 0);
  EXPECT_LT(state.acceptance(), 0.2);
  for (int i = 0; i < 60; ++i) state.Record(7, 7);
  EXPECT_GT(state.acceptance(), 0.95);
  EXPECT_LT(state.acceptance(), 1.0);
  EXPECT_GT(prior, 0.0);
}

// A new sequence begins with what is known of the others, and a state of all hardly forgets.
TEST(SpeculationStateTest, OfAllIsAPriorThatFadesSlowly) {
  SpeculationState all(kPriorAcceptance, kFadeOfAll);
  for (int i = 0; i < 50; ++i) all.Record(7, 1);
  EXPECT_NEAR(all.acceptance(), 0.5, 0.02);
  EXPECT_EQ(SpeculationState(all.acceptance()).acceptance(), all.acceptance());
  for (int i = 0; i < 100; ++i) all.Record(0, 0);
  EXPECT_LT(all.acceptance(), 0.55);
  for (int i = 0; i < 5000; ++i) all.Record(0, 0);
  EXPECT_GT(all.acceptance(), 0.89);  // the hopeful one again
}

TEST(SpeculationStateTest, TriesAgainAfterPlainRounds) {
  SpeculationState state;
  for (int i = 0; i < 40; ++i) state.Record(7, 0);
  ASSERT_EQ(ChooseBlock(state.acceptance(), 8, DraftCost{.fixed = 0, .row = 0.3}), 1);
  int plain_rounds = 0;
  while (ChooseBlock(state.acceptance(), 8, DraftCost{.fixed = 0, .row = 0.3}) == 1 &&
         plain_rounds < 200) {
    state.Record(0, 0);
    ++plain_rounds;
  }
  EXPECT_LT(plain_rounds, 100);
  EXPECT_GT(plain_rounds, 5);
}

}  // namespace
}  // namespace ultraspeed::worker
