#include "router/pricing.h"

#include <gtest/gtest.h>

namespace ultraspeed::router {
namespace {

constexpr TokenPrices kStandardPrices = {
    .input = 430'000'000, .cached_input = 3'600'000, .output = 870'000'000};

TEST(PriceOf, OneMillionOfEachIsOneDollarThirty) {
  EXPECT_EQ(PriceOf({.prompt = 1'000'000, .completion = 1'000'000}, kStandardPrices),
            1'300'000'000);
}

TEST(PriceOf, CachedTokensReplaceInputTokens) {
  EXPECT_EQ(PriceOf({.prompt = 1'000'000, .cached = 1'000'000}, kStandardPrices), 3'600'000);
  EXPECT_EQ(PriceOf({.prompt = 10, .cached = 4}, kStandardPrices), 6 * 430 + 14);  // 14.4
}

TEST(PriceOf, RoundsTheTotalHalfUpOnce) {
  const TokenPrices half = {.input = 500'000, .cached_input = 250'000, .output = 250'000};
  EXPECT_EQ(PriceOf({.prompt = 1}, half), 1);                                // 0.5
  EXPECT_EQ(PriceOf({.completion = 1}, half), 0);                            // 0.25
  EXPECT_EQ(PriceOf({.prompt = 1, .cached = 1, .completion = 1}, half), 1);  // 0.25 + 0.25
  EXPECT_EQ(PriceOf({.prompt = 2, .completion = 1}, half), 1);               // 1.25
  EXPECT_EQ(PriceOf({}, half), 0);
}

TEST(PriceOf, TheLargestRequestAtTheLargestPriceFits) {
  const TokenPrices dear = {kPriceNanodollarsMax, kPriceNanodollarsMax, kPriceNanodollarsMax};
  EXPECT_EQ(PriceOf({.prompt = kBilledTokensMax, .completion = kBilledTokensMax}, dear),
            2 * kBilledTokensMax * 1'000'000'000);
}

TEST(PriceOfDeathTest, MoreCachedThanPromptIsOurBug) {
  EXPECT_DEATH(PriceOf({.prompt = 1, .cached = 2}, kStandardPrices), "cached 2");
}

class PriceTableTest : public ::testing::Test {
 protected:
  const absl::Time start_ = absl::FromUnixSeconds(1'800'000'000);
  const PriceTable table_ = PriceTable({
      {.version = 1, .model_pattern = "*", .effective_from = start_},
      {.version = 2, .model_pattern = "*", .tier = Tier::kUltraspeed, .effective_from = start_},
      {.version = 3, .model_pattern = "mimo-*", .effective_from = start_},
      {.version = 4, .model_pattern = "mimo-v2", .effective_from = start_ + absl::Hours(1)},
      {.version = 5, .model_pattern = "mimo-*", .effective_from = start_ + absl::Hours(2)},
      {.version = 6, .model_pattern = "mimo-*", .effective_from = start_ + absl::Hours(2)},
  });
  int64_t Version(absl::string_view model, Tier tier, absl::Duration after) const {
    const auto price = table_.Find(model, tier, start_ + after);
    return price.ok() ? price->version : 0;
  }
};

TEST_F(PriceTableTest, TheMostSpecificPatternInForceWins) {
  EXPECT_EQ(Version("other", Tier::kStandard, absl::ZeroDuration()), 1);
  EXPECT_EQ(Version("mimo-v2", Tier::kUltraspeed, absl::ZeroDuration()), 2);
  EXPECT_EQ(Version("mimo-v2", Tier::kStandard, absl::ZeroDuration()), 3);
  EXPECT_EQ(Version("mimo-v2", Tier::kStandard, absl::Hours(1)), 4);
  EXPECT_EQ(Version("mimo-v2", Tier::kStandard, absl::Hours(3)), 4);
}

TEST_F(PriceTableTest, OfOnePatternTheLatestInForceWins) {
  EXPECT_EQ(Version("mimo-v3", Tier::kStandard, absl::Hours(2) - absl::Milliseconds(1)), 3);
  EXPECT_EQ(Version("mimo-v3", Tier::kStandard, absl::Hours(2)), 6);
}

TEST_F(PriceTableTest, NothingInForceIsNotFound) {
  EXPECT_EQ(table_.Find("other", Tier::kStandard, start_ - absl::Seconds(1)).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(table_.FindVersion(7).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(table_.FindVersion(4)->model_pattern, "mimo-v2");
}

TEST(ValidatePrice, NamesFieldValueAndBound) {
  EXPECT_TRUE(ValidatePrice({.model_pattern = "*", .per_million = kStandardPrices}).ok());
  const absl::Status negative = ValidatePrice({.model_pattern = "*", .per_million = {-1, 0, 0}});
  EXPECT_EQ(negative.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(negative.message(),
            "price.input=-1: must be in 0..1000000000000000 nano-dollars per million tokens");
  EXPECT_FALSE(ValidatePrice({.model_pattern = "a*b"}).ok());
  EXPECT_FALSE(ValidatePrice({.model_pattern = ""}).ok());
}

}  // namespace
}  // namespace ultraspeed::router
