// The resident engine over the GPUs of a node: tokens equal to those of single operations.
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/temporary_folder.h"
#include "tests/worker/cpu/rank_comparison.h"
#include "tests/worker/cpu/recorded_run.h"
#include "tests/worker/cuda/cpu_comparison.h"
#include "tests/worker/cuda/mixed_requests.h"
#include "tests/worker/cuda/ranks_fixture.h"
#include "tests/worker/model/synthetic_checkpoint.h"

namespace ultraspeed::worker {
namespace {

using cuda::CudaExecutor;
using cuda::NodeExecutor;

// A model whose parts it takes, with random weights.
class CudaResidentRanksTest : public CudaRanksTest {
 protected:
  void SetUp() override {
    CudaRanksTest::SetUp();
    if (IsSkipped()) return;
    MakeSyntheticCheckpoint(kGpuShape).Write(folder_.path());
  }
  std::unique_ptr<NodeExecutor> LoadWithEngine(int num_ranks) {
    std::unique_ptr<NodeExecutor> ranks = LoadRanks(folder_.path(), num_ranks);
    if (ranks != nullptr && ranks->resident() == nullptr) {
      ADD_FAILURE() << "no resident engine: " << ranks->device();
      return nullptr;
    }
    return ranks;
  }
  // By single operations.
  static std::vector<int32_t> Expected(NodeExecutor& ranks, const RunPlan& plan) {
    ranks.UseResident(false);
    std::vector<int32_t> output = RunAlone(ranks, plan);
    ranks.UseResident(true);
    return output;
  }
  // Of several ways of choosing, in all slots, some held to something.
  static std::vector<ExpectedRun> MixedRuns(NodeExecutor& ranks) {
    constexpr int kPlans = 8;
    std::vector<ExpectedRun> runs;
    for (int i = 0; i < kPlans; ++i) {
      const auto n = static_cast<uint64_t>(i);
      const RunPlan plan = {.prompt = RandomPrompt(10 + i * 23, n),
                            .num_new_tokens = 100,
                            .block = i % 4 == 3 ? 1 : 8,
                            .chunk = 100,  // kRankSlots of them fit in a round
                            .sampling = {.temperature = i % 2 == 0 ? 0.0f : 1.0f,
                                         .top_k = i % 4 == 1 ? 50 : 0,
                                         .seed = n},
                            .slot = i % kRankSlots};
      ranks.UseResident(false);
      runs.push_back(Expect(ranks, plan, /*is_held=*/i % 3 == 1));
    }
    ranks.UseResident(true);
    return runs;
  }

