// Choices that are held to something, on a model over several GPUs, by both engines: every rank
// makes the same masks, or gets those of the first.
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/worker/cuda/ranks_fixture.h"
#include "tests/worker/scripted_constraint.h"

namespace ultraspeed::worker {
namespace {

TEST(CudaRanksConstraintTest, HoldsAndDraftsDoNotChangeTheText) {
  ASSERT_TRUE(kEnvironmentIsSet);
  if (NumGpus() < 2) GTEST_SKIP() << "needs 2 GPUs, has " << NumGpus();
  absl::StatusOr<std::unique_ptr<cuda::NodeExecutor>> executor =
      cuda::NodeExecutor::Create({.executor = {.model_folder = kBundledModel,
                                               .max_sequences = 2,
                                               .kv_tokens = 8192,
                                               .num_ranks = 2},
                                  .wait_ns_max = 20'000'000'000});
  ASSERT_TRUE(executor.ok()) << executor.status();
  const std::vector<int32_t> tokens = Reference().Values<int32_t>("tokens");
  for (const float temperature : {0.0f, 1.0f}) {
    RunPlan plan = {.prompt = {tokens.begin(), tokens.begin() + 70},
                    .num_new_tokens = 40,
                    .block = 1,
                    .sampling = {.temperature = temperature, .seed = 6}};
    (*executor)->UseResident(false);
    const ConstrainedRun plain = RunConstrained(**executor, plan);
    EXPECT_TRUE(ScriptedConstraint::Allows(plain.tokens));
    for (const bool resident : {false, true}) {
      (*executor)->UseResident(resident);
      for (const int block : {8, 8, 8, 1}) {  // launched, captured, replayed
        SCOPED_TRACE(
            absl::StrCat("resident ", resident, " temperature ", temperature, " block ", block));
        plan.block = block;
        EXPECT_EQ(RunConstrained(**executor, plan).tokens, plain.tokens);
      }
    }
  }
}

}  // namespace
}  // namespace ultraspeed::worker
