#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "kernels/gumbel.h"
#include "kernels/ops.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/random_data.h"

namespace ultraspeed::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TokenChoice Sample(const std::vector<float>& logits, SamplingSpec spec, int64_t position,
                   bool want_logprob = false) {
  std::vector<double> workspace(SampleWorkspaceBytes(static_cast<int>(logits.size())) / 8 + 1);
  return SampleToken(logits.data(), static_cast<int>(logits.size()), spec, position, want_logprob,
                     workspace.data());
}

// Draws at positions 0..n-1.
std::vector<int> Histogram(const std::vector<float>& logits, SamplingSpec spec, int n) {
  std::vector<int> counts(logits.size());
  for (int i = 0; i < n; ++i) ++counts[Sample(logits, spec, i).token];
  return counts;
}

std::vector<double> Softmax(const std::vector<float>& logits, double temperature) {
  std::vector<double> p;
  double sum = 0;
  for (float logit : logits) p.push_back(std::exp(logit / temperature)), sum += p.back();
  for (double& x : p) x /= sum;
  return p;
}

double ChiSquare(const std::vector<int>& counts, const std::vector<double>& p, int n) {
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    if (p[i] > 0) sum += (counts[i] - n * p[i]) * (counts[i] - n * p[i]) / (n * p[i]);
  }
  return sum;
}

// Known answers of the Random123 distribution (kat_vectors).
TEST(Philox, KnownAnswers) {
  const Philox4x32 zero = Philox({{0, 0, 0, 0}}, 0, 0);
  EXPECT_EQ(zero.x[0], 0x6627e8d5u);
  EXPECT_EQ(zero.x[1], 0xe169c58du);
  EXPECT_EQ(zero.x[2], 0xbc57ac4cu);
  EXPECT_EQ(zero.x[3], 0x9b00dbd8u);
  const uint32_t f = 0xffffffffu;
  const Philox4x32 ones = Philox({{f, f, f, f}}, f, f);
  EXPECT_EQ(ones.x[0], 0x408f276du);
  EXPECT_EQ(ones.x[1], 0x41c83b0eu);
  EXPECT_EQ(ones.x[2], 0xa20bc7c6u);
  EXPECT_EQ(ones.x[3], 0x6d5451fdu);
  const Philox4x32 pi =
      Philox({{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}}, 0xa4093822u, 0x299f31d0u);
  EXPECT_EQ(pi.x[0], 0xd16cfe09u);
  EXPECT_EQ(pi.x[1], 0x94fdccebu);
  EXPECT_EQ(pi.x[2], 0x5001e420u);
  EXPECT_EQ(pi.x[3], 0x24126ea1u);
}

TEST(Gumbel, LogarithmIsAccurate) {
  for (double x = 1e-9; x < 1e9; x *= 1.0173) {
    const float y = static_cast<float>(x);
    EXPECT_NEAR(PortableLog(y), std::log(double{y}), 2e-7 * std::fabs(std::log(double{y})) + 1e-7);
  }
  EXPECT_EQ(PortableLog(1.0f), 0.0f);
}

TEST(Gumbel, MomentsAndExtremes) {
  constexpr int kDraws = 400000;
  double sum = 0, squares = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double g = GumbelNoise(12345, i / 4000, i % 4000);
    sum += g;
    squares += g * g;
  }
  const double mean = sum / kDraws;
  EXPECT_NEAR(mean, 0.5772156649, 0.01);
  EXPECT_NEAR(squares / kDraws - mean * mean, 1.6449340668, 0.03);
  EXPECT_TRUE(std::isfinite(GumbelFromBits(0)));
  EXPECT_TRUE(std::isfinite(GumbelFromBits(0xffffffffu)));
}

TEST(Gumbel, DependsOnSeedPositionAndToken) {
  std::set<float> values;
  for (uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
    for (int64_t position : {int64_t{0}, int64_t{1}, int64_t{1} << 32}) {
      for (int32_t token = 0; token < 8; ++token) values.insert(GumbelNoise(seed, position, token));
    }
  }
  EXPECT_EQ(values.size(), 72u);
}

