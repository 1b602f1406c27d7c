// The same bits on any number of threads and on every instruction set that this machine has.
#include "tests/worker/cpu/bundled_model.h"
#include "tests/worker/cpu/recorded_run.h"

namespace ultraspeed::worker {
namespace {

std::vector<int32_t> Prompt(size_t begin = 0, size_t count = 240) {
  const std::vector<int32_t> tokens = Reference().Values<int32_t>("tokens");
  return {tokens.begin() + static_cast<ptrdiff_t>(begin),
          tokens.begin() + static_cast<ptrdiff_t>(begin + count)};
}

kernels::SamplingSpec Sampled(uint64_t seed) {
  return {.temperature = 1.0f, .top_p = 0.95f, .seed = seed};
}

TEST(CpuBitwiseTest, OneThreadOrTwo) {
  const RunPlan plan{.prompt = Prompt(), .num_new_tokens = 40, .block = 8, .sampling = Sampled(6)};
  const std::unique_ptr<ModelExecutor> single = LoadBundledModel({.num_threads = 1});
  const std::unique_ptr<ModelExecutor> two = LoadBundledModel();
  ASSERT_NE(single, nullptr);
  ASSERT_NE(two, nullptr);
  EXPECT_EQ(Difference(Record(*single, plan), Record(*two, plan)), "");
}

TEST(CpuBitwiseTest, EveryInstructionSet) {
  const RunPlan plan{.prompt = Prompt(0, 40),
                     .num_new_tokens = 10,
                     .block = 8,
                     .sampling = Sampled(7)};  // scalar code is slow
  const std::unique_ptr<ModelExecutor> executor = LoadBundledModel();
  ASSERT_NE(executor, nullptr);
  const RecordedRun best = Record(*executor, plan);
  const kernels::InstructionSet detected = kernels::DetectInstructionSet();
  for (int set = 0; set < static_cast<int>(detected); ++set) {
    kernels::SetInstructionSet(static_cast<kernels::InstructionSet>(set));
    const std::unique_ptr<ModelExecutor> other = LoadBundledModel();
    ASSERT_NE(other, nullptr);
    EXPECT_EQ(Difference(Record(*other, plan), best), "") << other->device();
  }
  kernels::SetInstructionSet(detected);
}

}  // namespace
}  // namespace ultraspeed::worker
