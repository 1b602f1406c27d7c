#include "router/accounts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ultraspeed::router {
namespace {

using ::testing::HasSubstr;

std::string Fault(const absl::Status& status) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

TEST(ModelMatch, ExactNamesWinOverLongerAndShorterPrefixes) {
  EXPECT_EQ(ModelMatch("*", "mimo-v2"), 0u);
  EXPECT_EQ(ModelMatch("mimo-*", "mimo-v2"), 5u);
  EXPECT_GT(ModelMatch("mimo-v2", "mimo-v2"), ModelMatch("mimo-v2*", "mimo-v2"));
  EXPECT_EQ(ModelMatch("mimo", "mimo-v2"), std::nullopt);
  EXPECT_EQ(ModelMatch("mimo-v3*", "mimo-v2"), std::nullopt);
}

TEST(TenantTerms, TheMostSpecificEntitlementOfTheTierDecides) {
  TenantTerms terms;
  terms.entitlements = {{"*", Tier::kStandard, 0},
                        {"mimo-*", Tier::kUltraspeed, 300},
                        {"mimo-v2", Tier::kUltraspeed, 500}};
  EXPECT_EQ(terms.Find("mimo-v2", Tier::kUltraspeed)->promised_tokens_per_second, 500);
  EXPECT_EQ(terms.Find("mimo-v3", Tier::kUltraspeed)->promised_tokens_per_second, 300);
  EXPECT_EQ(terms.Find("other", Tier::kUltraspeed), nullptr);
  EXPECT_NE(terms.Find("other", Tier::kStandard), nullptr);
  EXPECT_EQ(TenantTerms().Find("other", Tier::kStandard), nullptr);
}

TEST(UnrestrictedTerms, AllowsEverythingWithoutLimits) {
  const TenantTerms& terms = *UnrestrictedTerms();
  for (const Tier tier : kTiers) {
    EXPECT_NE(terms.Find("any", tier), nullptr);
    EXPECT_EQ(terms.LimitsOf(tier).requests_per_minute, 0);
  }
  EXPECT_FALSE(terms.monthly_budget_nanodollars.has_value());
}

TEST(ValidateTenant, NamesFieldValueAndBound) {
  Tenant tenant;
  tenant.id = "acme";
  EXPECT_TRUE(ValidateTenant(tenant).ok());
  for (const Tier tier : kTiers) {
    tenant.terms.limits[static_cast<size_t>(tier)] = NewTenantLimits(tier);
  }
  EXPECT_TRUE(ValidateTenant(tenant).ok());

  Tenant bad = tenant;
  bad.id = "a b";
  EXPECT_THAT(Fault(ValidateTenant(bad)), HasSubstr("tenant.id=a b: must be 1..64"));
  bad = tenant;
  bad.name = std::string(257, 'x');
  EXPECT_THAT(Fault(ValidateTenant(bad)), HasSubstr("tenant.name has 257 bytes, at most 256"));
  bad.name = std::string("a\0b", 3);
  EXPECT_THAT(Fault(ValidateTenant(bad)), HasSubstr("control characters"));
  bad = tenant;
  bad.terms.monthly_budget_nanodollars = -1;
  EXPECT_THAT(Fault(ValidateTenant(bad)), HasSubstr("monthly_budget_nanodollars=-1"));
  bad = tenant;
  bad.terms.limits[1].tokens_per_minute = -5;
  EXPECT_THAT(Fault(ValidateTenant(bad)), HasSubstr("tier ultraspeed: tokens_per_minute=-5"));
  bad = tenant;
  bad.terms.entitlements = {{"a*b", Tier::kStandard, 0}};
  EXPECT_THAT(Fault(ValidateTenant(bad)), HasSubstr("entitlements.model=a*b"));
  bad.terms.entitlements = {{"*", Tier::kStandard, 1'000'001}};
  EXPECT_THAT(Fault(ValidateTenant(bad)), HasSubstr("=1000001: must be in 0..1000000"));
  bad.terms.entitlements = {{"*", Tier::kStandard, 0}, {"*", Tier::kStandard, 1}};
  EXPECT_THAT(Fault(ValidateTenant(bad)), HasSubstr("*:standard is there twice"));
}

}  // namespace
}  // namespace ultraspeed::router
