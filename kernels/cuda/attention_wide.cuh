// Attention of many rows or keys of a full layer: the tensor cores of whole warpgroups.
//
// The order is that of attention.cu, and a product of a warpgroup has the bits of a warp's
// (wgmma.cuh). A thread block has 128 (row, q head) pairs of one sequence and kv head and one part
// of their keys. Two warpgroups multiply, 64 pairs each; the third brings chunks of keys and values
// into shared memory, by bulk copies where nothing has to change on the way.
#pragma once

#include "kernels/cuda/attention_block.cuh"
#include "kernels/cuda/attention_chunk.cuh"
#include "kernels/cuda/device/wgmma.cuh"

namespace ultraspeed::kernels::cuda {

constexpr int kAttentionGroups = 2;  // warpgroups that multiply
constexpr int kGroupPairs = 4 * kWarpPairs;
constexpr int kWidePairs = kAttentionGroups * kGroupPairs;
constexpr int kAttentionThreads = (kAttentionGroups + 1) * kWarpgroupThreads;
constexpr int kAttentionStages = 2;
static_assert(kGroupPairs == kChunkKeys, "parts of queries are as large as those of keys");

// What a thread keeps of the segments of its part that are done: fold f of thread t lies at
// f * num_threads + t.
inline constexpr int kFoldBytes =
    kValueDim / 2 * sizeof(float) + 2 * sizeof(Softmax);  // of a thread

// A segment is complete: adds it to the fold, or returns the whole fold in `tile` after the last.
// `num_threads`: those that fold, the block's first ones.
__device__ inline void FoldSegment(WarpResult& tile, uint8_t* shared, int num_threads, float scale,
                                   bool first, bool last) {
  auto* values = reinterpret_cast<float*>(shared);
  auto* states = reinterpret_cast<Softmax*>(values + num_threads * (kValueDim / 2));
  Factors factors[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    Softmax& kept = states[i * num_threads + threadIdx.x];
    if (!first) tile.state[i] = Merge(kept, tile.state[i], scale, factors[i]);
    if (!last) kept = tile.state[i];
  }
#pragma unroll
  for (int n = 0; n < kValueDim / 8; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float& kept = values[(n * 4 + j) * num_threads + threadIdx.x];
      if (!first) tile.values[n][j] = MergeValue(kept, tile.values[n][j], factors[j / 2]);
      if (!last) kept = tile.values[n][j];
    }
  }
  if (!last) tile.Reset();
}

// Shared memory, from a multiple of 1,024.
template <int kDim>
struct AttentionShared {
  static constexpr int kKeyBytes = kDim / kPartColumns * kPartBytes;
  static constexpr int kStageBytes = kKeyBytes + kValueDim / kPartColumns * kPartBytes;
  static constexpr int kQueries = kAttentionStages * kStageBytes;
  static constexpr int kFolds = kQueries + kAttentionGroups * kKeyBytes;
  static constexpr int kBarriers = kFolds + kAttentionGroups * kWarpgroupThreads * kFoldBytes;
  static constexpr int kBytes = kBarriers + 2 * kAttentionStages * 8;
  static_assert(kBytes <= 227 * 1024);
};

