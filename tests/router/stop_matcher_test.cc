#include "router/stop_matcher.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/router/test_tokenizer.h"

namespace ultraspeed::router {
namespace {

TEST(StopMatcherTest, NoStopStringsPassEverything) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.Append("abc").text, "abc");
  EXPECT_EQ(matcher.Finish(), "");
}

TEST(StopMatcherTest, HoldsBackOnlyWhatMayBecomeAStop) {
  StopMatcher matcher({"END"});
  EXPECT_EQ(matcher.Append("xE").text, "x");
  EXPECT_EQ(matcher.Append("N").text, "");
  EXPECT_EQ(matcher.Append("E").text, "EN");
  const StopMatcher::Result result = matcher.Append("NDtail");
  EXPECT_EQ(result.text, "");
  EXPECT_TRUE(result.matched);
  EXPECT_EQ(result.stop, "END");
  EXPECT_EQ(matcher.Append("more").text, "");
  EXPECT_TRUE(matcher.Append("more").matched);
  EXPECT_EQ(matcher.Finish(), "");
}

TEST(StopMatcherTest, FinishReleasesWhatWasHeld) {
  StopMatcher matcher({"</s>"});
  EXPECT_EQ(matcher.Append("a</").text, "a");
  EXPECT_EQ(matcher.Finish(), "</");
}

TEST(StopMatcherTest, EarliestEndThenLongest) {
  StopMatcher matcher({"bc", "abcd", "abc"});
  const StopMatcher::Result result = matcher.Append("xabcd");
  EXPECT_EQ(result.text, "x");
  EXPECT_EQ(result.stop, "abc");
}

// Every end, every stop string.
StopMatcher::Result Naive(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::string best;
    for (const std::string& stop : stops) {
      if (stop.size() > best.size() && stop.size() <= end &&
          text.compare(end - stop.size(), stop.size(), stop) == 0) {
        best = stop;
      }
    }
    if (!best.empty()) return {text.substr(0, end - best.size()), true, best};
  }
  return {text, false, ""};
}

TEST(StopMatcherTest, EqualsANaiveSearchUnderRandomChunking) {
  std::mt19937_64 random(TestSeed());
  const auto random_word = [&](size_t low, size_t high) {
    std::string word(low + random() % (high - low + 1), ' ');
    for (char& c : word) c = static_cast<char>('a' + random() % 2);
    return word;
  };
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::string> stops;
    for (size_t n = random() % 8 + 1; n > 0; --n) stops.push_back(random_word(3, 12));
    const std::string text = random_word(0, 60);
    const StopMatcher::Result expected = Naive(stops, text);
    StopMatcher matcher(stops);
    StopMatcher::Result got;
    for (size_t at = 0; at < text.size();) {
      const size_t n = std::min<size_t>(text.size() - at, random() % 7);
      const StopMatcher::Result part = matcher.Append(text.substr(at, n));
      got.text += part.text;
      got.matched = part.matched;
      got.stop = part.stop;
      at += n;
    }
    got.text += matcher.Finish();
    ASSERT_EQ(got.text, expected.text) << "seed " << TestSeed() << " case " << i;
    ASSERT_EQ(got.matched, expected.matched);
    ASSERT_EQ(got.stop, expected.stop);
  }
}

}  // namespace
}  // namespace ultraspeed::router
