// Choices that are held to something, by the executor of single operations: the resident engine
// leaves them to it.
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/worker/cpu/bundled_model.h"
#include "tests/worker/cpu/recorded_run.h"
#include "tests/worker/scripted_constraint.h"
#include "worker/cuda/cuda_executor.h"
#include "worker/cuda/device.h"

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

// The same with drafts and without; and again, when its graphs replay.
TEST_F(CudaConstraintTest, HoldsAndDraftsDoNotChangeTheText) {
  int num_accepted = 0;
  for (const kernels::SamplingSpec& way : kWays) {
    for (const size_t length : {5, 200}) {
      const ConstrainedRun plain = RunConstrained(*executor_, Plan(length, 1, way, 0));
      EXPECT_TRUE(ScriptedConstraint::Allows(plain.tokens));
      for (const int block : {2, 3, 8, 8}) {
        SCOPED_TRACE(absl::StrCat("temperature ", way.temperature, " top_p ", way.top_p, " top_k ",
                                  way.top_k, " length ", length, " block ", block));
        const ConstrainedRun fast = RunConstrained(*executor_, Plan(length, block, way, 1));
        EXPECT_EQ(fast.tokens, plain.tokens);
        num_accepted += fast.num_accepted;
        EXPECT_EQ(RunConstrained(*executor_, Plan(length, block, way, 2), nullptr, 3).tokens,
                  plain.tokens);
      }
    }
  }
  EXPECT_GT(num_accepted, 0);
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
