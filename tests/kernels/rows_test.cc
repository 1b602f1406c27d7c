// Norms, rotary, router, conversions and the thread pool.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/ops.h"
#include "kernels/thread_pool.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/random_data.h"

namespace ultraspeed::kernels {
namespace {

TEST(RmsNorm, AgreesWithDoublePrecisionAndIsTheSameEverywhere) {
  RandomData random(1);
  ThreadPool pool(2);
  for (int hidden : {1, 15, 16, 17, 256, 1000}) {
    for (int tokens : {1, 3, 200}) {
      const std::vector<float> x = random.Floats(static_cast<size_t>(tokens) * hidden, 3.0f);
      const std::vector<float> weight = random.Floats(hidden);
      std::vector<bf16> want;
      ForEachInstructionSet([&](InstructionSet set) {
        std::vector<bf16> out(x.size());
        RmsNorm(pool, x.data(), weight.data(), 1e-5f, tokens, hidden, out.data());
        if (want.empty()) want = out;
        EXPECT_TRUE(SameBits(out, want)) << Name(set) << " hidden " << hidden;
      });
      for (int t = 0; t < tokens; t += 50) {
        double squares = 0;
        for (int i = 0; i < hidden; ++i) squares += double{x[t * hidden + i]} * x[t * hidden + i];
        const double scale = 1 / std::sqrt(squares / hidden + 1e-5);
        for (int i = 0; i < hidden; ++i) {
          const double exact = x[t * hidden + i] * scale * weight[i];
          EXPECT_NEAR(FromBf16(want[t * hidden + i]), exact, std::fabs(exact) / 250 + 1e-9);
        }
      }
    }
  }
}

TEST(HeadRmsNorm, NormalisesEachHeadAndLeavesTheGapsAlone) {
  RandomData random(2);
  std::vector<float> x = random.Floats(3 * 40);
  const std::vector<float> before = x;
  const std::vector<float> weight = random.Floats(32);
  HeadRmsNorm(x.data(), 3, 32, 40, weight.data(), 1e-6f);
  for (int h = 0; h < 3; ++h) {
    double squares = 0;
    for (int i = 0; i < 32; ++i) squares += double{before[h * 40 + i]} * before[h * 40 + i];
    const double scale = 1 / std::sqrt(squares / 32 + 1e-6);
    for (int i = 0; i < 32; ++i) {
      EXPECT_NEAR(x[h * 40 + i], before[h * 40 + i] * scale * weight[i], 1e-5);
    }
    for (int i = 32; i < 40; ++i) EXPECT_EQ(x[h * 40 + i], before[h * 40 + i]);
  }
}

TEST(Rope, RotatesPairsByPositionTimesFrequency) {
  RandomData random(3);
  for (int rotary : {2, 10, 32, 64}) {
    const RopeTable table = BuildRopeTable(5e6, rotary, 3000);
    for (int position : {0, 1, 2999}) {
      const std::vector<float> before = random.Floats(2 * 70);
      std::vector<float> want;
      ForEachInstructionSet([&](InstructionSet set) {
        std::vector<float> x = before;
        Rope(table, position, x.data(), 2, 70);
        if (want.empty()) want = x;
        EXPECT_TRUE(SameBits(x, want)) << Name(set);
      });
      for (int h = 0; h < 2; ++h) {
        const float* in = before.data() + h * 70;
        const float* out = want.data() + h * 70;
        for (int i = 0; i < rotary / 2; ++i) {
          const double angle = position * std::pow(5e6, -2.0 * i / rotary);
          const double a = in[i], b = in[i + rotary / 2];
          EXPECT_NEAR(out[i], a * std::cos(angle) - b * std::sin(angle), 1e-5);
          EXPECT_NEAR(out[i + rotary / 2], b * std::cos(angle) + a * std::sin(angle), 1e-5);
        }
        for (int i = rotary; i < 70; ++i) EXPECT_EQ(out[i], in[i]) << "beyond the rotary dims";
      }
    }
  }
}

TEST(RouteTopK, ChoosesByBiasedScoreAndWeighsByScore) {
  RandomData random(4);
  ThreadPool pool(2);
  constexpr int kHidden = 64;
  for (int experts : {1, 5, 16, 61}) {
    for (int tokens : {1, 3, 4, 9, 70}) {
      const int k = std::min(experts, 4);
      const std::vector<bf16> x = random.Bf16s(static_cast<size_t>(tokens) * kHidden);
      const std::vector<float> w = random.Floats(static_cast<size_t>(experts) * kHidden, 0.2f);
      const std::vector<float> bias = random.Floats(experts, 0.3f);
      std::vector<int32_t> want_ids;
      std::vector<float> want_weights;
      ForEachInstructionSet([&](InstructionSet set) {
        std::vector<int32_t> ids(static_cast<size_t>(tokens) * k);
        std::vector<float> weights(ids.size());
        RouteTopK(pool, x.data(), w.data(), bias.data(), tokens, kHidden, experts, k, ids.data(),
                  weights.data());
        if (want_ids.empty()) want_ids = ids, want_weights = weights;
        EXPECT_EQ(ids, want_ids) << Name(set);
        EXPECT_TRUE(SameBits(weights, want_weights)) << Name(set);
      });
      for (int t = 0; t < tokens; ++t) {
        std::vector<std::pair<double, int>> ranked;
        std::vector<double> score(experts);
        for (int e = 0; e < experts; ++e) {
          double dot = 0;
          for (int i = 0; i < kHidden; ++i) {
            dot += FromBf16(x[t * kHidden + i]) * double{w[e * kHidden + i]};
          }
          score[e] = 1 / (1 + std::exp(-dot));
          ranked.push_back({-(score[e] + bias[e]), e});
        }
        std::sort(ranked.begin(), ranked.end());
        std::vector<int> chosen;
        double sum = 0;
        for (int i = 0; i < k; ++i) chosen.push_back(ranked[i].second), sum += score[chosen[i]];
        std::sort(chosen.begin(), chosen.end());
        for (int i = 0; i < k; ++i) {
          ASSERT_EQ(want_ids[t * k + i], chosen[i]);
          EXPECT_NEAR(want_weights[t * k + i], score[chosen[i]] / sum, 1e-5);
        }
      }
    }
  }
}

TEST(RouteTopK, TiesTakeTheLowerId) {
  ThreadPool pool(1);
  const std::vector<bf16> x(32, ToBf16(1.0f));
  const std::vector<float> w(8 * 32, 0.25f);
  std::vector<float> bias(8, 0.5f);
  bias[6] = 0.75f;
  int32_t ids[3];
  float weights[3];
  RouteTopK(pool, x.data(), w.data(), bias.data(), 1, 32, 8, 3, ids, weights);
  EXPECT_EQ(ids[0], 0);
  EXPECT_EQ(ids[1], 1);
  EXPECT_EQ(ids[2], 6);
  for (float weight : weights) EXPECT_FLOAT_EQ(weight, 1.0f / 3);
}

TEST(Convert, Bf16RoundsToNearestEven) {
  const std::vector<float> values = {1.0f,
                                     -0.0f,
                                     1.00390625f,
                                     1.01171875f,
                                     3.4e38f,
                                     -1e-3f,
                                     65504.0f,
                                     std::numeric_limits<float>::infinity(),
                                     std::numeric_limits<float>::quiet_NaN(),
                                     1.2f,
                                     7.0f,
                                     0.1f,
                                     1e20f,
                                     -2.5f,
                                     3.14159f,
                                     1e-20f,
                                     123456.0f};
  EXPECT_EQ(ToBf16(1.00390625f), 0x3f80);  // half way between 3f80 and 3f81: to even
  EXPECT_EQ(ToBf16(1.01171875f), 0x3f82);  // half way between 3f81 and 3f82
  EXPECT_EQ(ToBf16(3.4e38f), 0x7f80);
  ForEachInstructionSet([&](InstructionSet set) {
    std::vector<bf16> out(values.size());
    ToBf16(values.data(), static_cast<int>(values.size()), out.data());
    for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(out[i], ToBf16(values[i])) << Name(set);
  });
  EXPECT_TRUE(std::isnan(FromBf16(ToBf16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(Convert, E4m3IsTheFormula) {
  for (int code = 0; code < 256; ++code) {
    const int exponent = code >> 3 & 15;
    const int mantissa = code & 7;
    const float value = FromE4m3(static_cast<uint8_t>(code));
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value));
      continue;
    }
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    EXPECT_EQ(value, (code & 0x80) ? -magnitude : magnitude) << code;
  }
  EXPECT_EQ(FromE4m3(0x7e), 448.0f);
}

TEST(Convert, E2m1AndE8m0) {
  const float values[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  for (int code = 0; code < 16; ++code) {
    EXPECT_EQ(FromE2m1(static_cast<uint8_t>(code)), code < 8 ? values[code] : -values[code - 8]);
  }
  EXPECT_EQ(FromE8m0(127), 1.0f);
  EXPECT_EQ(FromE8m0(0), 0x1p-127f);
  EXPECT_EQ(FromE8m0(254), 0x1p127f);
  EXPECT_TRUE(std::isnan(FromE8m0(255)));
}

}  // namespace
}  // namespace ultraspeed::kernels
