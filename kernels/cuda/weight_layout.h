// How a weight lies in device memory: the contract between pack.cu and the matrix products.
//
// A matrix is a sequence of row tiles (16 rows), a row tile a sequence of slabs (16 rows x 128
// columns), each slab contiguous with its scales and in the order in which the lanes of a warp need
// it for mma.m16n8k16: a slab is one bulk copy and every lane's piece one wide shared-memory load.
// Missing rows and columns are zero. Hence packed matrices whose row counts are multiples of 16 may
// lie one behind the other and are then one matrix.
//
// Lane (g = lane / 4, t = lane % 4) of group j of 32 columns holds columns 32 j + 8 t + (0..7) of
// rows g and g + 8; column pair q of the eight goes to mma q / 2, register pair q % 2. The order of
// columns within a sum is therefore not ascending, but it is the same in every kernel.
//
// Order of a sum, everywhere: a block is two slabs (the last of a row may be one), accumulated by
// mma in ascending groups, is a partial. kFp8Block128, whose scales are per slab: each slab's sum
// times its scale, the two added. kMxfp4, whose scales are per group: each group's sum times its
// scale, by fused multiply-adds onto the groups before. Partials are added ascending within a
// segment, segments ascending. Blocks and segments depend on the width only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops.h"

namespace ultraspeed::kernels::cuda {

constexpr int kTileRows = 16;
constexpr int kSlabColumns = 128;
constexpr int kGroupsPerSlab = kSlabColumns / 32;
constexpr int kSegmentSlabsMax = 12;  // of Linear: 1536 columns; experts have one segment

// FP8 and MXFP4 codes enter the product as they are, at the bottom of bf16's exponent, where they
// are worth their value times 2^-120 and 2^-126, subnormals included; inputs of such products are
// multiplied by 2^80 (exact; inputs must be below 2^47), so that sums lie well within fp32. The
// scales undo both. E8M0 scales are kept as the exponent field of that fp32 factor: exact for
// scales up to 208 (weights up to 6 * 2^81); larger ones saturate.
constexpr bool HasInputGain(WeightFormat format) { return format != WeightFormat::kBf16; }
constexpr uint32_t kInputGain = 0x67806780u;  // two bf16
constexpr float kInputGainFloat = 0x1p80f;
constexpr float kFp8ScaleGain = 0x1p40f;
constexpr int kE8m0Offset = 46;

constexpr int SlabCodeBytes(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBf16:
      return kTileRows * kSlabColumns * 2;
    case WeightFormat::kFp8Block128:
      return kTileRows * kSlabColumns;
    case WeightFormat::kMxfp4:
      return kTileRows * kSlabColumns / 2;
  }
  return 0;
}

// kFp8Block128: fp32 scale of rows 0-7, of rows 8-15, 8 bytes of nothing. kMxfp4: [16 rows] a
// word of the exponent fields of its four groups, ascending from bit 30 down, around the word's
// end.
constexpr int SlabBytes(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBf16:
      return SlabCodeBytes(format);
    case WeightFormat::kFp8Block128:
      return SlabCodeBytes(format) + 16;
    case WeightFormat::kMxfp4:
      return SlabCodeBytes(format) + kTileRows * 4;
  }
  return 0;
}

// Tiles of the residual stream whose columns the router's product adds up first
// (router_product.cuh).
constexpr int kRouterChunkTiles = 3;
constexpr int NumRouterChunks(int num_tiles) {
  return (num_tiles + kRouterChunkTiles - 1) / kRouterChunkTiles;
}

constexpr int kBlockSlabs = 2;
// Whether every slab of a block has scales of its own.
constexpr bool ScalesEverySlab(WeightFormat format) { return format == WeightFormat::kFp8Block128; }

constexpr int NumSlabs(int num_cols) { return (num_cols + kSlabColumns - 1) / kSlabColumns; }
constexpr int NumRowTiles(int num_rows) { return (num_rows + kTileRows - 1) / kTileRows; }

constexpr size_t TileBytes(WeightFormat format, int num_cols) {
  return static_cast<size_t>(NumSlabs(num_cols)) * SlabBytes(format);
}

// Slabs of a segment of a Linear: equal parts of at most kSegmentSlabsMax, whole blocks.
constexpr int SegmentSlabs(int num_cols) {
  const int slabs = NumSlabs(num_cols);
  const int segments = (slabs + kSegmentSlabsMax - 1) / kSegmentSlabsMax;
  return ((slabs + segments - 1) / segments + 1) / 2 * 2;
}

}  // namespace ultraspeed::kernels::cuda
