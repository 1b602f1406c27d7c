// The executor's numbers against the reference implementation's, which reads the same checkpoint
// files.
//
// Both round at the same points; what is left is the order of fp32 sums and, through it, a bf16
// rounding here and there.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "tests/worker/cpu/bundled_model.h"
#include "worker/cpu/cpu_executor.h"

namespace ultraspeed::worker {
namespace {

// Logits of this model reach 13, where a bf16 step is 0.03 to 0.06. Where two experts of a token
// score equal to within rounding, the two programs may choose different ones, and that token's
// logits differ visibly: a few positions may, by a bounded amount.
// Of the reference's own noise: what an error of 1e-6 in the embedding does to its logits.
constexpr float kNoiseFactor = 1.5f;
constexpr float kErrorMax = 0.25f;
constexpr double kCosineLossMax = 1e-4;  // 1 - cosine
constexpr int kSwappedMax = 2;           // of 24 positions
constexpr double kSwappedCosineLossMax = 1e-2;

struct Difference {
  float max_abs = 0;
  double cosine_loss = 0;
};

Difference Compare(const float* a, const float* b, size_t count) {
  Difference difference;
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < count; ++i) {
    difference.max_abs = std::max(difference.max_abs, std::fabs(a[i] - b[i]));
    ab += double{a[i]} * b[i];
    aa += double{a[i]} * a[i];
    bb += double{b[i]} * b[i];
  }
  difference.cosine_loss = 1 - ab / std::sqrt(aa * bb);
  return difference;
}

class GoldenTest : public testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<CpuExecutor>> executor =
        CpuExecutor::Create({.model_folder = kBundledModel,
                             .max_sequences = 1,
                             .max_batch_tokens = 512,
                             .kv_tokens = 1024,
                             .num_threads = 2,
                             .drafter_precision = DrafterPrecision::kBf16});
    ASSERT_TRUE(executor.ok()) << executor.status();
    executor_ = *std::move(executor);
    tokens_ = golden_.Values<int32_t>("tokens");
    for (int i = 0; i < executor_->num_pages(); ++i) pages_.push_back(i);
  }

  void RunPrefix(size_t count) {
    std::vector<TargetRow> rows;
    for (size_t i = 0; i < count; ++i) rows.push_back({tokens_[i], static_cast<int64_t>(i), 0});
    const TargetSequence sequence = {0, pages_.data(), static_cast<int>(pages_.size())};
    executor_->target().Run({&sequence, 1}, rows);
  }

  Reference golden_;
  std::unique_ptr<CpuExecutor> executor_;
  std::vector<int32_t> tokens_;
  std::vector<int32_t> pages_;
};

TEST_F(GoldenTest, LogitsMatchTheReference) {
  RunPrefix(tokens_.size());
  const std::vector<int32_t> positions = golden_.Values<int32_t>("positions");
  const std::vector<float> expected = golden_.Values<float>("logits");
  const auto vocabulary = static_cast<size_t>(executor_->config().vocabulary);
  std::vector<float> logits(positions.size() * vocabulary);
  executor_->target().Logits(std::vector<int>(positions.begin(), positions.end()), logits.data());
  std::vector<float> errors;
  int num_swapped = 0;
  for (size_t i = 0; i < positions.size(); ++i) {
    const float* row = &logits[i * vocabulary];
    const float* want = &expected[i * vocabulary];
    const Difference difference = Compare(row, want, vocabulary);
    EXPECT_LT(difference.cosine_loss, kSwappedCosineLossMax) << "position " << positions[i];
    if (difference.max_abs >= kErrorMax || difference.cosine_loss >= kCosineLossMax) ++num_swapped;
    // Equal argmax, unless the reference's two best are closer than the error.
    const auto best = std::max_element(row, row + vocabulary) - row;
    EXPECT_GE(want[best], *std::max_element(want, want + vocabulary) - 2 * difference.max_abs)
        << "position " << positions[i];
    errors.push_back(difference.max_abs);
  }
  std::sort(errors.begin(), errors.end());
  EXPECT_LT(errors[errors.size() / 2], kNoiseFactor * golden_.Values<float>("noise")[0]);
  EXPECT_LE(num_swapped, kSwappedMax);
  std::printf("difference of a logit: median %g, largest %g\n", errors[errors.size() / 2],
              errors.back());
}

TEST_F(GoldenTest, TapsMatchTheReference) {
  RunPrefix(tokens_.size());
  const std::vector<float> expected = golden_.Values<float>("taps");
  const kernels::bf16* taps = executor_->target().taps(golden_.Values<int32_t>("tap_position")[0]);
  std::vector<float> got(expected.size());
  for (size_t i = 0; i < got.size(); ++i) got[i] = kernels::FromBf16(taps[i]);
  EXPECT_LT(Compare(got.data(), expected.data(), got.size()).cosine_loss, 1e-4);
}

// Logits, and what the Markov head adds to them behind the tokens that did follow.
TEST_F(GoldenTest, DraftLogitsMatchTheReference) {
  const int anchor = golden_.Values<int32_t>("draft_anchor")[0];
  RunPrefix(static_cast<size_t>(anchor));
  ForwardStatistics statistics;
  constexpr CacheShape kShape = {
      .max_sequences = 1, .max_rows = 512, .num_pages = 16, .page_tokens = kPageTokens};
  const DrafterWeights& weights = executor_->weights().drafter;
  DrafterForward drafter(executor_->config(), weights, executor_->weights().target.embedding,
                         executor_->weights().target.head, kShape, executor_->pool(), statistics);
  drafter.AddTaps(0, 0, executor_->target().taps(0), anchor);
  const std::vector<float> expected = golden_.Values<float>("draft_logits");
  const std::vector<float> expected_bias = golden_.Values<float>("draft_bias");
  const auto vocabulary = static_cast<size_t>(executor_->config().vocabulary);
  const auto rank = static_cast<size_t>(executor_->config().drafter.markov_rank);
  const size_t num_rows = expected.size() / vocabulary;
  std::vector<float> logits(expected.size()), gates(num_rows * rank);
  const DraftAnchor draft = {0, anchor, tokens_[static_cast<size_t>(anchor)],
                             executor_->config().drafter.block_size - 1};
  drafter.Draft({&draft, 1}, logits.data(), gates.data());
  MarkovForward markov(executor_->config().drafter, weights.markov, 1, executor_->pool());
  const auto expect_alike = [&](const float* got, const float* want) {
    const Difference difference = Compare(got, want, vocabulary);
    EXPECT_LT(difference.max_abs, kErrorMax);
    EXPECT_LT(difference.cosine_loss, kCosineLossMax);
  };
  for (size_t i = 0; i < num_rows; ++i) {
    SCOPED_TRACE(i);
    expect_alike(&logits[i * vocabulary], &expected[i * vocabulary]);
    std::vector<float> bias(vocabulary);
    const MarkovRow row = {tokens_[static_cast<size_t>(anchor) + i], &gates[i * rank], bias.data()};
    markov.AddBias({&row, 1});
    expect_alike(bias.data(), &expected_bias[i * vocabulary]);
  }
}

}  // namespace
}  // namespace ultraspeed::worker
