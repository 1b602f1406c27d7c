#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/device_matrix.h"
#include "tests/kernels/oracles.h"

namespace ultraspeed::kernels::cuda {
namespace {

using ExpertsTest = GpuTest;

struct Shape {
  WeightFormat format;
  int hidden, ffn, num_experts, per_token;
};

// One MXFP4 shape of ragged slabs, one FP8 shape, and one whose hidden width fills shared memory.
constexpr Shape kShapes[] = {{WeightFormat::kMxfp4, 96, 160, 13, 4},
                             {WeightFormat::kFp8Block128, 256, 128, 5, 2},
                             {WeightFormat::kMxfp4, 6144, 64, 4, 2}};

struct Layer {
  Shape shape;
  std::vector<TestExpert> host;
  std::unique_ptr<DeviceArray<uint8_t>> gate_up, down;
  Experts experts;

  Layer(const Shape& s, RandomData& random) : shape(s) {
    const ExpertBytes bytes = PackedExpertBytes(s.format, s.ffn, s.hidden);
    gate_up = std::make_unique<DeviceArray<uint8_t>>(bytes.gate_up * s.num_experts);
    down = std::make_unique<DeviceArray<uint8_t>>(bytes.down * s.num_experts);
    experts = {s.format, s.num_experts, s.ffn, s.hidden, gate_up->get(), down->get()};
    for (int e = 0; e < s.num_experts; ++e) {
      host.emplace_back(random, s.format, s.ffn, s.hidden);
      const OnDevice gate(host[e].gate), up(host[e].up), down_matrix(host[e].down);
      PackExpert(gate.checkpoint, up.checkpoint, down_matrix.checkpoint, e, experts, nullptr);
      Synchronize();
    }
  }
};

struct Batch {
  std::vector<bf16> x;
  std::vector<int32_t> ids;
  std::vector<float> weights;

  // Each token chooses among the first `num_used` experts.
  Batch(const Shape& s, int num_tokens, int num_used, RandomData& random)
      : x(random.Bf16s(static_cast<size_t>(num_tokens) * s.hidden, 0.3f)) {
    for (int t = 0; t < num_tokens; ++t) {
      std::vector<int32_t> all(num_used);
      std::iota(all.begin(), all.end(), 0);
      for (int k = 0; k < s.per_token; ++k) std::swap(all[k], all[random.Integer(k, num_used - 1)]);
      std::sort(all.begin(), all.begin() + s.per_token);
      ids.insert(ids.end(), all.begin(), all.begin() + s.per_token);
      for (int k = 0; k < s.per_token; ++k) weights.push_back(0.1f + 0.1f * (k + t % 3));
    }
  }
};

std::vector<float> RunLayer(const Layer& layer, const Batch& batch, int first, int num_tokens) {
  const Shape& s = layer.shape;
  const auto rows = [&](const auto& all, int width) {
    return std::vector(all.begin() + static_cast<size_t>(first) * width,
                       all.begin() + static_cast<size_t>(first + num_tokens) * width);
  };
  const DeviceArray<bf16> x(rows(batch.x, s.hidden));
  const DeviceArray<int32_t> ids(rows(batch.ids, s.per_token));
  const DeviceArray<float> weights(rows(batch.weights, s.per_token));
  DeviceArray<float> out(static_cast<size_t>(num_tokens) * s.hidden);
  // Full of NaN: what an operation has not written itself must not reach a result.
  DeviceArray<uint8_t> workspace(std::vector<uint8_t>(
      MoeWorkspaceBytes(layer.experts, s.per_token, num_tokens), uint8_t{0xff}));
  MixtureOfExperts({.experts = layer.experts,
                    .experts_per_token = s.per_token,
                    .x = x.get(),
                    .expert_ids = ids.get(),
                    .expert_weights = weights.get(),
                    .num_tokens = num_tokens,
                    .out = out.get(),
                    .workspace = workspace.get()},
                   nullptr);
  return out.ToHost();
}

TEST_F(ExpertsTest, AgreesWithDoublePrecision) {
  for (const Shape& shape : kShapes) {
    RandomData random(1);
    const Layer layer(shape, random);
    for (int tokens : {1, 3, 9, 40, 131, 530}) {
      const Batch batch(shape, tokens, shape.num_experts, random);
      const std::vector<float> out = RunLayer(layer, batch, 0, tokens);
      for (int t = 0; t < tokens; t += 1 + tokens / 6) {
        std::vector<double> want(shape.hidden);
        for (int k = 0; k < shape.per_token; ++k) {
          const size_t slot = static_cast<size_t>(t) * shape.per_token + k;
          const std::vector<double> part =
              layer.host[batch.ids[slot]].Apply(batch.x.data() + t * shape.hidden);
          for (int i = 0; i < shape.hidden; ++i) want[i] += batch.weights[slot] * part[i];
        }
        EXPECT_LT(Difference(want, out.data() + static_cast<size_t>(t) * shape.hidden), 1e-5)
            << "hidden " << shape.hidden << " T " << tokens << " token " << t;
      }
    }
  }
}

TEST_F(ExpertsTest, ARowIsTheSameBitsInAnyBatch) {
  for (const Shape& shape : kShapes) {
    RandomData random(2);
    constexpr int kTokens = 512;
    const Layer layer(shape, random);
    const Batch batch(shape, kTokens, shape.num_experts, random);
    std::vector<float> want;
    for (int t = 0; t < kTokens; ++t) {
      const std::vector<float> row = RunLayer(layer, batch, t, 1);
      want.insert(want.end(), row.begin(), row.end());
    }
    for (int tokens : {1, 2, 7, 8, 9, 16, 33, 64, 128, 300, 512}) {
      const int first = kTokens - tokens;
      const std::vector<float> got = RunLayer(layer, batch, first, tokens);
      EXPECT_TRUE(SameBits(
          got,
          std::vector<float>(want.begin() + static_cast<size_t>(first) * shape.hidden, want.end())))
          << "hidden " << shape.hidden << " T " << tokens;
      EXPECT_TRUE(SameBits(got, RunLayer(layer, batch, first, tokens)))
          << "second run, T " << tokens;
    }
  }
}

// Every token chooses the same experts: long token tiles for these, none for the others.
TEST_F(ExpertsTest, AllTokensMayChooseTheSameExperts) {
  for (const Shape& shape : kShapes) {
    RandomData random(3);
    const Layer layer(shape, random);
    constexpr int kTokens = 70;
    const Batch batch(shape, kTokens, shape.per_token, random);
    const std::vector<float> all = RunLayer(layer, batch, 0, kTokens);
    for (int t : {0, 7, 8, 69}) {
      const std::vector<float> row = RunLayer(layer, batch, t, 1);
      EXPECT_EQ(
          0, std::memcmp(row.data(), all.data() + t * shape.hidden, shape.hidden * sizeof(float)))
          << "token " << t;
    }
  }
}

TEST_F(ExpertsTest, NoTokensIsNoWork) {
  RandomData random(4);
  const Layer layer(kShapes[0], random);
  EXPECT_TRUE(RunLayer(layer, Batch(kShapes[0], 0, kShapes[0].num_experts, random), 0, 0).empty());
}

}  // namespace
}  // namespace ultraspeed::kernels::cuda
