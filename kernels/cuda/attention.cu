// Attention of decode, verify, prefill and drafter rows: two kernels, one order of additions.
//
// The order. Keys form chunks of 64 at absolute multiples of 64 (a chunk is a page). A chunk has a
// result of its own: weights relative to its largest score, their sum and the values, in fp32 from
// zero; keys that a row does not see weigh exactly 0, and merging a chunk that it does not see
// leaves its result as it was. In a full layer, chunks form segments of 256 keys and segments form
// spans of 8192, both at absolute positions; a row's result is the fold of its spans, each the fold
// of its segments, each the fold of its chunks, in ascending order, always by Merge(). Who computes
// which part is free: decode gives each block one segment, prefill one span, the resident engine
// chunks or segments, and what a row sees decides its bits alone. A windowed layer sees few chunks:
// one fold of all of them, then of the chunks of the drafter's own block.
//
// The mapping. A block holds 16 (row, q head) pairs per warp of one sequence and kv head, so all
// rows and heads that share keys read them once. grid: (pair tiles, parts, S * Hkv). The kernel
// here takes few rows, windows and the drafter's blocks: keys and values arrive by bulk copies, two
// or three chunks deep, scores and P V are mma.m16n8k16. Many rows or keys of a full layer go
// through attention_wide.cuh. P enters as two bf16 terms, which leaves a relative error near 2^-17
// per weight. Bytes: every tile reads (D + Dv) * 2 per key (fp8: half).
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/attention_block.cuh"
#include "kernels/cuda/attention_chunk.cuh"
#include "kernels/cuda/attention_wide.cuh"
#include "kernels/cuda/launch.h"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kGroupMax = 16;
constexpr int kWarpsMax = 8;
constexpr int kStagesMax = 3;
// Up to here (row, q head) pairs of a call get a block per segment; above, one per span.
constexpr int64_t kSegmentedPairsMax = 1024;

__host__ __device__ constexpr int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The drafter's own block, all of it visible to all of its rows.
template <int kDim>
__device__ void AttendBlock(WarpTile<kDim>& tile, const AttentionParams& attention, int first_row,
                            int num_rows, int kv_head, bf16* k_tile, bf16* v_tile, float scale,
                            bool any_pair) {
  const int num_kv_heads = attention.cache.num_kv_heads;
  const int first[2] = {0, 0};
  const int end[2] = {num_rows, num_rows};
  for (int begin = 0; begin < num_rows; begin += kChunkKeys) {
    const int64_t offset = static_cast<int64_t>(first_row + begin) * num_kv_heads + kv_head;
    GatherTile(attention.block_k + offset * kDim, num_kv_heads * kDim, num_rows - begin, k_tile,
               kDim);
    GatherTile(attention.block_v + offset * kValueDim, num_kv_heads * kValueDim, num_rows - begin,
               v_tile, kValueDim);
    __syncthreads();
    if (any_pair) tile.Attend(k_tile, v_tile, begin, first, end, scale);
    __syncthreads();
  }
}

template <int kDim, KvFormat kFormat>
__global__ void __launch_bounds__(kWarpsMax* kWarpLanes, 1)
    AttentionKernel(const __grid_constant__ AttentionBlockParams params) {
  const AttentionParams& attention = params.attention;
  const AttentionBlock block(params, static_cast<int>(blockDim.x) / kWarpLanes * kWarpPairs);
  if (block.empty()) return;
  const bool drafter = attention.block_k != nullptr;

  extern __shared__ __align__(128) uint8_t shared[];
  using Pipe = ChunkPipe<kDim, kFormat>;
  Pipe pipe(shared, params.num_stages, attention, block.sequence, block.kv_head, block.chunk_begin,
            block.chunk_end);

  // This lane's two pairs and their queries.
  const int lane = threadIdx.x % kWarpLanes;
  const int warp_begin = block.tile_begin + static_cast<int>(threadIdx.x) / kWarpLanes * kWarpPairs;
  const bool any_pair = warp_begin < block.num_rows * params.group;
  WarpTile<kDim> tile;
  tile.Reset();
  int64_t row_head[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int pair = warp_begin + lane / 4 + 8 * i;
    row_head[i] = block.RowHead(pair);
    const bool valid = row_head[i] >= 0;
    tile.first_key[i] = valid ? block.FirstKey(pair / params.group) : 0;
    tile.end_key[i] = valid ? block.EndKey(pair / params.group) : 0;
    const auto* q = reinterpret_cast<const uint32_t*>(attention.q + row_head[i] * kDim);
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      tile.q[step][i] = valid ? q[step * 8 + lane % 4] : 0u;
      tile.q[step][i + 2] = valid ? q[step * 8 + 4 + lane % 4] : 0u;
    }
  }

  for (int chunk = block.chunk_begin; chunk < block.chunk_end; ++chunk) {
    const int begin = chunk * kChunkKeys;
    const typename Pipe::Tiles chunk_tiles =
        pipe.Wait(block.visible_first - begin, block.visible_end - begin);
    if (any_pair) {
      tile.Attend(chunk_tiles.k, chunk_tiles.v, begin, tile.first_key, tile.end_key, params.scale);
    }
    pipe.Release();
  }
  if (drafter) {
    const typename Pipe::Tiles free = pipe.FreeTiles();
    AttendBlock(tile, attention, attention.sequences.first_row[block.sequence], block.num_rows,
                block.kv_head, free.k, free.v, params.scale, any_pair);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) block.Store(tile, i, row_head[i], tile.end_key[i]);
}

