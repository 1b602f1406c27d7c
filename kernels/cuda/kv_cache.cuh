// Where the keys and values of a position lie: the private layout behind KvCache.
//
// A page holds 64 tokens, and one page of one kv head is one contiguous tile [64, dim], so that
// attention fetches it with bulk copies and a chunk of 64 keys at an absolute multiple of 64 is
// exactly one tile. bf16 tiles are stored as tensor cores want them in shared memory: parts of 64
// columns, one behind the other, whose rows of 128 bytes have the 16-byte unit u of row r at
// u ^ (r % 8). A warpgroup's product reads that as it is (device/wgmma.cuh), and eight rows of one
// unit occupy all 32 banks (ldmatrix without conflicts). fp8 tiles are plain rows: they are widened
// into such a bf16 tile before use.
#pragma once

#include "kernels/cuda/ops.h"

namespace ultraspeed::kernels::cuda {

inline constexpr int kPageTokens = 64;
inline constexpr int kUnitElements = 8;  // bf16 in 16 bytes

inline constexpr int kPartColumns = 64;
inline constexpr int kPartUnits = kPartColumns / kUnitElements;  // of a row
inline constexpr int kPartElements = kPageTokens * kPartColumns;
inline constexpr int kPartBytes = kPartElements * 2;

// First element of the 16 bytes at `place` of a row of a bf16 tile [64, dim]: unit u of row r is at
// place u ^ (r % 8). REQUIRES: dim is a multiple of 64.
__device__ inline int PlaceElement(int row, int place) {
  return place / kPartUnits * kPartElements + row * kPartColumns +
         place % kPartUnits * kUnitElements;
}
__device__ inline int TileElement(int row, int column) {
  return PlaceElement(row, (column / kUnitElements) ^ (row % 8)) + column % kUnitElements;
}

// Element index of the tile of one page and kv head.
__device__ inline int64_t TileOffset(int64_t page, int kv_head, int num_kv_heads, int dim) {
  return (page * num_kv_heads + kv_head) * kPageTokens * dim;
}

// Page that holds `position` of sequence s.
__device__ inline int64_t PageOf(const Sequences& sequences, KvPlace place, int ring_pages, int s,
                                 int64_t position) {
  const int64_t index = position / kPageTokens;
  if (place == KvPlace::kPaged) {
    return sequences.full_pages[static_cast<int64_t>(s) * sequences.full_pages_stride + index];
  }
  return static_cast<int64_t>(sequences.slot[s]) * ring_pages + index % ring_pages;
}

}  // namespace ultraspeed::kernels::cuda
