// Attention of decode, verify, prefill and drafter rows: one kernel, one order of additions.
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
// The mapping. A block holds 16 (row, q head) pairs per warp of one sequence and one kv head, so
// all rows and heads that share keys read them once. grid: (pair tiles, parts, S * Hkv). Keys and
// values arrive by bulk copies, two or three chunks deep. Scores and P V are mma.m16n8k16; P enters
// as two bf16 terms, which leaves a relative error near 2^-17 per weight. Bytes: every tile reads
// (D + Dv) * 2 per key (fp8: half).
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/attention_chunk.cuh"
#include "kernels/cuda/launch.h"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kGroupMax = 16;
constexpr int kWarpsMax = 8;
constexpr int kStagesMax = 3;
// Up to here (row, q head) pairs of a call get a block per segment; above, one per span.
constexpr int64_t kSegmentedPairsMax = 1024;

__host__ __device__ constexpr int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct KernelParams {
  AttentionParams attention;
  float scale;    // ScoreScale
  int group;      // q heads per kv head
  int part_keys;  // keys of a part, whole segments; 0: one part, no segments (windowed)
  int num_stages;
  int num_parts;
  AttentionPartial* partials;  // used if num_parts > 1

  __device__ AttentionPartial& PartialOf(int64_t row_head, int part) const {
    return partials[row_head * num_parts + part];
  }
};

// What a thread keeps of the segments of its part that are done: fold f of thread t lies at
// f * blockDim + t.
constexpr int kFoldBytes = kValueDim / 2 * sizeof(float) + 2 * sizeof(Softmax);  // of a thread

// A segment is complete: adds it to the fold, or returns the whole fold in `tile` after the last.
template <int kDim>
__device__ void FoldSegment(WarpTile<kDim>& tile, uint8_t* shared, float scale, bool first,
                            bool last) {
  auto* values = reinterpret_cast<float*>(shared);
  auto* states = reinterpret_cast<Softmax*>(values + blockDim.x * (kValueDim / 2));
  Factors factors[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    Softmax& kept = states[i * blockDim.x + threadIdx.x];
    if (!first) tile.state[i] = Merge(kept, tile.state[i], scale, factors[i]);
    if (!last) kept = tile.state[i];
  }
#pragma unroll
  for (int n = 0; n < kValueDim / 8; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float& kept = values[(n * 4 + j) * blockDim.x + threadIdx.x];
      if (!first) tile.values[n][j] = MergeValue(kept, tile.values[n][j], factors[j / 2]);
      if (!last) kept = tile.values[n][j];
    }
  }
  if (!last) tile.Reset();
}

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

// Writes what this lane holds of pair i: a partial result, or the output.
template <int kDim>
__device__ void Store(const WarpTile<kDim>& tile, int i, const KernelParams& params,
                      int64_t row_head, int part) {
  const AttentionParams& attention = params.attention;
  const int lane = threadIdx.x % kWarpLanes;
  if (params.num_parts > 1) {
    AttentionPartial& partial = params.PartialOf(row_head, part);
    if (lane % 4 == 0) partial.state = tile.state[i];
    auto* out = reinterpret_cast<float2*>(partial.values);
#pragma unroll
    for (int n = 0; n < kValueDim / 8; ++n) {
      out[n * 4 + lane % 4] = {tile.values[n][2 * i], tile.values[n][2 * i + 1]};
    }
    return;
  }
  const int head = static_cast<int>(row_head % attention.num_q_heads);
  const float factor = OutputFactor(tile.state[i], params.scale, SinkOf(attention.sinks, head));
  auto* out = reinterpret_cast<uint32_t*>(attention.out + row_head * kValueDim);
#pragma unroll
  for (int n = 0; n < kValueDim / 8; ++n) {
    out[n * 4 + lane % 4] = OutputPair(tile.values[n][2 * i], tile.values[n][2 * i + 1], factor);
  }
}

