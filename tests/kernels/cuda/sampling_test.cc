// Sampling on the GPU against kernels::SampleToken, which sampling_test.cc holds against the
// distributions; log-probabilities; acceptance.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/random_data.h"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Chosen {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
};

Chosen SampleRows(const std::vector<float>& logits, int vocabulary, int vocabulary_used,
                  int32_t banned, const std::vector<SampleRow>& rows) {
  const int n = static_cast<int>(rows.size());
  const DeviceArray<float> d_logits(logits), d_logprobs(n);
  const DeviceArray<SampleRow> d_rows(rows);
  const DeviceArray<int32_t> d_tokens(n);
  const DeviceArray<uint8_t> workspace(SampleWorkspaceBytes(n, vocabulary));
  Sample(d_logits.get(), n, vocabulary, vocabulary_used, banned, d_rows.get(), d_tokens.get(),
         d_logprobs.get(), workspace.get(), nullptr);
  return {d_tokens.ToHost(), d_logprobs.ToHost()};
}

TokenChoice OnCpu(std::vector<float> logits, int32_t banned, const SampleRow& row) {
  if (banned >= 0) logits[banned] = -kInfinity;
  std::vector<double> workspace(kernels::SampleWorkspaceBytes(static_cast<int>(logits.size())) / 8 +
                                1);
  return SampleToken(logits.data(), static_cast<int>(logits.size()), row.spec, row.position,
                     row.want_logprob != 0, workspace.data());
}

// Sums over the vocabulary have another order than on the CPU, so top-p may cut one token earlier
// or later where the running probability meets the wanted one within 1e-5. Such rows are counted
// and must stay rare; without top-p there are none.
struct Tally {
  int rows = 0, different = 0, different_without_top_p = 0;
};

void CompareWithCpu(RandomData& random, int vocabulary, int vocabulary_used,
                    const std::vector<SamplingSpec>& specs, Tally& tally) {
  const int32_t banned = vocabulary_used > 3 ? vocabulary_used / 3 : -1;
  std::vector<SampleRow> rows;
  std::vector<float> logits;
  for (const SamplingSpec& spec : specs) {
    rows.push_back({spec, random.Integer(0, 1 << 30) * int64_t{5}, 1});
    const std::vector<float> row = random.Floats(vocabulary, random.Integer(1, 6) * 0.7f);
    logits.insert(logits.end(), row.begin(), row.end());
    if (banned >= 0) logits[logits.size() - vocabulary + banned] = 50.0f;  // would always win
  }
  const Chosen got = SampleRows(logits, vocabulary, vocabulary_used, banned, rows);
  const Chosen again = SampleRows(logits, vocabulary, vocabulary_used, banned, rows);
  EXPECT_EQ(got.tokens, again.tokens);
  EXPECT_TRUE(SameBits(got.logprobs, again.logprobs));
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto begin = logits.begin() + static_cast<int64_t>(i) * vocabulary;
    const TokenChoice want =
        OnCpu(std::vector<float>(begin, begin + vocabulary_used), banned, rows[i]);
    ++tally.rows;
    if (got.tokens[i] == want.token) {
      ASSERT_NEAR(got.logprobs[i], want.logprob, 1e-4) << "V " << vocabulary << " row " << i;
      continue;
    }
    ++tally.different;
    tally.different_without_top_p += rows[i].spec.top_p >= 1.0f;
    // One row alone: the same as beside the others.
    const Chosen alone = SampleRows(std::vector<float>(begin, begin + vocabulary), vocabulary,
                                    vocabulary_used, banned, {rows[i]});
    EXPECT_EQ(alone.tokens[0], got.tokens[i]);
  }
}

// Every way of choosing, over a range of how much is cut off.
std::vector<SamplingSpec> ManySpecs(RandomData& random) {
  std::vector<SamplingSpec> specs;
  for (float temperature : {0.0f, 0.3f, 1.0f, 1.7f}) {
    for (int top_k : {0, 1, 3, 40, 1 << 20}) {
      for (float top_p : {1.0f, 0.999f, 0.9f, 0.4f, 1e-6f}) {
        specs.push_back(
            {temperature, top_k, top_p, static_cast<uint64_t>(random.Integer(0, 1 << 30)) << 13});
      }
    }
  }
  return specs;
}

