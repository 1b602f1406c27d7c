// What is shown of a long load, and how often.
#include "worker/progress_report.h"

#include <gtest/gtest.h>

#include <vector>

#include "worker/model/progress_sum.h"

namespace ultraspeed::worker {
namespace {

TEST(ProgressReportTest, TheBarSaysBytesRateAndTimeLeft) {
  EXPECT_EQ(
      ProgressBar("loading",
                  {.bytes_done = 142'500'000'000, .bytes_total = 570'000'000'000, .seconds = 50}),
      "loading [##########..............................] 142.50/570.00 GB, 2.85 GB/s, "
      "150 s left");
  EXPECT_EQ(ProgressBar("x", {.bytes_done = 0, .bytes_total = 0, .seconds = 0}),
            "x [########################################] 0.00/0.00 GB, 0.00 GB/s, 0 s left");
}

TEST(ProgressReportTest, ReportsComeAtTheirIntervalAndTheLastOneOnce) {
  FakeClock clock;
  std::vector<ProgressState> seen;
  ProgressReport report({.show = [&](const ProgressState& state) { seen.push_back(state); },
                         .interval = absl::Seconds(5)},
                        clock);
  for (int64_t done = 0; done < 100; ++done) {  // one a second
    report.Update(done, 100);
    clock.Advance(absl::Seconds(1));
  }
  ASSERT_EQ(seen.size(), 19u);
  EXPECT_EQ(seen[0].bytes_done, 5);
  EXPECT_EQ(seen[18].bytes_done, 95);
  EXPECT_EQ(seen[18].seconds_left(), 5);
  report.Update(100, 100);
  report.Update(100, 100);
  ASSERT_EQ(seen.size(), 20u);
  EXPECT_TRUE(seen.back().done());
  EXPECT_EQ(seen.back().bytes_per_second(), 1);
}

TEST(ProgressSumTest, RanksAddUpOnceAllHaveBegun) {
  std::vector<std::pair<int64_t, int64_t>> seen;
  ProgressSum sum(2, [&](int64_t done, int64_t total) { seen.emplace_back(done, total); });
  const LoadProgress first = sum.OfRank(0), second = sum.OfRank(1);
  first(10, 100);
  EXPECT_TRUE(seen.empty());
  second(5, 60);
  first(100, 100);
  second(60, 60);
  EXPECT_EQ(seen, (std::vector<std::pair<int64_t, int64_t>>{{15, 160}, {105, 160}, {160, 160}}));
  EXPECT_FALSE(ProgressSum(2, {}).OfRank(0));
}

}  // namespace
}  // namespace ultraspeed::worker
