// Greedy text on the held-out prompts: the CPU's, token for token, or a difference that the bound
// on logits explains.
#include "bench/held_out.h"

#include <cstdio>

#include "tests/worker/cuda/cpu_comparison.h"
#include "worker/cuda/device.h"

namespace ultraspeed::worker {
namespace {

TEST(CudaHeldOutTest, GreedyTokensAreTheCpus) {
  if (const absl::Status usable = CudaUsable(); !usable.ok()) GTEST_SKIP() << usable.message();
  constexpr int kTokens = 32;
  const std::unique_ptr<ModelExecutor> cpu = LoadOnCpu();
  const std::unique_ptr<ModelExecutor> gpu = LoadBundledModel();
  ASSERT_NE(cpu, nullptr);
  ASSERT_NE(gpu, nullptr);
  const absl::StatusOr<std::vector<bench::HeldOutPrompt>> prompts =
      bench::LoadHeldOutPrompts(kBundledModel, cpu->config());
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  const auto vocabulary = static_cast<size_t>(cpu->config().vocabulary);
  int num_identical = 0;
  for (const bench::HeldOutPrompt& prompt : *prompts) {
    const RunPlan plan{.prompt = prompt.tokens, .num_new_tokens = kTokens, .block = 8};
    const std::vector<int32_t> want = RunAlone(*cpu, plan), got = RunAlone(*gpu, plan);
    const auto [differs, other] = std::mismatch(want.begin(), want.end(), got.begin());
    if (differs == want.end()) {
      ++num_identical;
      continue;
    }
    std::vector<int32_t> text = prompt.tokens;
    text.insert(text.end(), want.begin(), differs);
    const std::vector<float> logits = AllLogits(*cpu, text);
    const float* const last = &logits[(text.size() - 1) * vocabulary];
    const float gap = last[*differs] - last[*other];
    std::printf("%s: token %td is %d on the CPU, %d on the GPU; the CPU's logits differ by %.4f\n",
                prompt.id.c_str(), differs - want.begin(), *differs, *other, gap);
    EXPECT_LT(gap, 2 * kLogitBound) << prompt.id;
  }
  std::printf("%d of %zu prompts identical over %d tokens\n", num_identical, prompts->size(),
              kTokens);
  EXPECT_GE(num_identical, static_cast<int>(prompts->size()) * 3 / 4);
}

}  // namespace
}  // namespace ultraspeed::worker