void ExpectRareDifferences(const Tally& tally) {
  std::printf("sampling: %d of %d rows differ from the CPU, %d without top-p\n", tally.different,
              tally.rows, tally.different_without_top_p);
  EXPECT_EQ(tally.different_without_top_p, 0);
  EXPECT_LE(tally.different * 2000, tally.rows);
}

TEST(CudaSample, AgreesWithTheCpu) {
  SKIP_WITHOUT_GPU();
  RandomData random(1);
  Tally tally;
  for (int round = 0; round < 12; ++round) {
    for (int vocabulary : {1, 2, 5, 127, 1000, 4096, 4099}) {
      CompareWithCpu(random, vocabulary, vocabulary - (vocabulary > 100 ? round % 3 : 0),
                     ManySpecs(random), tally);
    }
  }
  ExpectRareDifferences(tally);
}

// For tools that slow a kernel down a thousandfold: every kernel once.
TEST(CudaSample, AFewRowsAgreeWithTheCpu) {
  SKIP_WITHOUT_GPU();
  RandomData random(4);
  Tally tally;
  CompareWithCpu(random, 1000, 998,
                 {{0.0f, 0, 1.0f, 1}, {1.0f, 0, 1.0f, 2}, {0.7f, 5, 1.0f, 3}, {1.0f, 40, 0.9f, 4}},
                 tally);
  ExpectRareDifferences(tally);
}

TEST(CudaSample, AgreesWithTheCpuAtTheServedVocabulary) {
  SKIP_WITHOUT_GPU();
  RandomData random(2);
  Tally tally;
  const std::vector<SamplingSpec> specs = {{0.0f, 0, 1.0f, 1},      {1.0f, 0, 1.0f, 2},
                                           {0.6f, 0, 0.95f, 3},     {1.0f, 0, 0.95f, 4},
                                           {1.0f, 20, 1.0f, 5},     {0.8f, 50, 0.9f, 6},
                                           {1.5f, 0, 0.999f, 7},    {2.0f, 100000, 1.0f, 8},
                                           {1.0f, 100000, 0.8f, 9}, {1.0f, 0, 0.999999f, 10}};
  for (int vocabulary : {152576, 151937}) {
    for (int round = 0; round < 2; ++round) {
      CompareWithCpu(random, vocabulary, vocabulary - 300 * round, specs, tally);
    }
  }
  EXPECT_EQ(tally.different_without_top_p, 0);
  EXPECT_LE(tally.different, 1) << "of " << tally.rows;
}

// All tokens equal: every bin's width is one rank, and ties go by id.
TEST(CudaSample, FlatRowsAndTies) {
  SKIP_WITHOUT_GPU();
  for (int vocabulary : {300, 20000}) {
    std::vector<SampleRow> rows;
    for (int i = 0; i < 200; ++i) {
      rows.push_back({{1.0f, i % 2 == 0 ? 7 : 0, i % 2 == 0 ? 1.0f : 0.25f, 11}, i, 0});
    }
    const std::vector<float> logits(static_cast<size_t>(vocabulary) * rows.size(), 1.5f);
    const Chosen got = SampleRows(logits, vocabulary, vocabulary, 3, rows);
    for (size_t i = 0; i < rows.size(); ++i) {
      const TokenChoice want =
          OnCpu(std::vector<float>(logits.begin(), logits.begin() + vocabulary), 3, rows[i]);
      EXPECT_EQ(got.tokens[i], want.token) << "V " << vocabulary << " row " << i;
    }
  }
}

TEST(CudaSample, NanAndInfinity) {
  SKIP_WITHOUT_GPU();
  const std::vector<std::vector<float>> logits = {{kNan, 3, kNan, 5},
                                                  {kNan, kNan, kNan, kNan},
                                                  {-kInfinity, -kInfinity, -5, -kInfinity},
                                                  {1, 3, 3, 2},
                                                  {kNan, -kInfinity, 1, kNan}};
  for (const std::vector<float>& row : logits) {
    for (SamplingSpec spec : {SamplingSpec{}, SamplingSpec{1.0f, 0, 1.0f, 4},
                              SamplingSpec{1.0f, 3, 1.0f, 4}, SamplingSpec{1.0f, 2, 0.5f, 4}}) {
      EXPECT_EQ(SampleRows(row, 4, 4, -1, {{spec, 9, 0}}).tokens[0],
                OnCpu(row, -1, {spec, 9, 0}).token);
    }
  }
}

