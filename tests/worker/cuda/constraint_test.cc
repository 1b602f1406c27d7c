// Choices that are held to something, by both engines.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/worker/cpu/bundled_model.h"
#include "tests/worker/cpu/recorded_run.h"
#include "tests/worker/scripted_constraint.h"
#include "worker/cuda/cuda_executor.h"
#include "worker/cuda/device.h"
#include "worker/cuda/resident_engine.h"

namespace ultraspeed::worker {
namespace {

class CudaConstraintTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const absl::Status usable = CudaUsable(); !usable.ok()) GTEST_SKIP() << usable.message();
    absl::StatusOr<std::unique_ptr<cuda::CudaExecutor>> executor = cuda::CudaExecutor::Create(
        {.executor = {.model_folder = kBundledModel, .max_sequences = 4, .kv_tokens = 16384},
         .wait_ns_max = 60'000'000'000});  // sanitizers
    ASSERT_TRUE(executor.ok()) << executor.status();
    executor_ = *std::move(executor);
    tokens_ = Reference().Values<int32_t>("tokens");
  }
  RunPlan Plan(size_t length, int block, const kernels::SamplingSpec& sampling, int slot) const {
    return {.prompt = {tokens_.begin(), tokens_.begin() + static_cast<ptrdiff_t>(length)},
            .num_new_tokens = 40,
            .block = block,
            .sampling = sampling,
            .slot = slot};
  }

  std::unique_ptr<cuda::CudaExecutor> executor_;
  std::vector<int32_t> tokens_;
};

const std::vector<kernels::SamplingSpec> kWays = {{.temperature = 0.0f},
                                                  {.temperature = 1.0f, .seed = 3},
                                                  {.temperature = 1.0f, .top_p = 0.9f, .seed = 4},
                                                  {.temperature = 0.7f, .top_k = 20, .seed = 5}};

// The same with drafts and without; and again, when its graphs replay; on the resident engine, too,
// which does not offer alternatives.
TEST_F(CudaConstraintTest, HoldsAndDraftsDoNotChangeTheText) {
  int num_accepted = 0;
  for (const kernels::SamplingSpec& way : kWays) {
    for (const size_t length : {5, 200}) {
      executor_->UseResident(false);
      const ConstrainedRun plain = RunConstrained(*executor_, Plan(length, 1, way, 0), nullptr, 0);
      EXPECT_TRUE(ScriptedConstraint::Allows(plain.tokens));
      for (const int block : {1, 2, 3, 8, 8}) {
        SCOPED_TRACE(absl::StrCat("temperature ", way.temperature, " top_p ", way.top_p, " top_k ",
                                  way.top_k, " length ", length, " block ", block));
        executor_->UseResident(false);
        const ConstrainedRun fast =
            RunConstrained(*executor_, Plan(length, block, way, 1), nullptr, 0);
        EXPECT_EQ(fast.tokens, plain.tokens);
        EXPECT_EQ(fast.logprobs, plain.logprobs);
        num_accepted += fast.num_accepted;
        EXPECT_EQ(RunConstrained(*executor_, Plan(length, block, way, 2), nullptr, 3).tokens,
                  plain.tokens);
        executor_->UseResident(true);
        for (const int logprobs : {-1, 0}) {
          const ConstrainedRun resident =
              RunConstrained(*executor_, Plan(length, block, way, 3), nullptr, logprobs);
          EXPECT_EQ(resident.tokens, plain.tokens);
          EXPECT_EQ(resident.num_accepted, fast.num_accepted);
          if (logprobs == 0) {
            EXPECT_EQ(resident.logprobs, plain.logprobs);
          }
        }
      }
    }
  }
  EXPECT_GT(num_accepted, 0);
}

TEST_F(CudaConstraintTest, TheResidentEngineTakesThem) {
  const ScriptedConstraint constraint(executor_->vocabulary_used());
  RunningSequence sequence(*executor_, Plan(5, 8, kWays[0], 0));
  const SequenceStep prefill = sequence.Step();
  sequence.Take(prefill, executor_->Run({.steps = {prefill}}).sequences[0]);
  SequenceStep step = sequence.Step();
  step.constraint = &constraint;
  EXPECT_TRUE(executor_->resident()->Takes(step));
}

// A kernel that is sent no masks gives up its round, not the process, and the GPU is free.
TEST_F(CudaConstraintTest, AHostThatStaysAwayLosesNothing) {
  executor_.reset();
  constexpr uint64_t kWaitNs = 1'000'000'000;
  absl::StatusOr<std::unique_ptr<cuda::CudaExecutor>> executor = cuda::CudaExecutor::Create(
      {.executor = {.model_folder = kBundledModel, .max_sequences = 4, .kv_tokens = 16384},
       .wait_ns_max = kWaitNs});
  ASSERT_TRUE(executor.ok()) << executor.status();
  executor_ = *std::move(executor);
  executor_->UseResident(false);
  const std::vector<int32_t> want = RunConstrained(*executor_, Plan(60, 8, kWays[1], 0)).tokens;
  executor_->UseResident(true);
  HeldSequence sequence(*executor_, Plan(60, 8, kWays[1], 0));
  for (int r = 0; !sequence.done(); ++r) {
    if (r == 5) std::this_thread::sleep_for(std::chrono::nanoseconds(kWaitNs));
    const Round round{.steps = {sequence.Step()}};
    sequence.Take(round.steps[0], executor_->Run(round).sequences[0]);
  }
  EXPECT_EQ(sequence.output(), want);
}

// Sequences that do not fit in one round, and one that leaves in the middle of a session.
TEST_F(CudaConstraintTest, HeldSequencesTakeTurns) {
  executor_->UseResident(false);
  std::vector<std::vector<int32_t>> want;
  for (int i = 0; i < 3; ++i)
    want.push_back(RunConstrained(*executor_, Plan(30 + 20 * i, 8, kWays[i % 2], i)).tokens);
  executor_->UseResident(true);
  std::vector<std::unique_ptr<HeldSequence>> sequences;
  for (int i = 0; i < 3; ++i) {
    sequences.push_back(
        std::make_unique<HeldSequence>(*executor_, Plan(30 + 20 * i, 8, kWays[i % 2], i)));
  }
  for (int r = 0; std::any_of(sequences.begin(), sequences.end(),
                              [](const auto& sequence) { return !sequence->done(); });
       ++r) {
    Round round;
    std::vector<HeldSequence*> members;
    for (size_t i = 0; i < sequences.size(); ++i) {
      if (sequences[i]->done() || (r % 9 > 5 && i > 0)) continue;  // for a while the first is alone
      members.push_back(sequences[i].get());
      round.steps.push_back(members.back()->Step());
    }
    if (members.empty()) continue;
    const RoundResult result = executor_->Run(round);
    for (size_t m = 0; m < members.size(); ++m)
      members[m]->Take(round.steps[m], result.sequences[m]);
  }
  for (size_t i = 0; i < sequences.size(); ++i) EXPECT_EQ(sequences[i]->output(), want[i]) << i;
}

// Nor does who runs beside it, on either engine, in blocks of the same size and of another.
TEST_F(CudaConstraintTest, OthersInTheRoundAreFree) {
  for (const bool resident : {true, false}) {
    executor_->UseResident(resident);
    for (const int block : {1, 8}) {
      const ConstrainedRun alone = RunConstrained(*executor_, Plan(60, block, kWays[1], 0));
      const RunPlan other = Plan(90, 8, kWays[0], 1);
      const std::vector<int32_t> want = RunAlone(*executor_, other);
      RunningSequence beside(*executor_, other);
      const ConstrainedRun together =
          RunConstrained(*executor_, Plan(60, block, kWays[1], 0), &beside);
      EXPECT_EQ(together.tokens, alone.tokens);
      EXPECT_EQ(beside.output(), want);
      EXPECT_FALSE(ScriptedConstraint::Allows(want));
    }
  }
}

}  // namespace
}  // namespace ultraspeed::worker
