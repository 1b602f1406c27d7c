// The resident engine on models of other shapes than the bundled one's, with random weights.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/temporary_folder.h"
#include "tests/worker/cpu/recorded_run.h"
#include "tests/worker/model/synthetic_checkpoint.h"
#include "worker/cuda/cuda_executor.h"
#include "worker/cuda/device.h"
#include "worker/cuda/resident_engine.h"

namespace ultraspeed::worker {
namespace {

// Experts need not fill the vectors and words that their choice is made in.
TEST(ResidentShapesTest, TakesAnyNumberOfExperts) {
  if (const absl::Status usable = CudaUsable(); !usable.ok()) GTEST_SKIP() << usable.message();
  for (const int num_experts : {4, 5, 7, 10, 33, 130}) {
    SCOPED_TRACE(absl::StrCat(num_experts, " experts"));
    SyntheticShape shape = kGpuShape;
    shape.expert_ffn_width = 256;
    shape.num_experts = num_experts;
    const TemporaryFolder folder;
    MakeSyntheticCheckpoint(shape).Write(folder.path());
    const absl::StatusOr<std::unique_ptr<cuda::CudaExecutor>> executor = cuda::CudaExecutor::Create(
        {.executor = {.model_folder = folder.path(), .max_sequences = 1, .kv_tokens = 1024},
         .wait_ns_max = 60'000'000'000});  // sanitizers
    ASSERT_TRUE(executor.ok()) << executor.status();
    ASSERT_NE((*executor)->resident(), nullptr) << (*executor)->device();
    for (const int block : {1, 8}) {
      const RunPlan plan{.prompt = RandomPrompt(40, 3),
                         .num_new_tokens = 40,
                         .block = block,
                         .sampling = {.temperature = 1.0f, .seed = 3}};
      (*executor)->UseResident(false);
      const std::vector<int32_t> want = RunAlone(**executor, plan);
      (*executor)->UseResident(true);
      EXPECT_EQ(RunAlone(**executor, plan), want) << "block " << block;
    }
  }
}

}  // namespace
}  // namespace ultraspeed::worker