TEST(SampleToken, FullVocabularyDrawEqualsTheScalarDefinitionEverywhere) {
  RandomData random(1);
  for (int vocabulary : {1, 3, 64, 65, 1000, 4096}) {
    const std::vector<float> logits = random.Floats(vocabulary, 2.0f);
    for (int64_t position : {int64_t{0}, int64_t{17}, (int64_t{1} << 33) + 5}) {
      const SamplingSpec spec = {.temperature = 0.7f, .seed = 0x123456789abcdefull};
      int want = 0;
      float best = -kInfinity;
      for (int i = 0; i < vocabulary; ++i) {
        const float value = logits[i] / 0.7f + GumbelNoise(spec.seed, position, i);
        if (value > best) best = value, want = i;
      }
      ForEachInstructionSet([&](InstructionSet set) {
        EXPECT_EQ(Sample(logits, spec, position).token, want) << Name(set) << " V " << vocabulary;
      });
    }
  }
}

TEST(SampleToken, FollowsTheSoftmaxDistribution) {
  RandomData random(2);
  const std::vector<float> logits = random.Floats(20, 1.0f);
  constexpr int kDraws = 40000;
  for (float temperature : {0.6f, 1.0f, 1.7f}) {
    const SamplingSpec spec = {.temperature = temperature, .seed = 99};
    const std::vector<int> counts = Histogram(logits, spec, kDraws);
    // 19 degrees of freedom: 43.8 is exceeded once in a thousand seeds.
    EXPECT_LT(ChiSquare(counts, Softmax(logits, temperature), kDraws), 43.8) << temperature;
    // The test has teeth: a distribution of slightly different temperature is told apart.
    EXPECT_GT(ChiSquare(counts, Softmax(logits, temperature * 1.15), kDraws), 43.8) << temperature;
  }
}

TEST(SampleToken, TopKAndTopPKeepTheRightTokensAndTheirProportions) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.2f),
                                     std::log(0.25f), std::log(0.05f)};
  constexpr int kDraws = 20000;
  struct Case {
    int top_k;
    float top_p;
    std::vector<double> want;
  };
  const Case cases[] = {
      {1, 1.0f, {0, 1, 0, 0, 0}},
      {2, 1.0f, {0, 0.4 / 0.65, 0, 0.25 / 0.65, 0}},
      {0, 0.6f, {0, 0.4 / 0.65, 0, 0.25 / 0.65, 0}},
      {0, 0.7f, {0, 0.4 / 0.85, 0.2 / 0.85, 0.25 / 0.85, 0}},
      {0, 0.01f, {0, 1, 0, 0, 0}},
      {3, 0.45f, {0, 1, 0, 0, 0}},  // 0.4 / 0.85 = 0.47 reaches 0.45 within the top three
      {3, 0.60f, {0, 0.4 / 0.65, 0, 0.25 / 0.65, 0}},
      {99, 1.0f, {0.1, 0.4, 0.2, 0.25, 0.05}},
      {5, 0.999f, {0.1, 0.4, 0.2, 0.25, 0.05}},
  };
  for (const Case& c : cases) {
    const SamplingSpec spec = {.temperature = 1.0f, .top_k = c.top_k, .top_p = c.top_p, .seed = 5};
    const std::vector<int> counts = Histogram(logits, spec, kDraws);
    for (size_t i = 0; i < logits.size(); ++i) {
      if (c.want[i] == 0) {
        EXPECT_EQ(counts[i], 0) << "k " << c.top_k << " p " << c.top_p << " token " << i;
      }
    }
    EXPECT_LT(ChiSquare(counts, c.want, kDraws), 18.5) << "k " << c.top_k << " p " << c.top_p;
  }
}

TEST(SampleToken, FilteredDrawsAndLogprobsAreTheSameBitsEverywhere) {
  RandomData random(6);
  const std::vector<float> logits = random.Floats(2000, 3.0f);
  for (SamplingSpec spec :
       {SamplingSpec{.temperature = 0.8f, .top_p = 0.95f, .seed = 1},
        SamplingSpec{.temperature = 1.3f, .top_k = 50, .top_p = 0.9f, .seed = 2},
        SamplingSpec{.temperature = 2.0f, .top_p = 0.999f, .seed = 3}}) {
    std::vector<int32_t> want_tokens;
    std::vector<float> want_logprobs;
    ForEachInstructionSet([&](InstructionSet set) {
      std::vector<int32_t> tokens;
      std::vector<float> logprobs;
      for (int position = 0; position < 40; ++position) {
        const TokenChoice choice = Sample(logits, spec, position, true);
        tokens.push_back(choice.token);
        logprobs.push_back(choice.logprob);
      }
      if (want_tokens.empty()) {
        want_tokens = tokens;
        want_logprobs = logprobs;
      }
      EXPECT_EQ(tokens, want_tokens) << Name(set);
      EXPECT_TRUE(SameBits(logprobs, want_logprobs)) << Name(set);
    });
  }
}

