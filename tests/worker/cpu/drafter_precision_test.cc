// The drafter's weights in FP8: half the bytes, nearly the same drafts, the same text.
#include <gtest/gtest.h>

#include "bench/held_out.h"
#include "tests/worker/cpu/bundled_model.h"
#include "tests/worker/cpu/sequence_runner.h"
#include "worker/cpu/cpu_executor.h"

namespace ultraspeed::worker {
namespace {

std::unique_ptr<CpuExecutor> Load(DrafterPrecision precision, int num_ranks = 1) {
  absl::StatusOr<std::unique_ptr<CpuExecutor>> executor =
      CpuExecutor::Create({.model_folder = kBundledModel,
                           .max_sequences = 1,
                           .kv_tokens = 2048,
                           .num_threads = 2,
                           .drafter_precision = precision,
                           .num_ranks = num_ranks});
  EXPECT_TRUE(executor.ok()) << executor.status();
  return *std::move(executor);
}

TEST(DrafterPrecisionTest, Fp8HalvesWhatDraftingReadsAndChangesNoToken) {
  const auto bf16 = Load(DrafterPrecision::kBf16), fp8 = Load(DrafterPrecision::kFp8),
             ranks = Load(DrafterPrecision::kFp8, 2);
  const absl::StatusOr<std::vector<bench::HeldOutPrompt>> prompts =
      bench::LoadHeldOutPrompts(kBundledModel, bf16->config());
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  for (size_t i = 0; i < prompts->size(); i += 5) {
    RunPlan plan{.prompt = (*prompts)[i].tokens,
                 .num_new_tokens = 48,
                 .block = 8,
                 .sampling = {.temperature = i % 2 == 0 ? 0.0f : 0.7f, .seed = i}};
    const std::vector<int32_t> text = RunAlone(*bf16, plan);
    EXPECT_EQ(RunAlone(*fp8, plan), text) << (*prompts)[i].id;
    // Sums of ranks have another order, so these need not choose the same tokens as one rank.
    const std::vector<int32_t> of_ranks = RunAlone(*ranks, plan);
    plan.block = 1;
    EXPECT_EQ(RunAlone(*ranks, plan), of_ranks) << (*prompts)[i].id;
  }
  const ForwardStatistics& a = bf16->statistics();
  const ForwardStatistics& b = fp8->statistics();
  const auto rounds = [](const ForwardStatistics& s) {
    return static_cast<double>(s.drafter_passes);
  };
  EXPECT_NEAR(rounds(b) / rounds(a), 1, 0.05);
  const double bytes_a = static_cast<double>(a.drafter_bytes) / rounds(a),
               bytes_b = static_cast<double>(b.drafter_bytes) / rounds(b);
  EXPECT_NEAR(bytes_b / bytes_a, 0.5, 0.01);
}

}  // namespace
}  // namespace ultraspeed::worker
