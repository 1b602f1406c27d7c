// The expert router: sigmoid scores, biased top-k, weights normalised over the chosen.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/check.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/thread_pool.h"

namespace ultraspeed::kernels {
namespace {

constexpr int kExpertsMax = 1024;
constexpr int kExpertsPerTokenMax = 64;
constexpr int kTokensPerTask = 4;
constexpr int64_t kInlineWork = 64 * 1024;  // multiply-adds

void ChooseExperts(const float* scores, const float* bias, int num_experts, int count, int32_t* ids,
                   float* weights) {
  float best[kExpertsPerTokenMax];  // descending; an equal later expert never moves before an
                                    // earlier one
  int32_t chosen[kExpertsPerTokenMax];
  int found = 0;
  for (int e = 0; e < num_experts; ++e) {
    float value = scores[e] + bias[e];
    if (!(value == value)) value = -std::numeric_limits<float>::infinity();
    if (found == count && !(value > best[count - 1])) continue;
    int place = found < count ? found++ : count - 1;
    for (; place > 0 && value > best[place - 1]; --place) {
      best[place] = best[place - 1];
      chosen[place] = chosen[place - 1];
    }
    best[place] = value;
    chosen[place] = e;
  }
  std::sort(chosen, chosen + count);
  float sum = 0.0f;
  for (int k = 0; k < count; ++k) sum += scores[chosen[k]];
  for (int k = 0; k < count; ++k) {
    ids[k] = chosen[k];
    weights[k] = scores[chosen[k]] / (sum + 1e-20f);
  }
}

}  // namespace

void RouteTopK(ThreadPool& pool, const bf16* x, const float* w, const float* bias, int num_tokens,
               int hidden, int num_experts, int experts_per_token, int32_t* expert_ids,
               float* expert_weights) {
  KERNELS_CHECK(hidden % 16, ==, 0);
  KERNELS_CHECK(num_experts, <=, kExpertsMax);
  KERNELS_CHECK(experts_per_token, <=, kExpertsPerTokenMax);
  KERNELS_CHECK(experts_per_token, <=, num_experts);
  KERNELS_CHECK(experts_per_token, >, 0);
  const FlushDenormals flush;
  const KernelTable& kernels = Active();
  const auto route = [&](int begin, int end) {
    float scores[kTokensPerTask * kExpertsMax];
    for (int t0 = begin; t0 < end; t0 += kTokensPerTask) {
      const int count = std::min(kTokensPerTask, end - t0);
      kernels.router_scores(x + static_cast<size_t>(t0) * hidden, w, count, hidden, num_experts,
                            scores);
      for (int t = 0; t < count; ++t) {
        const size_t row = static_cast<size_t>(t0 + t) * experts_per_token;
        ChooseExperts(scores + static_cast<size_t>(t) * num_experts, bias, num_experts,
                      experts_per_token, expert_ids + row, expert_weights + row);
      }
    }
  };
  if (int64_t{num_tokens} * hidden * num_experts <= kInlineWork) return route(0, num_tokens);
  pool.ParallelFor((num_tokens + kTokensPerTask - 1) / kTokensPerTask, [&](int task) {
    const int begin = task * kTokensPerTask;
    route(begin, std::min(begin + kTokensPerTask, num_tokens));
  });
}

}  // namespace ultraspeed::kernels
