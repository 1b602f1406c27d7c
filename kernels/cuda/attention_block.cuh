// What the kernels of attention share: a thread block's pairs and keys, the way out of its results.
#pragma once

#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/ops.h"

namespace ultraspeed::kernels::cuda {

struct AttentionBlockParams {
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

// The (row, q head) pairs and the part of the keys that are this block's; grid as in attention.cu.
struct AttentionBlock {
  const AttentionBlockParams& params;
  int sequence, kv_head, part, num_rows, position;
  int tile_begin;                  // first pair
  int visible_first, visible_end;  // cached keys of this part that some row of the tile sees
  int chunk_begin, chunk_end;

  __device__ __forceinline__ AttentionBlock(const AttentionBlockParams& block_params,
                                            int tile_pairs)
      : params(block_params) {
    const int num_kv_heads = params.attention.cache.num_kv_heads;
    sequence = static_cast<int>(blockIdx.z) / num_kv_heads;
    kv_head = static_cast<int>(blockIdx.z) % num_kv_heads;
    part = static_cast<int>(blockIdx.y);
    num_rows = params.attention.sequences.num_rows[sequence];
    position = static_cast<int>(params.attention.sequences.position[sequence]);
    tile_begin = static_cast<int>(blockIdx.x) * tile_pairs;
    const int last_pair = tile_begin + tile_pairs - 1;
    visible_first = FirstKey(tile_begin / params.group);
    visible_end = EndKey(min(num_rows - 1, last_pair / params.group));
    if (params.part_keys > 0) {
      visible_first = max(visible_first, part * params.part_keys);
      visible_end = min(visible_end, (part + 1) * params.part_keys);
    }
    chunk_begin = visible_first / kChunkKeys;
    chunk_end = (visible_end + kChunkKeys - 1) / kChunkKeys;
  }
  __device__ __forceinline__ bool empty() const {
    return tile_begin >= num_rows * params.group ||
           (params.part_keys > 0 && visible_first >= visible_end);
  }
  // Cached keys that a row sees.
  __device__ __forceinline__ int FirstKey(int row) const {
    const int window = params.attention.window;
    return window == 0 ? 0 : max(0, position + row - window + 1);
  }
  __device__ __forceinline__ int EndKey(int row) const {
    return params.attention.block_k != nullptr ? position : position + row + 1;
  }
  // row * Hq + q head, of the whole call; -1 past the last pair.
  __device__ __forceinline__ int64_t RowHead(int pair) const {
    const int row = pair / params.group;
    if (row >= num_rows) return -1;
    return static_cast<int64_t>(params.attention.sequences.first_row[sequence] + row) *
               params.attention.num_q_heads +
           kv_head * params.group + pair % params.group;
  }
  // Writes what this lane holds of pair i, whose row sees keys up to end_key: a partial result, or
  // the output. A part that a row does not see is not read when its parts are combined.
  __device__ __forceinline__ void Store(const WarpResult& result, int i, int64_t row_head,
                                        int end_key) const {
    if (row_head < 0 || (params.part_keys > 0 && end_key <= part * params.part_keys)) return;
    const AttentionParams& attention = params.attention;
    const int lane = threadIdx.x % kWarpLanes;
    if (params.num_parts > 1) {
      AttentionPartial& partial = params.PartialOf(row_head, part);
      if (lane % 4 == 0) partial.state = result.state[i];
      auto* const out = reinterpret_cast<float2*>(partial.values);
#pragma unroll
      for (int n = 0; n < kValueDim / 8; ++n) {
        out[n * 4 + lane % 4] = {result.values[n][2 * i], result.values[n][2 * i + 1]};
      }
      return;
    }
    const int head = static_cast<int>(row_head % attention.num_q_heads);
    const float factor = OutputFactor(result.state[i], params.scale, SinkOf(attention.sinks, head));
    auto* const out = reinterpret_cast<uint32_t*>(attention.out + row_head * kValueDim);
#pragma unroll
    for (int n = 0; n < kValueDim / 8; ++n) {
      out[n * 4 + lane % 4] =
          OutputPair(result.values[n][2 * i], result.values[n][2 * i + 1], factor);
    }
  }
};

}  // namespace ultraspeed::kernels::cuda
