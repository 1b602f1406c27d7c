// Chunks of 64 keys and values on their way into shared memory as swizzled bf16 tiles: bulk copies
// of cache pages several chunks ahead, widening of fp8, the drafter's dense block.
#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/attention_tile.cuh"

namespace ultraspeed::kernels::cuda {

// Four e4m3 codes as bf16 (exact).
__device__ inline uint2 WidenFp8(uint32_t codes) {
  uint32_t out[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const __half2_raw half =
        __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(codes >> (16 * i)), __NV_E4M3);
    const float2 wide = __half22float2(__half2(half));
    const __nv_bfloat162 pair = __floats2bfloat162_rn(wide.x, wide.y);
    out[i] = *reinterpret_cast<const uint32_t*>(&pair);
  }
  return {out[0], out[1]};
}

// fp8 tile [64, dim] to a swizzled bf16 tile, 16 elements at a time, by the whole block.
__device__ inline void WidenTile(const uint8_t* source, bf16* tile, int dim) {
  for (int i = threadIdx.x; i < kChunkKeys * dim / 16; i += blockDim.x) {
    const uint4 codes = reinterpret_cast<const uint4*>(source)[i];
    const int row = i / (dim / 16), column = i % (dim / 16) * 16;
    const uint2 a = WidenFp8(codes.x), b = WidenFp8(codes.y);
    const uint2 c = WidenFp8(codes.z), d = WidenFp8(codes.w);
    *reinterpret_cast<uint4*>(tile + TileElement(row, column)) = {a.x, a.y, b.x, b.y};
    *reinterpret_cast<uint4*>(tile + TileElement(row, column + 8)) = {c.x, c.y, d.x, d.y};
  }
}

// Rows [0, count) of dense [rows, Hkv, dim] to a swizzled tile; the others become zeros.
__device__ inline void GatherTile(const bf16* source, int64_t row_stride, int count, bf16* tile,
                                  int dim) {
  for (int i = threadIdx.x; i < kChunkKeys * dim / kUnitElements; i += blockDim.x) {
    const int row = i / (dim / kUnitElements), column = i % (dim / kUnitElements) * kUnitElements;
    const uint4 unit = row < count
                           ? *reinterpret_cast<const uint4*>(source + row * row_stride + column)
                           : uint4{0, 0, 0, 0};
    *reinterpret_cast<uint4*>(tile + TileElement(row, column)) = unit;
  }
}

// Zeros rows outside [begin, end) of a value tile: memory that no row of this pass may see can hold
// anything, and 0 * NaN would spread.
__device__ inline void ZeroRowsOutside(bf16* tile, int begin, int end) {
  constexpr int kUnits = kValueDim / kUnitElements;
  for (int i = threadIdx.x; i < kChunkKeys * kUnits; i += blockDim.x) {
    const int row = i / kPartUnits % kChunkKeys;
    if (row < begin || row >= end) reinterpret_cast<uint4*>(tile)[i] = {0, 0, 0, 0};
  }
}

// Chunks [begin, end) of one sequence and kv head, in order, through `num_stages` buffers. All
// threads of the block call every method.
template <int kDim, KvFormat kFormat>
class ChunkPipe {
 public:
  // Shared memory of the pipe, 128-byte aligned.
  __host__ __device__ static constexpr int Bytes(int num_stages) {
    return kBarrierBytes + num_stages * kStageBytes + (kWidens ? kTileBytes : 0);
  }

