// What the two forms of the matrix product share: operands, the tokens of a tile, the epilogue.
//
// stream_product.cuh reads weights at memory speed for few tokens, wide_product.cuh keeps the
// tensor cores busy for many. Both make every output element by the same sequence of operations
// (weight_layout.h), so which of them runs never shows in the result. Kernels and launchers are
// static: each .cu that instantiates them has its own, with its own attributes.
#pragma once

#include "kernels/cuda/device/fragments.cuh"
#include "kernels/cuda/device/numbers.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/weight_layout.h"
#include "kernels/cuda/wide_inputs.cuh"

namespace ultraspeed::kernels::cuda {

// Up to a tile's width of tokens that go through one expert: places [first, first + count) of the
// slot list. `first_row`: where their rows begin among inputs that are arranged (wide_inputs.cuh).
struct TokenTile {
  int32_t expert, first, count, first_row;
};

struct Product {
  const uint8_t* weights;
  size_t expert_bytes;  // from one expert's matrix to the next
  int num_rows;         // N
  int num_cols;         // Kdim
  int segment_slabs;    // even, or all slabs
  const bf16* x;        // [.., Kdim]
  int num_tokens;       // T: rows of out

  // Mixture of experts: a slot is one (token, k) and a row of out; its input is row slot /
  // slots_per_input of x. Null for a Linear: slot = place, tiles are consecutive.
  const TokenTile* tiles;
  const int32_t* num_tiles;
  const int32_t* slots;
  int slots_per_input;

  void* out;        // kStore: float [T, N]. kSwiGlu: bf16 [T, N / 2]
  float* partials;  // kStore: not null: sums of segments [segment, T, N] instead of out
};

// kSwiGluArranged: as arranged inputs of a format with an input gain.
enum class Epilogue { kStore, kSwiGlu, kSwiGluArranged };

__host__ __device__ inline int NumSegments(const Product& p) {
  return (NumSlabs(p.num_cols) + p.segment_slabs - 1) / p.segment_slabs;
}

__device__ __forceinline__ TokenTile TileOf(const Product& p, int index, int tile_tokens) {
  if (p.tiles != nullptr) return p.tiles[index];
  const int first = index * tile_tokens;
  return {0, first, min(tile_tokens, p.num_tokens - first), first};
}
__device__ __forceinline__ int SlotOf(const Product& p, int place) {
  return p.slots != nullptr ? p.slots[place] : place;
}
__device__ __forceinline__ const bf16* InputOf(const Product& p, int place) {
  return p.x + static_cast<size_t>(SlotOf(p, place) / p.slots_per_input) * p.num_cols;
}

// Those of tokens i, i + 1 of a tile.
__device__ __forceinline__ int2 SlotsOf(const Product& p, const TokenTile& tile, int i) {
  return {i < tile.count ? SlotOf(p, tile.first + i) : 0,
          i + 1 < tile.count ? SlotOf(p, tile.first + i + 1) : 0};
}

// Writes the lane's part of a finished 16 x 8 tile: v.x, v.y belong to row `row_tile` * 16 + g and
// tokens i, i + 1 of the tile, v.z, v.w to row + 8. `slots`: SlotsOf (kSwiGluArranged needs none).
template <Epilogue kEpilogue>
__device__ __forceinline__ void Store(const Product& p, const TokenTile& tile, int2 slots,
                                      int row_tile, int i, int g, float4 v) {
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    if (i + c >= tile.count) continue;
    const auto slot = static_cast<size_t>(c == 0 ? slots.x : slots.y);
    const float low = c == 0 ? v.x : v.y;
    const float high = c == 0 ? v.z : v.w;
    if constexpr (kEpilogue != Epilogue::kStore) {  // the tile's upper rows are up to its gate
      const int column = row_tile * 8 + g, num_columns = p.num_rows / 2;
      if (column >= num_columns) continue;
      const bf16 product = SwiGluProduct(low, high);
      if constexpr (kEpilogue == Epilogue::kSwiGlu) {
        static_cast<bf16*>(p.out)[slot * num_columns + column] = product;
      } else {
        const WideInputs inputs = {tile.first_row, tile.count, NumSlabs(num_columns)};
        uint8_t* const place = static_cast<uint8_t*>(p.out) + inputs.ElementOffset(i + c, column);
        *reinterpret_cast<bf16*>(place) = RoundToBf16(Bf16ToFloat(product) * kInputGainFloat);
      }
    } else {
      const int row = row_tile * kTileRows + g;
      float* const out = static_cast<float*>(p.out) + slot * p.num_rows + row;
      if (row < p.num_rows) out[0] = low;
      if (row + 8 < p.num_rows) out[8] = high;
    }
  }
}

// The same product with `partials` of one segment as its output.
__device__ __forceinline__ Product SegmentOutput(const Product& p, int segment) {
  Product q = p;
  q.out = p.partials + static_cast<size_t>(segment) * p.num_tokens * p.num_rows;
  return q;
}

}  // namespace ultraspeed::kernels::cuda
