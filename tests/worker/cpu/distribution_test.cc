// Sampling is exact: the first and the second token after a prompt, drawn under thousands of seeds,
// against the probabilities that the executor itself reports. The second token is drawn by a
// speculative round. Each check is shown to notice a wrong distribution.
#include <algorithm>
#include <numeric>

#include "tests/worker/cpu/bundled_model.h"
#include "tests/worker/cpu/recorded_run.h"

namespace ultraspeed::worker {
namespace {

constexpr int kDraws = 1200;
constexpr int kSequences = 8;

// Counts per token; expected probabilities per token. Cells of fewer than 8 expected draws are
// pooled.
double ChiSquare(const std::vector<int>& seen, const std::vector<double>& probability,
                 int* degrees) {
  double chi_square = 0, rest_expected = 0, rest_seen = 0;
  *degrees = -1;
  const auto add = [&](double count, double expected) {
    chi_square += (count - expected) * (count - expected) / expected;
    ++*degrees;
  };
  for (size_t i = 0; i < seen.size(); ++i) {
    const double expected = kDraws * probability[i];
    if (expected >= 8) {
      add(seen[i], expected);
    } else {
      rest_expected += expected;
      rest_seen += seen[i];
    }
  }
  // A token that cannot be drawn was drawn if it is seen where nothing is expected.
  if (rest_expected > 1e-6 || rest_seen > 0) add(rest_seen, std::max(rest_expected, 1e-6));
  return chi_square;
}

// Six deviations above the mean: false alarms once in 10^7 runs or so, and the seeds are fixed.
double Limit(int degrees) { return degrees + 6 * std::sqrt(2.0 * degrees); }

class DistributionTest : public testing::Test {
 protected:
  void SetUp() override {
    executor_ = LoadBundledModel();
    ASSERT_NE(executor_, nullptr);
    const std::vector<int32_t> tokens = Reference().Values<int32_t>("tokens");
    prompt_.assign(tokens.begin() + 20, tokens.begin() + 28);
  }

  // What may follow `prompt` at temperature 1, from the reported log-probabilities of every token.
  std::vector<double> Reported(const std::vector<int32_t>& prompt) {
    const int used = executor_->vocabulary_used();
    const RecordedRun run = Record(*executor_, {.prompt = prompt, .num_new_tokens = 1}, used);
    std::vector<double> probability(static_cast<size_t>(used));
    for (size_t k = 0; k < run.chosen[0].top_tokens.size(); ++k) {
      probability[static_cast<size_t>(run.chosen[0].top_tokens[k])] =
          std::exp(double{run.chosen[0].top_logprobs[k]});
    }
    double sum = 0;
    for (const double p : probability) sum += p;
    EXPECT_NEAR(sum, 1, 1e-4);
    return probability;
  }

  // Temperature, then the top_k largest, then the shortest prefix of at least top_p.
  static std::vector<double> Processed(std::vector<double> probability,
                                       const kernels::SamplingSpec& spec) {
    std::vector<size_t> order(probability.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return probability[a] > probability[b]; });
    double sum = 0;
    for (double& p : probability) sum += p = std::pow(p, 1 / spec.temperature);
    const size_t k = spec.top_k > 0 ? static_cast<size_t>(spec.top_k) : order.size();
    double limit = 0, kept = 0;
    for (size_t i = 0; i < k; ++i) limit += probability[order[i]];
    size_t count = 0;
    while (count < k && (count == 0 || kept < spec.top_p * limit))
      kept += probability[order[count++]];
    std::vector<double> processed(probability.size());
    for (size_t i = 0; i < count; ++i) processed[order[i]] = probability[order[i]] / kept;
    return processed;
  }

