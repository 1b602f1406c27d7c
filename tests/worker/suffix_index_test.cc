#include "worker/suffix_index.h"

#include <gtest/gtest.h>

#include <random>

namespace ultraspeed::worker {
namespace {

using Text = std::vector<int32_t>;

// Of the tokens before `end` and the last ones of the text.
int CommonLength(const Text& text, int64_t end) {
  int length = 0;
  while (length < end && length < SuffixIndex::kLengthMax &&
         text[static_cast<size_t>(end - 1 - length)] ==
             text[text.size() - 1 - static_cast<size_t>(length)]) {
    ++length;
  }
  return length;
}

TEST(SuffixIndexTest, FindsWhereTheEndHasStoodBefore) {
  SuffixIndex index;
  const SuffixMatch match = index.Longest(Text{5, 1, 2, 3, 4, 9, 9, 2, 3, 4});
  EXPECT_EQ(match.end, 5);
  EXPECT_EQ(match.length, 3);
}

TEST(SuffixIndexTest, ShortTextsAndNewEndsHaveNoMatch) {
  for (const Text& text : {Text{}, Text{1}, Text{1, 1, 1}, Text{1, 2, 3, 4, 5, 6, 7},
                           Text{1, 2, 9, 1, 2}}) {  // two tokens are too few
    SuffixIndex index;
    EXPECT_EQ(index.Longest(text).length, 0);
  }
}

TEST(SuffixIndexTest, PrefersTheLongerMatchAndOfEqualsTheNewer) {
  SuffixIndex longer;
  EXPECT_EQ(longer.Longest(Text{1, 2, 3, 4, 8, 7, 2, 3, 4, 6, 1, 2, 3, 4}).end, 4);
  SuffixIndex newer;
  EXPECT_EQ(newer.Longest(Text{7, 2, 3, 4, 8, 9, 2, 3, 4, 6, 1, 2, 3, 4}).end, 9);
}

// A part at a time, whatever it is; then what is there is found.
TEST(SuffixIndexTest, LongTextsAreTakenInPartByPart) {
  Text text(2 * SuffixIndex::kTakenAtOnce + 100);
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<int32_t>(i);
  text.insert(text.end(), text.begin() + 50, text.begin() + 70);
  SuffixIndex index;
  EXPECT_EQ(index.Longest(text).length, 0);
  EXPECT_EQ(index.Longest(text).length, 0);
  const SuffixMatch match = index.Longest(text);
  EXPECT_EQ(match.end, 70);
  EXPECT_EQ(match.length, 20);
}

// However a text repeats itself, what is found is a match as long as it says, and one of eight
// tokens is found if there is one.
TEST(SuffixIndexTest, GrowingTextsAgreeWithAComparisonOfAllPlaces) {
  std::mt19937 random(7);
  int num_long = 0, num_short = 0;
  for (int trial = 0; trial < 30; ++trial) {
    SuffixIndex index;
    Text text;
    const uint32_t alphabet = trial % 3 == 0 ? 2 : trial % 3 == 1 ? 12 : 1000;
    while (text.size() < 600) {
      const size_t grow = 1 + random() % 20;
      if (text.size() > 30 && random() % 2 == 0) {  // a copy
        const size_t from = random() % (text.size() - 20);
        for (size_t i = 0; i < grow; ++i) text.push_back(text[from + i]);
      } else {
        for (size_t i = 0; i < grow; ++i) text.push_back(static_cast<int32_t>(random() % alphabet));
      }
      const SuffixMatch match = index.Longest(text);
      int longest = 0;
      for (int64_t end = 1; end < static_cast<int64_t>(text.size()); ++end)
        longest = std::max(longest, CommonLength(text, end));
      ASSERT_LE(match.length, longest);
      if (match.length > 0) {
        ASSERT_LT(match.end, static_cast<int64_t>(text.size()));
        ASSERT_EQ(CommonLength(text, match.end), match.length);
      }
      if (longest >= SuffixIndex::kLongRun) {
        ASSERT_GE(match.length, SuffixIndex::kLongRun);
        ++num_long;
      } else {
        ASSERT_EQ(match.length >= SuffixIndex::kShortRun, longest >= SuffixIndex::kShortRun);
        num_short += match.length > 0;
      }
    }
  }
  EXPECT_GT(num_long, 100);
  EXPECT_GT(num_short, 100);
}

}  // namespace
}  // namespace ultraspeed::worker
