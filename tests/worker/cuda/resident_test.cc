// The resident engine against the executor of single operations: the same tokens, whatever happens
// around it.
#include <gtest/gtest.h>

#include "tests/worker/cpu/bundled_model.h"
#include "tests/worker/cpu/recorded_run.h"
#include "tests/worker/cuda/mixed_requests.h"
#include "worker/cuda/cuda_executor.h"
#include "worker/cuda/device.h"

namespace ultraspeed::worker {
namespace {

constexpr int kSlots = 4;

class ResidentTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const absl::Status usable = CudaUsable(); !usable.ok()) GTEST_SKIP() << usable.message();
    absl::StatusOr<std::unique_ptr<cuda::CudaExecutor>> executor = cuda::CudaExecutor::Create(
        {.executor = {.model_folder = kBundledModel, .max_sequences = kSlots, .kv_tokens = 32768},
         .wait_ns_max = 60'000'000'000});  // sanitizers
    ASSERT_TRUE(executor.ok()) << executor.status();
    executor_ = *std::move(executor);
    ASSERT_NE(executor_->resident(), nullptr);
    tokens_ = Reference().Values<int32_t>("tokens");
  }

  std::vector<int32_t> Prompt(size_t begin, size_t count) const {
    std::vector<int32_t> prompt(count);
    for (size_t i = 0; i < count; ++i) prompt[i] = tokens_[(begin + i) % tokens_.size()];
    return prompt;
  }
  // By the executor of single operations.
  std::vector<int32_t> Expected(const RunPlan& plan) {
    executor_->UseResident(false);
    std::vector<int32_t> output = RunAlone(*executor_, plan);
    executor_->UseResident(true);
    return output;
  }

  std::unique_ptr<cuda::CudaExecutor> executor_;
  std::vector<int32_t> tokens_;
};

TEST_F(ResidentTest, PlainRoundsGiveTheExecutorsTokens) {
  RunPlan plan{.prompt = Prompt(0, 5), .num_new_tokens = 12, .block = 1};
  EXPECT_EQ(RunAlone(*executor_, plan), Expected(plan));
}

TEST_F(ResidentTest, SpeculativeRoundsGiveTheExecutorsTokens) {
  RunPlan plan{.prompt = Prompt(0, 5), .num_new_tokens = 12, .block = 8};
  EXPECT_EQ(RunAlone(*executor_, plan), Expected(plan));
}

// Each round by one of the two engines, whatever the pattern: they share caches.
TEST_F(ResidentTest, AnyMixOfEnginesGivesTheSameTokens) {
  for (const int block : {1, 8}) {
    const RunPlan plan{.prompt = Prompt(0, 5), .num_new_tokens = 12, .block = block};
    const std::vector<int32_t> want = Expected(plan);
    for (const std::string pattern : {"re", "er", "reeeeeeeeeeee", "eree", "rrreee", "r"}) {
      RunningSequence sequence(*executor_, plan);
      for (size_t i = 0; !sequence.done(); ++i) {
        Round round{.steps = {sequence.Step()}};
        executor_->UseResident(pattern[i % pattern.size()] == 'r');
        sequence.Take(round.steps[0], executor_->Run(round).sequences[0]);
      }
      EXPECT_EQ(sequence.output(), want) << "block " << block << " pattern " << pattern;
    }
  }
}

// The worker's calibration names every page of the executor, here of 32,768 tokens where the model
// has positions for a quarter of that.
TEST_F(ResidentTest, TakesMorePagesThanTheModelHasPositionsFor) {
  const RunPlan plan{.prompt = Prompt(0, 5), .num_new_tokens = 12, .block = 8};
  const std::vector<int32_t> want = Expected(plan);
  const std::vector<int32_t> pages = AllPages(*executor_);
  ASSERT_GT(static_cast<int64_t>(pages.size()) * executor_->page_tokens(),
            2 * executor_->config().context_tokens);
  RunningSequence sequence(*executor_, plan);
  while (!sequence.done()) {
    Round round{.steps = {sequence.Step()}};
    round.steps[0].pages = pages.data();
    round.steps[0].num_pages = static_cast<int>(pages.size());
    sequence.Take(round.steps[0], executor_->Run(round).sequences[0]);
  }
  EXPECT_EQ(sequence.output(), want);
}

// Past the sliding windows (128), a segment of full attention (256) and the drafter's window
// (1024).
TEST_F(ResidentTest, TokensAreTheExecutorsAtAnyLength) {
  for (const size_t length : {1, 17, 63, 64, 120, 127, 128, 200, 505, 512, 700, 1020, 1100, 2000}) {
    for (const int block : {1, 3, 8}) {
      for (const float temperature : {0.0f, 1.0f}) {
        const RunPlan plan{.prompt = Prompt(length, length),
                           .num_new_tokens = 48,
                           .block = block,
                           .sampling = {.temperature = temperature, .seed = length},
                           .slot = static_cast<int>(length) % kSlots};
        EXPECT_EQ(RunAlone(*executor_, plan), Expected(plan))
            << "length " << length << " block " << block << " temperature " << temperature;
      }
    }
  }
}

// Rounds that only the executor takes in between: filters, log-probabilities, two sequences.
TEST_F(ResidentTest, HandsOverToTheExecutorAndBack) {
  const RunPlan plan{.prompt = Prompt(3, 90),
                     .num_new_tokens = 120,
                     .block = 8,
                     .sampling = {.temperature = 0.8f, .seed = 5}};
  const std::vector<int32_t> want = Expected(plan);
  RunningSequence sequence(*executor_, plan);
  for (int i = 0; !sequence.done(); ++i) {
    Round round{.steps = {sequence.Step()}};
    if (i % 5 == 3) round.steps[0].logprobs = 2;
    sequence.Take(round.steps[0], executor_->Run(round).sequences[0]);
  }
  EXPECT_EQ(sequence.output(), want);
}

// Prefills, ends in the middle and new requests between rounds, as an engine mixes them.
TEST_F(ResidentTest, TenThousandRoundsOfMixedRequests) {
  constexpr int kRounds = 10'000;
  constexpr int kPlans = 12;
  std::vector<ExpectedRun> runs;
  for (int i = 0; i < kPlans; ++i) {
    const auto n = static_cast<size_t>(i);
    const RunPlan plan = {.prompt = Prompt(n * 31, 10 + n * 23),
                          .num_new_tokens = 150,
                          .block = i % 4 == 3 ? 1 : 8,
                          .sampling = {.temperature = i % 2 == 0 ? 0.0f : 1.0f, .seed = n},
                          .slot = i % kSlots};
    runs.push_back({plan, Expected(plan)});
  }
  RunMixedRequests(*executor_, runs, kRounds, [](std::mt19937&, SequenceStep&) {});
}

}  // namespace
}  // namespace ultraspeed::worker
