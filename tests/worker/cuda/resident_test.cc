// The resident engine against the executor of single operations: the same tokens, whatever happens
// around it.
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "bench/held_out.h"
#include "tests/worker/cpu/bundled_model.h"
#include "tests/worker/cpu/recorded_run.h"
#include "tests/worker/cuda/mixed_requests.h"
#include "worker/cuda/cuda_executor.h"
#include "worker/cuda/device.h"
#include "worker/cuda/resident_engine.h"

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

  RecordedRun ExpectedRecord(const RunPlan& plan, int logprobs) {
    executor_->UseResident(false);
    RecordedRun run = Record(*executor_, plan, logprobs);
    executor_->UseResident(true);
    return run;
  }

  // Of all ways of choosing, in all slots.
  std::vector<ExpectedRun> MixedRuns() {
    constexpr int kPlans = 12;
    std::vector<ExpectedRun> runs;
    for (int i = 0; i < kPlans; ++i) {
      const auto n = static_cast<size_t>(i);
      const RunPlan plan = {.prompt = Prompt(n * 31, 10 + n * 23),
                            .num_new_tokens = 150,
                            .block = i % 4 == 3 ? 1 : 8,
                            .chunk = 100,  // kSlots of them fit in a round
                            .sampling = {.temperature = i % 2 == 0 ? 0.0f : 1.0f,
                                         .top_p = i % 6 == 5 ? 0.9f : 1.0f,
                                         .seed = n},
                            .slot = i % kSlots};
      runs.push_back({plan, Expected(plan)});
    }
    return runs;
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
        SCOPED_TRACE(
            absl::StrCat("length ", length, " block ", block, " temperature ", temperature));
        const RecordedRun want = ExpectedRecord(plan, /*logprobs=*/-1);
        const RecordedRun got = Record(*executor_, plan, /*logprobs=*/-1);
        EXPECT_EQ(Difference(got, want), "");
        EXPECT_EQ(got.num_accepted, want.num_accepted);  // so the drafter chose the same too
      }
    }
  }
}

TEST_F(ResidentTest, HeldOutTextsAreTheExecutors) {
  const absl::StatusOr<std::vector<bench::HeldOutPrompt>> prompts =
      bench::LoadHeldOutPrompts(kBundledModel, executor_->config());
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  for (const bench::HeldOutPrompt& prompt : *prompts) {
    for (const float temperature : {0.0f, 1.0f}) {
      const RunPlan plan{.prompt = prompt.tokens,
                         .num_new_tokens = 64,
                         .block = 8,
                         .sampling = {.temperature = temperature, .seed = 7}};
      EXPECT_EQ(RunAlone(*executor_, plan), Expected(plan))
          << prompt.id << " temperature " << temperature;
    }
  }
}

// ---- Top-k and top-p, log-probabilities

// From one token to nearly all, with tokens that lie on both sides of every border.
const std::vector<kernels::SamplingSpec> kFilters = {
    {.temperature = 1.0f, .top_k = 1},
    {.temperature = 1.0f, .top_k = 5},
    {.temperature = 1.5f, .top_k = 300},
    {.temperature = 1.0f, .top_k = 1 << 20},
    {.temperature = 0.7f, .top_p = 0.95f},
    {.temperature = 1.0f, .top_p = 0.5f},
    {.temperature = 2.0f, .top_p = 0.9f},
    {.temperature = 1.0f, .top_p = 1e-6f},
    {.temperature = 1.0f, .top_p = 0.999999f},
    {.temperature = 0.05f, .top_k = 4000, .top_p = 0.999f},
    {.temperature = 0.8f, .top_k = 20, .top_p = 0.9f},
    {.temperature = 1.5f, .top_k = 2000, .top_p = 0.6f},
};

std::string Text(const kernels::SamplingSpec& spec) {
  return absl::StrCat("temperature ", spec.temperature, " top_k ", spec.top_k, " top_p ",
                      spec.top_p, " seed ", spec.seed);
}

