#include "bench/open_loop.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <map>

#include "absl/strings/str_cat.h"
#include "bench/serving.h"

namespace ultraspeed::bench {
namespace {

using testing::ElementsAre;

TEST(PoissonSchedule, HasTheRateAndTheShareThatWereAskedFor) {
  const auto schedule = PoissonSchedule({50, 10, 0}, 0.25, absl::Seconds(200), 1);
  std::map<int, int> by_tenant;
  int ultraspeed = 0;
  absl::Duration last;
  for (const DueRequest& request : schedule) {
    EXPECT_GE(request.at, last);
    last = request.at;
    ++by_tenant[request.tenant];
    ultraspeed += request.ultraspeed;
  }
  EXPECT_NEAR(by_tenant[0], 10'000, 300);  // three standard deviations
  EXPECT_NEAR(by_tenant[1], 2'000, 140);
  EXPECT_EQ(by_tenant.count(2), 0u);
  EXPECT_NEAR(ultraspeed, 3'000, 150);
  EXPECT_LT(last, absl::Seconds(200));
}

// The gaps of a Poisson process spread as much as they are long: this is no metronome.
TEST(PoissonSchedule, GapsAreExponential) {
  const auto schedule = PoissonSchedule({100}, 0, absl::Seconds(100), 2);
  double sum = 0;
  double squares = 0;
  for (size_t i = 1; i < schedule.size(); ++i) {
    const double gap = absl::ToDoubleSeconds(schedule[i].at - schedule[i - 1].at);
    sum += gap;
    squares += gap * gap;
  }
  const auto n = static_cast<double>(schedule.size() - 1);
  const double mean = sum / n;
  EXPECT_NEAR(mean, 0.01, 0.0005);
  EXPECT_NEAR((squares / n - mean * mean) / (mean * mean), 1, 0.1);
}

TEST(PoissonSchedule, OneTenantsRateLeavesTheOthersRequestsAlone) {
  const auto of_second = [](const std::vector<DueRequest>& schedule) {
    std::vector<absl::Duration> times;
    for (const DueRequest& request : schedule) {
      if (request.tenant == 1) times.push_back(request.at);
    }
    return times;
  };
  EXPECT_EQ(of_second(PoissonSchedule({1, 5}, 0.5, absl::Seconds(60), 3)),
            of_second(PoissonSchedule({50, 5}, 0.5, absl::Seconds(60), 3)));
}

TEST(Quantiles, AreValuesThatOccurred) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i) values.push_back(i);
  const Quantiles quantiles = QuantilesOf(values);
  EXPECT_EQ(quantiles.p50, 50);
  EXPECT_EQ(quantiles.p90, 90);
  EXPECT_EQ(quantiles.p99, 99);
  EXPECT_EQ(quantiles.max, 100);
  EXPECT_EQ(QuantilesOf({7}).p50, 7);
  EXPECT_EQ(QuantilesOf({}).p99, 0);
}

TEST(JainIndex, IsOneForEqualAndOneNthForOneWhoHasAll) {
  EXPECT_DOUBLE_EQ(JainIndex({3, 3, 3}), 1);
  EXPECT_DOUBLE_EQ(JainIndex({9, 0, 0}), 1.0 / 3);
  EXPECT_DOUBLE_EQ(JainIndex({1, 2, 3}), 36.0 / 42);
  EXPECT_DOUBLE_EQ(JainIndex({}), 1);
}

TEST(MaxMinShares, SatisfySmallDemandsAndShareTheRest) {
  EXPECT_THAT(MaxMinShares({100, 10, 20}, 60), ElementsAre(30, 10, 20));
  EXPECT_THAT(MaxMinShares({100, 100}, 60), ElementsAre(30, 30));
  EXPECT_THAT(MaxMinShares({5, 5}, 60), ElementsAre(5, 5));
  EXPECT_THAT(MaxMinShares({0, 50, 50}, 40), ElementsAre(0, 20, 20));
}

TEST(ReadTenants, TakesKeysWithAndWithoutNames) {
  const std::string file = absl::StrCat(testing::TempDir(), "/tenants-", getpid());
  std::ofstream(file) << "# who floods\nacme us-1\n\nus-2\n";
  const auto tenants = ReadTenants(file);
  ASSERT_TRUE(tenants.ok()) << tenants.status();
  ASSERT_EQ(tenants->size(), 2u);
  EXPECT_EQ((*tenants)[0].name, "acme");
  EXPECT_EQ((*tenants)[0].api_key, "us-1");
  EXPECT_EQ((*tenants)[1].name, "tenant-1");
  std::ofstream(file) << "a b c\n";
  EXPECT_FALSE(ReadTenants(file).ok());
  unlink(file.c_str());
  EXPECT_FALSE(ReadTenants(file).ok());
}

TEST(ServingOptions, ValidateNamesTheFlag) {
  ServingOptions options;
  EXPECT_FALSE(options.Validate().ok()) << "no tenants";
  options.tenants.push_back({.name = "a", .api_key = "k"});
  EXPECT_TRUE(options.Validate().ok());
  options.flood_factor = 0.5;
  EXPECT_THAT(std::string(options.Validate().message()), testing::HasSubstr("--flood=0.5"));
}

}  // namespace
}  // namespace ultraspeed::bench
