// Choosing a token from a row of logits: greedy, or an exact draw by Gumbel-max from the processed
// distribution.
//
// Processing order: temperature, then top-k, then top-p over what top-k left. Both keep a prefix of
// the descending order, so only the tokens within a margin of the largest are sorted, and the
// margin grows until the prefix is complete.
#include <algorithm>
#include <limits>

#include "kernels/check.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/gumbel.h"
#include "kernels/ops.h"

namespace ultraspeed::kernels {
namespace {

// Logits within this of the largest are sorted first; then twice as far, and so on up to
// everything.
constexpr float kFirstMargin = 2.0f;
constexpr float kLastMargin = 32.0f;

size_t PaddedBytes(int count) { return (static_cast<size_t>(count) * 4 + 63) / 64 * 64; }

// Scratch of one call.
struct Scratch {
  float* scaled;   // [V] logits / temperature
  int32_t* order;  // [V] tokens in descending order, as far as known
};

// exp(scaled - max) as the inner loops compute it: the kept set must not depend on the machine's
// libm.
float Exponential(const KernelTable& kernels, const Scratch& scratch, int32_t token, float max) {
  return kernels.sum_exp(scratch.scaled + token, 1, max);
}

// How many of order[0, count) the processed distribution keeps, or -1 if it may need more than
// those.
int PrefixKept(const KernelTable& kernels, const SamplingSpec& spec, const Scratch& scratch,
               int count, int vocabulary, float max, float sum_all) {
  int limit = count;
  const bool complete = count == vocabulary;
  if (spec.top_k > 0) {
    const int k = std::min(spec.top_k, vocabulary);
    if (count < k && !complete) return -1;
    limit = std::min(limit, k);
  }
  if (spec.top_p >= 1.0f) return spec.top_k > 0 || complete ? limit : -1;
  float sum = sum_all;
  if (spec.top_k > 0) {
    sum = 0.0f;
    for (int i = 0; i < limit; ++i) sum += Exponential(kernels, scratch, scratch.order[i], max);
  }
  float cumulative = 0.0f;
  for (int i = 0; i < limit; ++i) {
    cumulative += Exponential(kernels, scratch, scratch.order[i], max);
    if (cumulative >= spec.top_p * sum) return i + 1;
  }
  return spec.top_k > 0 || complete ? limit : -1;
}

int32_t DrawFromKept(const KernelTable& kernels, const SamplingSpec& spec, int64_t position,
                     int vocabulary, const Scratch& scratch) {
  const float max = scratch.scaled[kernels.arg_max(scratch.scaled, vocabulary)];
  const float sum_all = kernels.sum_exp(scratch.scaled, vocabulary, max);
  const auto before = [&](int32_t a, int32_t b) {
    const float x = scratch.scaled[a];
    const float y = scratch.scaled[b];
    return x != y ? x > y : a < b;
  };
  int kept = -1;
  for (float margin = kFirstMargin; kept < 0; margin *= 2) {
    const float threshold =
        margin <= kLastMargin ? max - margin : -std::numeric_limits<float>::infinity();
    const int count = kernels.select_at_least(scratch.scaled, vocabulary, threshold, scratch.order);
    std::sort(scratch.order, scratch.order + count, before);
    kept = PrefixKept(kernels, spec, scratch, count, vocabulary, max, sum_all);
    if (count == vocabulary) break;
  }
  int32_t best = scratch.order[0];
  float best_value = -std::numeric_limits<float>::infinity();
  for (int i = 0; i < kept; ++i) {
    const int32_t token = scratch.order[i];
    const float value = scratch.scaled[token] + GumbelNoise(spec.seed, position, token);
    if (value > best_value || (value == best_value && token < best)) {
      best_value = value;
      best = token;
    }
  }
  return best;
}

float LogProbability(float logit, float max, float sum) {
  return logit == logit ? logit - max - PortableLog(sum) : -std::numeric_limits<float>::infinity();
}

}  // namespace

float GumbelNoise(uint64_t seed, int64_t position, int32_t token) {
  return PortableGumbelNoise(seed, position, token);
}

size_t SampleWorkspaceBytes(int num_tokens_in_vocabulary) {
  return 2 * PaddedBytes(num_tokens_in_vocabulary);
}

TokenChoice SampleToken(const float* logits, int num_tokens_in_vocabulary, const SamplingSpec& spec,
                        int64_t position, bool want_logprob, void* workspace) {
  const int vocabulary = num_tokens_in_vocabulary;
  KERNELS_CHECK(vocabulary, >, 0);
  KERNELS_CHECK(spec.temperature >= 0.0f, ==, true);
  KERNELS_CHECK(spec.top_k, >=, 0);
  KERNELS_CHECK(spec.top_p > 0.0f, ==, true);
  const FlushDenormals flush;
  const KernelTable& kernels = Active();
  TokenChoice choice = {0, 0.0f};
  const int greedy = kernels.arg_max(logits, vocabulary);
  if (spec.temperature == 0.0f) {
    choice.token = greedy;
  } else {
    const Scratch scratch = {
        static_cast<float*>(workspace),
        reinterpret_cast<int32_t*>(static_cast<uint8_t*>(workspace) + PaddedBytes(vocabulary))};
    kernels.divide(logits, vocabulary, spec.temperature, scratch.scaled);
    if (spec.top_k == 0 && spec.top_p >= 1.0f) {
      kernels.add_gumbel(scratch.scaled, vocabulary, spec.seed, position);
      choice.token = kernels.arg_max(scratch.scaled, vocabulary);
    } else {
      choice.token = DrawFromKept(kernels, spec, position, vocabulary, scratch);
    }
  }
  if (want_logprob) {
    const float max = logits[greedy];
    choice.logprob =
        LogProbability(logits[choice.token], max, kernels.sum_exp(logits, vocabulary, max));
  }
  return choice;
}

void TopLogprobs(const float* logits, int num_tokens_in_vocabulary, int n, int32_t* tokens,
                 float* logprobs) {
  KERNELS_CHECK(n, >=, 0);
  KERNELS_CHECK(n, <=, num_tokens_in_vocabulary);
  if (n == 0) return;
  const FlushDenormals flush;
  const KernelTable& kernels = Active();
  int found = 0;
  for (int i = 0; i < num_tokens_in_vocabulary; ++i) {
    const float value =
        logits[i] == logits[i] ? logits[i] : -std::numeric_limits<float>::infinity();
    if (found == n && !(value > logprobs[n - 1])) continue;
    int place = found < n ? found++ : n - 1;
    for (; place > 0 && value > logprobs[place - 1]; --place) {
      logprobs[place] = logprobs[place - 1];
      tokens[place] = tokens[place - 1];
    }
    logprobs[place] = value;
    tokens[place] = i;
  }
  const float max = logprobs[0];
  const float sum = kernels.sum_exp(logits, num_tokens_in_vocabulary, max);
  for (int i = 0; i < n; ++i) logprobs[i] = LogProbability(logprobs[i], max, sum);
}

}  // namespace ultraspeed::kernels
