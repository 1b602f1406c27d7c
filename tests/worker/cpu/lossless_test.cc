// Losslessness on the bundled model, whose drafter is accepted often enough to matter: speculation,
// chunking and company change no token.
#include <gtest/gtest.h>

#include "bench/held_out.h"
#include "tests/worker/cpu/bundled_model.h"
#include "tests/worker/cpu/sequence_runner.h"

namespace ultraspeed::worker {
namespace {

constexpr int kBlock = 8;

class LosslessTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const absl::Status device = DeviceUnderTest(); !device.ok())
      GTEST_SKIP() << device.message();
    executor_ = LoadBundledModel();
    ASSERT_NE(executor_, nullptr);
    absl::StatusOr<std::vector<bench::HeldOutPrompt>> prompts =
        bench::LoadHeldOutPrompts(kBundledModel, executor_->config());
    ASSERT_TRUE(prompts.ok()) << prompts.status();
    prompts_ = *std::move(prompts);
    ASSERT_GE(prompts_.size(), 16u);
  }

  // Tokens per drafted round of what has been run since the last call.
  double TokensPerDraft(int64_t tokens) {
    const ForwardStatistics& now = executor_->statistics();
    const double passes = static_cast<double>(now.drafter_passes - drafter_passes_);
    drafter_passes_ = now.drafter_passes;
    return static_cast<double>(tokens) / passes;
  }

  std::unique_ptr<ModelExecutor> executor_;
  std::vector<bench::HeldOutPrompt> prompts_;
  int64_t drafter_passes_ = 0;
};

TEST_F(LosslessTest, GreedyOverAllHeldOutPrompts) {
  constexpr int kTokens = 32;
  for (const bench::HeldOutPrompt& prompt : prompts_) {
    RunPlan plan{.prompt = prompt.tokens, .num_new_tokens = kTokens};
    const std::vector<int32_t> plain = RunAlone(*executor_, plan);
    plan.block = kBlock;
    EXPECT_EQ(RunAlone(*executor_, plan), plain) << prompt.id;
  }
  // Without accepted drafts the comparison would say little.
  const double tokens_per_round = TokensPerDraft(kTokens * static_cast<int64_t>(prompts_.size()));
  std::printf("greedy: %.2f tokens per round\n", tokens_per_round);
  EXPECT_GT(tokens_per_round, 1.3);
}

TEST_F(LosslessTest, SeededSamplingOverManyPromptsAndSeeds) {
  constexpr int kTokens = 32;
  int64_t tokens = 0;
  for (size_t i = 0; i < prompts_.size(); i += 4) {
    for (const uint64_t seed : {uint64_t{1}, uint64_t{0xfedcba9876543210}}) {
      RunPlan plan{.prompt = prompts_[i].tokens,
                   .num_new_tokens = kTokens,
                   .sampling = {.temperature = 1, .top_p = 0.95f, .seed = seed + i}};
      const std::vector<int32_t> plain = RunAlone(*executor_, plan);
      plan.block = kBlock;
      EXPECT_EQ(RunAlone(*executor_, plan), plain)
          << prompts_[i].id << " seed " << plan.sampling.seed;
      tokens += kTokens;
    }
  }
  const double tokens_per_round = TokensPerDraft(tokens);
  std::printf("temperature 1, top_p 0.95: %.2f tokens per round\n", tokens_per_round);
  EXPECT_GT(tokens_per_round, 1.2);
}

TEST_F(LosslessTest, EightUsersAtOnceEqualEachAlone) {
  std::vector<RunPlan> plans;
  std::vector<std::vector<int32_t>> alone;
  for (int i = 0; i < 8; ++i) {
    plans.push_back(
        {.prompt = prompts_[static_cast<size_t>(i) * 2].tokens,
         .num_new_tokens = 40,
         .block = i % 4 == 3 ? 1 : kBlock,
         .chunk = 50,
         .sampling = {.temperature = i % 2 == 0 ? 0.0f : 0.8f, .seed = static_cast<uint64_t>(i)},
         .slot = 7 - i});
    alone.push_back(RunAlone(*executor_, plans.back()));
  }
  EXPECT_EQ(RunTogether(*executor_, plans), alone);
  EXPECT_EQ(RunTogether(*executor_, plans, 2), alone);
}

TEST_F(LosslessTest, PastEveryWindow) {
  // 1,300 tokens: past the sliding window of 128, its ring of 688 and the drafter's window of
  // 1,024.
  RunPlan plan{.prompt = prompts_[0].tokens,
               .num_new_tokens = 1300,
               .sampling = {.temperature = 0.7f, .seed = 3}};
  const std::vector<int32_t> plain = RunAlone(*executor_, plan);
  plan.block = kBlock;
  EXPECT_EQ(RunAlone(*executor_, plan), plain);
  // The whole text as a prompt, in uneven chunks, continues the same way.
  RunPlan again{.prompt = plan.prompt,
                .num_new_tokens = 20,
                .block = kBlock,
                .chunk = 111,
                .sampling = plan.sampling};
  again.prompt.insert(again.prompt.end(), plain.begin(), plain.end() - 20);
  EXPECT_EQ(RunAlone(*executor_, again), std::vector<int32_t>(plain.end() - 20, plain.end()));
}

}  // namespace
}  // namespace ultraspeed::worker