  __device__ ChunkPipe(uint8_t* shared, int num_stages, const AttentionParams& params, int sequence,
                       int kv_head, int begin, int end)
      : barriers_(reinterpret_cast<uint64_t*>(shared)),
        stages_(shared + kBarrierBytes),
        num_stages_(num_stages),
        params_(params),
        sequence_(sequence),
        kv_head_(kv_head),
        next_(begin),
        end_(end) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2 * num_stages; ++i) InitBarrier(&barriers_[i]);
      FenceBarrierInit();
      next_page_ = next_ < end_ ? PageOfNext() : 0;
      for (int stage = 0; stage < num_stages; ++stage) CopyNext(stage);
    }
    __syncthreads();
  }

  // Tiles of the next chunk. `visible_rows`: the others' values are zeroed, since memory that no
  // row of this pass may see can hold anything, and 0 * NaN would spread.
  struct Tiles {
    bf16* k;
    bf16* v;
  };
  __device__ Tiles Wait(int first_visible, int end_visible) {
    WaitBarrier(&barriers_[2 * stage_], parity_);
    WaitBarrier(&barriers_[2 * stage_ + 1], parity_);
    uint8_t* stage = stages_ + stage_ * kStageBytes;
    Tiles tiles = {reinterpret_cast<bf16*>(stage), reinterpret_cast<bf16*>(stage + kStageKBytes)};
    if constexpr (kWidens) {
      tiles = FreeTiles();
      WidenTile(stage, tiles.k, kDim);
      WidenTile(stage + kStageKBytes, tiles.v, kValueDim);
      __syncthreads();
    }
    if (first_visible > 0 || end_visible < kChunkKeys) {
      ZeroRowsOutside(tiles.v, first_visible, end_visible);
      FenceBulkCopies();
      __syncthreads();
    }
    return tiles;
  }
  // The chunk of the last Wait has been read: its buffer takes a later one.
  __device__ void Release() {
    __syncthreads();
    if (threadIdx.x == 0) CopyNext(stage_);
    if (++stage_ == num_stages_) {
      stage_ = 0;
      parity_ ^= 1;
    }
  }
  // Tiles to fill by hand once all chunks are released.
  __device__ Tiles FreeTiles() const {
    auto* k = reinterpret_cast<bf16*>(kWidens ? stages_ + num_stages_ * kStageBytes : stages_);
    return {k, k + kChunkKeys * kDim};
  }

 private:
  static constexpr bool kWidens = kFormat == KvFormat::kFp8;
  static constexpr int kElementBytes = kWidens ? 1 : 2;
  static constexpr int kStageKBytes = kChunkKeys * kDim * kElementBytes;
  static constexpr int kStageVBytes = kChunkKeys * kValueDim * kElementBytes;
  static constexpr int kStageBytes = kStageKBytes + kStageVBytes;
  static constexpr int kTileBytes = kChunkKeys * (kDim + kValueDim) * 2;
  static constexpr int kBarrierBytes = 128;  // K and V of each stage

  __device__ int64_t PageOfNext() const {
    return PageOf(params_.sequences, params_.place, params_.ring_pages, sequence_,
                  static_cast<int64_t>(next_) * kChunkKeys);
  }
  // Thread 0. The page after is looked up now, so that the next copy does not wait for memory.
  __device__ void CopyNext(int stage) {
    if (next_ >= end_) return;
    const auto copy = [&](const void* cache, int dim, int bytes, uint8_t* out, uint64_t* barrier) {
      const int64_t tile = TileOffset(next_page_, kv_head_, params_.cache.num_kv_heads, dim);
      BulkCopy(out, static_cast<const uint8_t*>(cache) + tile * kElementBytes, bytes, barrier);
    };
    uint8_t* out = stages_ + stage * kStageBytes;
    copy(params_.cache.k, kDim, kStageKBytes, out, &barriers_[2 * stage]);
    copy(params_.cache.v, kValueDim, kStageVBytes, out + kStageKBytes, &barriers_[2 * stage + 1]);
    if (++next_ < end_) next_page_ = PageOfNext();
  }

  uint64_t* const barriers_;
  uint8_t* const stages_;
  const int num_stages_;
  const AttentionParams& params_;
  const int sequence_, kv_head_;
  int next_;  // chunk copied next, in thread 0
  const int end_;
  int64_t next_page_ = 0;
  int stage_ = 0;
  uint32_t parity_ = 0;
};

}  // namespace ultraspeed::kernels::cuda