// Copies the tile of a page [64, kColumns] with rows from `end` on as zeros: a thread of the
// warpgroup the 16 bytes of one place of each part, in every row of its own; all loads before the
// first store.
template <int kColumns, KvFormat kFormat>
class TileCopy {
 public:
  __device__ __forceinline__ void Load(const void* cache, int64_t tile, int end) {
    const uint8_t* const from = static_cast<const uint8_t*>(cache) + tile * kElementBytes +
                                Row() * kRowBytes + Place() * 16;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = Row() + i * kRowsApart;
      const bool visible = row < end;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const auto* const piece = reinterpret_cast<const uint4*>(from + i * kRowsApart * kRowBytes +
                                                                 part * kFromPartBytes);
        pieces_[i][part] = visible ? *piece : uint4{0, 0, 0, 0};
      }
    }
  }
  __device__ __forceinline__ void Store(uint8_t* to) const {
    uint8_t* const row = to + Row() * 128;
    const int swizzle = Row() % 8;  // of all its rows
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        uint8_t* const out = row + i * kRowsApart * 128 + part * kPartBytes;
        const uint4 piece = pieces_[i][part];
        if constexpr (kIsBf16) {  // swizzled alike in the cache
          *reinterpret_cast<uint4*>(out + Place() * 16) = piece;
        } else {
          const uint2 a = WidenFp8(piece.x), b = WidenFp8(piece.y);
          const uint2 c = WidenFp8(piece.z), d = WidenFp8(piece.w);
          *reinterpret_cast<uint4*>(out + ((2 * Place()) ^ swizzle) * 16) = {a.x, a.y, b.x, b.y};
          *reinterpret_cast<uint4*>(out + ((2 * Place() + 1) ^ swizzle) * 16) = {c.x, c.y, d.x,
                                                                                 d.y};
        }
      }
    }
  }

 private:
  static constexpr bool kIsBf16 = kFormat == KvFormat::kBf16;
  static constexpr int kElementBytes = kIsBf16 ? 2 : 1;
  static constexpr int kParts = kColumns / kPartColumns;
  static constexpr int kPartPlaces = kPartColumns * kElementBytes / 16;
  static constexpr int kRowBytes = kIsBf16 ? kPartColumns * 2 : kColumns;  // in the cache
  static constexpr int kFromPartBytes = kIsBf16 ? kPartBytes : kPartColumns;
  static constexpr int kRowsApart = kWarpgroupThreads / kPartPlaces;
  static constexpr int kRows = kChunkKeys / kRowsApart;
  static_assert(kRowsApart % 8 == 0);
  static __device__ __forceinline__ int Place() { return threadIdx.x % kPartPlaces; }
  static __device__ __forceinline__ int Row() {
    return threadIdx.x % kWarpgroupThreads / kPartPlaces;
  }

  uint4 pieces_[kRows][kParts];
};

// Chunks [begin, end) of one kv head into the stages. Values that no row sees are zeros: their
// memory can hold anything, and 0 * NaN would spread.
template <int kDim, KvFormat kFormat>
__device__ __forceinline__ void FillChunks(const AttentionParams& attention, int sequence,
                                           int kv_head, int begin, int end, int visible_end,
                                           uint8_t* stages, uint64_t* full, uint64_t* empty) {
  using Shared = AttentionShared<kDim>;
  const int num_kv_heads = attention.cache.num_kv_heads;
  int stage = 0;
  uint32_t parity = 1;
  for (int chunk = begin; chunk < end; ++chunk) {
    const int64_t page = PageOf(attention.sequences, attention.place, attention.ring_pages,
                                sequence, static_cast<int64_t>(chunk) * kChunkKeys);
    const int64_t key_tile = TileOffset(page, kv_head, num_kv_heads, kDim);
    const int64_t value_tile = TileOffset(page, kv_head, num_kv_heads, kValueDim);
    const int visible = visible_end - chunk * kChunkKeys;
    uint8_t* const to = stages + stage * Shared::kStageBytes;
    if (kFormat == KvFormat::kBf16 && visible >= kChunkKeys) {
      WaitBarrier(empty + stage, parity);
      if (threadIdx.x % kWarpgroupThreads == 0) {
        ArriveExpecting(full + stage, Shared::kStageBytes);
        StartBulkCopy(to, static_cast<const bf16*>(attention.cache.k) + key_tile, Shared::kKeyBytes,
                      full + stage);
        StartBulkCopy(to + Shared::kKeyBytes,
                      static_cast<const bf16*>(attention.cache.v) + value_tile,
                      Shared::kStageBytes - Shared::kKeyBytes, full + stage);
      } else {
        Arrive(full + stage);
      }
    } else {
      TileCopy<kDim, kFormat> keys;
      TileCopy<kValueDim, kFormat> values;
      keys.Load(attention.cache.k, key_tile, kChunkKeys);
      values.Load(attention.cache.v, value_tile, visible);
      WaitBarrier(empty + stage, parity);
      keys.Store(to);
      values.Store(to + Shared::kKeyBytes);
      FenceBulkCopies();
      Arrive(full + stage);
    }
    if (++stage == kAttentionStages) {
      stage = 0;
      parity ^= 1;
    }
  }
}

// The queries of a warpgroup's pairs as rows of its part of shared memory; missing ones are zeros.
template <int kDim>
__device__ __forceinline__ void CopyQueries(const AttentionBlock& block, int first_pair,
                                            uint8_t* to) {
  constexpr int kRowPieces = kDim / kUnitElements;
  for (int i = threadIdx.x % kWarpgroupThreads; i < kGroupPairs * kRowPieces;
       i += kWarpgroupThreads) {
    const int pair = i / kRowPieces, column = i % kRowPieces * kUnitElements;
    const int64_t row_head = block.RowHead(first_pair + pair);
    uint4 piece = {};
    if (row_head >= 0) {
      piece = *reinterpret_cast<const uint4*>(block.params.attention.q + row_head * kDim + column);
    }
    *reinterpret_cast<uint4*>(to + TileElement(pair, column) * 2) = piece;
  }
}

