// What a tier is worth: an ultraspeed stream in a crowd of standard ones, and the other way round,
// through the whole engine. Time is simulated: a round costs what its rows cost.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "tests/worker/scripted_executor.h"
#include "worker/engine.h"

namespace ultraspeed::worker {
namespace {

constexpr absl::Duration kRoundCost = absl::Microseconds(1000);  // reading the weights once
constexpr absl::Duration kRowCost = absl::Microseconds(60);
// What the floor leaves of an ultraspeed stream's speed.
constexpr double kUltraspeedShare =
    static_cast<double>(limits::kStandardFloorRounds) / (limits::kStandardFloorRounds + 1);

class TiersTest : public ::testing::Test {
 protected:
  TiersTest() {
    auto executor = std::make_unique<ScriptedExecutor>(ScriptedOptions{.max_sequences = 80,
                                                                       .max_batch_tokens = 512,
                                                                       .page_tokens = 8,
                                                                       .num_pages = 80 * 64,
                                                                       .context_tokens = 512});
    executor->before_round = [this](const Round& round) {
      absl::Duration cost = kRoundCost;
      for (const SequenceStep& step : round.steps)
        cost += kRowCost * (step.num_tokens + step.block - 1);
      clock_.Advance(cost);
    };
    engine_ = std::make_unique<Engine>(std::move(executor), EngineOptions{.waiting_max = 64},
                                       clock_, nullptr);
  }

  std::shared_ptr<RecordingSink> Submit(Tier tier, int num_prompt_tokens, int64_t max_tokens) {
    auto sink = std::make_shared<RecordingSink>();
    const absl::Status status = engine_->Submit(
        MakeSpec(absl::StrCat("r", next_id_++), num_prompt_tokens, max_tokens, tier), sink);
    EXPECT_TRUE(status.ok()) << status;
    return sink;
  }
  // Standard requests that always run, and prompts that always wait to be computed.
  void KeepCrowd(int count) {
    std::erase_if(crowd_, [](const auto& sink) { return sink->num_terminal > 0; });
    while (static_cast<int>(crowd_.size()) < count)
      crowd_.push_back(Submit(Tier::kStandard, next_id_ % 3 == 0 ? 300 : 8, 60));
  }
  // Tokens per second of one ultraspeed stream beside `crowd` standard ones, from its first token.
  double UltraspeedSpeed(int crowd) {
    for (int i = 0; i < 40; ++i) {  // the crowd is at work before it comes
      KeepCrowd(crowd);
      engine_->Step();
    }
    const auto sink = Submit(Tier::kUltraspeed, 8, 400);
    while (sink->tokens.empty()) engine_->Step();
    const absl::Duration begin = clock_.Monotonic();
    const size_t first = sink->tokens.size();
    while (sink->num_terminal == 0) {
      KeepCrowd(crowd);
      engine_->Step();
    }
    return static_cast<double>(sink->tokens.size() - first) /
           absl::ToDoubleSeconds(clock_.Monotonic() - begin);
  }

  FakeClock clock_;
  std::unique_ptr<Engine> engine_;
  std::vector<std::shared_ptr<RecordingSink>> crowd_;
  int next_id_ = 0;
};

TEST_F(TiersTest, ACrowdTakesNoMoreOfAnUltraspeedStreamThanTheFloor) {
  const double alone = UltraspeedSpeed(0);
  const double crowded = UltraspeedSpeed(60);
  RecordProperty("alone_tokens_per_second", absl::StrCat(alone));
  RecordProperty("crowded_tokens_per_second", absl::StrCat(crowded));
  EXPECT_GE(crowded, 0.97 * kUltraspeedShare * alone);
  EXPECT_LT(crowded, alone) << "standard must have had something";
}

TEST_F(TiersTest, ACrowdTenTimesAsLargeTakesNoMore) {
  const double small = UltraspeedSpeed(6);
  const double large = UltraspeedSpeed(60);
  EXPECT_GE(large, 0.95 * small);
}

// The first token: at most the standard round that runs, then its own prompt.
TEST_F(TiersTest, AnUltraspeedRequestWaitsForOneRoundAtMost) {
  for (int i = 0; i < 40; ++i) {
    KeepCrowd(60);
    engine_->Step();
  }
  const absl::Duration begin = clock_.Monotonic();
  const auto sink = Submit(Tier::kUltraspeed, 8, 10);
  engine_->Step();
  EXPECT_EQ(sink->tokens.size(), 1u);
  EXPECT_LE(clock_.Monotonic() - begin, kRoundCost + 8 * kRowCost);
}

TEST_F(TiersTest, StandardGetsItsFloorUnderPermanentUltraspeedLoad) {
  // Tokens of standard requests in a third of a second.
  const auto standard_tokens = [&](int num_ultraspeed) {
    std::vector<std::shared_ptr<RecordingSink>> fast, slow;
    const auto keep = [&](auto& sinks, Tier tier, int count) {
      int running = 0;
      for (const auto& sink : sinks) running += sink->num_terminal == 0;
      for (; running < count; ++running) sinks.push_back(Submit(tier, 8, 100));
    };
    const absl::Duration end = clock_.Monotonic() + absl::Milliseconds(333);
    while (clock_.Monotonic() < end) {
      keep(slow, Tier::kStandard, 4);
      keep(fast, Tier::kUltraspeed, num_ultraspeed);
      engine_->Step();
    }
    double tokens = 0;
    for (const auto& sink : slow) tokens += static_cast<double>(sink->tokens.size());
    for (const std::string& id : engine_->RunningIds()) engine_->Cancel(id);
    engine_->Step();
    return tokens;
  };
  const double alone = standard_tokens(0);
  const double beside = standard_tokens(4);
  RecordProperty("alone_tokens", absl::StrCat(alone));
  RecordProperty("beside_tokens", absl::StrCat(beside));
  EXPECT_GE(beside, 0.85 * (1 - kUltraspeedShare) * alone);
  EXPECT_LE(beside, 1.3 * (1 - kUltraspeedShare) * alone);
}

}  // namespace
}  // namespace ultraspeed::worker