// Folds the parts of one row and head: a warp per span folds the span's parts, then warp 0 the
// spans. A lane holds 4 value dims. grid: (Hq, rows_max, S).
constexpr int kCombineWarps = 8;
__global__ void __launch_bounds__(kCombineWarps* kWarpLanes)
    CombineKernel(const __grid_constant__ AttentionBlockParams params) {
  const AttentionParams& attention = params.attention;
  const Sequences& sequences = attention.sequences;
  const int s = static_cast<int>(blockIdx.z), row = static_cast<int>(blockIdx.y);
  const int head = static_cast<int>(blockIdx.x);
  if (row >= sequences.num_rows[s]) return;
  const int64_t row_head =
      static_cast<int64_t>(sequences.first_row[s] + row) * attention.num_q_heads + head;
  const int end_key = static_cast<int>(sequences.position[s]) + row + 1;
  const int num_parts = (end_key + params.part_keys - 1) / params.part_keys;
  const int parts_per_span = kSpanKeys / params.part_keys;
  const int num_spans = (num_parts + parts_per_span - 1) / parts_per_span;
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;

  __shared__ Softmax span_states[kCombineWarps];
  __shared__ float4 span_values[kCombineWarps][kWarpLanes];
  const auto merge = [&](Softmax& state, float4& value, Softmax later, float4 later_value) {
    Factors factors;
    state = Merge(state, later, params.scale, factors);
    value = {
        MergeValue(value.x, later_value.x, factors), MergeValue(value.y, later_value.y, factors),
        MergeValue(value.z, later_value.z, factors), MergeValue(value.w, later_value.w, factors)};
  };
  Softmax total = {kNoScore, 0.0f};
  float4 total_value = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int span_begin = 0; span_begin < num_spans; span_begin += kCombineWarps) {
    const int span = span_begin + warp;
    if (span < num_spans) {
      Softmax state = {kNoScore, 0.0f};
      float4 value = {0.0f, 0.0f, 0.0f, 0.0f};
      const int begin = span * parts_per_span;
      const int end = min(num_parts, begin + parts_per_span);
#pragma unroll 4
      for (int part = begin; part < end; ++part) {
        const AttentionPartial& partial = params.PartialOf(row_head, part);
        merge(state, value, partial.state, reinterpret_cast<const float4*>(partial.values)[lane]);
      }
      if (lane == 0) span_states[warp] = state;
      span_values[warp][lane] = value;
    }
    __syncthreads();
    if (warp == 0) {
      for (int i = 0; i < min(kCombineWarps, num_spans - span_begin); ++i) {
        merge(total, total_value, span_states[i], span_values[i][lane]);
      }
    }
    __syncthreads();
  }
  if (warp == 0) {
    const float factor = OutputFactor(total, params.scale, SinkOf(attention.sinks, head));
    reinterpret_cast<uint2*>(attention.out + row_head * kValueDim)[lane] = {
        OutputPair(total_value.x, total_value.y, factor),
        OutputPair(total_value.z, total_value.w, factor)};
  }
}

int PartKeys(int64_t num_pairs_max) {
  return num_pairs_max <= kSegmentedPairsMax ? kSegmentKeys : kSpanKeys;
}

size_t PartialBytes(int64_t num_pairs, int64_t num_parts) {
  return static_cast<size_t>(num_pairs * num_parts) * sizeof(AttentionPartial);
}

template <int kDim, KvFormat kFormat>
void LaunchWide(const AttentionBlockParams& params, const dim3& grid, cudaStream_t stream) {
  constexpr int kSharedBytes = AttentionShared<kDim>::kBytes;
  const auto kernel = WideAttentionKernel<kDim, kFormat>;
  static OncePerDevice configured;
  AllowSharedMemory(configured, kernel, kSharedBytes, "WideAttentionKernel shared memory");
  kernel<<<grid, kAttentionThreads, kSharedBytes, stream>>>(params);
}

template <int kDim, KvFormat kFormat>
void LaunchNarrow(AttentionBlockParams params, int num_warps, const dim3& grid,
                  cudaStream_t stream) {
  constexpr int kSharedBytesMax = 227 * 1024;
  params.num_stages = num_warps == kWarpsMax ? kStagesMax : 2;
  const int shared_bytes = ChunkPipe<kDim, kFormat>::Bytes(params.num_stages);
  KERNELS_CHECK(shared_bytes, <=, kSharedBytesMax);
  const auto kernel = AttentionKernel<kDim, kFormat>;
  static OncePerDevice configured;
  AllowSharedMemory(configured, kernel, kSharedBytesMax, "AttentionKernel shared memory");
  kernel<<<grid, num_warps * kWarpLanes, shared_bytes, stream>>>(params);
}

