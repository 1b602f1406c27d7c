// Choosing a token from a row of logits: greedy, or an exact draw by Gumbel-max from the processed
// distribution.
//
// Processing order: temperature, then top-k, then top-p over what top-k left. The winner of all
// tokens wins among the kept ones if it is one of them, which takes no sorting to see. Where it is
// not: both filters keep a prefix of the descending order, so only the tokens within a margin of
// the largest are sorted, and the margin grows until the prefix is complete.
#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/check.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/gumbel.h"
#include "kernels/ops.h"

namespace ultraspeed::kernels {
namespace {

// Logits within this of the largest are looked at first; then half as far again, and so on.
constexpr float kFirstMargin = 1.5f;
constexpr float kMarginGrowth = 1.5f;
constexpr float kLastMargin = 40.0f;  // beyond it, everything
constexpr float kMassSlack = 0.999f;  // covers the rounding of a sum in another order
constexpr int kNoiseForAllTokens =
    128;  // from here on, vectorised noise for the vocabulary is cheaper than one by one

size_t PaddedBytes(int count, size_t element) {
  return (static_cast<size_t>(count) * element + 63) / 64 * 64;
}

// Scratch of one call, V elements each.
struct Scratch {
  float* scaled;   // logits / temperature
  float* weights;  // exp(scaled - max) of order[i]
  int32_t*
      order;  // candidates: tokens at or above a threshold, in the end descending (ties: lower id)
  uint64_t* keys;  // what they are sorted by

  Scratch(void* workspace, int vocabulary) {
    auto* bytes = static_cast<uint8_t*>(workspace);
    keys = reinterpret_cast<uint64_t*>(bytes);
    bytes += PaddedBytes(vocabulary, 8);
    scaled = reinterpret_cast<float*>(bytes);
    bytes += PaddedBytes(vocabulary, 4);
    weights = reinterpret_cast<float*>(bytes);
    bytes += PaddedBytes(vocabulary, 4);
    order = reinterpret_cast<int32_t*>(bytes);
  }
};

// Ascending keys are descending values, then ascending tokens.
uint64_t SortKey(float value, int32_t token) {
  const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);  // -0 becomes +0
  const uint32_t ascending = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return uint64_t{~ascending} << 32 | static_cast<uint32_t>(token);
}

void SortCandidates(const Scratch& scratch, int count) {
  for (int i = 0; i < count; ++i) {
    scratch.keys[i] = SortKey(scratch.scaled[scratch.order[i]], scratch.order[i]);
  }
  std::sort(scratch.keys, scratch.keys + count);
  for (int i = 0; i < count; ++i) {
    scratch.order[i] = static_cast<int32_t>(static_cast<uint32_t>(scratch.keys[i]));
  }
}

// weights[i] of the first `count` candidates; returns their sum.
float WeighCandidates(const KernelTable& kernels, const Scratch& scratch, int count, float max) {
  for (int i = 0; i < count; ++i) scratch.weights[i] = scratch.scaled[scratch.order[i]];
  kernels.exponentials(scratch.weights, count, max);
  float sum = 0.0f;
  for (int i = 0; i < count; ++i) sum += scratch.weights[i];
  return sum;
}

// Fills order with the kept tokens and returns how many.
int KeepTokens(const KernelTable& kernels, const SamplingSpec& spec, int vocabulary,
               const Scratch& scratch) {
  const float max = scratch.scaled[kernels.arg_max(scratch.scaled, vocabulary)];
  const float sum_all = kernels.sum_exp(scratch.scaled, vocabulary, max);
  const int top_k = spec.top_k > 0 ? std::min(spec.top_k, vocabulary) : vocabulary;
  for (float margin = kFirstMargin;; margin *= kMarginGrowth) {
    const bool everything = margin > kLastMargin;
    const float threshold = everything ? -std::numeric_limits<float>::infinity() : max - margin;
    int count = kernels.select_at_least(scratch.scaled, vocabulary, threshold, scratch.order);
    if (!everything) {
      // Enough for top-k, or, without top-k, enough mass for top-p?
      if (spec.top_k > 0 && count < top_k) continue;
      if (spec.top_k == 0 &&
          kMassSlack * WeighCandidates(kernels, scratch, count, max) < spec.top_p * sum_all) {
        continue;
      }
    }
    SortCandidates(scratch, count);
    count = std::min(count, top_k);
    const float sum_candidates = WeighCandidates(kernels, scratch, count, max);
    if (spec.top_p >= 1.0f) return count;
    const float wanted = spec.top_p * (spec.top_k > 0 ? sum_candidates : sum_all);
    float cumulative = 0.0f;
    for (int i = 0; i < count; ++i) {
      cumulative += scratch.weights[i];
      if (cumulative >= wanted) return i + 1;
    }
    if (everything || spec.top_k > 0) return count;
  }
}

// The noise of a choice: given, or made when it is asked for.
struct Noise {
  const float* values;  // [V] or null
  uint64_t seed;
  int64_t position;