  // How often each token came last of `num_new_tokens`, over kDraws seeds, in rounds of eight
  // sequences.
  std::vector<int> Draw(int num_new_tokens, const kernels::SamplingSpec& spec,
                        const std::vector<int32_t>& prompt) {
    std::vector<int> seen(static_cast<size_t>(executor_->vocabulary_used()));
    for (int draw = 0; draw < kDraws; draw += kSequences) {
      std::vector<RunPlan> plans;
      for (int i = 0; i < kSequences; ++i) {
        plans.push_back({.prompt = prompt,
                         .num_new_tokens = num_new_tokens,
                         .block = 4,
                         .sampling = spec,
                         .slot = i});
        plans.back().sampling.seed = static_cast<uint64_t>(draw + i);
      }
      for (const RecordedRun& run : RecordTogether(*executor_, plans, 0))
        ++seen[static_cast<size_t>(run.chosen.back().token)];
    }
    return seen;
  }

  void ExpectDrawnFrom(const std::vector<int>& seen, const std::vector<double>& probability) {
    int degrees = 0;
    const double chi_square = ChiSquare(seen, probability, &degrees);
    EXPECT_GE(degrees, 3);
    EXPECT_LT(chi_square, Limit(degrees)) << degrees << " degrees of freedom";
    std::printf("chi-square %.1f, %d degrees of freedom\n", chi_square, degrees);
  }
  void ExpectNotDrawnFrom(const std::vector<int>& seen, const std::vector<double>& probability) {
    int degrees = 0;
    const double chi_square = ChiSquare(seen, probability, &degrees);
    EXPECT_GT(chi_square, Limit(degrees)) << "the check would not notice";
  }

  std::unique_ptr<Executor> executor_;
  std::vector<int32_t> prompt_;
};

TEST_F(DistributionTest, TheFirstToken) {
  const std::vector<double> reported = Reported(prompt_);
  const kernels::SamplingSpec spec{.temperature = 1};
  const std::vector<int> seen = Draw(1, spec, prompt_);
  ExpectDrawnFrom(seen, Processed(reported, spec));
  ExpectNotDrawnFrom(seen, Processed(reported, {.temperature = 0.8f}));
  ExpectNotDrawnFrom(seen, Processed(reported, {.temperature = 1, .top_p = 0.9f}));
  std::vector<int32_t> other = prompt_;
  std::swap(other[6], other[7]);
  ExpectNotDrawnFrom(seen, Reported(other));
}

TEST_F(DistributionTest, TheFirstTokenProcessed) {
  const std::vector<double> reported = Reported(prompt_);
  for (const kernels::SamplingSpec& spec :
       {kernels::SamplingSpec{.temperature = 1.3f, .top_k = 12},
        kernels::SamplingSpec{.temperature = 1, .top_p = 0.8f}}) {
    const std::vector<int> seen = Draw(1, spec, prompt_);
    ExpectDrawnFrom(seen, Processed(reported, spec));
    ExpectNotDrawnFrom(seen, reported);
  }
}

// Sum over the first token of P(first) P(second | first), the first token being one of a few.
TEST_F(DistributionTest, TheSecondTokenFromASpeculativeRound) {
  const kernels::SamplingSpec spec{.temperature = 1, .top_k = 6};
  const std::vector<double> first = Processed(Reported(prompt_), spec);
  std::vector<double> second(first.size());
  std::vector<double> second_of_likeliest(first.size());
  double likeliest = 0;
  for (size_t token = 0; token < first.size(); ++token) {
    if (first[token] == 0) continue;
    std::vector<int32_t> longer = prompt_;
    longer.push_back(static_cast<int32_t>(token));
    const std::vector<double> conditional = Processed(Reported(longer), spec);
    for (size_t i = 0; i < second.size(); ++i) second[i] += first[token] * conditional[i];
    if (first[token] > likeliest) likeliest = first[token], second_of_likeliest = conditional;
  }
  const std::vector<int> seen = Draw(2, spec, prompt_);
  ExpectDrawnFrom(seen, second);
  ExpectNotDrawnFrom(seen, second_of_likeliest);
}

}  // namespace
}  // namespace ultraspeed::worker