// Sorts, adds up, keeps a prefix and lets it compete. -1: the prefix ends too near a border for a
// sum in another order to be sure.
int32_t DrawByDefinition(const std::vector<float>& logits, const SamplingSpec& spec,
                         int64_t position) {
  std::vector<float> scaled;
  for (const float logit : logits) scaled.push_back(logit / spec.temperature);
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto at = [&](int32_t token) { return scaled[static_cast<size_t>(token)]; };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return at(a) > at(b); });
  if (spec.top_k > 0) order.resize(std::min(order.size(), static_cast<size_t>(spec.top_k)));
  const auto mass = [&](int32_t token) { return std::exp(double{at(token)} - at(order[0])); };
  double whole = 0, before = 0;
  for (const int32_t token : order) whole += mass(token);
  int32_t best = order[0];
  float best_value = -kInfinity;
  for (const int32_t token : order) {
    const double left = spec.top_p * whole - before;
    const bool may_end = spec.top_p < 1 && token != order[0];
    if (may_end && std::abs(left) < 1e-5 * whole) return -1;
    if (may_end && left <= 0) break;
    before += mass(token);
    const float value = at(token) + GumbelNoise(spec.seed, position, token);
    if (value > best_value || (value == best_value && token < best)) {
      best_value = value;
      best = token;
    }
  }
  return best;
}

TEST(SampleToken, FilteredDrawsAreThoseOfTheDefinition) {
  RandomData random(12);
  int num_drawn = 0, num_near = 0;
  for (const float deviation : {0.5f, 2.0f, 6.0f}) {
    std::vector<float> logits = random.Floats(700, deviation);
    for (size_t i = 0; i < logits.size(); i += 2) logits[i] = std::round(logits[i]);  // ties
    for (const SamplingSpec& spec :
         {SamplingSpec{.temperature = 1.0f, .top_p = 0.95f, .seed = 1},
          SamplingSpec{.temperature = 0.6f, .top_p = 0.5f, .seed = 2},
          SamplingSpec{.temperature = 1.5f, .top_k = 1, .seed = 3},
          SamplingSpec{.temperature = 1.5f, .top_k = 40, .seed = 4},
          SamplingSpec{.temperature = 1.0f, .top_k = 5000, .seed = 5},
          SamplingSpec{.temperature = 1.0f, .top_p = 1e-6f, .seed = 6},
          SamplingSpec{.temperature = 1.2f, .top_k = 60, .top_p = 0.8f, .seed = 7},
          SamplingSpec{.temperature = 2.0f, .top_p = 0.9999f, .seed = 8}}) {
      for (int64_t position = 0; position < 200; ++position) {
        const int32_t want = DrawByDefinition(logits, spec, position);
        ++(want < 0 ? num_near : num_drawn);
        if (want < 0) continue;
        ASSERT_EQ(Sample(logits, spec, position).token, want)
            << "deviation " << deviation << " seed " << spec.seed << " position " << position;
      }
    }
  }
  EXPECT_GT(num_drawn, 4000);
  EXPECT_LT(num_near, 800);
}

// Noise that was made before, in parts, is the noise that is made on the way.
TEST(SampleToken, NoiseMayBeGiven) {
  constexpr int kTokens = 700, kPart = 256;
  RandomData random(13);
  const std::vector<float> logits = random.Floats(kTokens, 2.0f);
  std::vector<uint64_t> workspace(SampleWorkspaceBytes(kTokens) / 8 + 8);
  for (const SamplingSpec& spec : {SamplingSpec{.temperature = 1.0f, .seed = 1},
                                   SamplingSpec{.temperature = 0.6f, .top_p = 0.9f, .seed = 2},
                                   SamplingSpec{.temperature = 1.5f, .top_k = 9, .seed = 3}}) {
    for (int64_t position = 0; position < 50; ++position) {
      std::vector<float> noise(kTokens);
      for (int first = 0; first < kTokens; first += kPart) {
        GumbelNoise(spec.seed, position, first, std::min(kPart, kTokens - first),
                    noise.data() + first);
      }
      EXPECT_EQ(noise[300], GumbelNoise(spec.seed, position, 300));
      EXPECT_EQ(
          SampleToken(logits.data(), kTokens, spec, position, false, workspace.data(), noise.data())
              .token,
          Sample(logits, spec, position).token);
    }
  }
}

