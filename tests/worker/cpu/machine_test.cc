// The same bits on any number of threads and on every instruction set of one order of sums.
#include "tests/kernels/instruction_sets.h"
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
  const auto run = [&] {
    const std::unique_ptr<ModelExecutor> executor = LoadBundledModel();
    return executor == nullptr ? RecordedRun() : Record(*executor, plan);
  };
  kernels::ForEachOrder(run, [&](kernels::InstructionSet set, const RecordedRun& first) {
    EXPECT_FALSE(first.chosen.empty());
    EXPECT_EQ(Difference(run(), first), "") << kernels::Name(set);
  });
}

}  // namespace
}  // namespace ultraspeed::worker