TEST(CudaTopLogprobs, AgreesWithTheCpu) {
  SKIP_WITHOUT_GPU();
  RandomData random(3);
  for (int vocabulary : {8, 100, 4099, 152576}) {
    constexpr int kRows = 3;
    std::vector<float> logits = random.Floats(static_cast<size_t>(kRows) * vocabulary, 2.0f);
    logits[1] = logits[5] = 20.0f;  // a tie at the top
    logits[2] = kNan;
    for (int n : {1, 5, 8}) {
      const DeviceArray<float> d_logits(logits), d_logprobs(kRows * n);
      const DeviceArray<int32_t> d_tokens(kRows * n);
      TopLogprobs(d_logits.get(), kRows, vocabulary, vocabulary - 0, n, d_tokens.get(),
                  d_logprobs.get(), nullptr);
      const std::vector<int32_t> tokens = d_tokens.ToHost();
      const std::vector<float> logprobs = d_logprobs.ToHost();
      for (int row = 0; row < kRows; ++row) {
        std::vector<int32_t> want_tokens(n);
        std::vector<float> want(n);
        kernels::TopLogprobs(&logits[static_cast<size_t>(row) * vocabulary], vocabulary, n,
                             want_tokens.data(), want.data());
        for (int i = 0; i < n; ++i) {
          EXPECT_EQ(tokens[row * n + i], want_tokens[i]) << "V " << vocabulary << " place " << i;
          if (std::isfinite(want[i])) {
            EXPECT_NEAR(logprobs[row * n + i], want[i], 1e-4);
          } else {
            EXPECT_EQ(logprobs[row * n + i], want[i]);
          }
        }
      }
    }
  }
}

TEST(CudaAccept, CountsTheAgreeingPrefix) {
  SKIP_WITHOUT_GPU();
  const DeviceArray<int32_t> drafts({1, 2, 3, 1, 9, 3, 8, 2, 3});
  const DeviceArray<int32_t> chosen({1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4});
  const DeviceArray<int32_t> accepted(3), kept(3);
  Accept(drafts.get(), chosen.get(), 3, 4, accepted.get(), kept.get(), nullptr);
  EXPECT_EQ(accepted.ToHost(), (std::vector<int32_t>{3, 1, 0}));
  EXPECT_EQ(kept.ToHost(), (std::vector<int32_t>{4, 2, 1}));
}

// The first and the last token of a word and of a row; what lies past the used tokens stays.
TEST(CudaMaskLogits, LeavesTheTokensWhoseBitIsSet) {
  SKIP_WITHOUT_GPU();
  RandomData random(9);
  for (const int used : {1, 31, 32, 33, 255, 257, 1000}) {
    const int rows = 3, vocabulary = used + 5, words = (used + 31) / 32;
    const std::vector<float> logits = random.Floats(static_cast<size_t>(rows) * vocabulary);
    std::vector<uint32_t> masks(static_cast<size_t>(rows) * words);
    for (size_t i = 0; i < masks.size(); ++i)
      masks[i] =
          i < static_cast<size_t>(words) ? 0x80000001u : static_cast<uint32_t>(i) * 2654435761u;
    const DeviceArray<float> d_logits(logits);
    const DeviceArray<uint32_t> d_masks(masks);
    MaskLogits(d_logits.get(), rows, vocabulary, used, d_masks.get(), nullptr);
    const std::vector<float> got = d_logits.ToHost();
    for (int row = 0; row < rows; ++row) {
      for (int token = 0; token < vocabulary; ++token) {
        const size_t at = static_cast<size_t>(row) * vocabulary + token;
        const bool kept =
            token >= used ||
            (masks[static_cast<size_t>(row) * words + token / 32] >> (token % 32) & 1) != 0;
        ASSERT_EQ(got[at], kept ? logits[at] : -1e30f) << used << " row " << row << " " << token;
      }
    }
  }
}

}  // namespace
}  // namespace ultraspeed::kernels::cuda