TEST(SampleToken, TopPOverAFlatVocabularyGrowsItsMargin) {
  const std::vector<float> logits(3000, 1.5f);  // every token within the first margin
  std::vector<float> wide(3000);
  for (int i = 0; i < 3000; ++i)
    wide[i] = i == 0 ? 0.0f : -7.0f;  // the tail holds 73 % of the mass
  for (const auto* row : std::initializer_list<const std::vector<float>*>{&logits, &wide}) {
    const SamplingSpec spec = {.temperature = 1.0f, .top_p = 0.9f, .seed = 3};
    std::set<int> seen;
    for (int i = 0; i < 300; ++i) seen.insert(Sample(*row, spec, i).token);
    EXPECT_GT(seen.size(), 150u);
  }
}

TEST(SampleToken, TopKTiesKeepTheLowerIds) {
  const std::vector<float> logits = {0, 1, 1, 1, 1};
  const SamplingSpec spec = {.temperature = 1.0f, .top_k = 2, .seed = 8};
  const std::vector<int> counts = Histogram(logits, spec, 1000);
  EXPECT_EQ(counts[1] + counts[2], 1000);
  EXPECT_GT(counts[1], 400);
}

TEST(SampleToken, ATokenThatBothFiltersKeepIsChosenAsWithoutThem) {
  // Coupling: the noise does not depend on the filters, so a kept winner of the full draw wins the
  // filtered draw too.
  RandomData random(4);
  const std::vector<float> logits = random.Floats(500, 3.0f);
  int same = 0;
  for (int i = 0; i < 500; ++i) {
    const int full = Sample(logits, {.temperature = 1.0f, .seed = 7}, i).token;
    const int filtered =
        Sample(logits, {.temperature = 1.0f, .top_k = 100, .top_p = 0.95f, .seed = 7}, i).token;
    same += full == filtered;
  }
  EXPECT_GT(same, 440);
}

TEST(SampleToken, GreedyTiesAndNan) {
  EXPECT_EQ(Sample({1, 3, 3, 2}, {}, 0).token, 1);
  EXPECT_EQ(Sample({kNan, 3, kNan, 5}, {}, 0).token, 3);
  EXPECT_EQ(Sample({kNan, kNan}, {}, 0).token, 0);
  EXPECT_EQ(Sample({-kInfinity, -kInfinity, -5}, {}, 0).token, 2);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(Sample({kNan, -kInfinity, 1, kNan}, {.temperature = 1.0f, .seed = 1}, i).token, 2);
    EXPECT_EQ(
        Sample({kNan, -kInfinity, 1, kNan}, {.temperature = 1.0f, .top_p = 0.9f, .seed = 1}, i)
            .token,
        2);
  }
  RandomData random(5);
  std::vector<float> logits = random.Floats(1003);
  const int want =
      static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  ForEachInstructionSet(
      [&](InstructionSet set) { EXPECT_EQ(Sample(logits, {}, 0).token, want) << Name(set); });
}

TEST(SampleToken, LogprobIsOfTheUnprocessedDistribution) {
  const std::vector<float> logits = {0.5f, -1.0f, 2.0f, 0.0f};
  const std::vector<double> p = Softmax(logits, 1.0);
  const TokenChoice greedy = Sample(logits, {}, 0, true);
  EXPECT_EQ(greedy.token, 2);
  EXPECT_NEAR(greedy.logprob, std::log(p[2]), 1e-5);
  const TokenChoice drawn = Sample(logits, {.temperature = 2.0f, .top_k = 3, .seed = 4}, 9, true);
  EXPECT_NEAR(drawn.logprob, std::log(p[drawn.token]), 1e-5);
}

TEST(TopLogprobs, DescendingWithTiesByLowerId) {
  const std::vector<float> logits = {1.0f, 3.0f, kNan, 3.0f, 2.0f, -kInfinity};
  const double sum = std::exp(1.0) + 2 * std::exp(3.0) + std::exp(2.0);
  int32_t tokens[4];
  float logprobs[4];
  TopLogprobs(logits.data(), 6, 4, tokens, logprobs);
  const int want[4] = {1, 3, 4, 0};
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(tokens[i], want[i]);
    EXPECT_NEAR(logprobs[i], logits[want[i]] - std::log(sum), 1e-5);
  }
}

}  // namespace
}  // namespace ultraspeed::kernels
