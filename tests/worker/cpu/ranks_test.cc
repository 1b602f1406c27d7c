// One model as 1, 2, 4 or 8 ranks in one process: the same text up to rounding, the same bits in
// every run and in every company. Random weights, no trained model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/temporary_folder.h"
#include "tests/worker/cpu/rank_comparison.h"
#include "tests/worker/cpu/recorded_run.h"
#include "tests/worker/model/synthetic_checkpoint.h"
#include "worker/cpu/cpu_executor.h"

namespace ultraspeed::worker {
namespace {

using testing::HasSubstr;

// Of the logits' deviation; measured are 0.011 and 0.0013.
constexpr double kLargestMax = 0.03;
constexpr double kRootMeanSquareMax = 0.005;

class RanksTest : public testing::Test {
 protected:
  RanksTest() { MakeSyntheticCheckpoint(kDividingShape).Write(folder_.path()); }

  absl::StatusOr<std::unique_ptr<CpuExecutor>> TryLoad(int num_ranks, int num_threads = 2) {
    return CpuExecutor::Create({.model_folder = folder_.path(),
                                .max_sequences = 4,
                                .kv_tokens = 4096,
                                .num_threads = num_threads,
                                .num_ranks = num_ranks});
  }
  std::unique_ptr<CpuExecutor> Load(int num_ranks, int num_threads = 2) {
    absl::StatusOr<std::unique_ptr<CpuExecutor>> executor = TryLoad(num_ranks, num_threads);
    EXPECT_TRUE(executor.ok()) << executor.status();
    return *std::move(executor);
  }

  static std::vector<RunPlan> Plans() {
    std::vector<RunPlan> plans;
    for (int i = 0; i < 4; ++i) {
      plans.push_back(
          {.prompt = RandomPrompt(20 + 17 * i, static_cast<uint64_t>(i)),
           .num_new_tokens = 40,
           .block = i % 2 == 0 ? 8 : 1,
           .chunk = 16,
           .sampling = {.temperature = i < 2 ? 0.0f : 1.0f, .seed = static_cast<uint64_t>(i)},
           .slot = 3 - i});
    }
    return plans;
  }

  TemporaryFolder folder_;
};

TEST_F(RanksTest, LogitsAgreeWithOneRankToRounding) {
  const auto whole = Load(1);
  const std::vector<int32_t> text = RandomPrompt(200, 7);
  for (const int ranks : {2, 4, 8}) {
    const RankDifference difference = CompareLogits(*whole, *Load(ranks), text);
    std::printf("%d ranks: %s\n", ranks, difference.ToString().c_str());

    EXPECT_LE(difference.LargestOf(1), kLargestMax * difference.deviation) << ranks;
    EXPECT_LE(difference.root_mean_square, kRootMeanSquareMax * difference.deviation) << ranks;
    EXPECT_GE(difference.same_choice, 0.97) << ranks;
  }
}

// The shape that the tests on several GPUs use: a checkpoint like any other.
TEST_F(RanksTest, SoDoThoseOfTheGpusShape) {
  MakeSyntheticCheckpoint(kGpuShape).Write(folder_.path());
  const auto whole = Load(1);
  const RankDifference difference = CompareLogits(*whole, *Load(2), RandomPrompt(100, 7));
  std::printf("2 ranks: %s\n", difference.ToString().c_str());
  EXPECT_LE(difference.LargestOf(0.97), 0.1 * difference.deviation);  // measured 0.05
  EXPECT_GE(difference.same_choice, 0.97);
}

TEST_F(RanksTest, EveryRunAndEveryNumberOfThreadsGivesTheSameBits) {
  for (const int ranks : {2, 8}) {
    const std::vector<RecordedRun> first = RecordTogether(*Load(ranks), Plans());
    for (const int threads : {1, 2, 24}) {
      const std::vector<RecordedRun> again = RecordTogether(*Load(ranks, threads), Plans());
      for (size_t i = 0; i < first.size(); ++i)
        EXPECT_EQ(Difference(first[i], again[i]), "")
            << ranks << " ranks, " << threads << " threads";
    }
  }
}

TEST_F(RanksTest, CompanyAndSpeculationChangeNoBit) {
  const auto executor = Load(8);
  const std::vector<RecordedRun> together = RecordTogether(*executor, Plans());
  for (size_t i = 0; i < together.size(); ++i) {
    RunPlan plan = Plans()[i];
    EXPECT_EQ(Difference(Record(*executor, plan), together[i]), "") << i;
    plan.block = plan.block == 1 ? 8 : 1;
    plan.chunk = 512;
    EXPECT_EQ(Difference(Record(*executor, plan), together[i]), "") << i;
  }
}

TEST_F(RanksTest, TogetherTheRanksReadTheModelOnce) {
  const auto read = [&](int ranks) {
    const auto executor = Load(ranks);
    RunAlone(*executor, {.prompt = RandomPrompt(16, 2), .num_new_tokens = 1});
    return executor->statistics();
  };
  const ForwardStatistics one = read(1), two = read(2);
  EXPECT_EQ(two.target_passes, one.target_passes);
  EXPECT_EQ(two.distinct_experts, one.distinct_experts);
  // Twice the router, the rest once; scales of the fused projection's padding aside.
  const auto router = int64_t{3} * 8 * 64 * 4;
  EXPECT_NEAR(static_cast<double>(two.target_bytes),
              static_cast<double>(one.target_bytes + router * one.target_passes),
              0.02 * static_cast<double>(one.target_bytes));
}

TEST_F(RanksTest, WhatDoesNotDivideIsRefusedByName) {
  const auto refusal = [&](int ranks) { return std::string(TryLoad(ranks).status().message()); };
  EXPECT_EQ(refusal(3), "gpus: is 3; must be 1, 2, 4 or 8");
  EXPECT_EQ(refusal(0), "gpus: is 0; must be 1, 2, 4 or 8");
  EXPECT_EQ(refusal(16), "gpus: is 16; must be 1, 2, 4 or 8");
  const TemporaryFolder folder;
  MakeSyntheticCheckpoint({}).Write(folder.path());
  EXPECT_THAT(
      std::string(
          CpuExecutor::Create({.model_folder = folder.path(), .num_ranks = 4}).status().message()),
      HasSubstr("num_key_value_heads: is 2; 4 GPUs need a multiple of 4"));
}

// A rank that finds a bad value in its part stops the others too, without waiting for ever.
TEST_F(RanksTest, OneRanksRefusalIsTheLoads) {
  SyntheticCheckpoint checkpoint = MakeSyntheticCheckpoint(kDividingShape);
  const std::string name = "model.layers.1.mlp.experts.0.gate_proj.weight_scale";
  checkpoint.target.at(name).bytes.back() = '\xff';  // the last row: rank 7's
  checkpoint.Write(folder_.path());
  EXPECT_THAT(std::string(TryLoad(8).status().message()), HasSubstr(name));
}

TEST_F(RanksTest, TheDeviceSaysSo) {
  EXPECT_THAT(Load(4, 8)->device(), HasSubstr("4 ranks of 2 threads"));
  EXPECT_THAT(Load(1, 2)->device(), HasSubstr(", 2 threads"));
}

}  // namespace
}  // namespace ultraspeed::worker
