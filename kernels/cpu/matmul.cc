// Packing of weights and the matrix product on top of the inner loops.
//
// Callers: the executor, moe.cc. Rows are split over threads in whole tiles, tokens into blocks
// that share a pass over the weights. Neither split changes a bit of the result.
#include "kernels/cpu/matmul.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/check.h"
#include "kernels/cpu/large_pages.h"

namespace ultraspeed::kernels {
namespace {

constexpr int kTileRows = 16;
constexpr size_t kFp8Block = 128;
constexpr float kE4m3Max = 448.0f;
constexpr int kRowsPerTask =
    64;  // a multiple of kTileRows; large matrices are cut into multiples of it
constexpr int64_t kInlineWork =
    96 * 1024;  // multiply-adds below which waking another thread costs more than it saves
constexpr int kTasksPerThread = 4;

size_t RoundUp(size_t x, size_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// Writes the code of one element of a tile to its place (layout: MatrixView).
size_t PlaceOfBf16(size_t row, size_t column) {
  return column / 2 * 64 + (2 * row + column % 2) * 2;
}
void PlaceBf16(uint8_t* tile, size_t row, size_t column, bf16 value) {
  std::memcpy(tile + PlaceOfBf16(row, column), &value, 2);
}
int PlaceInUnit(int row, int column) {
  return row / 4 * 16 + column % 4 / 2 * 8 + row % 4 * 2 + column % 2;
}
void PlaceFp8(uint8_t* tile, int row, int column, uint8_t code) {
  tile[column / 4 * 64 + PlaceInUnit(row, column)] = code;
}
// REQUIRES: the place was zeros.
void PlaceMxfp4(uint8_t* tile, int row, int column, uint8_t code) {
  tile[column / 8 * 64 + PlaceInUnit(row, column)] |=
      static_cast<uint8_t>(PackedE2m1(code) << (column % 8 / 4 * 4));
}

void PlaceRow(const CheckpointMatrix& source, int row, uint8_t* tile) {
  const size_t cols = static_cast<size_t>(source.num_cols);
  const auto* bytes = static_cast<const uint8_t*>(source.codes);
  const int in_tile = row % kTileRows;
  for (int c = 0; c < source.num_cols; ++c) {
    switch (source.format) {
      case WeightFormat::kBf16: {
        bf16 value;  // the checkpoint is mapped memory: no alignment is promised
        std::memcpy(&value, bytes + (row * cols + c) * 2, 2);
        PlaceBf16(tile, in_tile, c, value);
        break;
      }
      case WeightFormat::kFp8Block128:
        PlaceFp8(tile, in_tile, c, bytes[row * cols + c]);
        break;
      case WeightFormat::kMxfp4:
        PlaceMxfp4(tile, in_tile, c,
                   static_cast<uint8_t>(bytes[(row * cols + c) / 2] >> (c % 2 * 4) & 15));
        break;
    }
  }
}

// Whether all of 0.5, 1, .. 6 times 2^(scale - 127) are normal bf16.
bool ExactInBf16(uint8_t scale) { return scale >= 2 && scale <= 252; }

// Of a block's 32 codes, e2m1.
bool HasNonzero(const CheckpointMatrix& source, size_t block) {
  const auto* const codes = static_cast<const uint8_t*>(source.codes) + block * 16;
  return std::any_of(codes, codes + 16, [](uint8_t pair) { return (pair & 0x77) != 0; });
}

// Whether e4m3fn has a code's value as an exponent and a mantissa.
bool IsNormal(uint8_t e4m3) { return (e4m3 & 0x78) != 0 && (e4m3 & 0x7f) != 0x7f; }

// Clears the bits (MatrixView::all_normal) of those 32 columns of 16 rows that have another code.
void MarkNormal(const CheckpointMatrix& source, uint8_t* all_normal) {
  const auto* const codes = static_cast<const uint8_t*>(source.codes);
  const size_t groups = static_cast<size_t>(source.num_cols) / 32;
  for (size_t i = 0; i < static_cast<size_t>(source.num_rows) * groups; ++i) {
    if (std::all_of(codes + i * 32, codes + (i + 1) * 32, IsNormal)) continue;
    const size_t bit = i / groups / kTileRows * groups + i % groups;
    all_normal[bit / 8] &= static_cast<uint8_t>(~(1 << bit % 8));
  }
}

// Bytes of a tile's codes, of all scales and of what follows them.
struct PackedSizes {
  size_t tile_bytes;
  size_t num_tiles;
  size_t scale_bytes;
  size_t all_normal_bytes;
};

PackedSizes SizesOf(WeightFormat format, int num_rows, int num_cols) {
  const size_t rows = static_cast<size_t>(num_rows);
  const size_t cols = static_cast<size_t>(num_cols);
  const size_t tiles = RoundUp(rows, kTileRows) / kTileRows;
  switch (format) {
    case WeightFormat::kBf16:
      return {cols * 32, tiles, 0, 0};
    case WeightFormat::kFp8Block128:
      return {cols * 16, tiles, (rows + 127) / 128 * ((cols + 127) / 128) * sizeof(float),
              (tiles * (cols / 32) + 7) / 8};
    case WeightFormat::kMxfp4:
      return {cols * 8, tiles, tiles * (cols / 32) * kTileRows, 0};
  }
  return {};
}

}  // namespace

MatrixView View(const PackedMatrix& matrix) {
  const PackedSizes sizes = SizesOf(matrix.format(), matrix.num_rows(), matrix.num_cols());
  const uint8_t* scales = matrix.data() + sizes.tile_bytes * sizes.num_tiles;
  MatrixView view = {};
  view.format = matrix.format();
  view.num_rows = matrix.num_rows();
  view.num_cols = matrix.num_cols();
  view.tile_bytes = sizes.tile_bytes;
  view.codes = matrix.data();
  if (view.format == WeightFormat::kFp8Block128) {
    view.scales_f32 = reinterpret_cast<const float*>(scales);
    view.all_normal = scales + sizes.scale_bytes;
  } else if (view.format == WeightFormat::kMxfp4) {
    view.scales_e8m0 = scales;
    view.exact_in_bf16 = matrix.exact_in_bf16();
  }
  return view;
}

PackedMatrix PackedMatrix::Pack(const CheckpointMatrix& source) {
  KERNELS_CHECK(source.num_rows, >, 0);
  KERNELS_CHECK(source.num_cols, >, 0);
  KERNELS_CHECK(source.num_cols % 32, ==, 0);
  const PackedSizes sizes = SizesOf(source.format, source.num_rows, source.num_cols);
  PackedMatrix packed;
  packed.format_ = source.format;
  packed.num_rows_ = source.num_rows;
  packed.num_cols_ = source.num_cols;
  packed.bytes_ = sizes.tile_bytes * sizes.num_tiles + sizes.scale_bytes + sizes.all_normal_bytes;
  packed.data_ = AllocateZeros(packed.bytes_);
  uint8_t* data = packed.data_.get();
  for (int row = 0; row < source.num_rows; ++row) {
    PlaceRow(source, row, data + row / kTileRows * sizes.tile_bytes);
  }
  uint8_t* scales = data + sizes.tile_bytes * sizes.num_tiles;
  if (source.format == WeightFormat::kFp8Block128) {
    KERNELS_CHECK(source.scales_f32 != nullptr, ==, true);
    std::memcpy(scales, source.scales_f32, sizes.scale_bytes);
    std::memset(scales + sizes.scale_bytes, 0xff, sizes.all_normal_bytes);
    MarkNormal(source, scales + sizes.scale_bytes);
  } else if (source.format == WeightFormat::kMxfp4) {
    KERNELS_CHECK(source.scales_e8m0 != nullptr, ==, true);
    const size_t blocks = static_cast<size_t>(source.num_cols / 32);
    for (size_t row = 0; row < static_cast<size_t>(source.num_rows); ++row) {
      for (size_t block = 0; block < blocks; ++block) {
        const uint8_t scale = source.scales_e8m0[row * blocks + block];
        KERNELS_CHECK(static_cast<int>(scale), <, 255);
        scales[(row / kTileRows * blocks + block) * kTileRows + row % kTileRows] = scale;
        if (!ExactInBf16(scale) && HasNonzero(source, row * blocks + block)) {
          packed.exact_in_bf16_ = false;
        }
      }
    }
  }
  return packed;
}

PackedMatrix PackedMatrix::RoundToFp8(const PackedMatrix& matrix) {
  KERNELS_CHECK(static_cast<int>(matrix.format()), ==, static_cast<int>(WeightFormat::kBf16));
  const MatrixView from = View(matrix);
  const auto rows = static_cast<size_t>(from.num_rows), cols = static_cast<size_t>(from.num_cols);
  const auto value = [&](size_t row, size_t column) {
    const uint8_t* const tile = from.codes + row / kTileRows * from.tile_bytes;
    bf16 weight;
    std::memcpy(&weight, tile + PlaceOfBf16(row % kTileRows, column), sizeof(weight));
    return FromBf16(weight);
  };
  const size_t blocks = (cols + kFp8Block - 1) / kFp8Block;
  std::vector<float> scales((rows + kFp8Block - 1) / kFp8Block * blocks);
  for (size_t row = 0; row < rows; ++row) {
    for (size_t c = 0; c < cols; ++c) {
      float& largest = scales[row / kFp8Block * blocks + c / kFp8Block];
      largest = std::fmax(largest, std::fabs(value(row, c)));
    }
  }
  for (float& scale : scales) scale = scale == 0 ? 1.0f : scale / kE4m3Max;
  std::vector<uint8_t> codes(rows * cols);
  for (size_t row = 0; row < rows; ++row) {
    for (size_t c = 0; c < cols; ++c) {
      codes[row * cols + c] =
          ToE4m3(value(row, c) / scales[row / kFp8Block * blocks + c / kFp8Block]);
    }
  }
  return Pack({.format = WeightFormat::kFp8Block128,
               .num_rows = from.num_rows,
               .num_cols = from.num_cols,
               .codes = codes.data(),
               .scales_f32 = scales.data(),
               .scales_e8m0 = nullptr});
}

RowSplit SplitRows(const ThreadPool& pool, int num_rows, int64_t multiply_adds) {
  if (pool.num_threads() == 1 || multiply_adds < kInlineWork) return {num_rows, 1};
  const int wanted = pool.num_threads() * kTasksPerThread;
  const int unit = num_rows >= pool.num_threads() * kRowsPerTask ? kRowsPerTask : kTileRows;
  const int units = (num_rows + unit - 1) / unit;
  const int rows = (units + std::min(wanted, units) - 1) / std::min(wanted, units) * unit;
  return {rows, (num_rows + rows - 1) / rows};
}

void MatMul(ThreadPool& pool, const PackedMatrix& w, const bf16* x, int num_tokens, int x_stride,
            float* out, int out_stride) {
  KERNELS_CHECK(num_tokens, >=, 0);
  KERNELS_CHECK(x_stride, >=, w.num_cols());
  KERNELS_CHECK(out_stride, >=, w.num_rows());
  const FlushDenormals flush;
  const KernelTable& kernels = Active();
  const MatrixView view = View(w);
  const auto stride = static_cast<size_t>(x_stride);
  const RowSplit split =
      SplitRows(pool, view.num_rows, int64_t{view.num_rows} * view.num_cols * num_tokens);
  pool.ParallelFor(split.num_tasks, [&](int task) {
    const int begin = task * split.rows_per_task;
    const int end = std::min(begin + split.rows_per_task, view.num_rows);
    for (int t0 = 0; t0 < num_tokens; t0 += kTokenBlock) {
      const int count = std::min(kTokenBlock, num_tokens - t0);
      float* out_rows[kTokenBlock];
      for (int t = 0; t < count; ++t) {
        out_rows[t] = out + static_cast<size_t>(t0 + t) * out_stride;
      }
      kernels.matmul(view, begin, end, {x + static_cast<size_t>(t0) * stride, stride}, count,
                     out_rows);
    }
    kernels.release_tiles();
  });
}

}  // namespace ultraspeed::kernels
