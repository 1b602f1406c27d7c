#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/device_matrix.h"
#include "tests/kernels/oracles.h"

namespace ultraspeed::kernels::cuda {
namespace {

using LinearTest = GpuTest;

std::vector<float> Multiply(const Matrix& w, const bf16* x, int num_tokens) {
  const DeviceArray<bf16> device_x(
      std::vector<bf16>(x, x + static_cast<size_t>(num_tokens) * w.num_cols));
  DeviceArray<float> out(std::vector<float>(static_cast<size_t>(num_tokens) * w.num_rows, NAN));
  DeviceArray<uint8_t> workspace(
      std::vector<uint8_t>(LinearWorkspaceBytes(w, num_tokens), uint8_t{0xff}));  // NaN
  Linear(w, device_x.get(), num_tokens, out.get(), workspace.get(), nullptr);
  return out.ToHost();
}

void ExpectNearOracle(WeightFormat format, int rows, int cols, int tokens, RandomData& random) {
  const TestMatrix w = RandomMatrix(random, format, rows, cols);
  const std::vector<bf16> x = random.Bf16s(static_cast<size_t>(tokens) * cols);
  const std::vector<float> out = Multiply(DeviceMatrix(w).matrix, x.data(), tokens);
  for (int t = 0; t < tokens; t += 1 + tokens / 16) {
    for (int r = 0; r < rows; r += 1 + rows / 24) {
      const Oracle want = Dot(w, r, x.data() + t * cols);
      ASSERT_NEAR(out[t * rows + r], want.value, 1e-5 * want.magnitude + 1e-30)
          << "format " << int(format) << " N " << rows << " K " << cols << " T " << tokens
          << " row " << r << " token " << t;
    }
  }
}

TEST_F(LinearTest, AgreesWithDoublePrecisionOverShapesAndFormats) {
  RandomData random(1);
  for (WeightFormat format : kFormats) {
    const bool fp8 = format == WeightFormat::kFp8Block128;
    for (int rows : {1, 7, 16, 17, 130, 300}) {
      for (int cols :
           fp8 ? std::vector<int>{128, 384, 1664} : std::vector<int>{32, 96, 416, 1696}) {
        for (int tokens : {1, 3, 8, 9, 17, 33, 65, 131}) {
          ExpectNearOracle(format, rows, cols, tokens, random);
        }
      }
    }
  }
}

// For tools that slow a kernel down a thousandfold: every kernel once, over more columns than its
// ring of stages has.
TEST_F(LinearTest, AgreesWithDoublePrecisionOnAFewShapes) {
  RandomData random(6);
  for (WeightFormat format : kFormats) {
    for (int tokens : {1, 9, 20, 40, 131}) ExpectNearOracle(format, 50, 2304, tokens, random);
  }
}

// Columns beyond one thread block's shared memory: groups of segments.
TEST_F(LinearTest, AgreesWithDoublePrecisionOnWideMatrices) {
  RandomData random(2);
  for (WeightFormat format : kFormats) {
    for (int tokens : {1, 8, 13, 40, 150}) ExpectNearOracle(format, 50, 8064, tokens, random);
  }
}

// What makes speculation lossless: a row is the same bits in any batch, at any place.
TEST_F(LinearTest, ARowIsTheSameBitsInAnyBatch) {
  RandomData random(3);
  struct Shape {
    int rows, cols;
  };
  for (WeightFormat format : kFormats) {
    for (const Shape shape :
         {Shape{333, 384}, Shape{200, 2048}, Shape{72, 6144}, Shape{40, 7680}}) {
      constexpr int kTokens = 512;
      const TestMatrix w = RandomMatrix(random, format, shape.rows, shape.cols);
      const DeviceMatrix device(w);
      const std::vector<bf16> x = random.Bf16s(static_cast<size_t>(kTokens) * shape.cols);
      std::vector<float> want;  // every row alone
      for (int t = 0; t < kTokens; ++t) {
        const std::vector<float> row =
            Multiply(device.matrix, x.data() + static_cast<size_t>(t) * shape.cols, 1);
        want.insert(want.end(), row.begin(), row.end());
      }
      for (int tokens : {1, 2, 7, 8, 9, 16, 32, 33, 64, 128, 300, 512}) {
        const int first = kTokens - tokens;
        const std::vector<float> got =
            Multiply(device.matrix, x.data() + static_cast<size_t>(first) * shape.cols, tokens);
        EXPECT_TRUE(SameBits(
            got,
            std::vector<float>(want.begin() + static_cast<size_t>(first) * shape.rows, want.end())))
            << "format " << int(format) << " N " << shape.rows << " K " << shape.cols << " T "
            << tokens;
      }
    }
  }
}

TEST_F(LinearTest, TwoRunsAreTheSameBits) {
  RandomData random(4);
  for (WeightFormat format : kFormats) {
    const DeviceMatrix w(RandomMatrix(random, format, 1000, 2048));
    for (int tokens : {1, 8, 16, 128, 200}) {
      const std::vector<bf16> x = random.Bf16s(static_cast<size_t>(tokens) * 2048);
      EXPECT_TRUE(
          SameBits(Multiply(w.matrix, x.data(), tokens), Multiply(w.matrix, x.data(), tokens)))
          << "format " << int(format) << " T " << tokens;
    }
  }
}

TEST_F(LinearTest, NoTokensIsNoWork) {
  RandomData random(5);
  const DeviceMatrix w(RandomMatrix(random, WeightFormat::kBf16, 5, 64));
  EXPECT_TRUE(Multiply(w.matrix, nullptr, 0).empty());
}

// Matrices of whole row tiles, packed one behind the other, are one matrix: how fused projections
// whose scale blocks start anew in each part are built.
TEST_F(LinearTest, PackedMatricesConcatenate) {
  RandomData random(6);
  constexpr int kCols = 256, kTokens = 9;
  for (WeightFormat format : kFormats) {
    const TestMatrix parts[2] = {RandomMatrix(random, format, 48, kCols),
                                 RandomMatrix(random, format, 80, kCols)};
    DeviceArray<uint8_t> packed(PackedBytes(format, 128, kCols));
    const OnDevice first(parts[0]), second(parts[1]);
    Pack(first.checkpoint, packed.get(), nullptr);
    Pack(second.checkpoint, packed.get() + PackedBytes(format, 48, kCols), nullptr);
    Synchronize();
    const std::vector<bf16> x = random.Bf16s(kTokens * kCols);
    const std::vector<float> whole =
        Multiply({format, 128, kCols, packed.get()}, x.data(), kTokens);
    for (int i = 0; i < 2; ++i) {
      const std::vector<float> part = Multiply(DeviceMatrix(parts[i]).matrix, x.data(), kTokens);
      const int rows = parts[i].num_rows;
      for (int t = 0; t < kTokens; ++t) {
        EXPECT_EQ(0, std::memcmp(&whole[t * 128 + i * 48], &part[t * rows], rows * sizeof(float)));
      }
    }
  }
}

// Every code of a format against a one-hot input, so that a wrong place or a wrong value cannot
// hide in a sum.
TEST_F(LinearTest, EveryE4m3Code) {
  constexpr int kCols = 128;
  TestMatrix w = {WeightFormat::kFp8Block128, 256, kCols, {}, {1.0f, 2.0f}, {}};
  for (int i = 0; i < 256 * kCols; ++i) {
    const int code = (i / kCols + 7 * i) % 256;
    w.codes.push_back(static_cast<uint8_t>((code & 0x7f) == 0x7f ? 0 : code));
  }
  const DeviceMatrix device(w);
  std::vector<bf16> x(kCols * kCols, 0);
  for (int c = 0; c < kCols; ++c) x[c * kCols + c] = ToBf16(1.0f);
  const std::vector<float> out = Multiply(device.matrix, x.data(), kCols);
  for (int c = 0; c < kCols; ++c) {
    for (int r = 0; r < 256; ++r) {
      ASSERT_EQ(out[c * 256 + r], w.Value(r, c)) << "code " << int(w.codes[r * kCols + c]);
    }
  }
}

TEST_F(LinearTest, EveryE2m1CodeOverTheRangeOfTheScale) {
  for (int scale : {40, 64, 118, 127, 140, 160}) {
    constexpr int kCols = 64;
    TestMatrix w = {WeightFormat::kMxfp4,
                    16,
                    kCols,
                    {},
                    {},
                    std::vector<uint8_t>(16 * 2, static_cast<uint8_t>(scale))};
    for (int i = 0; i < 16 * kCols / 2; ++i)
      w.codes.push_back(static_cast<uint8_t>(i * 37 + i / 16));
    const DeviceMatrix device(w);
    std::vector<bf16> x(kCols * kCols, 0);
    for (int c = 0; c < kCols; ++c) x[c * kCols + c] = ToBf16(0.25f);
    const std::vector<float> out = Multiply(device.matrix, x.data(), kCols);
    for (int c = 0; c < kCols; ++c) {
      for (int r = 0; r < 16; ++r) {
        ASSERT_EQ(out[c * 16 + r], w.Value(r, c) * 0.25) << "scale " << scale << " column " << c;
      }
    }
  }
}

TEST_F(LinearTest, SwiGluAgreesWithDoublePrecision) {
  RandomData random(7);
  constexpr int kTokens = 5, kWidth = 301;
  const std::vector<float> gate_up = random.Floats(kTokens * 2 * kWidth, 3.0f);
  const DeviceArray<float> device(gate_up);
  DeviceArray<bf16> out(kTokens * kWidth);
  SwiGlu(device.get(), kTokens, kWidth, out.get(), nullptr);
  const std::vector<bf16> got = out.ToHost();
  for (int t = 0; t < kTokens; ++t) {
    for (int i = 0; i < kWidth; ++i) {
      const double gate = gate_up[t * 2 * kWidth + i], up = gate_up[(t * 2 + 1) * kWidth + i];
      const double want = gate / (1 + std::exp(-gate)) * up;
      EXPECT_NEAR(FromBf16(got[t * kWidth + i]), want, std::fabs(want) / 250 + 1e-30);
    }
  }
}

TEST(PackedBytesTest, IsTheCompactFormatForWholeTiles) {
  EXPECT_EQ(PackedBytes(WeightFormat::kBf16, 256, 256), 256u * 256 * 2);
  EXPECT_EQ(PackedBytes(WeightFormat::kFp8Block128, 256, 256), 256u * 256 + 16 * 2 * 16);
  EXPECT_EQ(PackedBytes(WeightFormat::kMxfp4, 256, 256), 256u * 256 / 2 + 256 * 256 / 32);
}

}  // namespace
}  // namespace ultraspeed::kernels::cuda