// Chunk `chunk` has joined `result`: at the end of a segment folds it.
__device__ __forceinline__ void EndChunk(const AttentionBlock& block, WarpResult& result, int chunk,
                                         uint8_t* folds) {
  constexpr int kChunksPerSegment = kSegmentKeys / kChunkKeys;
  if (block.params.part_keys <= kSegmentKeys) return;  // a segment has nothing to fold
  const bool last = chunk + 1 == block.chunk_end;
  if (!last && (chunk + 1) % kChunksPerSegment != 0) return;
  const bool first = chunk / kChunksPerSegment == block.chunk_begin / kChunksPerSegment;
  FoldSegment(result, folds, kAttentionGroups * kWarpgroupThreads, block.params.scale, first, last);
}

template <int kDim, KvFormat kFormat>
__global__ void __launch_bounds__(kAttentionThreads, 1)
    WideAttentionKernel(const __grid_constant__ AttentionBlockParams params) {
  using Shared = AttentionShared<kDim>;
  const AttentionBlock block(params, kWidePairs);
  if (block.empty()) return;
  extern __shared__ __align__(1024) uint8_t stages[];
  uint64_t* const full = reinterpret_cast<uint64_t*>(stages + Shared::kBarriers);
  uint64_t* const empty = full + kAttentionStages;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kAttentionStages; ++s) {
      InitBarrier(full + s, kWarpgroupThreads);
      InitBarrier(empty + s, kAttentionGroups * 4);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  if (threadIdx.x >= kAttentionGroups * kWarpgroupThreads) {
    GiveRegisters<104>();
    FillChunks<kDim, kFormat>(params.attention, block.sequence, block.kv_head, block.chunk_begin,
                              block.chunk_end, block.visible_end, stages, full, empty);
    return;
  }
  TakeRegisters<200>();
  const int group = threadIdx.x / kWarpgroupThreads, lane = threadIdx.x % kWarpLanes;
  uint8_t* const queries = stages + Shared::kQueries + group * Shared::kKeyBytes;
  CopyQueries<kDim>(block, block.tile_begin + group * kGroupPairs, queries);
  FenceBulkCopies();
  asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(kWarpgroupThreads) : "memory");

  const int first_pair = block.tile_begin + threadIdx.x / kWarpLanes * kWarpPairs + lane / 4;
  int64_t row_head[2];
  int end_key[2];
  const int first_key[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    row_head[i] = block.RowHead(first_pair + 8 * i);
    end_key[i] = row_head[i] < 0 ? 0 : block.EndKey((first_pair + 8 * i) / params.group);
  }
  WarpResult result;
  result.Reset();
  int stage = 0;
  uint32_t parity = 0;
  for (int chunk = block.chunk_begin; chunk < block.chunk_end; ++chunk) {
    WaitBarrier(full + stage, parity);
    const uint32_t keys = SharedAddress(stages + stage * Shared::kStageBytes);
    ChunkScores scores;
    FenceProducts();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const int place = step / 4 * kPartBytes + step % 4 * 32;
      AddProduct(scores, InputDescriptor(SharedAddress(queries) + place),
                 InputDescriptor(keys + place), step > 0);
    }
    CommitProducts();
    WaitProducts<0>();
    HoldSums(scores);
    Factors factors[2];
    WeighScores(scores, chunk * kChunkKeys, first_key, end_key, params.scale, result.state,
                factors);
    const ChunkWeights weights(scores);
    float values[kValueDim / 8][4];
    FenceProducts();
#pragma unroll
    for (int step = 0; step < kChunkKeys / 16; ++step) {
      const uint64_t rows = RowsDescriptor(keys + Shared::kKeyBytes + step * 16 * 128, kPartBytes);
      AddProductOfRows(values, weights.high[step], rows, step > 0);
      AddProductOfRows(values, weights.low[step], rows, true);
    }
    CommitProducts();
    WaitProducts<0>();
    HoldSums(values);
    __syncwarp();
    if (lane == 0) Arrive(empty + stage);
    if (++stage == kAttentionStages) {
      stage = 0;
      parity ^= 1;
    }
#pragma unroll
    for (int n = 0; n < kValueDim / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        result.values[n][j] = MergeValue(result.values[n][j], values[n][j], factors[j / 2]);
      }
    }
    EndChunk(block, result, chunk, stages + Shared::kFolds);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) block.Store(result, i, row_head[i], end_key[i]);
}

}  // namespace ultraspeed::kernels::cuda
