// Where the keys and values of a position lie: the private layout behind KvCache.
//
// A page holds 64 tokens, and one page of one kv head is one contiguous tile [64, dim], so that
// attention fetches it with one bulk copy and a chunk of 64 keys at an absolute multiple of 64 is
// exactly one tile. bf16 tiles are stored as shared memory wants them: the 16-byte unit u of row r
// lies at u ^ (r % 8), so eight rows of one unit occupy all 32 banks (ldmatrix without conflicts).
// fp8 tiles are plain rows: they are widened into such a bf16 tile before use.
#pragma once

#include "kernels/cuda/ops.h"

namespace ultraspeed::kernels::cuda {

inline constexpr int kPageTokens = 64;
inline constexpr int kUnitElements = 8;  // bf16 in 16 bytes

// Element of (row, column) in a bf16 tile [64, dim]. REQUIRES: dim is a multiple of 64.
__device__ inline int SwizzledElement(int row, int column, int dim) {
  return row * dim + ((column / kUnitElements) ^ (row % 8)) * kUnitElements +
         column % kUnitElements;
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
