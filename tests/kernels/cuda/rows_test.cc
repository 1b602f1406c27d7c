// Rows of the residual stream on the GPU against double precision, and acceptance.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/random_data.h"

namespace ultraspeed::kernels::cuda {
namespace {

TEST(CudaRows, EmbedWidensAndRefusesForeignTokens) {
  SKIP_WITHOUT_GPU();
  RandomData random(1);
  constexpr int kVocabulary = 50;
  for (int hidden : {4, 256, 6144}) {
    const std::vector<bf16> table = random.Bf16s(static_cast<size_t>(kVocabulary) * hidden);
    const std::vector<bf16> mask = random.Bf16s(hidden);
    const std::vector<int32_t> tokens = {49, -1, 0, 50, 7};
    const DeviceArray<bf16> d_table(table), d_mask(mask);
    const DeviceArray<int32_t> d_tokens(tokens);
    const DeviceArray<float> d_out(tokens.size() * hidden), d_blocks(tokens.size() * 3 * hidden);
    const EmbeddingTable whole = {d_table.get(), 0, kVocabulary};
    Embed(whole, d_tokens.get(), 5, hidden, d_out.get(), nullptr);
    EmbedBlocks(whole, d_mask.get(), d_tokens.get(), 5, 3, hidden, d_blocks.get(), nullptr);
    const std::vector<float> out = d_out.ToHost(), blocks = d_blocks.ToHost();
    // A table of some tokens knows those alone; without a mask its rows are zeros.
    const EmbeddingTable part = {d_table.get() + 7 * hidden, 7, kVocabulary - 10};
    Embed(part, d_tokens.get(), 5, hidden, d_out.get(), nullptr);
    EmbedBlocks(part, nullptr, d_tokens.get(), 5, 3, hidden, d_blocks.get(), nullptr);
    const std::vector<float> part_out = d_out.ToHost(), part_blocks = d_blocks.ToHost();
    for (int t = 0; t < 5; ++t) {
      for (int i = 0; i < hidden; ++i) {
        const bool known = tokens[t] >= 0 && tokens[t] < kVocabulary;
        const float want = known ? FromBf16(table[tokens[t] * hidden + i]) : 0.0f;
        ASSERT_EQ(out[t * hidden + i], want);
        ASSERT_EQ(blocks[(t * 3) * hidden + i], want);
        ASSERT_EQ(blocks[(t * 3 + 1) * hidden + i], FromBf16(mask[i]));
        ASSERT_EQ(blocks[(t * 3 + 2) * hidden + i], FromBf16(mask[i]));
        const float part_want = tokens[t] == 7 ? want : 0.0f;
        ASSERT_EQ(part_out[t * hidden + i], part_want);
        ASSERT_EQ(part_blocks[(t * 3) * hidden + i], part_want);
        ASSERT_EQ(part_blocks[(t * 3 + 2) * hidden + i], 0.0f);
      }
    }
  }
}

void ExpectNormed(const std::vector<bf16>& got, size_t got_row, const std::vector<float>& x,
                  size_t x_row, const std::vector<float>& weight, int hidden) {
  double squares = 0;
  for (int i = 0; i < hidden; ++i) squares += double{x[x_row * hidden + i]} * x[x_row * hidden + i];
  const double scale = 1 / std::sqrt(squares / hidden + 1e-5);
  for (int i = 0; i < hidden; ++i) {
    const double exact = FromBf16(ToBf16(x[x_row * hidden + i])) * scale * weight[i];
    ASSERT_NEAR(FromBf16(got[got_row * hidden + i]), exact, std::fabs(exact) / 250 + 1e-9);
  }
}

TEST(CudaRows, AddNormAddsTapsAndNormalises) {
  SKIP_WITHOUT_GPU();
  RandomData random(2);
  for (int hidden : {4, 36, 1000, 6144}) {
    for (int tokens : {1, 8, 67}) {
      const size_t count = static_cast<size_t>(tokens) * hidden;
      const std::vector<float> x = random.Floats(count, 3.0f), delta = random.Floats(count);
      const std::vector<float> weight = random.Floats(hidden);
      std::vector<float> sum = x;
      for (size_t i = 0; i < count; ++i) sum[i] += delta[i];
      const DeviceArray<float> d_x(x), d_delta(delta), d_weight(weight);
      const DeviceArray<bf16> d_normed(count), d_tap(count * 3);
      const DeviceArray<float> d_scales(tokens);
      AddNormParams params = {.residual = d_x.get(),
                              .delta = d_delta.get(),
                              .weight = d_weight.get(),
                              .epsilon = 1e-5f,
                              .num_tokens = tokens,
                              .hidden = hidden,
                              .normed = d_normed.get(),
                              .tap = d_tap.get(),
                              .tap_offset = hidden,
                              .tap_stride = 3 * hidden,
                              .scales = d_scales.get()};
      AddNorm(params, nullptr);
      const std::vector<bf16> normed = d_normed.ToHost(), tap = d_tap.ToHost();
      EXPECT_TRUE(SameBits(d_x.ToHost(), sum));
      const std::vector<float> scales = d_scales.ToHost();
      for (int t = 0; t < tokens; ++t) {
        ExpectNormed(normed, t, sum, t, weight, hidden);
        double squares = 0;
        for (int i = 0; i < hidden; ++i) squares += std::pow(sum[t * hidden + i], 2.0);
        ASSERT_NEAR(scales[t] * std::sqrt(squares / hidden + 1e-5), 1.0, 1e-5);
        for (int i = 0; i < hidden; ++i) {
          ASSERT_EQ(tap[(t * 3 + 1) * hidden + i], ToBf16(sum[t * hidden + i]));
          ASSERT_EQ(tap[(t * 3) * hidden + i], 0xffff) << "beyond the tap";
        }
      }
      // Without delta and tap, one row at a time: the same bits.
      params.delta = nullptr;
      params.tap = nullptr;
      params.num_tokens = 1;
      for (int t = 0; t < tokens; t += 5) {
        params.residual = d_x.get() + static_cast<size_t>(t) * hidden;
        AddNorm(params, nullptr);
        const std::vector<bf16> alone = d_normed.ToHost();
        EXPECT_TRUE(SameBits(
            std::vector<bf16>(alone.begin(), alone.begin() + hidden),
            std::vector<bf16>(normed.begin() + t * hidden, normed.begin() + (t + 1) * hidden)));
      }
      const std::vector<int32_t> rows = {tokens - 1, 0, tokens / 2};
      const DeviceArray<int32_t> d_rows(rows);
      const DeviceArray<bf16> d_gathered(static_cast<size_t>(3) * hidden);
      GatherNorm(d_x.get(), d_rows.get(), 3, d_weight.get(), 1e-5f, hidden, d_gathered.get(),
                 nullptr);
      const std::vector<bf16> gathered = d_gathered.ToHost();
      for (int i = 0; i < 3; ++i) ExpectNormed(gathered, i, sum, rows[i], weight, hidden);
    }
  }
}

}  // namespace
}  // namespace ultraspeed::kernels::cuda