  TemporaryFolder folder_;
};

TEST_F(CudaResidentRanksTest, LogitsAgreeWithOneGpuToRounding) {
  const std::unique_ptr<CudaExecutor> whole = LoadWhole(folder_.path());
  ASSERT_NE(whole, nullptr);
  for (const int num_ranks : RankCounts()) {
    const std::unique_ptr<NodeExecutor> ranks = LoadWithEngine(num_ranks);
    ASSERT_NE(ranks, nullptr);
    const RankDifference difference = CompareLogits(*whole, *ranks, RandomPrompt(200, 5));
    std::printf("%d GPUs: %s\n", num_ranks, difference.ToString().c_str());
    // Random routers choose between experts of nearly equal scores: in a few rows rounding swaps
    // two of them, and then all of the row's logits move by a good part of their deviation. So the
    // largest differences say nothing; most rows, and all rows together, must be near.
    EXPECT_LE(difference.LargestOf(0.5), 0.05 * difference.deviation);
    EXPECT_LE(difference.root_mean_square, 0.06 * difference.deviation);
    EXPECT_GE(difference.same_choice, 0.9);
  }
}

TEST_F(CudaResidentRanksTest, TokensAreThoseOfSingleOperationsAtAnyLength) {
  for (const int num_ranks : RankCounts()) {
    const std::unique_ptr<NodeExecutor> ranks = LoadWithEngine(num_ranks);
    ASSERT_NE(ranks, nullptr);
    for (const int length : {1, 17, 64, 127, 128, 200, 512, 700}) {
      for (const int block : {1, 3, 8}) {
        for (const float temperature : {0.0f, 1.0f}) {
          const auto seed = static_cast<uint64_t>(length);
          const RunPlan plan{.prompt = RandomPrompt(length, seed),
                             .num_new_tokens = 40,
                             .block = block,
                             .sampling = {.temperature = temperature, .seed = seed},
                             .slot = length % kRankSlots};
          EXPECT_EQ(RunAlone(*ranks, plan), Expected(*ranks, plan))
              << num_ranks << " ranks, length " << length << " block " << block << " temperature "
              << temperature;
        }
      }
    }
  }
}

TEST_F(CudaResidentRanksTest, TheBundledModelsTokensAreThoseOfSingleOperations) {
  for (const int num_ranks : RankCounts()) {
    const std::unique_ptr<NodeExecutor> ranks = LoadRanks(kBundledModel, num_ranks);
    ASSERT_NE(ranks, nullptr);
    ASSERT_NE(ranks->resident(), nullptr);
    for (const size_t length : {5, 90, 300, 1100}) {
      for (const int block : {1, 8}) {
        for (const float temperature : {0.0f, 1.0f}) {
          const RunPlan plan{.prompt = Prompt(length, length),
                             .num_new_tokens = 64,
                             .block = block,
                             .sampling = {.temperature = temperature, .seed = length}};
          EXPECT_EQ(RunAlone(*ranks, plan), Expected(*ranks, plan))
              << num_ranks << " ranks, length " << length << " block " << block << " temperature "
              << temperature;
        }
      }
    }
  }
}

// Over the whole vocabulary, of which each rank has a part.
TEST_F(CudaResidentRanksTest, FiltersAndLogProbabilitiesAreThoseOfSingleOperations) {
  const std::vector<kernels::SamplingSpec> ways = {
      {.temperature = 0.0f},
      {.temperature = 1.0f},
      {.temperature = 1.0f, .top_k = 5},
      {.temperature = 1.5f, .top_k = 300},
      {.temperature = 0.7f, .top_p = 0.95f},
      {.temperature = 1.0f, .top_p = 0.5f},
      {.temperature = 1.0f, .top_p = 0.999999f},
      {.temperature = 0.8f, .top_k = 20, .top_p = 0.9f}};
  for (const int num_ranks : RankCounts()) {
    const std::unique_ptr<NodeExecutor> ranks = LoadRanks(kBundledModel, num_ranks);
    ASSERT_NE(ranks, nullptr);
    ASSERT_NE(ranks->resident(), nullptr);
    for (size_t i = 0; i < ways.size(); ++i) {
      for (const size_t length : {5, 300}) {
        for (const int block : {1, 8}) {
          kernels::SamplingSpec sampling = ways[i];
          sampling.seed = 10 * i + length;
          const RunPlan plan{.prompt = Prompt(length + i, length),
                             .num_new_tokens = 48,
                             .block = block,
                             .sampling = sampling};
          for (const int logprobs : {-1, 0}) {
            const RecordedRun got = Record(*ranks, plan, logprobs);
            ranks->UseResident(false);
            const RecordedRun want = Record(*ranks, plan, logprobs);
            ranks->UseResident(true);
            SCOPED_TRACE(absl::StrCat(num_ranks, " ranks, way ", i, " length ", length, " block ",
                                      block, " logprobs ", logprobs));
            EXPECT_EQ(Difference(got, want), "");
            if (!HasBothFilters(sampling)) {
              EXPECT_EQ(got.num_accepted, want.num_accepted);
            }
          }
        }
      }
    }
  }
}

// All ranks weigh drafts by the sums of all, and decide alike; the engine aborts if they do not.
TEST_F(CudaResidentRanksTest, UnlikelyDraftsAreNotVerified) {
  for (const int num_ranks : RankCounts()) {
    const std::unique_ptr<NodeExecutor> ranks = LoadRanks(kBundledModel, num_ranks);
    ASSERT_NE(ranks, nullptr);
    ASSERT_NE(ranks->resident(), nullptr);
    for (const kernels::SamplingSpec& way :
         std::vector<kernels::SamplingSpec>{{.temperature = 0.0f},
                                            {.temperature = 1.0f, .seed = 4},
                                            {.temperature = 1.0f, .top_p = 0.9f, .seed = 4}}) {
      RunPlan plan{.prompt = Prompt(11, 250), .num_new_tokens = 96, .block = 8, .sampling = way};
      ranks->UseResident(false);
      const RecordedRun want = Record(*ranks, plan, /*logprobs=*/-1);
      ranks->UseResident(true);
      const auto run = [&](float reach_min) {
        plan.reach_min = reach_min;
        RecordedRun got = Record(*ranks, plan, /*logprobs=*/-1);
        EXPECT_EQ(Difference(got, want), "") << num_ranks << " ranks, reach_min " << reach_min;
        return got;
      };
      const RecordedRun all = run(1e-30f), some = run(0.2f), few = run(0.9f);
      EXPECT_EQ(all.num_accepted, want.num_accepted);
      const auto drafts_per_round = [](const RecordedRun& run_of) {
        return static_cast<double>(run_of.num_drafted) / run_of.num_rounds;
      };
      EXPECT_LT(drafts_per_round(some), drafts_per_round(all));
      EXPECT_LT(drafts_per_round(few), 0.7 * drafts_per_round(some));
      EXPECT_GT(few.num_drafted, 0);
    }
  }
}

// Prefills, ends in the middle and new requests between rounds, as an engine mixes them.
TEST_F(CudaResidentRanksTest, ThousandsOfRoundsOfMixedRequests) {
  constexpr int kRounds = 4000;
  const std::unique_ptr<NodeExecutor> ranks = LoadWithEngine(RankCounts().back());
  ASSERT_NE(ranks, nullptr);
  RunMixedRequests(*ranks, MixedRuns(*ranks), kRounds,
                   [](std::mt19937& random, SequenceStep& step) {
                     if (random() % 16 == 0) step.logprobs = 2;  // the other engine's
                     step.reach_min = step.slot % 2 == 0 ? 0 : 1e-3f * (random() % 400 + 1);
                   });
}

// The kernels of a turn begin on a GPU while its peers may still be in the turn before.
TEST_F(CudaResidentRanksTest, ThousandsOfRoundsOfMixedCompany) {
  for (const int num_ranks : RankCounts()) {
    const std::unique_ptr<NodeExecutor> ranks = LoadWithEngine(num_ranks);
    ASSERT_NE(ranks, nullptr);
    RunMixedCompany(*ranks, MixedRuns(*ranks), /*num_rounds=*/2000);
  }
}

}  // namespace
}  // namespace ultraspeed::worker
