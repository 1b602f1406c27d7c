#include "router/speed_promise.h"

#include <gtest/gtest.h>

#include "router/ledger.h"

namespace ultraspeed::router {
namespace {

TEST(DecodeSpeedTest, TheFirstChunkSaysNothing) {
  DecodeSpeed speed;
  EXPECT_FALSE(speed.tokens_per_second().has_value());
  speed.OnTokens(absl::Seconds(5), 8);
  EXPECT_FALSE(speed.tokens_per_second().has_value());
  EXPECT_EQ(speed.decode_time(), absl::ZeroDuration());
}

TEST(DecodeSpeedTest, IsTokensAfterTheFirstChunkOverTheirTime) {
  DecodeSpeed speed;
  speed.OnTokens(absl::Milliseconds(1000), 8);
  speed.OnTokens(absl::Milliseconds(1010), 4);
  speed.OnTokens(absl::Milliseconds(1020), 6);
  EXPECT_DOUBLE_EQ(*speed.tokens_per_second(), 10 / 0.020);
  EXPECT_EQ(speed.decode_time(), absl::Milliseconds(20));
}

TEST(DecodeSpeedTest, TimeInWhichTheClientDidNotReadIsLeftOut) {
  DecodeSpeed speed;
  speed.OnTokens(absl::Milliseconds(0), 4);
  speed.OnTokens(absl::Milliseconds(10), 10);
  speed.OnPause();
  speed.OnTokens(absl::Seconds(60), 50'000);  // what piled up meanwhile
  speed.OnTokens(absl::Seconds(60) + absl::Milliseconds(10), 10);
  EXPECT_DOUBLE_EQ(*speed.tokens_per_second(), 20 / 0.020);
  EXPECT_EQ(speed.decode_time(), absl::Milliseconds(20));
}

TEST(DecodeSpeedTest, TokensThatComeAtOnceHaveNoSpeed) {
  DecodeSpeed speed;
  speed.OnTokens(absl::Seconds(1), 4);
  speed.OnTokens(absl::Seconds(1), 4);
  EXPECT_FALSE(speed.tokens_per_second().has_value());
}

TEST(JudgeSpeedTest, OnlyASlowUltraspeedStreamBreaksThePromise) {
  const auto judge = [](Tier served, int64_t promised, std::optional<double> speed) {
    return JudgeSpeed(served, promised, speed);
  };
  const BilledTier broken = judge(Tier::kUltraspeed, 1000, 999.9);
  EXPECT_EQ(broken.tier, Tier::kStandard);
  EXPECT_EQ(broken.reason, kBilledForSpeedPromise);
  for (const BilledTier& kept :
       {judge(Tier::kUltraspeed, 1000, 1000.0), judge(Tier::kUltraspeed, 1000, std::nullopt),
        judge(Tier::kUltraspeed, 0, 0.5)}) {
    EXPECT_EQ(kept.tier, Tier::kUltraspeed);
    EXPECT_EQ(kept.reason, kBilledAsServed);
  }
  EXPECT_EQ(judge(Tier::kStandard, 1000, 1.0).reason, kBilledAsServed);
}

}  // namespace
}  // namespace ultraspeed::router
