#include "router/usage_query.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ultraspeed::router {
namespace {

using ::testing::HasSubstr;

const absl::Time kNow = absl::FromUnixSeconds(1'800'000'000);

TEST(UsageQueryTest, AnEmptyRequestMeansTheLastDayByTheHour) {
  const auto query = ToUsageQuery({}, "acme", kNow);
  ASSERT_TRUE(query.ok()) << query.status();
  EXPECT_EQ(query->tenant_id, "acme");
  EXPECT_EQ(query->end, kNow);
  EXPECT_EQ(query->start, kNow - absl::Hours(24));
  EXPECT_EQ(query->bucket_width, BucketWidth::kHour);
  EXPECT_FALSE(query->by_key || query->by_model || query->by_billed_tier);
}

TEST(UsageQueryTest, EveryFieldIsTakenOver) {
  v1::GetUsageRequest request;
  request.mutable_start()->set_seconds(100);
  request.mutable_end()->set_seconds(200);
  request.mutable_end()->set_nanos(500'000'000);
  request.set_bucket_width("1m");
  for (const char* group : {"api_key", "model", "service_tier"}) request.add_group_by(group);
  const auto query = ToUsageQuery(request, "acme", kNow);
  ASSERT_TRUE(query.ok()) << query.status();
  EXPECT_EQ(query->start, absl::FromUnixSeconds(100));
  EXPECT_EQ(query->end, absl::FromUnixMillis(200'500));
  EXPECT_EQ(query->bucket_width, BucketWidth::kMinute);
  EXPECT_TRUE(query->by_key && query->by_model && query->by_billed_tier);
}

TEST(UsageQueryTest, WhatCannotBeIsNamed) {
  const auto message_of = [](const v1::GetUsageRequest& request) {
    const absl::Status status = ToUsageQuery(request, "acme", kNow).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  v1::GetUsageRequest request;
  request.mutable_start()->set_seconds(200);
  request.mutable_end()->set_seconds(200);
  EXPECT_THAT(message_of(request), HasSubstr("start="));
  request.Clear();
  request.set_bucket_width("2h");
  EXPECT_THAT(message_of(request), HasSubstr("bucket_width=2h"));
  request.Clear();
  request.add_group_by("colour");
  EXPECT_THAT(message_of(request), HasSubstr("group_by=colour"));
}

TEST(UsageQueryTest, BucketsComeBackWhole) {
  const UsageBucket bucket{.start = absl::FromUnixMillis(1500),
                           .key_id = "key-1",
                           .model = "tiny-mimo",
                           .billed_tier = Tier::kUltraspeed,
                           .requests = 3,
                           .tokens = {.prompt = 10, .cached = 4, .completion = 20},
                           .reasoning_tokens = 5,
                           .draft_rounds = 6,
                           .cost_nanodollars = 77};
  const v1::GetUsageResponse response = ToUsageResponse({bucket, UsageBucket()});
  ASSERT_EQ(response.buckets_size(), 2);
  const auto& out = response.buckets(0);
  EXPECT_EQ(out.start().seconds(), 1);
  EXPECT_EQ(out.start().nanos(), 500'000'000);
  EXPECT_EQ(out.api_key_id(), "key-1");
  EXPECT_EQ(out.model(), "tiny-mimo");
  EXPECT_EQ(out.service_tier(), v1::SERVICE_TIER_ULTRASPEED);
  EXPECT_EQ(out.requests(), 3);
  EXPECT_EQ(out.usage().prompt_tokens(), 10);
  EXPECT_EQ(out.usage().cached_tokens(), 4);
  EXPECT_EQ(out.usage().completion_tokens(), 20);
  EXPECT_EQ(out.usage().reasoning_tokens(), 5);
  EXPECT_EQ(out.usage().draft_rounds(), 6);
  EXPECT_EQ(out.cost_nanodollars(), 77);
  EXPECT_EQ(response.buckets(1).service_tier(), v1::SERVICE_TIER_UNSPECIFIED);
}

}  // namespace
}  // namespace ultraspeed::router
