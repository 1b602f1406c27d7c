// The executor, through its public interface only, against what the reference implementation
// computed from the same files.
#include <algorithm>
#include <cstdio>

#include "tests/worker/cpu/bundled_model.h"
#include "tests/worker/cpu/recorded_run.h"

namespace ultraspeed::worker {
namespace {

constexpr int kAlternatives = 8;
// Both round at the same points and differ in the order of fp32 sums; a bf16 step of a residual
// moves a logit by a few hundredths. Where two experts score equal to within that, the two programs
// may choose different ones: a few positions may differ by more.
// Of the reference's own noise: what an error of 1e-6 in the embedding does to its
// log-probabilities.
constexpr double kNoiseFactor = 1.5;
constexpr double kLogprobTolerance = 0.15;
constexpr double kSwappedTolerance = 1.0;
constexpr int kSwappedPositionsMax = 2;  // of 24

class ReferenceTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const absl::Status device = DeviceUnderTest(); !device.ok())
      GTEST_SKIP() << device.message();
    executor_ = LoadBundledModel();
    ASSERT_NE(executor_, nullptr);
    tokens_ = reference_.Values<int32_t>("tokens");
    pages_ = AllPages(*executor_);
  }

  // Feeds tokens_[computed, end) and chooses what follows.
  SequenceStep StepTo(int64_t computed, int64_t end) const {
    SequenceStep step;
    step.computed = computed;
    step.tokens = &tokens_[static_cast<size_t>(computed)];
    step.num_tokens = static_cast<int>(end - computed);
    step.sample = true;
    step.pages = pages_.data();
    step.num_pages = static_cast<int>(pages_.size());
    step.logprobs = kAlternatives;
    return step;
  }

  const Reference reference_;
  std::unique_ptr<ModelExecutor> executor_;
  std::vector<int32_t> tokens_;
  std::vector<int32_t> pages_;
};

TEST_F(ReferenceTest, LogprobsOfTheBestTokensMatch) {
  const std::vector<int32_t> positions = reference_.Values<int32_t>("positions");
  const std::vector<float> logits = reference_.Values<float>("logits");
  const auto vocabulary = static_cast<size_t>(executor_->config().vocabulary);
  std::vector<double> errors;
  int num_swapped = 0, computed = 0;
  for (size_t i = 0; i < positions.size(); ++i) {
    SCOPED_TRACE(positions[i]);
    const std::vector<double> want = LogProbabilities(&logits[i * vocabulary], *executor_);
    const Round round{{StepTo(computed, positions[i] + 1)}};
    const ChosenToken got = executor_->Run(round).sequences.at(0).chosen.at(0);
    computed = positions[i] + 1;
    ASSERT_EQ(got.top_tokens.size(), static_cast<size_t>(kAlternatives));
    double error = 0;
    for (size_t k = 0; k < kAlternatives; ++k) {
      error = std::max(
          error, std::fabs(got.top_logprobs[k] - want[static_cast<size_t>(got.top_tokens[k])]));
    }
    EXPECT_LT(error, kSwappedTolerance);
    num_swapped += error > kLogprobTolerance ? 1 : 0;
    // The same choice, unless the reference's two best are closer than twice the error.
    std::vector<double> sorted = want;
    std::partial_sort(sorted.begin(), sorted.begin() + 2, sorted.end(), std::greater<>());
    if (sorted[0] - sorted[1] > 2 * error) {
      EXPECT_EQ(got.token, std::max_element(want.begin(), want.end()) - want.begin());
    }
    EXPECT_EQ(got.top_tokens[0], got.token);
    EXPECT_NEAR(got.top_logprobs[0], got.logprob, 1e-5);  // the GPU adds the two in two orders
    if (error > kLogprobTolerance)
      std::printf("position %d differs by %.4f\n", positions[i], error);
    errors.push_back(error);
  }
  std::sort(errors.begin(), errors.end());
  std::printf("difference of a log-probability: median %.4f, largest %.4f\n",
              errors[errors.size() / 2], errors.back());
  EXPECT_LE(num_swapped, kSwappedPositionsMax);
  EXPECT_LT(errors[errors.size() / 2], kNoiseFactor * reference_.Values<float>("noise")[1]);
}

