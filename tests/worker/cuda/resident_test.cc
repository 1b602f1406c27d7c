// The resident engine against the executor of single operations: the same tokens, whatever happens
// around it.
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "bench/held_out.h"
#include "tests/worker/cpu/bundled_model.h"
#include "tests/worker/cpu/recorded_run.h"
#include "tests/worker/cuda/mixed_requests.h"
#include "tests/worker/given_drafts.h"
#include "worker/cuda/cuda_executor.h"
#include "worker/cuda/device.h"
#include "worker/cuda/resident_engine.h"

namespace ultraspeed::worker {
namespace {

constexpr int kSlots = 8;

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

  // Of all ways of choosing, in all slots, some held to something.
  std::vector<ExpectedRun> MixedRuns() {
    constexpr int kPlans = 24;
    constexpr int kBlocks[] = {8, 4, 2, 1, 3, 8, 1};
    std::vector<ExpectedRun> runs;
    for (int i = 0; i < kPlans; ++i) {
      const auto n = static_cast<size_t>(i);
      const RunPlan plan = {.prompt = Prompt(n * 31, 10 + n * 23),
                            .num_new_tokens = 150,
                            .block = kBlocks[i % std::size(kBlocks)],
                            .chunk = 60,  // kSlots of them fit in a round
                            .sampling = {.temperature = i % 2 == 0 ? 0.0f : 1.0f,
                                         .top_p = i % 6 == 5 ? 0.9f : 1.0f,
                                         .seed = n},
                            .slot = i % kSlots};
      executor_->UseResident(false);
      runs.push_back(Expect(*executor_, plan, /*is_held=*/i % 5 == 3));
    }
    executor_->UseResident(true);
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

// The drafter's context is written by one block and read by others: what any of them has seen of
// the round before must not come back. A text is the same anyhow; its drafts are not.
TEST_F(ResidentTest, DraftsAreTheExecutorsEveryTime) {
  for (const size_t length : {64, 512}) {
    for (const int block : {3, 4}) {
      const RunPlan plan{
          .prompt = Prompt(length, length), .num_new_tokens = 48, .block = block, .slot = 0};
      const int want = ExpectedRecord(plan, /*logprobs=*/-1).num_accepted;
      for (int i = 0; i < 16; ++i) {
        ASSERT_EQ(Record(*executor_, plan, /*logprobs=*/-1).num_accepted, want)
            << "length " << length << " block " << block << " run " << i;
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

// ---- Drafts that are not verified

// They are the unlikely ones, and nothing else depends on them.
TEST_F(ResidentTest, UnlikelyDraftsAreNotVerified) {
  const std::vector<kernels::SamplingSpec> ways = {{.temperature = 0.0f},
                                                   {.temperature = 1.0f, .seed = 3},
                                                   {.temperature = 1.0f, .top_p = 0.9f, .seed = 3},
                                                   {.temperature = 0.7f, .top_k = 20, .seed = 3}};
  for (const kernels::SamplingSpec& way : ways) {
    RecordedRun of_all, of_some;  // of all lengths
    for (const size_t length : {40, 300, 1100}) {
      RunPlan plan{
          .prompt = Prompt(length, length), .num_new_tokens = 64, .block = 8, .sampling = way};
      for (const int logprobs : {-1, 0}) {
        SCOPED_TRACE(absl::StrCat("temperature ", way.temperature, " top_p ", way.top_p, " length ",
                                  length, " logprobs ", logprobs));
        plan.reach_min = 0;
        const RecordedRun want = ExpectedRecord(plan, logprobs);
        const auto run = [&](float reach_min) {
          plan.reach_min = reach_min;
          RecordedRun got = Record(*executor_, plan, logprobs);
          EXPECT_EQ(Difference(got, want), "") << reach_min;
          return got;
        };
        const RecordedRun all = run(0), weighed = run(1e-30f), some = run(0.2f), few = run(0.9f);
        EXPECT_EQ(all.num_drafted, 7 * (all.num_rounds - 1));  // the first is the prompt's
        EXPECT_EQ(weighed.num_drafted, all.num_drafted);
        EXPECT_EQ(weighed.num_accepted, want.num_accepted);
        EXPECT_LT(some.num_drafted, 6 * (some.num_rounds - 1));
        EXPECT_LT(few.num_drafted, some.num_drafted);
        const auto add = [](RecordedRun& sum, const RecordedRun& run_of) {
          sum.num_drafted += run_of.num_drafted;
          sum.num_accepted += run_of.num_accepted;
        };
        add(of_all, all);
        add(of_some, some);
      }
    }
    // Of likely drafts fewer are rejected, by a quarter of the share at least.
    const auto rejected_share = [](const RecordedRun& run) {
      return 1 - static_cast<double>(run.num_accepted) / run.num_drafted;
    };
    EXPECT_LT(rejected_share(of_some), 0.75 * rejected_share(of_all));
  }
}

// The bound of rounds to come follows the host's, whose session goes on.
TEST_F(ResidentTest, ASessionFollowsTheBound) {
  const RunPlan plan{.prompt = Prompt(7, 200), .num_new_tokens = 400, .block = 8};
  const std::vector<int32_t> want = Expected(plan);
  RunningSequence sequence(*executor_, plan);
  int low = 0, high = 0, rounds_low = 0, rounds_high = 0;
  for (int i = 0; !sequence.done(); ++i) {
    constexpr int kRoundsOfABound = 20, kLate = 6;  // the kernel runs ahead
    const bool is_high = i / kRoundsOfABound % 2 != 0;
    Round round{.steps = {sequence.Step()}};
    round.steps[0].reach_min = is_high ? 0.999f : 1e-30f;
    const SequenceResult result = executor_->Run(round).sequences[0];
    sequence.Take(round.steps[0], result);
    if (round.steps[0].block == 1 || i % kRoundsOfABound < kLate) continue;
    (is_high ? high : low) += result.num_drafted;
    ++(is_high ? rounds_high : rounds_low);
  }
  EXPECT_EQ(sequence.output(), want);
  ASSERT_GT(rounds_high, 10);
  EXPECT_EQ(low, 7 * rounds_low);
  EXPECT_LT(high, 4 * rounds_high);
}

// Of some sequences all drafts fall away, and with them all rows of a band but anchors.
TEST_F(ResidentTest, UnlikelyDraftsInCompany) {
  const std::vector<std::vector<int>> divisions = {{4, 4}, {3, 3, 2}, {8, 8}, {6, 7}, {5, 1, 8, 2}};
  for (size_t d = 0; d < divisions.size(); ++d) {
    for (const float reach_min : {1e-3f, 0.3f, 0.9999f}) {
      std::vector<RunPlan> plans;
      for (size_t i = 0; i < divisions[d].size(); ++i) {
        plans.push_back({.prompt = Prompt(31 * i + 5 * d, 50 + 90 * i),
                         .num_new_tokens = 40,
                         .block = divisions[d][i],
                         .reach_min = reach_min,
                         .chunk = 60,
                         .sampling = {.temperature = i % 2 == 0 ? 0.0f : 1.0f, .seed = d},
                         .slot = static_cast<int>(i)});
      }
      const std::vector<RecordedRun> got = RecordTogether(*executor_, plans, /*logprobs=*/-1);
      for (size_t i = 0; i < plans.size(); ++i) {
        EXPECT_EQ(Difference(got[i], ExpectedRecord(plans[i], /*logprobs=*/-1)), "")
            << "division " << d << " sequence " << i << " reach_min " << reach_min;
      }
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
          if (!HasBothFilters(sampling)) {
            EXPECT_EQ(got.num_accepted, want.num_accepted);  // so the drafter chose the same too
          }
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
  constexpr int kWays = 4;
  for (int i = 0; i < kWays; ++i) {
    const auto n = static_cast<size_t>(i);
    const kernels::SamplingSpec ways[kWays] = {{.temperature = 0.0f},
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

// ---- Drafts that steps bring along

// Instead of the drafter's, by either engine, between rounds of its own: the text stays, and where
// they were verified, as many were accepted as are right. A session that runs may be a few rounds
// ahead.
TEST_F(ResidentTest, GivenDraftsTakeThePlaceOfTheDrafters) {
  for (const bool resident : {false, true}) {
    for (const kernels::SamplingSpec& sampling : std::vector<kernels::SamplingSpec>{
             {.temperature = 0.0f}, {.temperature = 1.0f, .top_p = 0.9f, .seed = 4}}) {
      for (const int block : {1, 8}) {
        SCOPED_TRACE(absl::StrCat("resident ", resident, " temperature ", sampling.temperature,
                                  " block ", block));
        const RunPlan plan{.prompt = Prompt(5, 140),
                           .num_new_tokens = 150,
                           .block = block,
                           .reach_min = 0.01f,
                           .sampling = sampling};
        const std::vector<int32_t> want = Expected(plan);
        executor_->UseResident(resident);
        RunningSequence sequence(*executor_, plan);
        GivenDrafts drafts;
        int num_own = 0, num_accepted = 0;
        for (size_t i = 0; !sequence.done(); ++i) {
          Round round{.steps = {sequence.Step()}};
          SequenceStep& step = round.steps[0];
          const size_t count = 1 + i % 7;
          if (i % 16 > 3)
            drafts.Give(step, plan.prompt.size(), want, count, i % 3 == 0 ? count / 2 : count);
          const int64_t drafter_passes = executor_->statistics().drafter_passes;
          const SequenceResult result = executor_->Run(round).sequences[0];
          if (result.took_own) {
            ++num_own;
            num_accepted += result.num_accepted;
            EXPECT_EQ(result.num_drafted, step.num_drafts);
            EXPECT_EQ(result.num_accepted, drafts.num_right());
            EXPECT_EQ(executor_->statistics().drafter_passes, drafter_passes);
          }
          sequence.Take(step, result);
        }
        EXPECT_EQ(sequence.output(), want);
        EXPECT_GT(num_own, 10);
        EXPECT_GT(num_accepted, 20);
      }
    }
  }
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
  RunMixedRequests(*executor_, MixedRuns(), kRounds, [](std::mt19937& random, SequenceStep& step) {
    constexpr float kReaches[] = {1e-3f, 0.2f, 0.9f};  // a session goes on with any of them
    step.reach_min = step.slot % 2 == 0 ? 0 : kReaches[random() % std::size(kReaches)];
  });
}

// ---- Several sequences

// With a drafter's pass for each that drafts, where the executor has one for all; in turns where
// there are too many rows.
TEST_F(ResidentTest, SequencesShareARoundOrTakeTurns) {
  struct Case {
    std::vector<int> blocks;
    int target_passes, drafter_passes;
  };
  for (const Case& c : std::vector<Case>{{{4, 4}, 1, 2},
                                         {{1, 1, 1, 1, 1, 1, 1, 1}, 1, 0},
                                         {{2, 1, 3, 1}, 1, 2},
                                         {{8, 8}, 1, 2},
                                         {{1, 8}, 1, 1},
                                         {{4, 4, 4, 4}, 1, 4},
                                         {{8, 4, 4, 2}, 2, 4},
                                         {{8, 8, 8, 8}, 1, 1}}) {  // single operations
    std::vector<std::unique_ptr<RunningSequence>> sequences;
    Round round;
    for (size_t n = 0; n < c.blocks.size(); ++n) {
      sequences.push_back(std::make_unique<RunningSequence>(
          *executor_,
          RunPlan{
              .prompt = Prompt(40 * n, 30), .block = c.blocks[n], .slot = static_cast<int>(n)}));
      const SequenceStep prefill = sequences[n]->Step();
      sequences[n]->Take(prefill, executor_->Run({.steps = {prefill}}).sequences[0]);
      round.steps.push_back(sequences[n]->Step());
    }
    const ForwardStatistics before = executor_->statistics();
    executor_->Run(round);
    const ForwardStatistics& after = executor_->statistics();
    EXPECT_EQ(after.target_passes - before.target_passes, c.target_passes);
    EXPECT_EQ(after.drafter_passes - before.drafter_passes, c.drafter_passes);
  }
}

// Every way of choosing, all divisions of a round's rows, lengths on both sides of the windows:
// choices, accepted drafts and log-probabilities, bit for bit. Sequences end at different times, so
// the company changes.
TEST_F(ResidentTest, SharedRoundsGiveTheExecutorsTokens) {
  const std::vector<std::vector<int>> divisions = {{4, 4},
                                                   {3, 3, 2},
                                                   {2, 2, 2, 2},
                                                   {1, 7},
                                                   {5, 1, 2},
                                                   {1, 2, 1, 4},
                                                   {1, 1, 1, 1, 1, 1, 1, 1},
                                                   {8, 8},
                                                   {4, 4, 4, 4},
                                                   {1, 8},
                                                   {7, 1, 5, 3},
                                                   {2, 2, 2, 2, 2, 2, 2, 2},
                                                   {8, 8, 4, 4, 1}};
  const std::vector<std::vector<kernels::SamplingSpec>> ways = {
      {{.temperature = 0.0f}},
      {{.temperature = 1.0f}, {.temperature = 0.0f}, {.temperature = 0.6f}},
      {{.temperature = 1.0f, .top_p = 0.9f}, {.temperature = 0.7f, .top_k = 20}},
      {{.temperature = 1.0f, .top_p = 0.9f}, {.temperature = 0.0f}}};
  constexpr size_t kLengths[] = {20, 125, 300, 60, 1100, 7, 130, 511};
  int num_accepted = 0;
  for (size_t d = 0; d < divisions.size(); ++d) {
    for (size_t w = 0; w < ways.size(); ++w) {
      std::vector<RunPlan> plans;
      for (size_t i = 0; i < divisions[d].size(); ++i) {
        kernels::SamplingSpec sampling = ways[w][i % ways[w].size()];
        sampling.seed = 100 * d + i;
        plans.push_back({.prompt = Prompt(13 * i + 7 * d, kLengths[(i + d) % std::size(kLengths)]),
                         .num_new_tokens = 30 + 5 * static_cast<int>(i),
                         .block = divisions[d][i],
                         .chunk = 60,
                         .sampling = sampling,
                         .slot = static_cast<int>(i)});
      }
      for (const int logprobs : {-1, 0}) {
        const std::vector<RecordedRun> got = RecordTogether(*executor_, plans, logprobs);
        for (size_t i = 0; i < plans.size(); ++i) {
          const RecordedRun want = ExpectedRecord(plans[i], logprobs);
          SCOPED_TRACE(
              absl::StrCat("division ", d, " way ", w, " sequence ", i, " logprobs ", logprobs));
          EXPECT_EQ(Difference(got[i], want), "");
          EXPECT_EQ(got[i].num_accepted, want.num_accepted);
          num_accepted += got[i].num_accepted;
        }
      }
    }
  }
  EXPECT_GT(num_accepted, 0);
}

// One joins after the other, every few rounds.
TEST_F(ResidentTest, SequencesJoinOneByOne) {
  std::vector<RunPlan> plans;
  std::vector<std::vector<int32_t>> want;
  for (int i = 0; i < kSlots; ++i) {
    const auto n = static_cast<size_t>(i);
    plans.push_back({.prompt = Prompt(9 * n, 20 + 40 * n),
                     .num_new_tokens = 60,
                     .block = i % 3 == 0 ? 2 : 1,
                     .chunk = 60,
                     .sampling = {.temperature = i % 2 == 0 ? 0.0f : 1.0f, .seed = n},
                     .slot = i});
    want.push_back(Expected(plans.back()));
  }
  EXPECT_EQ(RunTogether(*executor_, plans, /*stagger=*/3), want);
}

TEST_F(ResidentTest, ThousandsOfRoundsOfMixedCompany) {
  RunMixedCompany(*executor_, MixedRuns(), /*num_rounds=*/4000);
}

}  // namespace
}  // namespace ultraspeed::worker
