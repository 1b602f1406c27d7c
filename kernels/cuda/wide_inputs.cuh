// Inputs of the wide form (wide_product.cuh) as they lie in memory: the bytes of a stage side by
// side, so that one bulk copy brings a part of it, in the order in which wgmma reads them.
//
// A token tile has its tokens rounded up to eight as rows, and rows of all tiles lie one behind the
// other. Of a tile: slabs (128 columns), of a slab two parts (64 columns), of a part rows of 128
// bytes, of a row 16-byte pieces, piece c of row r at c ^ r % 8 (wgmma.cuh). A piece holds column
// pair q of the eight columns of each of the four lanes of a group (weight_layout.h): piece 4 j + q
// of part i is of group 2 i + j. Columns past the last are zero, rows past the last token anything.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/weight_layout.h"

namespace ultraspeed::kernels::cuda {

constexpr int kInputParts = 2;  // of a slab
constexpr int kInputRowBytes = 128;

// The inputs of one tile.
struct WideInputs {
  int first_row, num_tokens, num_slabs;

  __host__ __device__ static constexpr int Rows(int num_tokens) { return (num_tokens + 7) / 8 * 8; }
  __device__ __forceinline__ uint32_t part_bytes() const {
    return Rows(num_tokens) * kInputRowBytes;
  }
  __device__ __forceinline__ uint32_t slab_bytes() const { return kInputParts * part_bytes(); }
  // Bytes from the first row of all to a part of this tile.
  __device__ __forceinline__ size_t Offset(int slab, int part) const {
    return static_cast<size_t>(first_row) * num_slabs * (kInputParts * kInputRowBytes) +
           static_cast<size_t>(slab) * slab_bytes() + part * part_bytes();
  }
  // ... to a piece, and to the element of a column.
  __device__ __forceinline__ size_t PieceOffset(int slab, int part, int row, int piece) const {
    return Offset(slab, part) + row * kInputRowBytes + (piece ^ row % 8) * 16;
  }
  __device__ __forceinline__ size_t ElementOffset(int row, int column) const {
    const int group = column % kSlabColumns / 32, lane = column % 32 / 8, pair = column % 8 / 2;
    return PieceOffset(column / kSlabColumns, group / 2, row, group % 2 * 4 + pair) + lane * 4 +
           column % 2 * 2;
  }
};

// Bytes of the inputs of so many tokens in so many tiles, at most.
constexpr size_t WideInputBytes(int64_t num_tokens, int64_t num_tiles, int num_cols) {
  return static_cast<size_t>(num_tokens + num_tiles * 7) * NumSlabs(num_cols) *
         (kInputParts * kInputRowBytes);
}

}  // namespace ultraspeed::kernels::cuda
