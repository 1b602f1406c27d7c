// Matrix products, experts and router of one rank. Weights are random bytes: the figures are of
// time only.
#include <algorithm>
#include <cstdio>
#include <random>
#include <set>
#include <vector>

#include "kernels/bench/cuda_bench.h"
#include "kernels/cuda/ops.h"

namespace ultraspeed::kernels::cuda {
namespace {

struct LinearShape {
  const char* name;
  WeightFormat format;
  int rows, cols;
};
constexpr LinearShape kLinearShapes[] = {
    {"qkv fp8 3392x6144", WeightFormat::kFp8Block128, 3392, 6144},
    {"o_proj bf16 6144x2048", WeightFormat::kBf16, 6144, 2048},
    {"lm_head bf16 19072x6144", WeightFormat::kBf16, 19072, 6144},
    {"drafter mlp bf16 4096x6144", WeightFormat::kBf16, 4096, 6144},
    {"drafter fc bf16 768x30720", WeightFormat::kBf16, 768, 30720},
};

void MeasureLinear(const Bench& bench, const LinearShape& shape, int tokens) {
  const size_t bytes = PackedBytes(shape.format, shape.rows, shape.cols);
  const int copies = static_cast<int>(std::max<size_t>(2, kCopiesBytes / bytes));
  const Buffer weights = bench.Allocate(bytes * copies),
               x = bench.Allocate(size_t{2} * tokens * shape.cols),
               out = bench.Allocate(size_t{4} * tokens * shape.rows);
  const auto matrix = [&](int i) {
    return Matrix{shape.format, shape.rows, shape.cols, weights.as<uint8_t>() + i % copies * bytes};
  };
  const Buffer workspace = bench.Allocate(LinearWorkspaceBytes(matrix(0), tokens));
  const double seconds = bench.SecondsOf(std::max(copies, kCallsMin), [&](int i) {
    Linear(matrix(i), x.as<bf16>(), tokens, out.as<float>(), workspace.as<void>(), bench.stream());
  });
  bench.Report(shape.name, tokens, seconds, static_cast<double>(bytes),
               2.0 * tokens * shape.rows * shape.cols);
}

// Uniform routing, another choice in every call.
void MeasureExperts(const Bench& bench, const Buffer& weights, int tokens) {
  constexpr int kHidden = 6144, kFfn = 256, kExperts = 384, kPerToken = 8;
  const ExpertBytes bytes = PackedExpertBytes(WeightFormat::kMxfp4, kFfn, kHidden);
  const Experts experts = {WeightFormat::kMxfp4,
                           kExperts,
                           kFfn,
                           kHidden,
                           weights.as<uint8_t>(),
                           weights.as<uint8_t>() + kExperts * bytes.gate_up};
  const int calls = tokens <= 64 ? 16 : 4;
  std::mt19937 random(static_cast<unsigned>(tokens));
  std::vector<int32_t> ids;
  size_t num_distinct = 0;
  for (int call = 0; call < calls; ++call) {
    std::set<int32_t> distinct;
    for (int t = 0; t < tokens; ++t) {
      std::set<int32_t> chosen;
      while (chosen.size() < kPerToken) chosen.insert(static_cast<int32_t>(random() % kExperts));
      ids.insert(ids.end(), chosen.begin(), chosen.end());
      distinct.insert(chosen.begin(), chosen.end());
    }
    num_distinct += distinct.size();
  }
  const size_t slots = static_cast<size_t>(tokens) * kPerToken;
  const Buffer device_ids = bench.Allocate(ids.size() * 4),
               expert_weights = bench.Allocate(slots * 4),
               x = bench.Allocate(size_t{2} * tokens * kHidden),
               out = bench.Allocate(size_t{4} * tokens * kHidden),
               workspace = bench.Allocate(MoeWorkspaceBytes(experts, kPerToken, tokens));
  bench.Upload(device_ids, ids.data(), ids.size() * 4);
  const double seconds = bench.SecondsOf(calls, [&](int i) {
    MixtureOfExperts({.experts = experts,
                      .experts_per_token = kPerToken,
                      .x = x.as<bf16>(),
                      .expert_ids = device_ids.as<int32_t>() + i * slots,
                      .expert_weights = expert_weights.as<float>(),
                      .num_tokens = tokens,
                      .out = out.as<float>(),
                      .workspace = workspace.as<void>()},
                     bench.stream());
  });
  char name[64];
  const double mean_distinct = static_cast<double>(num_distinct) / calls;
  std::snprintf(name, sizeof(name), "experts mxfp4 U %.1f", mean_distinct);
  bench.Report(name, tokens, seconds,
               mean_distinct * static_cast<double>(bytes.gate_up + bytes.down),
               6.0 * static_cast<double>(slots) * kFfn * kHidden);
}

void MeasureRouter(const Bench& bench, int tokens) {
  constexpr int kHidden = 6144, kExperts = 384, kPerToken = 8, kCopies = 40;
  const Buffer w = bench.Allocate(size_t{4} * kExperts * kHidden * kCopies),
               bias = bench.Allocate(kExperts * 4),
               x = bench.Allocate(size_t{4} * tokens * kHidden),
               scales = bench.Allocate(size_t{4} * tokens),
               ids = bench.Allocate(size_t{4} * tokens * kPerToken),
               weights = bench.Allocate(size_t{4} * tokens * kPerToken),
               workspace = bench.Allocate(RouteWorkspaceBytes(tokens, kExperts));
  const double seconds = bench.SecondsOf(kCopies, [&](int i) {
    RouteTopK({.residual = x.as<float>(),
               .scales = scales.as<float>(),
               .packed = w.as<float>() + size_t{kExperts} * kHidden * i,
               .bias = bias.as<float>(),
               .num_tokens = tokens,
               .hidden = kHidden,
               .num_experts = kExperts,
               .experts_per_token = kPerToken,
               .expert_ids = ids.as<int32_t>(),
               .expert_weights = weights.as<float>(),
               .workspace = workspace.as<void>()},
              bench.stream());
  });
  bench.Report("router 2 x bf16 384x6144", tokens, seconds, 4.0 * kExperts * kHidden,
               2.0 * tokens * kExperts * kHidden);
}

}  // namespace

void MeasureProducts(const Bench& bench) {
  for (const LinearShape& shape : kLinearShapes) {
    for (int tokens : {1, 8, 16, 32, 64, 128, 512, 2048, 8192}) {
      if (tokens > 128 && shape.rows > 10000) continue;  // logits of many rows are never wanted
      MeasureLinear(bench, shape, tokens);
    }
  }
  const ExpertBytes bytes = PackedExpertBytes(WeightFormat::kMxfp4, 256, 6144);
  const Buffer weights = bench.Allocate(384 * (bytes.gate_up + bytes.down));
  for (int tokens : {1, 2, 4, 8, 16, 64, 128, 512, 2048, 8192})
    MeasureExperts(bench, weights, tokens);
  for (int tokens : {1, 8, 16, 64, 512, 8192}) MeasureRouter(bench, tokens);
}

}  // namespace ultraspeed::kernels::cuda
