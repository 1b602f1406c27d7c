#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/ops.h"
#include "kernels/thread_pool.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/oracles.h"

namespace ultraspeed::kernels {
namespace {

MlpWeights Pack(const TestExpert& expert) {
  return {PackedMatrix::Pack(expert.gate.Checkpoint()), PackedMatrix::Pack(expert.up.Checkpoint()),
          PackedMatrix::Pack(expert.down.Checkpoint())};
}

constexpr int kHidden = 96;
constexpr int kFfn = 160;
constexpr int kExperts = 13;
constexpr int kPerToken = 4;

struct MoeCase {
  std::vector<TestExpert> experts;
  std::vector<MlpWeights> weights;
  std::vector<bf16> x;
  std::vector<int32_t> ids;
  std::vector<float> expert_weights;

  MoeCase(int num_tokens, uint32_t seed) {
    RandomData random(seed);
    for (int e = 0; e < kExperts; ++e) {
      experts.emplace_back(random, WeightFormat::kMxfp4, kFfn, kHidden);
      weights.push_back(Pack(experts.back()));
    }
    x = random.Bf16s(static_cast<size_t>(num_tokens) * kHidden, 0.3f);
    for (int t = 0; t < num_tokens; ++t) {
      std::vector<int32_t> all(kExperts);
      std::iota(all.begin(), all.end(), 0);
      for (int k = 0; k < kPerToken; ++k) std::swap(all[k], all[random.Integer(k, kExperts - 1)]);
      std::sort(all.begin(), all.begin() + kPerToken);
      ids.insert(ids.end(), all.begin(), all.begin() + kPerToken);
      for (int k = 0; k < kPerToken; ++k) expert_weights.push_back(0.1f + 0.1f * (k + t % 3));
    }
  }
  std::vector<float> Run(ThreadPool& pool, int first, int num_tokens) const {
    std::vector<float> out(static_cast<size_t>(num_tokens) * kHidden);
    std::vector<uint8_t> workspace(
        MoeWorkspaceBytes(num_tokens, kPerToken, kExperts, kFfn, kHidden) + 64);
    uint8_t* aligned = workspace.data() + (64 - reinterpret_cast<uintptr_t>(workspace.data()) % 64);
    MixtureOfExperts(pool, {.experts = weights.data(),
                            .num_experts = kExperts,
                            .experts_per_token = kPerToken,
                            .x = x.data() + first * kHidden,
                            .expert_ids = ids.data() + first * kPerToken,
                            .expert_weights = expert_weights.data() + first * kPerToken,
                            .num_tokens = num_tokens,
                            .out = out.data(),
                            .workspace = aligned});
    return out;
  }
};

TEST(MixtureOfExperts, AgreesWithDoublePrecision) {
  ThreadPool pool(2);
  for (int tokens : {1, 3, 9, 40}) {
    const MoeCase moe(tokens, 10 + tokens);
    const std::vector<float> out = moe.Run(pool, 0, tokens);
    for (int t = 0; t < tokens; t += 1 + tokens / 10) {
      std::vector<double> want(kHidden);
      for (int k = 0; k < kPerToken; ++k) {
        const std::vector<double> part =
            moe.experts[moe.ids[t * kPerToken + k]].Apply(moe.x.data() + t * kHidden);
        for (int i = 0; i < kHidden; ++i) {
          want[i] += moe.expert_weights[t * kPerToken + k] * part[i];
        }
      }
      EXPECT_LT(Difference(want, out.data() + t * kHidden), 1e-6) << "token " << t;
    }
  }
}

TEST(MixtureOfExperts, SameBitsForEveryThreadCountBatchAndSetOfOneOrder) {
  ThreadPool one(1);
  ThreadPool two(2);
  constexpr int kTokens = 33;
  const MoeCase moe(kTokens, 77);
  const auto all = [&] { return moe.Run(one, 0, kTokens); };
  ForEachOrder(all, [&](InstructionSet set, const std::vector<float>& want) {
    for (ThreadPool* pool : {&one, &two}) {
      EXPECT_TRUE(SameBits(moe.Run(*pool, 0, kTokens), want)) << Name(set);
      for (int t : {0, 5, 32}) {
        const std::vector<float> alone = moe.Run(*pool, t, 1);
        EXPECT_TRUE(SameBits(alone, std::vector<float>(want.begin() + t * kHidden,
                                                       want.begin() + (t + 1) * kHidden)))
            << Name(set) << " token " << t;
      }
    }
  });
}

TEST(MixtureOfExpertsDeathTest, RejectsExpertsOutOfOrder) {
  ThreadPool pool(1);
  MoeCase moe(1, 5);
  std::swap(moe.ids[0], moe.ids[1]);
  EXPECT_DEATH(moe.Run(pool, 0, 1), "expert_ids");
}

TEST(Mlp, AgreesWithDoublePrecisionAndIsTheSameInBatches) {
  ThreadPool one(1);
  ThreadPool two(2);
  RandomData random(6);
  for (WeightFormat format : kFormats) {
    const TestExpert expert(random, format, kFfn, kHidden);
    const MlpWeights weights = Pack(expert);
    constexpr int kTokens = 11;
    const std::vector<bf16> x = random.Bf16s(kTokens * kHidden, 0.3f);
    const auto run = [&](ThreadPool& pool, int first, int tokens) {
      std::vector<float> out(static_cast<size_t>(tokens) * kHidden);
      std::vector<double> workspace(MlpWorkspaceBytes(tokens, kFfn, kHidden) / 8 + 8);
      Mlp(pool, weights, x.data() + first * kHidden, tokens, out.data(), workspace.data());
      return out;
    };
    const auto all = [&] { return run(one, 0, kTokens); };
    ForEachOrder(all, [&](InstructionSet set, const std::vector<float>& want) {
      for (int t = 0; t < kTokens; ++t) {
        EXPECT_LT(Difference(expert.Apply(x.data() + t * kHidden), want.data() + t * kHidden), 1e-6)
            << Name(set);
      }
      EXPECT_TRUE(SameBits(run(two, 0, kTokens), want)) << Name(set);
      const std::vector<float> alone = run(two, 4, 1);
      EXPECT_TRUE(SameBits(
          alone, std::vector<float>(want.begin() + 4 * kHidden, want.begin() + 5 * kHidden)));
    });
  }
}

}  // namespace
}  // namespace ultraspeed::kernels
