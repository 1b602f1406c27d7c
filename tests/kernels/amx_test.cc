// What the AMX kernels compute, bit for bit: docs/MODEL.md written down in scalar code.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/ops.h"
#include "kernels/thread_pool.h"
#include "tests/kernels/random_data.h"

namespace ultraspeed::kernels {
namespace {

constexpr int kGroup = 32;      // columns that a tile instruction adds up
constexpr int kFp8Block = 128;  // columns of one scale

float Flush(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}
float Fma(float a, float b, float c) { return Flush(std::fma(Flush(a), Flush(b), Flush(c))); }

// sum + (even + odd), as TDPBF16PS.
float AddGroup(float sum, const float* w, const bf16* x) {
  float even = 0, odd = 0;
  for (int c = 0; c < kGroup; c += 2) {
    even = Fma(w[c], FromBf16(x[c]), even);
    odd = Fma(w[c + 1], FromBf16(x[c + 1]), odd);
  }
  return Flush(Flush(sum) + Flush(even + odd));
}

// The codes of a row, with their scales but for FP8, whose scales come later.
std::vector<float> RowOf(const TestMatrix& w, int row) {
  std::vector<float> values;
  for (int c = 0; c < w.num_cols; ++c) {
    const size_t i = static_cast<size_t>(row) * w.num_cols + c;
    values.push_back(w.format == WeightFormat::kFp8Block128 ? FromE4m3(w.codes[i])
                                                            : static_cast<float>(w.Value(row, c)));
  }
  return values;
}

float Emulate(const TestMatrix& w, int row, const bf16* x) {
  const std::vector<float> values = RowOf(w, row);
  float total = 0, block = 0;
  for (int c = 0; c < w.num_cols; c += kGroup) {
    if (w.format != WeightFormat::kFp8Block128) {
      total = AddGroup(total, values.data() + c, x + c);
      continue;
    }
    block = AddGroup(c % kFp8Block == 0 ? 0 : block, values.data() + c, x + c);
    if ((c + kGroup) % kFp8Block == 0 || c + kGroup == w.num_cols) {
      const int num_blocks = (w.num_cols + kFp8Block - 1) / kFp8Block;
      total = Fma(w.scales_f32[row / kFp8Block * num_blocks + c / kFp8Block], block, total);
    }
  }
  return total;
}

bool SameNumber(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof a) == 0;
}

class Amx : public testing::Test {
 protected:
  void SetUp() override {
    if (DetectInstructionSet() < InstructionSet::kAmxBf16) GTEST_SKIP() << "no AMX here";
  }

  void ExpectEmulated(const TestMatrix& w, const std::vector<bf16>& x, int num_tokens) {
    const PackedMatrix packed = PackedMatrix::Pack(w.Checkpoint());
    for (ThreadPool* pool : {&one_, &two_}) {
      const std::vector<float> out = Multiply(*pool, packed, x, num_tokens);
      for (int t = 0; t < num_tokens; ++t) {
        for (int r = 0; r < w.num_rows; r += 1 + w.num_rows / 40) {
          const float want = Emulate(w, r, x.data() + t * w.num_cols);
          ASSERT_TRUE(SameNumber(out[static_cast<size_t>(t) * w.num_rows + r], want))
              << "format " << int(w.format) << " N " << w.num_rows << " K " << w.num_cols << " T "
              << num_tokens << " row " << r << " token " << t << ": "
              << out[static_cast<size_t>(t) * w.num_rows + r] << ", not " << want;
        }
      }
    }
  }
  static std::vector<float> Multiply(ThreadPool& pool, const PackedMatrix& w,
                                     const std::vector<bf16>& x, int num_tokens) {
    std::vector<float> out(static_cast<size_t>(num_tokens) * w.num_rows());
    MatMul(pool, w, x.data(), num_tokens, w.num_cols(), out.data(), w.num_rows());
    return out;
  }

