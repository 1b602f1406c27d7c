// Operations on rows of the residual stream: embedding, residual addition with RMS norm and tap,
// and the final norm of the rows that get logits.
//
// One block per row. The sum of squares: columns c and c + 8 of each 16 meet in one fused
// multiply-add, the eight pairs in a tree; lane l of a warp adds the 16s numbered l, l + 32, ...
// ascending, and the lanes meet in a tree: a function of the row's length only, and the order in
// which the resident engine's tiles of 16 rows come about. Memory bound: H * (8 in + 4 out +
// 2 normed + 2 tap) bytes a row.
#include <cuda_bf16.h>

#include "kernels/check.h"
#include "kernels/cuda/device/numbers.cuh"
#include "kernels/cuda/device/reduce.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kVector = 4;         // floats of one access
constexpr int kHiddenMax = 10240;  // a row and its sums of squares fit 48 KB

__device__ uint2 RoundFour(float4 x) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(x.x, x.y);
  const __nv_bfloat162 high = __floats2bfloat162_rn(x.z, x.w);
  return {*reinterpret_cast<const uint32_t*>(&low), *reinterpret_cast<const uint32_t*>(&high)};
}

__device__ float4 Widen(uint2 x) {
  return {__uint_as_float(x.x << 16), __uint_as_float(x.x & 0xffff0000u),
          __uint_as_float(x.y << 16), __uint_as_float(x.y & 0xffff0000u)};
}

// Sum of squares of the 16 columns of a tile; those past the end count as zeros.
__device__ float SquaresOf16(const float4* row, int tile, int hidden) {
  float4 columns[4];
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    const int i = tile * 4 + q;
    columns[q] = i < hidden / kVector ? row[i] : float4{0.0f, 0.0f, 0.0f, 0.0f};
  }
  const auto pair = [](float low, float high) {
    return __fmaf_rn(high, high, __fmul_rn(low, low));
  };
  const auto four = [&](float4 low, float4 high) {
    return __fadd_rn(__fadd_rn(pair(low.x, high.x), pair(low.y, high.y)),
                     __fadd_rn(pair(low.z, high.z), pair(low.w, high.w)));
  };
  return __fadd_rn(four(columns[0], columns[2]), four(columns[1], columns[3]));
}

// Writes bf16(RMS norm) of the row that this block holds in shared memory, and the norm's scale, if
// that is wanted. All threads call it once the row is complete, before any barrier.
__device__ void NormRow(const float4* row, const float* weight, float epsilon, int hidden,
                        bf16* out, float* scale_out = nullptr) {
  __shared__ float tile_squares[kHiddenMax / 16];
  __shared__ float row_squares;
  __syncthreads();
  const int num_tiles = (hidden + 15) / 16;
  for (int tile = threadIdx.x; tile < num_tiles; tile += kThreads) {
    tile_squares[tile] = SquaresOf16(row, tile, hidden);
  }
  __syncthreads();
  if (threadIdx.x < kWarpLanes) {
    float squares = 0.0f;
    for (int tile = threadIdx.x; tile < num_tiles; tile += kWarpLanes) {
      squares = __fadd_rn(squares, tile_squares[tile]);
    }
    squares = WarpReduce(squares, AddFloats());
    if (threadIdx.x == 0) row_squares = squares;
  }
  __syncthreads();
  const float scale = NormScale(row_squares, hidden, epsilon);
  if (scale_out != nullptr && threadIdx.x == 0) *scale_out = scale;
  for (int i = threadIdx.x; i < hidden / kVector; i += kThreads) {
    const float4 x = row[i];
    const float4 w = reinterpret_cast<const float4*>(weight)[i];
    reinterpret_cast<uint2*>(out)[i] = RoundFour(
        {NormElement(RoundedToBf16(x.x), scale, w.x), NormElement(RoundedToBf16(x.y), scale, w.y),
         NormElement(RoundedToBf16(x.z), scale, w.z), NormElement(RoundedToBf16(x.w), scale, w.w)});
  }
}

// Row of the embedding, widened; null gives zeros.
__device__ void WidenRow(const bf16* source, int hidden, float* out) {
  for (int i = threadIdx.x; i < hidden / kVector; i += kThreads) {
    reinterpret_cast<float4*>(out)[i] = source == nullptr
                                            ? float4{0.0f, 0.0f, 0.0f, 0.0f}
                                            : Widen(reinterpret_cast<const uint2*>(source)[i]);
  }
}

__device__ const bf16* EmbeddingRow(const EmbeddingTable& table, int32_t token, int hidden) {
  const int32_t row = token - table.first_token;
  return row >= 0 && row < table.num_tokens ? table.rows + static_cast<int64_t>(row) * hidden
                                            : nullptr;
}

