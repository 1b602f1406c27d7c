// FP8 with 128 x 128 block scales -> MXFP4, for checkpoints that come without MXFP4 experts.
//
// All values of a block are one of 127 magnitudes times one scale, so rounding is looked up: one
// table of the magnitudes for each exponent that the block's rows need, built when first needed.
// Exact until the rounding: a code has 4 bits of mantissa and a scale 24, a double 53. A task is
// one block of the source; sums are added in the order of blocks, whatever the number of threads.
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "kernels/check.h"
#include "kernels/ops.h"
#include "kernels/thread_pool.h"

namespace ultraspeed::kernels {
namespace {

constexpr int kBlock = 128;
constexpr int kGroup = 32;                                // columns of one MXFP4 scale
constexpr size_t kMagnitudes = 127;                       // of e4m3 codes; the next one is NaN
constexpr int kE2m1ExponentMax = 2;                       // of 4 and 6
constexpr int kScaleBias = 127, kScaleExponentMax = 127;  // E8M0

// A value on the border of two codes goes to the even one.
uint8_t ToE2m1Magnitude(double x) {
  return static_cast<uint8_t>((x > 0.25) + (x >= 0.75) + (x > 1.25) + (x >= 1.75) + (x > 2.5) +
                              (x >= 3.5) + (x > 5.0));
}

// A block's magnitudes rounded to the grid of one exponent.
struct Grid {
  bool built = false;
  std::array<uint8_t, kMagnitudes> code = {};  // e2m1, without sign
  std::array<double, kMagnitudes> error = {};  // squared
};

class BlockGrids {
 public:
  explicit BlockGrids(float scale) : sign_flip_(std::signbit(scale) ? 8 : 0) {
    for (size_t m = 0; m < kMagnitudes; ++m) {
      value_[m] = double{FromE4m3(static_cast<uint8_t>(m))} * std::fabs(double{scale});
      exponent_[m] =
          std::clamp(value_[m] == 0 ? -kScaleExponentMax : std::ilogb(value_[m]) - kE2m1ExponentMax,
                     -kScaleExponentMax, kScaleExponentMax);
    }
  }

  double value(size_t magnitude) const { return value_[magnitude]; }
  // Of the specification's scale for a group with this largest magnitude.
  int exponent(size_t magnitude) const { return exponent_[magnitude]; }
  uint8_t sign_flip() const { return sign_flip_; }

  // REQUIRES: an exponent of a magnitude that is not zero, or one more.
  const Grid& At(int exponent) {
    Grid& grid = grids_[static_cast<size_t>(exponent - exponent_[1])];
    if (grid.built) return grid;
    grid.built = true;
    const double to_grid = std::ldexp(1.0, -exponent), from_grid = std::ldexp(1.0, exponent);
    for (size_t m = 0; m < kMagnitudes; ++m) {
      grid.code[m] = ToE2m1Magnitude(value_[m] * to_grid);
      const double difference = value_[m] - double{FromE2m1(grid.code[m])} * from_grid;
      grid.error[m] = difference * difference;
    }
    return grid;
  }

 private:
  // From 2^-9 to 448, and the next one: a scale moves all of them alike, but for its carry.
  static constexpr size_t kGrids = 20;

  const uint8_t sign_flip_;
  std::array<double, kMagnitudes> value_ = {};
  std::array<int, kMagnitudes> exponent_ = {};
  std::array<Grid, kGrids> grids_ = {};
};

double Error(const Grid& grid, const uint8_t* codes) {
  double sum = 0;
  for (int i = 0; i < kGroup; ++i) sum += grid.error[codes[i] & 0x7f];
  return sum;
}

// 32 e4m3 codes -> 16 bytes of e2m1 codes and a scale.
RoundingError QuantizeGroup(BlockGrids& grids, const uint8_t* source, uint8_t* codes,
                            uint8_t& scale) {
  uint8_t largest = 0;
  for (int i = 0; i < kGroup; ++i)
    largest = std::max(largest, static_cast<uint8_t>(source[i] & 0x7f));
  if (grids.value(largest) == 0) {  // any scale would do
    std::fill(codes, codes + kGroup / 2, uint8_t{0});
    scale = kScaleBias;
    return {};
  }
  int exponent = grids.exponent(largest);
  const Grid* grid = &grids.At(exponent);
  RoundingError sums = {.error = Error(*grid, source)};
  if (exponent < kScaleExponentMax) {
    const Grid& coarser = grids.At(exponent + 1);
    if (const double error = Error(coarser, source); error < sums.error) {
      sums.error = error;
      grid = &coarser;
      ++exponent;
    }
  }
  scale = static_cast<uint8_t>(exponent + kScaleBias);
  const auto code_of = [&](uint8_t from) {
    return static_cast<uint8_t>(grid->code[from & 0x7f] | ((from >> 4 & 8) ^ grids.sign_flip()));
  };
  for (int i = 0; i < kGroup; ++i) {
    const double value = grids.value(source[i] & 0x7f);
    sums.signal += value * value;
  }
  for (int i = 0; i < kGroup / 2; ++i)
    codes[i] = static_cast<uint8_t>(code_of(source[2 * i]) | code_of(source[2 * i + 1]) << 4);
  return sums;
}

}  // namespace

RoundingError QuantizeToMxfp4(ThreadPool& pool, const CheckpointMatrix& source, uint8_t* codes,
                              uint8_t* scales) {
  KERNELS_CHECK(source.format, ==, WeightFormat::kFp8Block128);
  KERNELS_CHECK(source.num_cols % kGroup, ==, 0);
  const int column_blocks = (source.num_cols + kBlock - 1) / kBlock;
  const int num_blocks = (source.num_rows + kBlock - 1) / kBlock * column_blocks;
  std::vector<RoundingError> sums(static_cast<size_t>(num_blocks));
  pool.ParallelFor(num_blocks, [&](int block) {
    BlockGrids grids(source.scales_f32[block]);
    const int first_row = block / column_blocks * kBlock,
              first_column = block % column_blocks * kBlock;
    const int end_row = std::min(source.num_rows, first_row + kBlock),
              end_column = std::min(source.num_cols, first_column + kBlock);
    RoundingError sum;  // of its own, not beside another thread's
    for (int row = first_row; row < end_row; ++row) {
      for (int column = first_column; column < end_column; column += kGroup) {
        const size_t at = static_cast<size_t>(row) * static_cast<size_t>(source.num_cols) +
                          static_cast<size_t>(column);
        const RoundingError group =
            QuantizeGroup(grids, static_cast<const uint8_t*>(source.codes) + at, codes + at / 2,
                          scales[at / kGroup]);
        sum.error += group.error;
        sum.signal += group.signal;
      }
    }
    sums[static_cast<size_t>(block)] = sum;
  });
  RoundingError total;
  for (const RoundingError& sum : sums) {
    total.error += sum.error;
    total.signal += sum.signal;
  }
  return total;
}

}  // namespace ultraspeed::kernels