template <int kDim, KvFormat kFormat>
void Launch(const AttentionBlockParams& params, cudaStream_t stream) {
  const Sequences& sequences = params.attention.sequences;
  const int64_t pairs = static_cast<int64_t>(sequences.rows_max) * params.group;
  const int heads = sequences.num_sequences * params.attention.cache.num_kv_heads;
  const auto grid = [&](int block_pairs) {
    return dim3(static_cast<unsigned>(CeilDivide(pairs, block_pairs)), params.num_parts, heads);
  };
  // Warpgroups where there are pairs for them, and blocks for every multiprocessor.
  const bool wide =
      params.part_keys == kSpanKeys ||
      (params.part_keys == kSegmentKeys && pairs >= kGroupPairs &&
       CeilDivide(pairs, kWidePairs) * params.num_parts * heads >= NumMultiprocessors());
  if (wide) {
    LaunchWide<kDim, kFormat>(params, grid(kWidePairs), stream);
  } else {
    // As few warps as still leave every multiprocessor a block.
    int num_warps = 1;
    while (num_warps < kWarpsMax && num_warps * kWarpPairs < pairs &&
           CeilDivide(pairs, num_warps * kWarpPairs) * params.num_parts * heads >
               NumMultiprocessors()) {
      num_warps *= 2;
    }
    LaunchNarrow<kDim, kFormat>(params, num_warps, grid(num_warps * kWarpPairs), stream);
  }
  if (params.num_parts > 1) {
    const dim3 rows(params.attention.num_q_heads, sequences.rows_max, sequences.num_sequences);
    CombineKernel<<<rows, kCombineWarps * kWarpLanes, 0, stream>>>(params);
  }
  CheckLaunch("Attention");
}

}  // namespace

size_t AttentionWorkspaceBytes(int num_tokens_max, int num_q_heads, int v_head_dim,
                               int64_t position_end_max) {
  KERNELS_CHECK(v_head_dim, ==, kValueDim);
  const int64_t pairs = static_cast<int64_t>(num_tokens_max) * num_q_heads;
  const size_t segmented =
      PartialBytes(std::min(pairs, kSegmentedPairsMax), CeilDivide(position_end_max, kSegmentKeys));
  return std::max(segmented, PartialBytes(pairs, CeilDivide(position_end_max, kSpanKeys)));
}

void Attention(const AttentionParams& params, cudaStream_t stream) {
  const KvCache& cache = params.cache;
  const Sequences& sequences = params.sequences;
  KERNELS_CHECK(cache.page_tokens, ==, kPageTokens);
  KERNELS_CHECK(cache.v_head_dim, ==, kValueDim);
  KERNELS_CHECK(params.num_q_heads % cache.num_kv_heads, ==, 0);
  KERNELS_CHECK(params.num_q_heads / cache.num_kv_heads, <=, kGroupMax);
  KERNELS_CHECK(sequences.position_end_max, <, int64_t{1} << 30);
  // A drafter's block and a ring need a window: their keys are not cut into segments.
  if (params.block_k != nullptr || params.place == KvPlace::kRing) {
    KERNELS_CHECK(params.window, >, 0);
  }
  if (sequences.num_sequences == 0 || sequences.rows_max == 0) return;

  AttentionBlockParams kernel = {};
  kernel.attention = params;
  kernel.scale = ScoreScale(params.score_scale);
  kernel.group = params.num_q_heads / cache.num_kv_heads;
  kernel.num_parts = 1;
  if (params.window == 0) {
    const int64_t pairs_max =
        static_cast<int64_t>(sequences.num_sequences) * sequences.rows_max * params.num_q_heads;
    kernel.part_keys = PartKeys(pairs_max);
    const int64_t num_parts =
        std::max<int64_t>(1, CeilDivide(sequences.position_end_max, kernel.part_keys));
    kernel.num_parts = static_cast<int>(num_parts);
    kernel.partials = static_cast<AttentionPartial*>(params.workspace);
  }
  const bool bf16_cache = cache.format == KvFormat::kBf16;
  if (cache.qk_head_dim == 192) {
    bf16_cache ? Launch<192, KvFormat::kBf16>(kernel, stream)
               : Launch<192, KvFormat::kFp8>(kernel, stream);
  } else {
    KERNELS_CHECK(cache.qk_head_dim, ==, 128);
    bf16_cache ? Launch<128, KvFormat::kBf16>(kernel, stream)
               : Launch<128, KvFormat::kFp8>(kernel, stream);
  }
}

}  // namespace ultraspeed::kernels::cuda
