// Properties of the executor that hold for any weights: the way to a token does not change the
// token. Random weights, no trained model.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/kernels/instruction_sets.h"
#include "tests/temporary_folder.h"
#include "tests/worker/cpu/sequence_runner.h"
#include "tests/worker/given_drafts.h"
#include "tests/worker/model/synthetic_checkpoint.h"
#include "worker/cpu/cpu_executor.h"

namespace ultraspeed::worker {
namespace {

class ExecutorTest : public testing::Test {
 protected:
  std::unique_ptr<CpuExecutor> Load(const SyntheticShape& shape, ExecutorOptions options = {}) {
    folders_.push_back(std::make_unique<TemporaryFolder>());
    MakeSyntheticCheckpoint(shape).Write(folders_.back()->path());
    options.model_folder = folders_.back()->path();
    if (options.num_threads == 0) options.num_threads = 2;
    options.kv_tokens = 8192;
    absl::StatusOr<std::unique_ptr<CpuExecutor>> executor = CpuExecutor::Create(options);
    EXPECT_TRUE(executor.ok()) << executor.status();
    return *std::move(executor);
  }

  std::vector<std::unique_ptr<TemporaryFolder>> folders_;
};

// Whatever drafts: without a Markov head, or with one of either kind.
class SpeculationTest : public ExecutorTest, public testing::WithParamInterface<SyntheticShape> {};

TEST_P(SpeculationTest, ChangesNoToken) {
  const auto executor = Load(GetParam());
  for (const float temperature : {0.0f, 0.7f, 1.5f}) {
    for (const uint64_t seed : {1, 2, 3}) {
      RunPlan plan{
          .prompt = RandomPrompt(37, seed),
          .num_new_tokens = 90,
          .sampling = {.temperature = temperature, .top_k = 40, .top_p = 0.9f, .seed = seed}};
      const std::vector<int32_t> plain = RunAlone(*executor, plan);
      for (const int block : {2, 5, 8}) {
        plan.block = block;
        EXPECT_EQ(RunAlone(*executor, plan), plain)
            << "temperature " << temperature << " seed " << seed << " block " << block;
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(MarkovHeads, SpeculationTest,
                         testing::Values(SyntheticShape{}, SyntheticShape{.markov_rank = 32},
                                         // A vocabulary whose noise several threads make.
                                         SyntheticShape{.vocabulary = 2176,
                                                        .vocabulary_used = 2100,
                                                        .markov_rank = 64,
                                                        .has_markov_gate = true}));

TEST_F(ExecutorTest, UnlikelyDraftsAreNotVerified) {
  const auto executor = Load({});
  RunPlan plan{.prompt = RandomPrompt(37, 3), .num_new_tokens = 60};
  const auto rows_of_run = [&](float temperature, int block, float reach_min) {
    plan.sampling = {.temperature = temperature, .seed = 5};
    plan.block = 1;
    const std::vector<int32_t> plain = RunAlone(*executor, plan);
    plan.block = block;
    plan.reach_min = reach_min;
    const int64_t before = executor->statistics().target_rows;
    EXPECT_EQ(RunAlone(*executor, plan), plain) << temperature << " " << reach_min;
    return executor->statistics().target_rows - before;
  };
  const int64_t plain = rows_of_run(0, 1, 0), all = rows_of_run(0, 8, 0);
  EXPECT_EQ(rows_of_run(0, 8, 1e-30f), all);
  // Of random weights, whose 120 tokens are about as likely: the first draft's chance is some 1 /
  // 120, the third one's the cube of that.
  const int64_t some = rows_of_run(0, 8, 1e-4f);
  EXPECT_LT(some, all);
  EXPECT_GT(some, plain);
  EXPECT_EQ(rows_of_run(0, 8, 1.5f), plain);  // none is that likely
  // Sampled ones are held likelier (LeastDraftOdds): seven of them at least 0.3^7, two 0.09.
  const int64_t all_sampled = rows_of_run(1, 8, 0), some_sampled = rows_of_run(1, 8, 0.08f);
  EXPECT_EQ(rows_of_run(1, 8, 1e-4f), all_sampled);
  EXPECT_LT(some_sampled, all_sampled);
  EXPECT_GT(some_sampled, plain);
  EXPECT_EQ(rows_of_run(1, 8, 1.5f), plain);
}

TEST_F(ExecutorTest, LogitsKnowNothingOfDraftsBefore) {
  const auto executor = Load({});
  const std::vector<int32_t> tokens = RandomPrompt(24, 9);
  const std::vector<int32_t> pages = {0};
  const auto logits = [&] {
    executor->ResetSlot(0);
    std::vector<float> out(tokens.size() * static_cast<size_t>(executor->config().vocabulary));
    executor->Logits({.tokens = tokens.data(),
                      .num_tokens = static_cast<int>(tokens.size()),
                      .sample = true,
                      .pages = pages.data(),
                      .num_pages = 1},
                     out.data());
    return out;
  };
  const std::vector<float> before = logits();
  RunAlone(*executor, {.prompt = RandomPrompt(37, 3), .num_new_tokens = 20, .block = 8});
  EXPECT_EQ(logits(), before);
}

TEST_F(ExecutorTest, ChunksOfThePromptChangeNoToken) {
  const auto executor = Load({});
  RunPlan plan{.prompt = RandomPrompt(150, 5), .num_new_tokens = 40, .block = 8};
  const std::vector<int32_t> whole = RunAlone(*executor, plan);
  for (const int chunk : {1, 7, 16, 63, 64, 65, 149}) {
    plan.chunk = chunk;
    EXPECT_EQ(RunAlone(*executor, plan), whole) << "chunk " << chunk;
  }
}

TEST_F(ExecutorTest, CompanyChangesNoToken) {
  const auto executor = Load({}, {.max_sequences = 5});
  std::vector<RunPlan> plans;
  for (int i = 0; i < 5; ++i) {
    plans.push_back(
        {.prompt = RandomPrompt(10 + 31 * i, static_cast<uint64_t>(i)),
         .num_new_tokens = 60,
         .block = i % 2 == 0 ? 8 : 1,
         .chunk = 20,
         .sampling = {.temperature = i < 2 ? 0.0f : 1.0f, .seed = static_cast<uint64_t>(i)},
         .slot = (i + 2) % 5});
  }
  std::vector<std::vector<int32_t>> alone;
  for (const RunPlan& plan : plans) alone.push_back(RunAlone(*executor, plan));
  EXPECT_EQ(RunTogether(*executor, plans), alone);
  EXPECT_EQ(RunTogether(*executor, plans, 3), alone);
}

TEST_F(ExecutorTest, RingsWrapWithoutChangingAToken) {
  // 24 rows of a pass + window 16 = a ring of 40, passed many times; the reference has a ring that
  // never wraps.
  RunPlan plan{.prompt = RandomPrompt(100, 9), .num_new_tokens = 300, .block = 8, .chunk = 24};
  const auto small = Load({}, {.max_sequences = 2, .max_batch_tokens = 24});
  const auto large = Load({}, {.max_sequences = 2, .max_batch_tokens = 512});
  const std::vector<int32_t> wrapped = RunAlone(*small, plan);
  EXPECT_EQ(wrapped, RunAlone(*large, plan));
  plan.block = 1;
  EXPECT_EQ(wrapped, RunAlone(*small, plan));
}

TEST_F(ExecutorTest, AUsedSlotIsAsGoodAsNew) {
  const auto executor = Load({});
  RunPlan plan{.prompt = RandomPrompt(30, 1), .num_new_tokens = 50, .block = 8, .slot = 1};
  const std::vector<int32_t> fresh = RunAlone(*executor, plan);
  RunAlone(*executor,
           {.prompt = RandomPrompt(200, 2), .num_new_tokens = 80, .block = 8, .slot = 1});
  EXPECT_EQ(RunAlone(*executor, plan), fresh);
}

TEST_F(ExecutorTest, DraftingMayBeginLateAndPause) {
  // Plain decoding stores taps only; the first speculative round turns them into context.
  const auto executor = Load({});
  const RunPlan plan{.prompt = RandomPrompt(60, 3), .num_new_tokens = 1, .block = 1};
  RunPlan reference = plan;
  reference.num_new_tokens = 120;
  const std::vector<int32_t> plain = RunAlone(*executor, reference);

  std::vector<int32_t> tokens = plan.prompt, pages = {3, 1, 4, 0};
  executor->ResetSlot(0);
  SequenceStep step;
  step.pages = pages.data();
  step.num_pages = 4;
  while (tokens.size() < 180) {
    step.tokens = &tokens[static_cast<size_t>(step.computed)];
    step.num_tokens = static_cast<int>(tokens.size()) - static_cast<int>(step.computed);
    step.sample = true;
    step.block = step.num_tokens == 1 && tokens.size() / 20 % 2 == 0 ? 8 : 1;
    const SequenceResult result = executor->Run({{step}}).sequences[0];
    step.computed += step.num_tokens + result.num_accepted;
    for (const ChosenToken& chosen : result.chosen) tokens.push_back(chosen.token);
  }
  EXPECT_EQ(std::vector<int32_t>(tokens.begin() + 60, tokens.begin() + 180), plain);
}

// Right and wrong ones, more than a drafter's block, in company: the text stays, and what is right
// is accepted.
TEST_F(ExecutorTest, GivenDraftsChangeNoToken) {
  for (const SyntheticShape& shape : {SyntheticShape{}, SyntheticShape{.markov_rank = 32}}) {
    const auto executor = Load(shape, {.max_sequences = 3});
    ASSERT_EQ(executor->given_drafts_max(), kDraftBlockMax - 1);
    for (const float temperature : {0.0f, 1.0f}) {
      std::vector<RunPlan> plans;
      std::vector<std::vector<int32_t>> want;
      std::vector<RunningSequence> sequences;
      for (int slot = 0; slot < 3; ++slot) {
        plans.push_back(
            {.prompt = RandomPrompt(20 + 15 * slot, static_cast<uint64_t>(slot)),
             .num_new_tokens = 90,
             .block = slot == 2 ? 1 : 8,
             .sampling = {.temperature = temperature, .seed = static_cast<uint64_t>(slot)},
             .slot = slot});
        want.push_back(RunAlone(*executor, plans.back()));
      }
      for (const RunPlan& plan : plans) sequences.emplace_back(*executor, plan);
      int num_given = 0;
      for (size_t round_idx = 0;; ++round_idx) {
        Round round;
        std::vector<size_t> active;
        std::vector<GivenDrafts> drafts(3);
        for (size_t s = 0; s < 3; ++s) {
          if (sequences[s].done()) continue;
          active.push_back(s);
          round.steps.push_back(sequences[s].Step());
          if ((round_idx + s) % 3 == 0) continue;
          const size_t count = 1 + round_idx * 5 % (kDraftBlockMax - 1);
          drafts[s].Give(round.steps.back(), plans[s].prompt.size(), want[s], count,
                         round_idx % 2 == 0 ? count / 2 : count);
        }
        if (active.empty()) break;
        const RoundResult result = executor->Run(round);
        for (size_t i = 0; i < active.size(); ++i) {
          const SequenceStep& step = round.steps[i];
          const SequenceResult& got = result.sequences[i];
          EXPECT_EQ(got.took_own, step.brings_drafts());
          if (step.brings_drafts()) {
            EXPECT_EQ(got.num_drafted, step.num_drafts);
            EXPECT_EQ(got.num_accepted, drafts[active[i]].num_right());
            ++num_given;
          }
          sequences[active[i]].Take(step, got);
        }
      }
      EXPECT_GT(num_given, 20);
      for (size_t s = 0; s < 3; ++s) EXPECT_EQ(sequences[s].output(), want[s]) << s;
    }
  }
}

// A drafter's context does not depend on who drafted before.
TEST_F(ExecutorTest, TheDrafterGoesOnBehindGivenDrafts) {
  const auto executor = Load({});
  const RunPlan plan{.prompt = RandomPrompt(50, 8), .num_new_tokens = 64, .block = 8};
  const std::vector<int32_t> want = RunAlone(*executor, plan);
  const auto accepted_behind = [&](bool given) {
    RunningSequence sequence(*executor, plan);
    std::vector<int> accepted;
    while (!sequence.done()) {
      SequenceStep step = sequence.Step();
      const int64_t known = step.computed + 1 - static_cast<int64_t>(plan.prompt.size());
      if (known > 0 && known < 40) {  // one token a round, either way
        step.block = 1;
        const int32_t wrong = (want[static_cast<size_t>(known)] + 1) % 16;
        step.drafts = &wrong;
        step.num_drafts = given ? 1 : 0;
        sequence.Take(step, executor->Run({.steps = {step}}).sequences[0]);
        continue;
      }
      const SequenceResult result = executor->Run({.steps = {step}}).sequences[0];
      sequence.Take(step, result);
      if (known > 0) accepted.push_back(result.num_accepted);
    }
    EXPECT_EQ(sequence.output(), want);
    return accepted;
  };
  EXPECT_EQ(accepted_behind(true), accepted_behind(false));
}

TEST_F(ExecutorTest, ThreadsAndSplitFilesChangeNoToken) {
  RunPlan plan{.prompt = RandomPrompt(70, 4),
               .num_new_tokens = 60,
               .block = 8,
               .sampling = {.temperature = 1, .seed = 9}};
  const std::vector<int32_t> reference = RunAlone(*Load({}, {.num_threads = 1}), plan);
  EXPECT_EQ(RunAlone(*Load({}, {.num_threads = 3}), plan), reference);

  SyntheticCheckpoint checkpoint = MakeSyntheticCheckpoint({});
  checkpoint.write_index = true;
  TemporaryFolder folder;
  checkpoint.Write(folder.path());
  auto executor =
      CreateCpuExecutor({.model_folder = folder.path(), .kv_tokens = 8192, .num_threads = 2});
  ASSERT_TRUE(executor.ok()) << executor.status();
  EXPECT_EQ(RunAlone(**executor, plan), reference);
}

TEST_F(ExecutorTest, InstructionSetsOfOneOrderAgreeOnTheTokens) {
  RunPlan plan{.prompt = RandomPrompt(70, 4),
               .num_new_tokens = 60,
               .block = 8,
               .sampling = {.temperature = 1, .seed = 9}};
  kernels::ForEachOrder([&] { return RunAlone(*Load({}), plan); },
                        [&](kernels::InstructionSet set, const std::vector<int32_t>& reference) {
                          EXPECT_EQ(RunAlone(*Load({}), plan), reference) << kernels::Name(set);
                        });
}

TEST_F(ExecutorTest, OtherShapesRun) {
  for (const SyntheticShape& shape :
       {SyntheticShape{.num_q_heads = 2, .num_kv_heads = 2, .qk_head_dim = 32, .v_head_dim = 16},
        SyntheticShape{.num_q_heads = 6, .num_kv_heads = 1, .qk_head_dim = 96, .v_head_dim = 64},
        SyntheticShape{.hidden = 160, .num_layers = 3, .experts_per_token = 8, .block_size = 4}}) {
    const auto executor = Load(shape);
    RunPlan plan{.prompt = RandomPrompt(40, 8), .num_new_tokens = 40};
    const std::vector<int32_t> plain = RunAlone(*executor, plan);
    plan.block = shape.block_size;
    EXPECT_EQ(RunAlone(*executor, plan), plain);
  }
}

TEST_F(ExecutorTest, AModelWithoutDrafterDecodesPlainly) {
  const auto with = Load({}), without = Load({.drafter_layers = 0});
  // The mask token of the drafter is excluded only where there is one; a greedy text that does not
  // meet it is equal.
  const RunPlan plan{.prompt = RandomPrompt(40, 8), .num_new_tokens = 20};
  EXPECT_EQ(without->config().drafter.num_layers, 0);
  EXPECT_EQ(RunAlone(*without, plan).size(), 20u);
  EXPECT_EQ(RunAlone(*with, plan).size(), 20u);
}

TEST_F(ExecutorTest, NeverChoosesUnusedIdsNorTheMask) {
  const auto executor = Load({});
  EXPECT_EQ(executor->vocabulary_used(), 120);
  for (uint64_t seed = 0; seed < 8; ++seed) {
    for (const int32_t token :
         RunAlone(*executor, {.prompt = RandomPrompt(5, seed),
                             .num_new_tokens = 200,
                             .block = 8,
                             .sampling = {.temperature = 50, .seed = seed}})) {
      ASSERT_LT(token, 119);
    }
  }
}

TEST_F(ExecutorTest, ReportsLogprobsAndAlternatives) {
  const auto executor = Load({});
  std::vector<int32_t> prompt = RandomPrompt(20, 1), pages = {0};
  SequenceStep step{.tokens = prompt.data(),
                    .num_tokens = 20,
                    .sample = true,
                    .pages = pages.data(),
                    .num_pages = 1,
                    .logprobs = 3};
  const ChosenToken chosen = executor->Run({{step}}).sequences[0].chosen.at(0);
  ASSERT_EQ(chosen.top_tokens.size(), 3u);
  EXPECT_EQ(chosen.top_tokens[0], chosen.token);
  EXPECT_FLOAT_EQ(chosen.top_logprobs[0], chosen.logprob);
  EXPECT_GE(chosen.top_logprobs[0], chosen.top_logprobs[1]);
  EXPECT_GE(chosen.top_logprobs[1], chosen.top_logprobs[2]);
  EXPECT_LE(chosen.logprob, 0);
}

// The token after one prompt, drawn under many seeds with speculation, against the softmax of the
// same logits: chi-square.
TEST_F(ExecutorTest, SampledTokensFollowTheSoftmax) {
  const auto executor = Load({});
  const std::vector<int32_t> prompt = RandomPrompt(12, 6);
  std::vector<int32_t> pages = {0};
  // The distribution of the token at position 13, given the greedy one at 12.
  SequenceStep step{.tokens = prompt.data(),
                    .num_tokens = 12,
                    .sample = true,
                    .pages = pages.data(),
                    .num_pages = 1};
  const int32_t anchor = executor->Run({{step}}).sequences[0].chosen.at(0).token;
  const TargetSequence sequence = {0, pages.data(), 1};
  const TargetRow row = {anchor, 12, 0};
  executor->target().Run({&sequence, 1}, {&row, 1});
  std::vector<float> logits(static_cast<size_t>(executor->config().vocabulary));
  const int zero = 0;
  executor->target().Logits({&zero, 1}, logits.data());
  constexpr int kUsed = 119;
  constexpr double kTemperature = 1.3;
  std::vector<double> probability(kUsed);
  double sum = 0;
  for (int i = 0; i < kUsed; ++i)
    sum += probability[static_cast<size_t>(i)] =
        std::exp(logits[static_cast<size_t>(i)] / kTemperature);

  constexpr int kDraws = 6000;
  std::vector<int> count(kUsed);
  SequenceStep draw{.computed = 12,
                    .tokens = &anchor,
                    .num_tokens = 1,
                    .sample = true,
                    .block = 3,
                    .pages = pages.data(),
                    .num_pages = 1};
  draw.sampling.temperature = kTemperature;
  for (int i = 0; i < kDraws; ++i) {
    executor->ResetSlot(0);
    executor->Run({{step}});
    draw.sampling.seed = static_cast<uint64_t>(i);
    ++count[static_cast<size_t>(executor->Run({{draw}}).sequences[0].chosen.at(0).token)];
  }
  // Cells of at least 8 expected draws; the rest is one cell.
  double chi_square = 0, rest_expected = 0, rest_seen = 0;
  int cells = 0;
  for (size_t i = 0; i < kUsed; ++i) {
    const double expected = kDraws * probability[i] / sum;
    if (expected < 8) {
      rest_expected += expected;
      rest_seen += count[i];
      continue;
    }
    chi_square += (count[i] - expected) * (count[i] - expected) / expected;
    ++cells;
  }
  if (rest_expected > 0)
    chi_square += (rest_seen - rest_expected) * (rest_seen - rest_expected) / rest_expected;
  ASSERT_GE(cells, 3);
  // Mean `cells`, deviation sqrt(2 cells): five deviations. Sampling at temperature 1 instead would
  // be tens of deviations off.
  EXPECT_LT(chi_square, cells + 5 * std::sqrt(2.0 * cells)) << cells << " cells";
}

TEST(ExecutorDeathTest, WrongRoundsAbort) {
  TemporaryFolder folder;
  MakeSyntheticCheckpoint({}).Write(folder.path());
  const auto executor =
      *CpuExecutor::Create({.model_folder = folder.path(), .kv_tokens = 1024, .num_threads = 1});
  const int32_t token = 1;
  std::vector<int32_t> pages = {0};
  const SequenceStep good{
      .tokens = &token, .num_tokens = 1, .sample = true, .pages = pages.data(), .num_pages = 1};
  SequenceStep step = good;
  step.slot = 8;
  EXPECT_DEATH(executor->Run({{step}}), "slot");
  step = good;
  step.block = 9;
  EXPECT_DEATH(executor->Run({{step}}), "block");
  step = good;
  step.drafts = &token;
  step.num_drafts = kDraftBlockMax;
  EXPECT_DEATH(executor->Run({{step}}), "num_drafts");
  step = good;
  step.computed = 64;
  EXPECT_DEATH(executor->Run({{step}}), "num_pages");
}

TEST(ExecutorOptionsTest, ValuesOutOfRangeAreRefusedByName) {
  const auto message = [](const ExecutorOptions& options) {
    return std::string(CreateCpuExecutor(options).status().message());
  };
  EXPECT_EQ(message({.kv_precision = KvPrecision::kFp8}),
            "kv_precision: is fp8; the CPU executor takes bf16 only");
  EXPECT_EQ(message({.max_sequences = 0}), "max_sequences: is 0; must be from 1 to 1024");
  EXPECT_EQ(message({.max_batch_tokens = 4}), "max_batch_tokens: is 4; must be from 16 to 16384");
  EXPECT_EQ(message({.kv_tokens = -1}), "kv_tokens: is -1; must be from 1 to 67108864");
  EXPECT_EQ(message({.num_threads = -2}), "num_threads: is -2; must be from 0 to 1024");
  EXPECT_EQ(message({.model_folder = "/no/such"}), "/no/such: no such folder");
}

}  // namespace
}  // namespace ultraspeed::worker
