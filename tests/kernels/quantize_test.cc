// FP8 -> MXFP4 against a rounding that searches all codes, in double precision; BF16 -> FP8.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/ops.h"
#include "kernels/thread_pool.h"
#include "tests/kernels/random_data.h"

namespace ultraspeed::kernels {
namespace {

struct Mxfp4 {
  std::vector<uint8_t> codes, scales;
  RoundingError error;
};

struct Fp8 {
  int num_rows, num_cols;
  std::vector<uint8_t> codes;
  std::vector<float> scales;

  CheckpointMatrix view() const {
    return {WeightFormat::kFp8Block128, num_rows, num_cols, codes.data(), scales.data(), nullptr};
  }
  double Value(int row, int column) const {
    const int blocks = (num_cols + 127) / 128;
    return double{FromE4m3(codes[static_cast<size_t>(row * num_cols + column)])} *
           double{scales[static_cast<size_t>(row / 128 * blocks + column / 128)]};
  }
  Mxfp4 Quantize(int num_threads = 1) const {
    ThreadPool pool(num_threads);
    Mxfp4 out;
    out.codes.resize(codes.size() / 2);
    out.scales.resize(codes.size() / 32);
    out.error = QuantizeToMxfp4(pool, view(), out.codes.data(), out.scales.data());
    return out;
  }
};

// The nearest e2m1 code of x, the even one of two.
int Nearest(double x) {
  int best = 0;
  for (int code = 1; code < 8; ++code) {
    const double distance = std::fabs(std::fabs(x) - double{FromE2m1(static_cast<uint8_t>(code))});
    const double least = std::fabs(std::fabs(x) - double{FromE2m1(static_cast<uint8_t>(best))});
    if (distance < least || (distance == least && code % 2 == 0)) best = code;
  }
  return best | (std::signbit(x) ? 8 : 0);
}

double GroupError(const Fp8& matrix, int row, int column, int exponent) {
  double error = 0;
  for (int i = 0; i < 32; ++i) {
    const double value = matrix.Value(row, column + i);
    const int code = Nearest(std::ldexp(value, -exponent));
    const double back = std::ldexp(double{FromE2m1(static_cast<uint8_t>(code))}, exponent);
    error += (value - back) * (value - back);
  }
  return error;
}

// Expects the scale and the codes that the rule calls for; returns the sums.
RoundingError CheckAll(const Fp8& matrix, const Mxfp4& got) {
  RoundingError sums;
  for (int row = 0; row < matrix.num_rows; ++row) {
    for (int column = 0; column < matrix.num_cols; column += 32) {
      const auto group = static_cast<size_t>(row * matrix.num_cols + column) / 32;
      double largest = 0;
      for (int i = 0; i < 32; ++i)
        largest = std::max(largest, std::fabs(matrix.Value(row, column + i)));
      int exponent = got.scales[group] - 127;
      if (largest == 0) {
        EXPECT_EQ(got.scales[group], 127);
      } else {
        const int specified = std::clamp(std::ilogb(largest) - 2, -127, 127);
        const double fine = GroupError(matrix, row, column, specified),
                     coarse = GroupError(matrix, row, column, specified + 1);
        EXPECT_TRUE(exponent == specified || exponent == specified + 1) << exponent;
        // Either may be taken where the two are equal up to the order of sums.
        if (std::fabs(fine - coarse) > 1e-9 * fine && specified < 127) {
          EXPECT_EQ(exponent, coarse < fine ? specified + 1 : specified) << row << " " << column;
        }
        sums.error += exponent == specified ? fine : coarse;
      }
      for (int i = 0; i < 32; ++i) {
        const double value = matrix.Value(row, column + i);
        const uint8_t byte = got.codes[group * 16 + static_cast<size_t>(i / 2)];
        const int code = i % 2 == 0 ? byte & 15 : byte >> 4;
        const int expected = Nearest(std::ldexp(value, -exponent));
        EXPECT_EQ(code & 7, expected & 7) << row << " " << column + i << " value " << value;
        if (value != 0) {
          EXPECT_EQ(code & 8, expected & 8) << row << " " << column + i;
        }
        sums.signal += value * value;
      }
    }
  }
  return sums;
}

Fp8 RandomFp8(RandomData& random, int rows, int cols, float scale) {
  Fp8 matrix{rows, cols, {}, {}};
  for (int i = 0; i < rows * cols; ++i) {
    const uint32_t bits = static_cast<uint32_t>(random.Integer(0, 1 << 30));
    auto code = static_cast<uint8_t>(bits);
    // Groups of large, of small and of all magnitudes.
    if (bits >> 8 & 1) code = static_cast<uint8_t>((code & 0x87) | 0x30);
    if ((code & 0x7f) == 0x7f) code ^= 1;
    matrix.codes.push_back(code);
  }
  for (int i = 0; i < (rows + 127) / 128 * ((cols + 127) / 128); ++i)
    matrix.scales.push_back(
        scale *
        (1 + static_cast<float>(static_cast<uint32_t>(random.Integer(0, 1 << 30)) % 1000) / 500));
  return matrix;
}

TEST(QuantizeTest, CodesScalesAndErrorAreTheRules) {
  RandomData random(11);
  for (const auto& [rows, cols] : {std::pair{1, 32}, {7, 96}, {128, 128}, {129, 160}, {256, 384}}) {
    for (const float scale : {1.0f, -0.37f, 1e-4f, 1e30f, 1e-38f, 1e-42f, 3e38f / 3}) {
      SCOPED_TRACE(scale);
      const Fp8 matrix = RandomFp8(random, rows, cols, scale);
      const Mxfp4 got = matrix.Quantize();
      const RoundingError expected = CheckAll(matrix, got);
      EXPECT_NEAR(got.error.error, expected.error, 1e-9 * expected.error);
      EXPECT_NEAR(got.error.signal, expected.signal, 1e-9 * expected.signal);
    }
  }
}

TEST(QuantizeTest, EveryCodeAlone) {
  for (int code = 0; code < 256; ++code) {
    if ((code & 0x7f) == 0x7f) continue;
    for (const float scale : {1.0f, 1.7f, 0.0f}) {
      Fp8 matrix{1, 32, std::vector<uint8_t>(32, 0), {scale}};
      matrix.codes[5] = static_cast<uint8_t>(code);
      CheckAll(matrix, matrix.Quantize());
    }
  }
}

TEST(QuantizeTest, TiesGoToTheEvenCode) {
  // 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5 beside a 4, which fixes the scale at 1.
  const uint8_t kTies[] = {0x28, 0x34, 0x3a, 0x3e, 0x42, 0x46, 0x4a};
  const int kEven[] = {0, 2, 2, 4, 4, 6, 6};
  Fp8 matrix{1, 32, std::vector<uint8_t>(32, 0), {1.0f}};
  for (size_t i = 0; i < 7; ++i) matrix.codes[i] = kTies[i];
  matrix.codes[31] = 0x48;
  const Mxfp4 got = matrix.Quantize();
  ASSERT_EQ(got.scales[0], 127);
  for (size_t i = 0; i < 7; ++i)
    EXPECT_EQ(i % 2 == 0 ? got.codes[i / 2] & 15 : got.codes[i / 2] >> 4, kEven[i]) << i;
}

// MXFP4 written as FP8 with a power of two for each block comes back with no error.
TEST(QuantizeTest, WhatIsMxfp4AlreadyIsExact) {
  RandomData random(12);
  Fp8 matrix{64, 256, {}, {0.25f, 0.5f}};
  for (int i = 0; i < 64 * 256; ++i) {
    const uint32_t bits = static_cast<uint32_t>(random.Integer(0, 1 << 30));
    const int exponent = i / 32 % 4;  // of the group
    const float value =
        FromE2m1(static_cast<uint8_t>(bits & 15)) * static_cast<float>(1 << exponent);
    for (int code = 0; code < 256; ++code) {
      if (FromE4m3(static_cast<uint8_t>(code)) == value) {
        matrix.codes.push_back(static_cast<uint8_t>(code));
        break;
      }
    }
    ASSERT_EQ(matrix.codes.size(), static_cast<size_t>(i + 1)) << value;
  }
  EXPECT_EQ(matrix.Quantize().error.error, 0);
}

TEST(QuantizeTest, ThreadsChangeNoBit) {
  RandomData random(13);
  const Fp8 matrix = RandomFp8(random, 300, 512, 0.01f);
  const Mxfp4 one = matrix.Quantize(1), four = matrix.Quantize(4);
  EXPECT_EQ(one.codes, four.codes);
  EXPECT_EQ(one.scales, four.scales);
  EXPECT_EQ(one.error.error, four.error.error);
}

// Of normally distributed values, as FP8 with the block's largest at 448. docs/MODEL.md states both
// numbers.
TEST(QuantizeTest, ErrorOfNormalValues) {
  RandomData random(14);
  Fp8 matrix{256, 256, {}, std::vector<float>(4, 1.0f)};
  for (const float value : random.Floats(256 * 256, 100.0f)) {
    uint8_t best = 0;
    for (int code = 0; code < 127; ++code) {
      const auto c = static_cast<uint8_t>(code);
      if (std::fabs(FromE4m3(c) - std::fabs(value)) < std::fabs(FromE4m3(best) - std::fabs(value)))
        best = c;
    }
    matrix.codes.push_back(static_cast<uint8_t>(best | (value < 0 ? 0x80 : 0)));
  }
  const RoundingError chosen = matrix.Quantize().error;
  double specified = 0;
  for (int row = 0; row < 256; ++row) {
    for (int column = 0; column < 256; column += 32) {
      double largest = 0;
      for (int i = 0; i < 32; ++i)
        largest = std::max(largest, std::fabs(matrix.Value(row, column + i)));
      specified += GroupError(matrix, row, column, std::ilogb(largest) - 2);
    }
  }
  const double relative = std::sqrt(chosen.error / chosen.signal),
               relative_specified = std::sqrt(specified / chosen.signal);
  std::printf("relative RMS error: %.4f; with the specification's scale alone: %.4f\n", relative,
              relative_specified);
  EXPECT_GT(relative, 0.115);
  EXPECT_LT(relative, 0.121);
  EXPECT_LT(relative, 0.99 * relative_specified);
}

// ---- BF16 to FP8

TEST(Fp8Test, EveryCodeIsItsOwnAndTiesGoToTheEvenOne) {
  for (int sign : {0, 0x80}) {
    for (int magnitude = 0; magnitude < 0x7f; ++magnitude) {
      const auto code = static_cast<uint8_t>(sign | magnitude);
      EXPECT_EQ(ToE4m3(FromE4m3(code)), code);
      if (magnitude == 0x7e) continue;
      const auto next = static_cast<uint8_t>(code + 1);
      const float middle = (FromE4m3(code) + FromE4m3(next)) / 2;  // exact
      EXPECT_EQ(ToE4m3(middle), magnitude % 2 == 0 ? code : next);
      EXPECT_EQ(ToE4m3(std::nextafter(middle, FromE4m3(code))), code);
      EXPECT_EQ(ToE4m3(std::nextafter(middle, FromE4m3(next))), next);
    }
  }
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(ToE4m3(1e9f), 0x7e);
  EXPECT_EQ(ToE4m3(-infinity), 0xfe);
  EXPECT_EQ(ToE4m3(std::nanf("")) & 0x7f, 0x7f);
}

// The same bytes as those of the codes and scales that the rule names, packed.
TEST(Fp8Test, AMatrixIsScaledByBlocks) {
  RandomData random(11);
  for (const auto& [rows, cols] : {std::pair{16, 32}, {128, 128}, {200, 288}, {48, 1024}}) {
    std::vector<bf16> weights = random.Bf16s(static_cast<size_t>(rows * cols));
    for (int i = 0; i < rows * cols; i += 97) weights[static_cast<size_t>(i)] = ToBf16(i * 3.0f);
    for (int i = 0; i < rows; ++i) {  // the last block of columns has zeros only
      for (int c = (cols - 1) / 128 * 128; cols > 128 && c < cols; ++c)
        weights[static_cast<size_t>(i * cols + c)] = 0;
    }
    const int blocks = (cols + 127) / 128;
    std::vector<float> scales(static_cast<size_t>((rows + 127) / 128 * blocks));
    const auto place = [&](int row, int c) {
      return static_cast<size_t>(row / 128 * blocks + c / 128);
    };
    for (int i = 0; i < rows * cols; ++i) {
      float& scale = scales[place(i / cols, i % cols)];
      scale = std::max(scale, std::fabs(FromBf16(weights[static_cast<size_t>(i)])));
    }
    for (float& scale : scales) scale = scale == 0 ? 1 : scale / 448;
    std::vector<uint8_t> codes(weights.size());
    for (int i = 0; i < rows * cols; ++i) {
      const auto at = static_cast<size_t>(i);
      codes[at] = ToE4m3(FromBf16(weights[at]) / scales[place(i / cols, i % cols)]);
    }
    const PackedMatrix want = PackedMatrix::Pack(
        {WeightFormat::kFp8Block128, rows, cols, codes.data(), scales.data(), nullptr});
    const PackedMatrix got = PackedMatrix::RoundToFp8(
        PackedMatrix::Pack({WeightFormat::kBf16, rows, cols, weights.data(), nullptr, nullptr}));
    ASSERT_EQ(got.bytes(), want.bytes());
    EXPECT_TRUE(std::equal(want.data(), want.data() + want.bytes(), got.data()))
        << rows << " x " << cols;
  }
}

}  // namespace
}  // namespace ultraspeed::kernels