  void AddToAll(const KernelTable& kernels, int vocabulary, float* x) const {
    if (values == nullptr) return kernels.add_gumbel(x, 0, vocabulary, seed, position);
    for (int i = 0; i < vocabulary; ++i) x[i] += values[i];
  }
  float Of(int32_t token) const {
    return values == nullptr ? GumbelNoise(seed, position, token) : values[token];
  }
};

// The winner of all tokens. `noisy`: [V], may be scratch.scaled itself.
int32_t DrawFromAll(const KernelTable& kernels, const Noise& noise, int vocabulary,
                    const Scratch& scratch, float* noisy) {
  if (noisy != scratch.scaled) std::copy_n(scratch.scaled, vocabulary, noisy);
  noise.AddToAll(kernels, vocabulary, noisy);
  return kernels.arg_max(noisy, vocabulary);
}

// Whether the filters keep the token for certain: by the tokens that are at least as likely.
bool IsKept(const KernelTable& kernels, const SamplingSpec& spec, int vocabulary,
            const Scratch& scratch, int32_t token) {
  const int count =
      kernels.select_at_least(scratch.scaled, vocabulary, scratch.scaled[token], scratch.order);
  if (spec.top_k > 0 && count > spec.top_k) return false;
  if (spec.top_p >= 1.0f) return true;
  const float max = scratch.scaled[kernels.arg_max(scratch.scaled, vocabulary)];
  const float mass = WeighCandidates(kernels, scratch, count, max);
  const auto place = std::lower_bound(scratch.order, scratch.order + count, token) - scratch.order;
  const float whole = spec.top_k > 0 ? mass : kernels.sum_exp(scratch.scaled, vocabulary, max);
  return mass - scratch.weights[place] < kMassSlack * spec.top_p * whole;
}

int32_t DrawFromKept(const KernelTable& kernels, const SamplingSpec& spec, const Noise& noise,
                     int vocabulary, const Scratch& scratch) {
  const int32_t winner = DrawFromAll(kernels, noise, vocabulary, scratch, scratch.weights);
  if (IsKept(kernels, spec, vocabulary, scratch, winner)) return winner;
  const int kept = KeepTokens(kernels, spec, vocabulary, scratch);
  const bool noise_for_all = kept >= kNoiseForAllTokens;
  if (noise_for_all) noise.AddToAll(kernels, vocabulary, scratch.scaled);
  int32_t best = scratch.order[0];
  float best_value = -std::numeric_limits<float>::infinity();
  for (int i = 0; i < kept; ++i) {
    const int32_t token = scratch.order[i];
    const float value = scratch.scaled[token] + (noise_for_all ? 0.0f : noise.Of(token));
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

void GumbelNoise(uint64_t seed, int64_t position, int32_t first_token, int count, float* noise) {
  KERNELS_CHECK(first_token % 4, ==, 0);
  std::fill_n(noise, count, 0.0f);
  Active().add_gumbel(noise, first_token, count, seed, position);
}

size_t SampleWorkspaceBytes(int num_tokens_in_vocabulary) {
  return PaddedBytes(num_tokens_in_vocabulary, 8) + 3 * PaddedBytes(num_tokens_in_vocabulary, 4);
}

TokenChoice SampleToken(const float* logits, int num_tokens_in_vocabulary, const SamplingSpec& spec,
                        int64_t position, bool want_logprob, void* workspace,
                        const float* noise_values) {
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
    const Scratch scratch(workspace, vocabulary);
    const Noise noise = {noise_values, spec.seed, position};
    kernels.divide(logits, vocabulary, spec.temperature, scratch.scaled);
    if (spec.top_k == 0 && spec.top_p >= 1.0f) {
      choice.token = DrawFromAll(kernels, noise, vocabulary, scratch, scratch.scaled);
    } else {
      choice.token = DrawFromKept(kernels, spec, noise, vocabulary, scratch);
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
