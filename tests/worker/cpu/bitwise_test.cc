// One text, many ways to it: chunks, company, speculation, used slots.
// Every way must give the same bits of every log-probability, not only the same tokens: a
// difference that no token shows yet is a difference.
#include "tests/worker/cpu/bundled_model.h"
#include "tests/worker/cpu/recorded_run.h"

namespace ultraspeed::worker {
namespace {

// 240 tokens of the reference's text: longer than the sliding window.
std::vector<int32_t> Prompt(size_t begin = 0, size_t count = 240) {
  static const std::vector<int32_t> tokens = Reference().Values<int32_t>("tokens");
  return {tokens.begin() + static_cast<ptrdiff_t>(begin),
          tokens.begin() + static_cast<ptrdiff_t>(begin + count)};
}

kernels::SamplingSpec Sampled(uint64_t seed, int top_k = 0) {
  return {.temperature = 1.0f, .top_k = top_k, .top_p = 0.95f, .seed = seed};
}

class BitwiseTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const absl::Status device = DeviceUnderTest(); !device.ok())
      GTEST_SKIP() << device.message();
    executor_ = LoadBundledModel();
    ASSERT_NE(executor_, nullptr);
  }
  std::unique_ptr<ModelExecutor> executor_;
};

TEST_F(BitwiseTest, TheSameRunTwice) {
  const RunPlan plan{.prompt = Prompt(), .num_new_tokens = 40, .sampling = Sampled(1)};
  EXPECT_EQ(Difference(Record(*executor_, plan), Record(*executor_, plan)), "");
}

TEST_F(BitwiseTest, TwoSeedsDiffer) {
  RunPlan plan{.prompt = Prompt(), .num_new_tokens = 40, .sampling = Sampled(1)};
  const RecordedRun first = Record(*executor_, plan);
  plan.sampling.seed = 2;
  EXPECT_NE(Difference(first, Record(*executor_, plan)), "");
}

TEST_F(BitwiseTest, PromptsInAnyChunks) {
  RunPlan plan{.prompt = Prompt(), .num_new_tokens = 12, .block = 8};
  const RecordedRun whole = Record(*executor_, plan);
  for (const int chunk : {1, 2, 7, 31, 64, 100, 127, 128, 129, 239}) {
    plan.chunk = chunk;
    EXPECT_EQ(Difference(Record(*executor_, plan), whole), "") << "chunks of " << chunk;
  }
}

TEST_F(BitwiseTest, SpeculationWithAnyBlock) {
  for (const kernels::SamplingSpec& sampling :
       {kernels::SamplingSpec{}, Sampled(1), Sampled(2), Sampled(3, 40), Sampled(4, 1)}) {
    RunPlan plan{.prompt = Prompt(), .num_new_tokens = 50, .sampling = sampling};
    const RecordedRun plain = Record(*executor_, plan);
    EXPECT_EQ(plain.num_rounds, 50);
    for (const int block : {3, 8}) {
      plan.block = block;
      EXPECT_EQ(Difference(Record(*executor_, plan), plain), "")
          << "block " << block << " temperature " << sampling.temperature << " top_k "
          << sampling.top_k << " seed " << sampling.seed;
    }
  }
}

TEST_F(BitwiseTest, AnyNumberOfSequencesInOneRound) {
  std::vector<RunPlan> plans;
  std::vector<RecordedRun> alone;
  for (int i = 0; i < 8; ++i) {
    const auto offset = static_cast<size_t>(i);
    plans.push_back({.prompt = Prompt(offset * 7, 40 + offset * 25),
                     .num_new_tokens = 30,
                     .block = i % 3 == 2 ? 1 : 8,
                     .chunk = 30,
                     .sampling = i % 2 == 0 ? kernels::SamplingSpec{} : Sampled(offset),
                     .slot = i});
    alone.push_back(Record(*executor_, plans.back()));
  }
  for (const size_t count : {size_t{1}, size_t{2}, size_t{3}, size_t{5}, size_t{8}}) {
    const std::vector<RecordedRun> together =
        RecordTogether(*executor_, {plans.begin(), plans.begin() + static_cast<ptrdiff_t>(count)});
    for (size_t i = 0; i < count; ++i)
      EXPECT_EQ(Difference(together[i], alone[i]), "") << "sequence " << i << " of " << count;
  }
}

TEST_F(BitwiseTest, APagesPlaceIsNoMatter) {
  const std::vector<int32_t> prompt = Prompt();
  std::vector<int32_t> forward = AllPages(*executor_), backward(forward.rbegin(), forward.rend());
  std::vector<RecordedRun> runs(2);
  for (size_t i = 0; i < 2; ++i) {
    executor_->ResetSlot(0);
    const std::vector<int32_t>& pages = i == 0 ? forward : backward;
    const SequenceStep step{.tokens = prompt.data(),
                            .num_tokens = static_cast<int>(prompt.size()),
                            .sample = true,
                            .pages = pages.data(),
                            .num_pages = 5,
                            .logprobs = 8};
    runs[i].chosen = executor_->Run({{step}}).sequences[0].chosen;
  }
  EXPECT_EQ(Difference(runs[0], runs[1]), "");
}