// The drafts themselves are not in the interface, but what is accepted tells them: with the noise
// of a seed, the reference's draft logits say which tokens are drafted, and the target's choices
// say where the draft must have been cut. The reference knows what its Markov head adds to them
// behind the text's own tokens: as long as these are chosen.
TEST_F(ReferenceTest, DraftsAreThoseOfTheReferencesDrafter) {
  const int anchor = reference_.Values<int32_t>("draft_anchor")[0];
  const int block = executor_->config().drafter.block_size;
  const int used = executor_->vocabulary_used();
  const auto vocabulary = static_cast<size_t>(executor_->config().vocabulary);
  std::vector<float> logits = reference_.Values<float>("draft_logits");
  const std::vector<float> bias = reference_.Values<float>("draft_bias");
  const std::vector<int32_t> text = reference_.Values<int32_t>("tokens");
  for (size_t i = 0; i < logits.size(); ++i) logits[i] += bias[i];
  for (int row = 0; row < block - 1; ++row) {
    logits[static_cast<size_t>(row) * vocabulary +
           static_cast<size_t>(executor_->config().drafter.mask_token_id)] = -1e30f;
  }
  std::vector<uint64_t> workspace(kernels::SampleWorkspaceBytes(used) / 8 + 8);
  int num_predicted = 0, num_wrong = 0, num_accepted = 0;
  // What is whole pages of the text before the anchor is computed once.
  const int border = (anchor - 1) / kPageTokens * kPageTokens;
  Round beginning{{StepTo(0, border)}};
  beginning.steps[0].sample = false;
  executor_->Run(beginning);
  executor_->SaveSnapshot(0, 0, border);
  for (uint64_t seed = 0; seed < 80; ++seed) {
    executor_->LoadSnapshot(0, 0, border);
    Round round{{StepTo(border, anchor)}};
    round.steps[0].sample = false;
    executor_->Run(round);
    round.steps[0] = StepTo(anchor, anchor + 1);
    round.steps[0].block = block;
    round.steps[0].sampling = {
        .temperature = seed == 0 ? 0.0f : 0.7f, .top_k = 0, .top_p = 1, .seed = seed};
    const SequenceResult result = executor_->Run(round).sequences.at(0);
    EXPECT_EQ(result.num_drafted, block - 1);
    EXPECT_EQ(result.num_accepted, static_cast<int>(result.chosen.size()) - 1);
    num_accepted += result.num_accepted;
    for (int i = 0; i < std::min(block - 1, static_cast<int>(result.chosen.size())); ++i) {
      if (i > 0 &&
          result.chosen[static_cast<size_t>(i) - 1].token != text[static_cast<size_t>(anchor + i)])
        break;
      const float* const row = &logits[static_cast<size_t>(i) * vocabulary];
      const int32_t draft = kernels::SampleToken(row, used, round.steps[0].sampling, anchor + 1 + i,
                                                 false, workspace.data())
                                .token;
      const bool agreed = draft == result.chosen[static_cast<size_t>(i)].token;
      num_wrong += agreed != (i < result.num_accepted) ? 1 : 0;
      ++num_predicted;
    }
  }
  std::printf("%d of %d drafts predicted, %d accepted\n", num_predicted - num_wrong, num_predicted,
              num_accepted);
  EXPECT_GE(num_predicted, 50);
  EXPECT_GT(num_accepted, 10);  // else agreement would say nothing of the drafts that matter
  EXPECT_LE(num_wrong, num_predicted / 25);  // near ties, decided by rounding
}

}  // namespace
}  // namespace ultraspeed::worker
