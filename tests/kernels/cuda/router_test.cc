#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/device_matrix.h"
#include "tests/kernels/random_data.h"

namespace ultraspeed::kernels::cuda {
namespace {

using RouterTest = GpuTest;

struct Routing {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

struct Router {
  int hidden, num_experts, per_token;
  std::vector<float> w, norm, bias;

  Router(int h, int e, int k, RandomData& random)
      : hidden(h),
        num_experts(e),
        per_token(k),
        w(random.Floats(static_cast<size_t>(e) * h, 1.0f / std::sqrt(static_cast<float>(h)))),
        norm(random.Floats(h)),
        bias(random.Floats(e, 0.1f)) {}

  // Of rows that their scales would normalise.
  Routing Route(const std::vector<float>& x) const {
    const int num_tokens = static_cast<int>(x.size()) / hidden;
    const DeviceArray<float> device_x(x), device_scales(Scales(x)), device_w(w), device_norm(norm),
        device_bias(bias);
    DeviceArray<float> packed(PackedRouterFloats(num_experts, hidden));
    PackRouter(device_w.get(), device_norm.get(), num_experts, hidden, packed.get(), nullptr);
    DeviceArray<int32_t> ids(static_cast<size_t>(num_tokens) * per_token);
    DeviceArray<float> weights(static_cast<size_t>(num_tokens) * per_token);
    DeviceArray<uint8_t> workspace(RouteWorkspaceBytes(num_tokens, num_experts));
    RouteTopK({.residual = device_x.get(),
               .scales = device_scales.get(),
               .packed = packed.get(),
               .bias = device_bias.get(),
               .num_tokens = num_tokens,
               .hidden = hidden,
               .num_experts = num_experts,
               .experts_per_token = per_token,
               .expert_ids = ids.get(),
               .expert_weights = weights.get(),
               .workspace = workspace.get()},
              nullptr);
    return {ids.ToHost(), weights.ToHost()};
  }
  std::vector<float> Scales(const std::vector<float>& x) const {
    std::vector<float> scales;
    for (size_t begin = 0; begin < x.size(); begin += static_cast<size_t>(hidden)) {
      double squares = 0;
      for (int c = 0; c < hidden; ++c) squares += double{x[begin + c]} * x[begin + c];
      scales.push_back(static_cast<float>(1 / std::sqrt(squares / hidden)));
    }
    return scales;
  }
  std::vector<double> Scores(const float* x, float scale) const {
    std::vector<double> scores(num_experts);
    for (int e = 0; e < num_experts; ++e) {
      double logit = 0;
      for (int c = 0; c < hidden; ++c)
        logit += double{w[e * hidden + c]} * norm[c] * FromBf16(ToBf16(x[c]));
      scores[e] = 1 / (1 + std::exp(-scale * logit));
    }
    return scores;
  }
};

TEST_F(RouterTest, AgreesWithDoublePrecision) {
  RandomData random(1);
  struct Shape {
    int hidden, num_experts, per_token;
  };
  for (const Shape s :
       {Shape{256, 16, 4}, Shape{96, 13, 3}, Shape{1056, 384, 8}, Shape{32, 5, 5}}) {
    const Router router(s.hidden, s.num_experts, s.per_token, random);
    for (int tokens : {1, 5, 8, 9, 33, 130}) {
      const std::vector<float> x = random.Floats(static_cast<size_t>(tokens) * s.hidden, 7.0f);
      const std::vector<float> scales = router.Scales(x);
      const Routing got = router.Route(x);
      for (int t = 0; t < tokens; ++t) {
        const std::vector<double> scores = router.Scores(x.data() + t * s.hidden, scales[t]);
        std::vector<int> order(s.num_experts);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
          return scores[a] + router.bias[a] > scores[b] + router.bias[b];
        });
        if (s.per_token < s.num_experts) {  // a choice that rounding may turn is no test
          const int last = order[s.per_token - 1], next = order[s.per_token];
          if (scores[last] + router.bias[last] - scores[next] - router.bias[next] < 1e-5) continue;
        }
        std::sort(order.begin(), order.begin() + s.per_token);
        double sum = 0;
        for (int k = 0; k < s.per_token; ++k) sum += scores[order[k]];
        for (int k = 0; k < s.per_token; ++k) {
          ASSERT_EQ(got.ids[t * s.per_token + k], order[k]) << "T " << tokens << " token " << t;
          ASSERT_NEAR(got.weights[t * s.per_token + k], scores[order[k]] / sum, 1e-5);
        }
      }
    }
  }
}

TEST_F(RouterTest, ARowIsTheSameBitsInAnyBatch) {
  RandomData random(2);
  const Router router(6144, 384, 8, random);
  constexpr int kTokens = 300;
  const std::vector<float> x = random.Floats(kTokens * 6144);
  Routing want;
  for (int t = 0; t < kTokens; ++t) {
    const Routing row =
        router.Route(std::vector<float>(x.begin() + t * 6144, x.begin() + (t + 1) * 6144));
    want.ids.insert(want.ids.end(), row.ids.begin(), row.ids.end());
    want.weights.insert(want.weights.end(), row.weights.begin(), row.weights.end());
  }
  for (int tokens : {1, 2, 7, 8, 9, 16, 33, 64, 128, 300}) {
    const int first = kTokens - tokens;
    const Routing got = router.Route(std::vector<float>(x.begin() + first * 6144, x.end()));
    EXPECT_TRUE(
        SameBits(got.ids, std::vector<int32_t>(want.ids.begin() + first * 8, want.ids.end())))
        << "T " << tokens;
    EXPECT_TRUE(SameBits(got.weights,
                         std::vector<float>(want.weights.begin() + first * 8, want.weights.end())))
        << "T " << tokens;
  }
}

TEST_F(RouterTest, TiesTakeTheLowerId) {
  RandomData random(3);
  Router router(64, 40, 6, random);
  std::fill(router.w.begin(), router.w.end(), 0.0f);
  std::fill(router.bias.begin(), router.bias.end(), 0.25f);
  router.bias[37] = 0.5f;
  const Routing got = router.Route(random.Floats(2 * 64));
  for (int t = 0; t < 2; ++t) {
    const std::vector<int32_t> ids(got.ids.begin() + t * 6, got.ids.begin() + (t + 1) * 6);
    EXPECT_EQ(ids, (std::vector<int32_t>{0, 1, 2, 3, 4, 37}));
  }
}

TEST_F(RouterTest, NoTokensIsNoWork) {
  RandomData random(4);
  EXPECT_TRUE(Router(64, 8, 2, random).Route({}).ids.empty());
}

}  // namespace
}  // namespace ultraspeed::kernels::cuda
