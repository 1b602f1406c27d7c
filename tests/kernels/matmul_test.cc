#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "kernels/ops.h"
#include "kernels/thread_pool.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/oracles.h"

namespace ultraspeed::kernels {
namespace {

std::vector<float> Multiply(ThreadPool& pool, const PackedMatrix& w, const bf16* x, int num_tokens,
                            int x_stride) {
  std::vector<float> out(static_cast<size_t>(num_tokens) * w.num_rows());
  MatMul(pool, w, x, num_tokens, x_stride, out.data(), w.num_rows());
  return out;
}

TEST(MatMul, AgreesWithDoublePrecisionOverShapesAndFormats) {
  RandomData random(1);
  ThreadPool pool(2);
  for (WeightFormat format : kFormats) {
    for (int rows : {1, 7, 16, 17, 130, 300}) {
      for (int cols : {32, 96, 128, 160, 704}) {
        for (int tokens : {1, 2, 3, 5, 8, 9}) {
          const TestMatrix w = RandomMatrix(random, format, rows, cols);
          const std::vector<bf16> x = random.Bf16s(static_cast<size_t>(tokens) * cols);
          const std::vector<float> out =
              Multiply(pool, PackedMatrix::Pack(w.Checkpoint()), x.data(), tokens, cols);
          for (int t = 0; t < tokens; ++t) {
            for (int r = 0; r < rows; r += 1 + rows / 20) {
              const Oracle want = Dot(w, r, x.data() + t * cols);
              ASSERT_NEAR(out[t * rows + r], want.value, 1e-5 * want.magnitude + 1e-30)
                  << "format " << int(format) << " N " << rows << " K " << cols << " T " << tokens
                  << " row " << r << " token " << t;
            }
          }
        }
      }
    }
  }
}

TEST(MatMul, SameBitsForEveryThreadCountBatchAndSetOfOneOrder) {
  RandomData random(2);
  ThreadPool one(1);
  ThreadPool two(2);
  for (WeightFormat format : kFormats) {
    constexpr int kRows = 333;
    constexpr int kCols = 416;
    constexpr int kTokens = 33;
    const TestMatrix w = RandomMatrix(random, format, kRows, kCols);
    const PackedMatrix packed = PackedMatrix::Pack(w.Checkpoint());
    const std::vector<bf16> x = random.Bf16s(kTokens * kCols);
    const auto all = [&] { return Multiply(one, packed, x.data(), kTokens, kCols); };
    ForEachOrder(all, [&](InstructionSet set, const std::vector<float>& want) {
      for (int tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33}) {
        for (ThreadPool* pool : {&one, &two}) {
          const int first = kTokens - tokens;
          const std::vector<float> got =
              Multiply(*pool, packed, x.data() + first * kCols, tokens, kCols);
          EXPECT_TRUE(SameBits(got, std::vector<float>(want.begin() + first * kRows, want.end())))
              << Name(set) << " format " << int(format) << " T " << tokens;
        }
      }
    });
  }
}

TEST(MatMul, DenormalInputsCountAsZeroEverywhere) {
  ThreadPool pool(1);
  RandomData random(3);
  const TestMatrix w = RandomMatrix(random, WeightFormat::kBf16, 16, 32);
  const PackedMatrix packed = PackedMatrix::Pack(w.Checkpoint());
  const std::vector<bf16> x(32, bf16{0x0040});
  ForEachInstructionSet([&](InstructionSet set) {
    for (float value : Multiply(pool, packed, x.data(), 1, 32)) EXPECT_EQ(value, 0.0f) << Name(set);
  });
}

// Every code of a format against a one-hot input, so that a wrong place or a wrong value cannot
// hide in a sum.
TEST(MatMul, EveryE4m3Code) {
  ThreadPool pool(1);
  TestMatrix w = {WeightFormat::kFp8Block128, 256, 32, {}, {1.0f, 2.0f}, {}};
  for (int i = 0; i < 256 * 32; ++i) {
    const int code = (i / 32 + 7 * i) % 256;
    w.codes.push_back(static_cast<uint8_t>((code & 0x7f) == 0x7f ? 0 : code));
  }
  const PackedMatrix packed = PackedMatrix::Pack(w.Checkpoint());
  ForEachInstructionSet([&](InstructionSet set) {
    for (int c = 0; c < 32; ++c) {
      std::vector<bf16> x(32, 0);
      x[c] = ToBf16(1.0f);
      const std::vector<float> out = Multiply(pool, packed, x.data(), 1, 32);
      for (int r = 0; r < 256; ++r) {
        ASSERT_EQ(out[r], w.Value(r, c)) << Name(set) << " code " << int(w.codes[r * 32 + c]);
      }
    }
  });
}

// Numbers of the usual kind may be decoded apart from the others: one of those alone among them, in
// every row and every column of a decoder's vector.
TEST(MatMul, E4m3CodeThatIsNotNormalAmongNormalOnes) {
  constexpr int kRows = 32, kCols = 64;
  ThreadPool pool(1);
  RandomData random(6);
  int place = 0;
  for (int code = 0; code < 256; ++code) {
    if (IsNormalE4m3(static_cast<uint8_t>(code))) continue;
    for (int i = 0; i < 8; ++i, place += 67) {
      TestMatrix w = RandomMatrix(random, WeightFormat::kFp8Block128, kRows, kCols);
      MakeNormal(w);
      const int row = place % kRows, column = place / 4 % kCols;
      w.codes[row * kCols + column] = static_cast<uint8_t>(code);
      const PackedMatrix packed = PackedMatrix::Pack(w.Checkpoint());
      ForEachInstructionSet([&](InstructionSet set) {
        for (int c : {column, (column + 1) % kCols, (column + 32) % kCols}) {
          std::vector<bf16> x(kCols, 0);
          x[c] = ToBf16(1.0f);
          const std::vector<float> out = Multiply(pool, packed, x.data(), 1, kCols);
          for (int r = 0; r < kRows; ++r) {
            const bool has_nan = r == row && (code & 0x7f) == 0x7f;
            ASSERT_TRUE(has_nan ? std::isnan(out[r]) : out[r] == static_cast<float>(w.Value(r, c)))
                << Name(set) << " code " << code << " at " << row << ", " << column << ": [" << r
                << ", " << c << "] = " << out[r] << ", not " << w.Value(r, c);
          }
        }
      });
    }
  }
}

TEST(MatMul, EveryE2m1CodeAtTheEndsOfTheScale) {
  ThreadPool pool(1);
  for (int scale : {1, 2, 64, 127, 190, 252, 254}) {
    TestMatrix w = {WeightFormat::kMxfp4, 16, 32, {}, {}, std::vector<uint8_t>(16, scale)};
    for (int i = 0; i < 16 * 16; ++i) w.codes.push_back(static_cast<uint8_t>(i * 37 + i / 16));
    const PackedMatrix packed = PackedMatrix::Pack(w.Checkpoint());
    ForEachInstructionSet([&](InstructionSet set) {
      for (int c = 0; c < 32; ++c) {
        std::vector<bf16> x(32, 0);
        x[c] = ToBf16(scale > 127 ? 0.25f : 4.0f);
        const std::vector<float> out = Multiply(pool, packed, x.data(), 1, 32);
        for (int r = 0; r < 16; ++r) {
          ASSERT_EQ(out[r], w.Value(r, c) * FromBf16(x[c])) << Name(set) << " scale " << scale;
        }
      }
    });
  }
}

TEST(MatMul, SmallestE8m0ScaleIsADenormalAndCountsAsZero) {
  ThreadPool pool(1);
  TestMatrix w = {WeightFormat::kMxfp4,       16, 32, std::vector<uint8_t>(256, 0x77), {},
                  std::vector<uint8_t>(16, 0)};
  const PackedMatrix packed = PackedMatrix::Pack(w.Checkpoint());
  const std::vector<bf16> x(32, ToBf16(1.0f));
  ForEachInstructionSet(
      [&](InstructionSet) { EXPECT_EQ(Multiply(pool, packed, x.data(), 1, 32)[0], 0.0f); });
}

TEST(MatMulDeathTest, RejectsNanScaleAndOddWidth) {
  const TestMatrix nan_scale = {WeightFormat::kMxfp4, 1, 32, std::vector<uint8_t>(16), {}, {255}};
  EXPECT_DEATH(PackedMatrix::Pack(nan_scale.Checkpoint()), "255");
  const TestMatrix odd = {WeightFormat::kBf16, 1, 33, std::vector<uint8_t>(66), {}, {}};
  EXPECT_DEATH(PackedMatrix::Pack(odd.Checkpoint()), "num_cols % 32");
}

TEST(MatMul, HonoursStrides) {
  RandomData random(4);
  ThreadPool pool(2);
  const TestMatrix w = RandomMatrix(random, WeightFormat::kFp8Block128, 20, 64);
  const PackedMatrix packed = PackedMatrix::Pack(w.Checkpoint());
  const std::vector<bf16> x = random.Bf16s(3 * 100);
  std::vector<float> out(3 * 31, -7.0f);
  MatMul(pool, packed, x.data(), 3, 100, out.data(), 31);
  for (int t = 0; t < 3; ++t) {
    for (int r = 0; r < 20; ++r) {
      const Oracle want = Dot(w, r, x.data() + t * 100);
      EXPECT_NEAR(out[t * 31 + r], want.value, 1e-5 * want.magnitude);
    }
    for (int r = 20; r < 31; ++r) EXPECT_EQ(out[t * 31 + r], -7.0f) << "written past row N";
  }
}

TEST(MatMul, BytesAreTheCompactFormat) {
  RandomData random(5);
  const auto bytes = [&](WeightFormat format) {
    return PackedMatrix::Pack(RandomMatrix(random, format, 256, 256).Checkpoint()).bytes();
  };
  EXPECT_EQ(bytes(WeightFormat::kBf16), 256u * 256 * 2);
  EXPECT_EQ(bytes(WeightFormat::kFp8Block128), 256u * 256 + 4 * 4 + 16 * 8 / 8);
  EXPECT_EQ(bytes(WeightFormat::kMxfp4), 256u * 256 / 2 + 256 * 256 / 32);
}

}  // namespace
}  // namespace ultraspeed::kernels