// Choices, accepted drafts and log-probabilities, bit for bit.
TEST_F(ResidentTest, FiltersGiveTheExecutorsTokens) {
  int num_accepted = 0;
  for (size_t i = 0; i < kFilters.size(); ++i) {
    for (const size_t length : {7, 200, 1100}) {
      for (const int block : {1, 2, 3, 8}) {
        kernels::SamplingSpec sampling = kFilters[i];
        sampling.seed = 100 * i + length;
        const RunPlan plan{.prompt = Prompt(13 * i + length, length),
                           .num_new_tokens = 32,
                           .block = block,
                           .sampling = sampling,
                           .slot = static_cast<int>(i) % kSlots};
        for (const int logprobs : {-1, 0}) {
          SCOPED_TRACE(absl::StrCat(Text(sampling), " length ", length, " block ", block,
                                    " logprobs ", logprobs));
          const RecordedRun want = ExpectedRecord(plan, logprobs);
          const RecordedRun got = Record(*executor_, plan, logprobs);
          EXPECT_EQ(Difference(got, want), "");
          EXPECT_EQ(got.num_accepted, want.num_accepted);  // so the drafter chose the same too
          num_accepted += got.num_accepted;
        }
      }
    }
  }
  EXPECT_GT(num_accepted, 0);
}

TEST_F(ResidentTest, LogProbabilitiesAreTheExecutors) {
  for (const float temperature : {0.0f, 1.0f}) {
    for (const size_t length : {3, 150, 900}) {
      for (const int block : {1, 8}) {
        const RunPlan plan{.prompt = Prompt(length, length),
                           .num_new_tokens = 40,
                           .block = block,
                           .sampling = {.temperature = temperature, .seed = length}};
        EXPECT_EQ(Difference(Record(*executor_, plan, 0), ExpectedRecord(plan, 0)), "")
            << "temperature " << temperature << " length " << length << " block " << block;
      }
    }
  }
}

// What the tests above compare: the resident engine takes these steps, and only alternatives not.
TEST_F(ResidentTest, TakesFiltersAndLogProbabilitiesButNoAlternatives) {
  const RunPlan plan{.prompt = Prompt(0, 20), .num_new_tokens = 4, .block = 8};
  RunningSequence sequence(*executor_, plan);
  sequence.Take(sequence.Step(), executor_->Run({.steps = {sequence.Step()}}).sequences[0]);
  SequenceStep step = sequence.Step();
  for (const kernels::SamplingSpec& sampling : kFilters) {
    step.sampling = sampling;
    EXPECT_TRUE(executor_->resident()->Takes(step)) << Text(sampling);
  }
  step.logprobs = 0;
  EXPECT_TRUE(executor_->resident()->Takes(step));
  step.logprobs = 1;
  EXPECT_FALSE(executor_->resident()->Takes(step));
}

// A seed's text is one text, whatever way of choosing another request had in the round before.
TEST_F(ResidentTest, WaysOfChoosingTakeTurns) {
  std::vector<RunPlan> plans;
  std::vector<std::vector<int32_t>> want;
  for (int i = 0; i < kSlots; ++i) {
    const auto n = static_cast<size_t>(i);
    const kernels::SamplingSpec ways[kSlots] = {{.temperature = 0.0f},
                                                {.temperature = 1.0f, .top_p = 0.8f, .seed = 3},
                                                {.temperature = 1.0f, .seed = 3},
                                                {.temperature = 1.0f, .top_k = 30, .seed = 3}};
    plans.push_back({.prompt = Prompt(50, 60 + 20 * n),
                     .num_new_tokens = 60,
                     .block = 8,
                     .sampling = ways[i],
                     .slot = i});
    want.push_back(Expected(plans.back()));
  }
  std::vector<std::unique_ptr<RunningSequence>> sequences;
  for (const RunPlan& plan : plans)
    sequences.push_back(std::make_unique<RunningSequence>(*executor_, plan));
  std::mt19937 random(2);
  for (bool any = true; any;) {
    any = false;
    for (const std::unique_ptr<RunningSequence>& sequence : sequences) {
      for (uint32_t rounds = random() % 3; rounds-- > 0 && !sequence->done();) {
        Round round{.steps = {sequence->Step()}};
        round.steps[0].logprobs = random() % 3 == 0 ? 0 : -1;
        sequence->Take(round.steps[0], executor_->Run(round).sequences[0]);
      }
      any = any || !sequence->done();
    }
  }
  for (size_t i = 0; i < plans.size(); ++i) EXPECT_EQ(sequences[i]->output(), want[i]) << i;
}