// 940 tokens wrap every ring: a sliding layer's has the window's 128 rows, those of one pass and 48
// more.
TEST_F(BitwiseTest, PastTheRingsInOnePassOrMany) {
  RunPlan plan{.prompt = Prompt(), .num_new_tokens = 700, .sampling = Sampled(5)};
  const RecordedRun plain = Record(*executor_, plan, 1);
  plan.block = 8;
  EXPECT_EQ(Difference(Record(*executor_, plan, 1), plain), "");
  // The text so far as a prompt, in uneven chunks, continues with the same bits.
  RunPlan rest{.prompt = plan.prompt,
               .num_new_tokens = 20,
               .block = 8,
               .chunk = 77,
               .sampling = plan.sampling};
  for (size_t i = 0; i < 680; ++i) rest.prompt.push_back(plain.chosen[i].token);
  EXPECT_EQ(Difference(Record(*executor_, rest, 1),
                       {.chosen = {plain.chosen.begin() + 680, plain.chosen.end()}}),
            "");
}

TEST_F(BitwiseTest, AUsedSlot) {
  RunPlan plan{.prompt = Prompt(0, 100), .num_new_tokens = 40, .block = 8, .slot = 3};
  const RecordedRun fresh = Record(*executor_, plan);
  Record(*executor_, {.prompt = Prompt(50, 200),
                      .num_new_tokens = 300,
                      .block = 8,
                      .sampling = Sampled(9),
                      .slot = 3});
  EXPECT_EQ(Difference(Record(*executor_, plan), fresh), "");
}

// As the engine does when a sequence ends: the border of the last page, behind which rows have run.
TEST_F(BitwiseTest, FromASnapshotOfAnEndedSequence) {
  for (const int logprobs : {0, 4}) {  // the GPU's resident engine gives no alternatives
    for (const int num_new_tokens : {30, 100, 700}) {
      std::vector<RunningSequence> begun;
      const RunPlan plan{.prompt = Prompt(0, 70),
                         .num_new_tokens = num_new_tokens,
                         .block = 8,
                         .sampling = Sampled(5),
                         .slot = 2};
      begun.emplace_back(*executor_, plan);
      RecordToEnd(*executor_, begun, logprobs);
      const int64_t border = begun[0].computed() / kPageTokens * kPageTokens;
      executor_->SaveSnapshot(1, plan.slot, border);
      RunPlan next{.prompt = plan.prompt,
                   .num_new_tokens = 40,
                   .block = 8,
                   .sampling = Sampled(6),
                   .slot = 5};
      const std::vector<int32_t> output = begun[0].output(), question = Prompt(100, 20);
      next.prompt.insert(next.prompt.end(), output.begin(), output.end());
      next.prompt.insert(next.prompt.end(), question.begin(), question.end());
      EXPECT_EQ(DifferenceFromSnapshot(*executor_, next, begun[0], 1, border, logprobs), "")
          << num_new_tokens << " tokens, logprobs " << logprobs;
    }
  }
}

// Borders anywhere in a prompt that one pass has computed; the sequence then goes on and overwrites
// its rings.
TEST_F(BitwiseTest, FromSnapshotsWithinAPrompt) {
  std::vector<RunningSequence> begun;
  const RunPlan plan{.prompt = Prompt(), .num_new_tokens = 600, .block = 8, .slot = 2};
  begun.emplace_back(*executor_, plan);
  const SequenceStep prompt = begun[0].Step();
  begun[0].Take(prompt, executor_->Run({{prompt}}).sequences[0]);
  for (int i = 0; i < 3; ++i) executor_->SaveSnapshot(i, plan.slot, (i + 1) * kPageTokens);
  RecordToEnd(*executor_, begun, 0);
  for (int i = 0; i < 3; ++i) {
    const int64_t border = (i + 1) * kPageTokens;
    RunPlan next{.prompt = Prompt(0, static_cast<size_t>(border)),
                 .num_new_tokens = 40,
                 .block = 8,
                 .sampling = Sampled(7),
                 .slot = 5};
    next.prompt.push_back(100 + i);
    EXPECT_EQ(DifferenceFromSnapshot(*executor_, next, begun[0], i, border, 4), "") << border;
  }
}

// The drafter works on text that nobody trained it on: more than 1.2 tokens come of a round,
// sampled as well as greedy.
TEST_F(BitwiseTest, DraftsAreAccepted) {
  for (const kernels::SamplingSpec& sampling : {kernels::SamplingSpec{}, Sampled(1)}) {
    int rounds = 0, accepted = 0;
    for (size_t begin = 0; begin < 240; begin += 30) {
      const RecordedRun run = Record(
          *executor_,
          {.prompt = Prompt(begin, 60), .num_new_tokens = 60, .block = 8, .sampling = sampling}, 0);
      rounds += run.num_rounds - 1;  // the prompt's last row drafts nothing
      accepted += run.num_accepted;
    }
    const double tokens_per_round = 1 + static_cast<double>(accepted) / rounds;
    std::printf("temperature %g: %.2f tokens per round\n", sampling.temperature, tokens_per_round);
    EXPECT_GT(tokens_per_round, 1.2);
  }
}

}  // namespace
}  // namespace ultraspeed::worker
