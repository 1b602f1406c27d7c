#include "router/reasoning_counter.h"

#include <gtest/gtest.h>

#include <vector>

#include "absl/strings/str_replace.h"
#include "tests/router/test_tokenizer.h"

namespace ultraspeed::router {
namespace {

constexpr ReasoningMarks kMarks = {.begin = 90, .end = 91};

int64_t Count(const std::vector<int32_t>& prompt, const std::vector<int32_t>& tokens,
              const ReasoningMarks& marks = kMarks) {
  ReasoningCounter counter(marks, prompt);
  for (const int32_t token : tokens) counter.Take(token);
  return counter.num_tokens();
}

TEST(ReasoningCounterTest, CountsFromMarkToMark) {
  EXPECT_EQ(Count({1}, {90, 2, 3, 91, 4, 5}), 4);
  EXPECT_EQ(Count({1}, {2, 90, 3}), 2) << "cut off in a thought";
  EXPECT_EQ(Count({1}, {90, 2, 91, 3, 90, 4, 91}), 6);
  EXPECT_EQ(Count({1}, {2, 91, 3}), 0) << "nothing was open";
}

TEST(ReasoningCounterTest, APromptMayHaveOpenedAThought) {
  EXPECT_EQ(Count({1, 90}, {2, 3, 91, 4}), 3);
  EXPECT_EQ(Count({1, 90, 7, 8}, {2, 91, 4}), 2) << "as when another worker began it";
  EXPECT_EQ(Count({90, 91}, {2, 3}), 0) << "thinking was switched off";
}

TEST(ReasoningCounterTest, WithoutMarksNothingIsCounted) {
  EXPECT_EQ(Count({1}, {90, 2, 91}, {}), 0);
  EXPECT_EQ(Count({}, {}), 0);
}

TEST(ReasoningMarksTest, AreTheTwoAddedTokens) {
  const ReasoningMarks marks = FindReasoningMarks(TestTokenizer());
  EXPECT_EQ(marks.begin, 607);
  EXPECT_EQ(marks.end, 608);
  const std::string json = ReadTestFile(std::string(kFixtures) + "tokenizer.json");
  for (const char* mark : {"<think>", "</think>"}) {
    const std::string quoted = std::string("\"") + mark + '"';
    const auto other = Tokenizer::Create(absl::StrReplaceAll(json, {{quoted, "\"<other>\""}}));
    ASSERT_TRUE(other.ok()) << other.status();
    EXPECT_EQ(FindReasoningMarks(**other).begin, -1) << "without " << mark;
    EXPECT_EQ(FindReasoningMarks(**other).end, -1) << "without " << mark;
  }
}

}  // namespace
}  // namespace ultraspeed::router
