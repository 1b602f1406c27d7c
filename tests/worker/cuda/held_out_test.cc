// Text and drafts on the held-out prompts against the CPU's.
#include "bench/held_out.h"

#include <cstdio>

#include "tests/worker/cuda/cpu_comparison.h"
#include "worker/cuda/device.h"

namespace ultraspeed::worker {
namespace {

class CudaHeldOutTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const absl::Status usable = CudaUsable(); !usable.ok()) GTEST_SKIP() << usable.message();
    cpu_ = LoadOnCpu();
    gpu_ = LoadBundledModel();
    ASSERT_NE(cpu_, nullptr);
    ASSERT_NE(gpu_, nullptr);
    absl::StatusOr<std::vector<bench::HeldOutPrompt>> prompts =
        bench::LoadHeldOutPrompts(kBundledModel, cpu_->config());
    ASSERT_TRUE(prompts.ok()) << prompts.status();
    prompts_ = *std::move(prompts);
  }

  std::unique_ptr<ModelExecutor> cpu_, gpu_;
  std::vector<bench::HeldOutPrompt> prompts_;
};

// Token for token, or a difference that the bound on logits explains. Where experts were swapped
// (cpu_comparison.h) it may lie past the bound: in as few prompts as rows may be, and not far.
TEST_F(CudaHeldOutTest, GreedyTokensAreTheCpus) {
  constexpr int kTokens = 32;
  const auto vocabulary = static_cast<size_t>(cpu_->config().vocabulary);
  int num_identical = 0, num_beyond = 0;
  for (const bench::HeldOutPrompt& prompt : prompts_) {
    const RunPlan plan{.prompt = prompt.tokens, .num_new_tokens = kTokens, .block = 8};
    const std::vector<int32_t> want = RunAlone(*cpu_, plan), got = RunAlone(*gpu_, plan);
    const auto [differs, other] = std::mismatch(want.begin(), want.end(), got.begin());
    if (differs == want.end()) {
      ++num_identical;
      continue;
    }
    std::vector<int32_t> text = prompt.tokens;
    text.insert(text.end(), want.begin(), differs);
    const std::vector<float> logits = AllLogits(*cpu_, text);
    const size_t last_row = (text.size() - 1) * vocabulary;
    const float gap = logits[last_row + *differs] - logits[last_row + *other];
    // Not a fault of decoding: all rows at once, the GPU prefers its token too.
    const std::vector<float> on_gpu = AllLogits(*gpu_, text);
    const float gap_on_gpu = on_gpu[last_row + *other] - on_gpu[last_row + *differs];
    EXPECT_GE(gap_on_gpu, 0) << prompt.id;
    std::printf(
        "%s: token %td is %d on the CPU, by %.4f before %d, which is the GPU's, by %.4f there\n",
        prompt.id.c_str(), differs - want.begin(), *differs, gap, *other, gap_on_gpu);
    EXPECT_LT(gap, 4 * kLogitBound) << prompt.id;
    num_beyond += gap >= 2 * kLogitBound ? 1 : 0;
  }
  std::printf("%d of %zu prompts identical over %d tokens\n", num_identical, prompts_.size(),
              kTokens);
  EXPECT_LE(num_beyond, kSwappedShareMax * static_cast<double>(prompts_.size()));
  EXPECT_GE(num_identical, static_cast<int>(prompts_.size()) * 3 / 4);
}

// A draft's probability is the CPU's to rounding, so as many drafts are likely enough to be
// verified, greedy, sampled and filtered.
TEST_F(CudaHeldOutTest, DraftsAreWeighedAsOnTheCpu) {
  constexpr size_t kPrompts = 24;
  ASSERT_GE(prompts_.size(), kPrompts);
  const std::vector<kernels::SamplingSpec> ways = {{.temperature = 0.0f},
                                                   {.temperature = 1.0f, .seed = 7},
                                                   {.temperature = 0.6f, .seed = 7},
                                                   {.temperature = 1.0f, .top_p = 0.9f, .seed = 7}};
  for (const kernels::SamplingSpec& way : ways) {
    RecordedRun on_cpu, on_gpu;
    for (size_t i = 0; i < kPrompts; ++i) {
      const RunPlan plan{.prompt = prompts_[i].tokens,
                         .num_new_tokens = 48,
                         .block = 8,
                         .reach_min = 0.2f,
                         .sampling = way};
      const auto add = [&](RecordedRun& sum, Executor& executor) {
        const RecordedRun run = Record(executor, plan, /*logprobs=*/-1);
        sum.num_rounds += run.num_rounds;
        sum.num_drafted += run.num_drafted;
      };
      add(on_cpu, *cpu_);
      add(on_gpu, *gpu_);
    }
    const auto drafts_per_round = [](const RecordedRun& run) {
      return static_cast<double>(run.num_drafted) / run.num_rounds;
    };
    std::printf("temperature %.1f top_p %.1f: %.3f drafts a round on the CPU, %.3f on the GPU\n",
                way.temperature, way.top_p, drafts_per_round(on_cpu), drafts_per_round(on_gpu));
    EXPECT_LT(drafts_per_round(on_cpu), 6);  // not all
    EXPECT_NEAR(drafts_per_round(on_gpu), drafts_per_round(on_cpu), 0.15);
  }
}

}  // namespace
}  // namespace ultraspeed::worker