// ---- Between the engines

// Rounds that only the executor takes in between: alternatives.
TEST_F(ResidentTest, HandsOverToTheExecutorAndBack) {
  for (const float top_p : {1.0f, 0.9f}) {
    const RunPlan plan{.prompt = Prompt(3, 90),
                       .num_new_tokens = 120,
                       .block = 8,
                       .sampling = {.temperature = 0.8f, .top_p = top_p, .seed = 5}};
    const std::vector<int32_t> want = Expected(plan);
    RunningSequence sequence(*executor_, plan);
    for (int i = 0; !sequence.done(); ++i) {
      Round round{.steps = {sequence.Step()}};
      if (i % 5 == 3) round.steps[0].logprobs = 2;
      sequence.Take(round.steps[0], executor_->Run(round).sequences[0]);
    }
    EXPECT_EQ(sequence.output(), want) << "top_p " << top_p;
  }
}

// Prefills, ends in the middle and new requests between rounds, as an engine mixes them.
TEST_F(ResidentTest, TenThousandRoundsOfMixedRequests) {
  constexpr int kRounds = 10'000;
  RunMixedRequests(*executor_, MixedRuns(), kRounds, [](std::mt19937&, SequenceStep&) {});
}

// ---- Turns

// Two sequences in a round: a launch each, where the executor has one pass for both.
TEST_F(ResidentTest, AFewSequencesTakeTurns) {
  for (const bool resident : {true, false}) {
    std::vector<std::unique_ptr<RunningSequence>> sequences;
    Round round;
    for (int slot = 0; slot < 2; ++slot) {
      const auto n = static_cast<size_t>(slot);
      sequences.push_back(std::make_unique<RunningSequence>(
          *executor_, RunPlan{.prompt = Prompt(40 * n, 30), .block = 8, .slot = slot}));
      const SequenceStep prefill = sequences[n]->Step();
      sequences[n]->Take(prefill, executor_->Run({.steps = {prefill}}).sequences[0]);
      round.steps.push_back(sequences[n]->Step());
    }
    executor_->UseResident(resident);
    const int64_t passes_before = executor_->statistics().target_passes;
    executor_->Run(round);
    EXPECT_EQ(executor_->statistics().target_passes - passes_before, resident ? 2 : 1);
  }
}

// Every way of choosing, every number of sequences up to the most, each joining beside the others.
TEST_F(ResidentTest, TurnsGiveTheExecutorsTokens) {
  const std::vector<RunPlan> plans = {
      {.prompt = Prompt(0, 70), .num_new_tokens = 60, .block = 8, .chunk = 100, .slot = 0},
      {.prompt = Prompt(9, 300),
       .num_new_tokens = 50,
       .block = 8,
       .chunk = 100,
       .sampling = {.temperature = 1.0f, .seed = 4},
       .slot = 1},
      {.prompt = Prompt(200, 1100),
       .num_new_tokens = 40,
       .block = 4,
       .chunk = 100,
       .sampling = {.temperature = 1.0f, .top_p = 0.8f, .seed = 5},
       .slot = 2},
      {.prompt = Prompt(77, 5), .num_new_tokens = 30, .block = 1, .slot = 3}};
  std::vector<std::vector<int32_t>> want;
  for (const RunPlan& plan : plans) want.push_back(Expected(plan));
  for (size_t count = 2; count <= plans.size(); ++count) {
    for (const int stagger : {0, 3}) {
      const auto end = static_cast<ptrdiff_t>(count);
      EXPECT_EQ(RunTogether(*executor_, {plans.begin(), plans.begin() + end}, stagger),
                (std::vector<std::vector<int32_t>>(want.begin(), want.begin() + end)))
          << count << " sequences, one every " << stagger << " rounds";
    }
  }
}

TEST_F(ResidentTest, ThousandsOfRoundsOfMixedCompany) {
  RunMixedCompany(*executor_, MixedRuns(), /*num_rounds=*/4000);
}

}  // namespace
}  // namespace ultraspeed::worker