__global__ void __launch_bounds__(kThreads)
    EmbedKernel(EmbeddingTable table, const int32_t* tokens, int hidden, float* out) {
  WidenRow(EmbeddingRow(table, tokens[blockIdx.x], hidden), hidden,
           out + static_cast<int64_t>(blockIdx.x) * hidden);
}

__global__ void __launch_bounds__(kThreads)
    EmbedBlocksKernel(EmbeddingTable table, const bf16* mask, const int32_t* anchors, int block,
                      int hidden, float* out) {
  const int row = static_cast<int>(blockIdx.x);
  const bf16* source = row % block == 0 ? EmbeddingRow(table, anchors[row / block], hidden) : mask;
  WidenRow(source, hidden, out + static_cast<int64_t>(row) * hidden);
}

__global__ void __launch_bounds__(kThreads) AddNormKernel(AddNormParams params) {
  extern __shared__ float4 row[];  // [H / 4]
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * params.hidden;
  auto* residual = reinterpret_cast<float4*>(params.residual + begin);
  const auto* delta = reinterpret_cast<const float4*>(params.delta + begin);
  bf16* tap =
      params.tap == nullptr
          ? nullptr
          : params.tap + static_cast<int64_t>(blockIdx.x) * params.tap_stride + params.tap_offset;
  for (int i = threadIdx.x; i < params.hidden / kVector; i += kThreads) {
    float4 x = residual[i];
    if (params.delta != nullptr) {
      const float4 d = delta[i];
      x = {x.x + d.x, x.y + d.y, x.z + d.z, x.w + d.w};
      residual[i] = x;
    }
    if (tap != nullptr) reinterpret_cast<uint2*>(tap)[i] = RoundFour(x);
    row[i] = x;
  }
  if (params.normed != nullptr) {
    NormRow(row, params.weight, params.epsilon, params.hidden, params.normed + begin,
            params.scales == nullptr ? nullptr : params.scales + blockIdx.x);
  }
}

__global__ void __launch_bounds__(kThreads)
    GatherNormKernel(const float* residual, const int32_t* rows, const float* weight, float epsilon,
                     int hidden, bf16* out) {
  extern __shared__ float4 row[];  // [H / 4]
  const auto* source =
      reinterpret_cast<const float4*>(residual + static_cast<int64_t>(rows[blockIdx.x]) * hidden);
  for (int i = threadIdx.x; i < hidden / kVector; i += kThreads) row[i] = source[i];
  NormRow(row, weight, epsilon, hidden, out + static_cast<int64_t>(blockIdx.x) * hidden);
}

size_t RowBytes(int hidden) {
  KERNELS_CHECK(hidden % kVector, ==, 0);
  KERNELS_CHECK(hidden, <=, kHiddenMax);
  return hidden * sizeof(float);
}

}  // namespace

void Embed(const EmbeddingTable& table, const int32_t* tokens, int num_tokens, int hidden,
           float* out, cudaStream_t stream) {
  KERNELS_CHECK(hidden % kVector, ==, 0);
  if (num_tokens == 0) return;
  EmbedKernel<<<num_tokens, kThreads, 0, stream>>>(table, tokens, hidden, out);
  CheckLaunch("Embed");
}

void EmbedBlocks(const EmbeddingTable& table, const bf16* mask, const int32_t* anchors,
                 int num_blocks, int block, int hidden, float* out, cudaStream_t stream) {
  KERNELS_CHECK(hidden % kVector, ==, 0);
  KERNELS_CHECK(block, >, 0);
  if (num_blocks == 0) return;
  EmbedBlocksKernel<<<num_blocks * block, kThreads, 0, stream>>>(table, mask, anchors, block,
                                                                 hidden, out);
  CheckLaunch("EmbedBlocks");
}

void AddNorm(const AddNormParams& params, cudaStream_t stream) {
  KERNELS_CHECK(params.tap_offset % kVector, ==, 0);
  KERNELS_CHECK(params.tap_stride % kVector, ==, 0);
  const size_t shared_bytes = RowBytes(params.hidden);
  if (params.num_tokens == 0) return;
  AddNormKernel<<<params.num_tokens, kThreads, shared_bytes, stream>>>(params);
  CheckLaunch("AddNorm");
}

void GatherNorm(const float* residual, const int32_t* rows, int num_rows, const float* weight,
                float epsilon, int hidden, bf16* out, cudaStream_t stream) {
  const size_t shared_bytes = RowBytes(hidden);
  if (num_rows == 0) return;
  GatherNormKernel<<<num_rows, kThreads, shared_bytes, stream>>>(residual, rows, weight, epsilon,
                                                                 hidden, out);
  CheckLaunch("GatherNorm");
}

}  // namespace ultraspeed::kernels::cuda
