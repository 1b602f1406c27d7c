#include "worker/lookup_drafter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ultraspeed::worker {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using Tokens = std::vector<int32_t>;

std::vector<ChosenToken> Chosen(const Tokens& tokens) {
  std::vector<ChosenToken> chosen;
  for (const int32_t token : tokens)
    chosen.push_back({.token = token, .logprob = 0, .top_tokens = {}, .top_logprobs = {}});
  return chosen;
}

TEST(LookupDrafterTest, DraftsWhatFollowedBefore) {
  LookupDrafter drafter;
  Tokens text = {1, 2, 3, 4, 5, 6, 7, 1, 2, 3};
  EXPECT_THAT(drafter.Propose(text, 4), ElementsAre(4, 5, 6, 7));
  EXPECT_EQ(drafter.proposal().num_drafts, 4);
  text.push_back(4);
  EXPECT_THAT(drafter.Propose(text, 2), ElementsAre(5, 6));
  text.push_back(99);
  EXPECT_THAT(drafter.Propose(text, 2), IsEmpty());
  EXPECT_EQ(drafter.proposal().num_drafts, 0);
}

// A text that repeats itself up to its end goes on like that.
TEST(LookupDrafterTest, RepeatsAPeriod) {
  LookupDrafter drafter;
  EXPECT_THAT(drafter.Propose(Tokens{1, 2, 1, 2, 1, 2}, 7), ElementsAre(1, 2, 1, 2, 1, 2, 1));
  LookupDrafter constant;
  EXPECT_THAT(constant.Propose(Tokens{8, 8, 8, 8}, 3), ElementsAre(8, 8, 8));
}

TEST(LookupDrafterTest, NoRoomMeansNoDraft) {
  LookupDrafter drafter;
  EXPECT_THAT(drafter.Propose(Tokens{1, 2, 3, 4, 1, 2, 3}, 0), IsEmpty());
  EXPECT_EQ(drafter.proposal().num_drafts, 0);
}

TEST(LookupDrafterTest, ALongerMatchIsTrustedMore) {
  double before = 0;
  for (int length = 3; length <= 16; length = length == 3 ? 4 : length * 2) {
    Tokens run(static_cast<size_t>(length));
    for (int i = 0; i < length; ++i) run[static_cast<size_t>(i)] = 100 + i;
    Tokens text = run;
    text.push_back(7);
    text.insert(text.end(), run.begin(), run.end());
    LookupDrafter drafter;
    EXPECT_THAT(drafter.Propose(text, 1), ElementsAre(7));
    EXPECT_GT(drafter.proposal().acceptance, before) << length;
    before = drafter.proposal().acceptance;
  }
}

// From every proposal, whoever's drafts were verified.
TEST(LookupDrafterTest, LearnsHowFarItWouldHaveBeenRight) {
  const Tokens text = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3};
  LookupDrafter right, wrong, half;
  for (int i = 0; i < 40; ++i) {
    right.Propose(text, 4);
    right.Record(Chosen({4, 5, 6, 7, 8}));
    wrong.Propose(text, 4);
    wrong.Record(Chosen({5}));
    half.Propose(text, 4);
    half.Record(Chosen({4, 9}));
  }
  const auto acceptance = [&](LookupDrafter& drafter) {
    drafter.Propose(text, 4);
    return drafter.proposal().acceptance;
  };
  EXPECT_GT(acceptance(right), 0.95);
  EXPECT_LT(acceptance(wrong), 0.1);
  EXPECT_NEAR(acceptance(half), 0.5, 0.05);
}

// What matches of three tokens were worth says nothing of a longer one.
TEST(LookupDrafterTest, LearnsForEachLengthApart) {
  LookupDrafter drafter;
  Tokens text = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3};
  for (int i = 0; i < 40; ++i) {
    drafter.Propose(text, 1);
    drafter.Record(Chosen({9}));
  }
  drafter.Propose(text, 1);
  EXPECT_LT(drafter.proposal().acceptance, 0.1);
  text.push_back(4);
  drafter.Propose(text, 1);
  LookupDrafter fresh;
  fresh.Propose(text, 1);
  EXPECT_EQ(drafter.proposal().acceptance, fresh.proposal().acceptance);
}

// What was chosen may be less than what was proposed: the rest is not known.
TEST(LookupDrafterTest, WhatWasNotReachedCountsForNothing) {
  const Tokens text = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3};
  LookupDrafter drafter;
  drafter.Propose(text, 6);
  const double before = drafter.proposal().acceptance;
  drafter.Record({});
  drafter.Propose(text, 6);
  EXPECT_EQ(drafter.proposal().acceptance, before);
  for (int i = 0; i < 40; ++i) {
    drafter.Propose(text, 6);
    drafter.Record(Chosen({4, 5}));
  }
  drafter.Propose(text, 6);
  EXPECT_GT(drafter.proposal().acceptance, 0.9);
}

}  // namespace
}  // namespace ultraspeed::worker