  RandomData random_{20};
  ThreadPool one_{1}, two_{2};
};

TEST_F(Amx, EveryFormatShapeAndNumberOfTokens) {
  for (WeightFormat format : kFormats) {
    for (int rows : {1, 16, 17, 130}) {
      for (int cols : {32, 96, 128, 160, 416}) {
        const TestMatrix w = RandomMatrix(random_, format, rows, cols);
        for (int tokens : {1, 2, 7, 8, 15, 16, 17, 40, 64, 65}) {
          ExpectEmulated(w, random_.Bf16s(static_cast<size_t>(tokens) * cols), tokens);
        }
      }
    }
  }
}

// Matrices of random codes have others in every tile.
TEST_F(Amx, NormalE4m3CodesAndTilesWithOneOther) {
  for (int rows : {1, 16, 17, 130}) {
    for (int cols : {32, 96, 128, 160, 416}) {
      TestMatrix w = RandomMatrix(random_, WeightFormat::kFp8Block128, rows, cols);
      MakeNormal(w);
      for (bool has_others : {false, true}) {
        for (size_t i = 5; has_others && i < w.codes.size(); i += 1500) {
          w.codes[i] = static_cast<uint8_t>(random_.Integer(0, 7) | random_.Integer(0, 1) << 7);
        }
        for (int tokens : {1, 8, 16, 17, 33, 64}) {
          ExpectEmulated(w, random_.Bf16s(static_cast<size_t>(tokens) * cols), tokens);
        }
      }
    }
  }
}

// Bf16 of any bits but NaN and infinity: sums cancel, overflow and meet denormals.
TEST_F(Amx, NumbersOfAllMagnitudes) {
  for (int lowest : {0, 60, 100}) {
    for (int highest : {130, 190, 254}) {
      TestMatrix w = RandomMatrix(random_, WeightFormat::kBf16, 48, 160);
      const auto any = [&] {
        return static_cast<bf16>(random_.Integer(0, 1) << 15 |
                                 random_.Integer(lowest, highest) << 7 | random_.Integer(0, 127));
      };
      for (size_t i = 0; i < w.codes.size(); i += 2) {
        const bf16 value = any();
        std::memcpy(&w.codes[i], &value, 2);
      }
      std::vector<bf16> x(17 * 160);
      std::generate(x.begin(), x.end(), any);
      ExpectEmulated(w, x, 17);
    }
  }
}

TEST_F(Amx, SmallSumsOfEveryFormat) {
  for (WeightFormat format : kFormats) {
    for (float deviation : {1e-36f, 1e-37f, 1e-38f, 1e-39f}) {
      ExpectEmulated(RandomMatrix(random_, format, 32, 288), random_.Bf16s(9 * 288, deviation), 9);
    }
  }
}

TEST_F(Amx, NanAndInfinity) {
  for (WeightFormat format : kFormats) {
    TestMatrix w = RandomMatrix(random_, format, 16, 64);
    if (format == WeightFormat::kFp8Block128) w.codes[5 * 64 + 3] = 0x7f;
    if (format == WeightFormat::kFp8Block128) w.codes[6 * 64 + 3] = 0xff;
    std::vector<bf16> x = random_.Bf16s(8 * 64);
    x[2 * 64 + 10] = 0x7fc0;
    x[3 * 64 + 11] = 0x7f80;
    x[4 * 64 + 12] = 0xff80;
    ExpectEmulated(w, x, 8);
  }
}

// A block of zeros may have any scale; with another block's scale at an end the matrix is
// multiplied in the order of the other instruction sets.
TEST_F(Amx, ScalesThatBf16DoesNotHave) {
  constexpr int kRows = 32, kCols = 96, kTokens = 9;
  const std::vector<bf16> x = random_.Bf16s(kTokens * kCols);
  for (uint8_t scale : {0, 1, 253, 254}) {
    TestMatrix w = RandomMatrix(random_, WeightFormat::kMxfp4, kRows, kCols);
    w.scales_e8m0[4] = scale;
    std::fill_n(w.codes.begin() + 4 * 16, 16, uint8_t{0x88});
    EXPECT_TRUE(PackedMatrix::Pack(w.Checkpoint()).exact_in_bf16());
    ExpectEmulated(w, x, kTokens);

    w.codes[4 * 16 + 7] = 0x18;
    const PackedMatrix packed = PackedMatrix::Pack(w.Checkpoint());
    EXPECT_FALSE(packed.exact_in_bf16());
    for (int tokens : {1, kTokens}) {
      const std::vector<float> got = Multiply(two_, packed, x, tokens);
      SetInstructionSet(InstructionSet::kAvx512Bf16);
      EXPECT_TRUE(SameBits(got, Multiply(one_, packed, x, tokens))) << "scale " << int(scale);
      SetInstructionSet(InstructionSet::kAmxBf16);
    }
  }
  for (uint8_t scale : {2, 252}) {
    TestMatrix w = RandomMatrix(random_, WeightFormat::kMxfp4, kRows, kCols);
    std::fill(w.scales_e8m0.begin(), w.scales_e8m0.end(), scale);
    EXPECT_TRUE(PackedMatrix::Pack(w.Checkpoint()).exact_in_bf16());
    ExpectEmulated(w, random_.Bf16s(kTokens * kCols, scale == 2 ? 100.0f : 0.01f), kTokens);
  }
}

}  // namespace
}  // namespace ultraspeed::kernels
