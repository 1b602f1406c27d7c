#include "worker/cpu/markov_head.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace ultraspeed::worker {
namespace {

using kernels::bf16;

constexpr int kRank = 32, kVocabulary = 84, kRows = 3;

std::vector<bf16> RandomBf16(int count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<bf16> values(static_cast<size_t>(count));
  for (bf16& value : values) value = kernels::ToBf16(normal(random));
  return values;
}

kernels::PackedMatrix Pack(const std::vector<bf16>& values, int rows) {
  return kernels::PackedMatrix::Pack({.format = kernels::WeightFormat::kBf16,
                                      .num_rows = rows,
                                      .num_cols = kRank,
                                      .codes = values.data(),
                                      .scales_f32 = nullptr,
                                      .scales_e8m0 = nullptr});
}

class MarkovHeadTest : public testing::TestWithParam<bool> {  // whether there is a gate
 protected:
  MarkovHeadTest() {
    std::mt19937 random(5);
    previous_ = RandomBf16(kVocabulary * kRank, random);
    next_ = RandomBf16(kVocabulary * kRank, random);
    gate_previous_ = RandomBf16(kRank * kRank, random);
    for (int i = 0; i < kRows * kRank; ++i) gates_.push_back(0.1f * static_cast<float>(i % 37) - 2);
    for (int i = 0; i < kRank; ++i) gate_bias_.push_back(0.05f * static_cast<float>(i % 11));
    weights_.previous = previous_;
    weights_.next = Pack(next_, kVocabulary);
    config_.markov_rank = kRank;
    config_.vocabulary = kVocabulary;
    if (!GetParam()) return;
    config_.has_markov_gate = true;
    weights_.gate = Pack(gate_previous_, kRank);  // only that it is there matters
    weights_.gate_previous = Pack(gate_previous_, kRank);
    weights_.gate_bias = gate_bias_;
  }

  static double Value(const std::vector<bf16>& matrix, int row, int column) {
    return kernels::FromBf16(matrix[static_cast<size_t>(row * kRank + column)]);
  }
  // By the definition (weights.h).
  double Bias(int row, int32_t previous, int token) const {
    double bias = 0;
    for (int i = 0; i < kRank; ++i) {
      double state = Value(previous_, previous, i);
      if (GetParam()) {
        double x =
            gates_[static_cast<size_t>(row * kRank + i)] + gate_bias_[static_cast<size_t>(i)];
        for (int j = 0; j < kRank; ++j)
          x += Value(gate_previous_, i, j) * Value(previous_, previous, j);
        state /= 1 + std::exp(-x);
      }
      bias += Value(next_, token, i) * state;
    }
    return bias;
  }

  std::vector<bf16> previous_, next_, gate_previous_;
  std::vector<float> gates_, gate_bias_;
  MarkovHead weights_;
  DrafterConfig config_;
};

// Several rows at once and one alone, added to what is there.
TEST_P(MarkovHeadTest, AddsWhatTheDefinitionSays) {
  kernels::ThreadPool pool(2);
  MarkovForward markov(config_, weights_, kRows, pool);
  const std::vector<int32_t> tokens = {3, 83, 0};
  for (const int count : {kRows, 1}) {
    std::vector<float> logits(kRows * kVocabulary, 7.0f);
    std::vector<MarkovRow> rows;
    for (int t = 0; t < count; ++t) {
      rows.push_back({.previous = tokens[static_cast<size_t>(t)],
                      .gate = &gates_[static_cast<size_t>(t * kRank)],
                      .logits = &logits[static_cast<size_t>(t * kVocabulary)]});
    }
    markov.AddBias(rows);
    for (int t = 0; t < kRows; ++t) {
      for (int token = 0; token < kVocabulary; ++token) {
        const double want = t < count ? Bias(t, tokens[static_cast<size_t>(t)], token) : 0;
        EXPECT_NEAR(logits[static_cast<size_t>(t * kVocabulary + token)], 7 + want, 0.12)
            << "row " << t << " token " << token;  // the state is rounded to bf16
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(WithAndWithoutGate, MarkovHeadTest, testing::Bool());

}  // namespace
}  // namespace ultraspeed::worker