template <int kDim, KvFormat kFormat>
__global__ void __launch_bounds__(kWarpsMax* kWarpLanes, 1)
    AttentionKernel(const __grid_constant__ KernelParams params) {
  const AttentionParams& attention = params.attention;
  const Sequences& sequences = attention.sequences;
  const int num_kv_heads = attention.cache.num_kv_heads;
  const int s = static_cast<int>(blockIdx.z) / num_kv_heads;
  const int kv_head = static_cast<int>(blockIdx.z) % num_kv_heads;
  const int part = static_cast<int>(blockIdx.y);
  const int group = params.group;
  const int num_rows = sequences.num_rows[s];
  const int tile_pairs = static_cast<int>(blockDim.x) / kWarpLanes * kWarpPairs;
  const int tile_begin = static_cast<int>(blockIdx.x) * tile_pairs;
  if (tile_begin >= num_rows * group) return;

  // Cached keys that a row sees, and those that some row of the tile sees within this part.
  const int position = static_cast<int>(sequences.position[s]);
  const bool drafter = attention.block_k != nullptr;
  const auto first_key = [&](int row) {
    return attention.window == 0 ? 0 : max(0, position + row - attention.window + 1);
  };
  const auto end_key = [&](int row) { return drafter ? position : position + row + 1; };
  int visible_first = first_key(tile_begin / group);
  int visible_end = end_key(min(num_rows - 1, (tile_begin + tile_pairs - 1) / group));
  if (params.part_keys > 0) {
    visible_first = max(visible_first, part * params.part_keys);
    visible_end = min(visible_end, (part + 1) * params.part_keys);
    if (visible_first >= visible_end) return;
  }
  const int chunk_begin = visible_first / kChunkKeys;
  const int chunk_end = static_cast<int>(CeilDivide(visible_end, kChunkKeys));

  extern __shared__ __align__(128) uint8_t shared[];
  using Pipe = ChunkPipe<kDim, kFormat>;
  Pipe pipe(shared, params.num_stages, attention, s, kv_head, chunk_begin, chunk_end);
  uint8_t* folds = shared + Pipe::Bytes(params.num_stages);

  // This lane's two pairs and their queries.
  const int lane = threadIdx.x % kWarpLanes;
  const int warp_begin = tile_begin + static_cast<int>(threadIdx.x) / kWarpLanes * kWarpPairs;
  const bool any_pair = warp_begin < num_rows * group;
  WarpTile<kDim> tile;
  tile.Reset();
  int64_t row_head[2];  // row * Hq + q head, of the whole call; -1 past the last pair
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int pair = warp_begin + lane / 4 + 8 * i;
    const int row = pair / group;
    const bool valid = row < num_rows;
    row_head[i] = -1;
    tile.first_key[i] = tile.end_key[i] = 0;
    if (valid) {
      row_head[i] = static_cast<int64_t>(sequences.first_row[s] + row) * attention.num_q_heads +
                    kv_head * group + pair % group;
      tile.first_key[i] = first_key(row);
      tile.end_key[i] = end_key(row);
    }
    const auto* q = reinterpret_cast<const uint32_t*>(attention.q + row_head[i] * kDim);
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      tile.q[step][i] = valid ? q[step * 8 + lane % 4] : 0u;
      tile.q[step][i + 2] = valid ? q[step * 8 + 4 + lane % 4] : 0u;
    }
  }

  constexpr int kChunksPerSegment = kSegmentKeys / kChunkKeys;
  const bool folding = params.part_keys > kSegmentKeys;
  for (int chunk = chunk_begin; chunk < chunk_end; ++chunk) {
    const int begin = chunk * kChunkKeys;
    const typename Pipe::Tiles chunk_tiles = pipe.Wait(visible_first - begin, visible_end - begin);
    if (any_pair) {
      tile.Attend(chunk_tiles.k, chunk_tiles.v, begin, tile.first_key, tile.end_key, params.scale);
    }
    pipe.Release();
    const bool last = chunk + 1 == chunk_end;
    if (folding && (last || (chunk + 1) % kChunksPerSegment == 0)) {
      const bool first = chunk / kChunksPerSegment == chunk_begin / kChunksPerSegment;
      FoldSegment(tile, folds, params.scale, first, last);
    }
  }
  if (drafter) {
    const typename Pipe::Tiles free = pipe.FreeTiles();
    AttendBlock(tile, attention, sequences.first_row[s], num_rows, kv_head, free.k, free.v,
                params.scale, any_pair);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // A part that a row does not see is not read when its parts are combined.
    if (row_head[i] < 0 || (params.part_keys > 0 && tile.end_key[i] <= part * params.part_keys)) {
      continue;
    }
    Store(tile, i, params, row_head[i], part);
  }
}

// Folds the parts of one row and head: a warp per span folds the span's parts, then warp 0 the
// spans. A lane holds 4 value dims. grid: (Hq, rows_max, S).
constexpr int kCombineWarps = 8;
__global__ void __launch_bounds__(kCombineWarps* kWarpLanes)
    CombineKernel(const __grid_constant__ KernelParams params) {
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
void Launch(KernelParams params, cudaStream_t stream) {
  const Sequences& sequences = params.attention.sequences;
  const int64_t pairs = static_cast<int64_t>(sequences.rows_max) * params.group;
  // As few warps as still leave every multiprocessor a block.
  const int64_t parts =
      int64_t{params.num_parts} * sequences.num_sequences * params.attention.cache.num_kv_heads;
  int num_warps = 1;
  while (num_warps < kWarpsMax && num_warps * kWarpPairs < pairs &&
         CeilDivide(pairs, num_warps * kWarpPairs) * parts > NumMultiprocessors()) {
    num_warps *= 2;
  }
  params.num_stages = num_warps == kWarpsMax ? kStagesMax : 2;
  const bool folds = params.part_keys > kSegmentKeys;
  const int shared_bytes = ChunkPipe<kDim, kFormat>::Bytes(params.num_stages) +
                           (folds ? num_warps * kWarpLanes * static_cast<int>(kFoldBytes) : 0);
  const auto kernel = AttentionKernel<kDim, kFormat>;
  constexpr int kSharedBytesMax = 227 * 1024;
  KERNELS_CHECK(shared_bytes, <=, kSharedBytesMax);
  CheckCuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytesMax),
      "cudaFuncSetAttribute");
  const dim3 grid(static_cast<unsigned>(CeilDivide(pairs, num_warps * kWarpPairs)),
                  params.num_parts, sequences.num_sequences * params.attention.cache.num_kv_heads);
  kernel<<<grid, num_warps * kWarpLanes, shared_bytes, stream>>>(params);
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

  KernelParams kernel = {};
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
