// The expert router: fp32 logits, sigmoid, the K largest of score + bias.
//
// Logits: a thread block has 16 experts and up to 32 tokens, its warps two slots each
// (router_product.cuh). For few tokens the weights' bytes rule (E * H * 4).
#include <cmath>

#include "kernels/check.h"
#include "kernels/cuda/device/fragments.cuh"
#include "kernels/cuda/device/numbers.cuh"
#include "kernels/cuda/forced_experts.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/router_product.cuh"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kWarps = kRouterSlots / 2;  // of a thread block of LogitsKernel
constexpr int kGroupTokens = 8;
constexpr int kManyGroups = 4;
constexpr int kTopWarps = 4;
constexpr int kExpertsPerLane = 32;  // E <= 1024
constexpr int kExpertsPerTokenMax = 64;

__device__ uint32_t RoundPair(const float* pair) {
  const float2 x = *reinterpret_cast<const float2*>(pair);
  return PackBf16(x.x, x.y);
}

// kGroups: of eight tokens, that share a weight's terms.
template <int kGroups>
__global__ void __launch_bounds__(kWarps * 32)
    LogitsKernel(const float* x, const float* scales, const uint4* w, int num_tokens, int hidden,
                 int num_experts, float* logits) {
  __shared__ float4 sums[kWarps][kGroups][32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int first_token = blockIdx.y * kGroups * kGroupTokens;
  const int num_tiles = hidden / kRouterTileColumns, num_chunks = NumRouterChunks(num_tiles);
  const uint4* const experts = w + static_cast<size_t>(blockIdx.x) * kExpertTileVectors;
  const size_t tile_vectors = static_cast<size_t>(NumExpertTiles(num_experts)) * kExpertTileVectors;
  const float* rows[kGroups];
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {  // rows past the end repeat the last one and are not stored
    const int token = min(first_token + i * kGroupTokens + g, num_tokens - 1);
    rows[i] = x + static_cast<size_t>(token) * hidden + 2 * t;
  }
  float4 slots[2][kGroups] = {};
#pragma unroll
  for (int slot = 0; slot < 2; ++slot) {
    for (int chunk = warp + slot * kWarps; chunk < num_chunks; chunk += kRouterSlots) {
      RouterChunkSum chunk_sums[kGroups];
#pragma unroll
      for (int j = 0; j < kRouterChunkTiles; ++j) {
        const int tile = chunk * kRouterChunkTiles + j;
        if (tile >= num_tiles) break;
        const uint4* const operands = experts + tile * tile_vectors + lane;
        const uint4 terms[2] = {operands[0], operands[32]};
#pragma unroll
        for (int i = 0; i < kGroups; ++i) {
          const float* const columns = rows[i] + tile * kRouterTileColumns;
          chunk_sums[i].Add(terms, RoundPair(columns), RoundPair(columns + 8));
        }
      }
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        const RouterChunkSum& sum = chunk_sums[i];
        slots[slot][i] =
            Add(slots[slot][i], {sum.Total(0), sum.Total(1), sum.Total(2), sum.Total(3)});
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kGroups; ++i) sums[warp][i][lane] = Add(slots[0][i], slots[1][i]);
  for (int half = kWarps / 2; half >= 1; half /= 2) {
    __syncthreads();
    if (warp >= half) continue;
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      sums[warp][i][lane] = Add(sums[warp][i][lane], sums[warp + half][i][lane]);
    }
  }
  if (warp > 0) return;
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    const float4 sum = sums[0][i][lane];
    const auto store = [&](int row, int expert, float value) {
      const int token = first_token + i * kGroupTokens + row;
      expert += blockIdx.x * 16;
      if (token >= num_tokens || expert >= num_experts) return;
      logits[static_cast<size_t>(token) * num_experts + expert] = __fmul_rn(scales[token], value);
    };
    store(2 * t, g, sum.x);
    store(2 * t + 1, g, sum.y);
    store(2 * t, g + 8, sum.z);
    store(2 * t + 1, g + 8, sum.w);
  }
}

// One warp a token; lane l holds experts l, l + 32, ...
__global__ void __launch_bounds__(kTopWarps * 32)
    TopKKernel(const float* logits, const float* bias, int num_tokens, int num_experts,
               int experts_per_token, int32_t* expert_ids, float* expert_weights) {
  __shared__ float chosen_scores[kTopWarps][kExpertsPerTokenMax];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int token = blockIdx.x * kTopWarps + warp;
  if (token >= num_tokens) return;
  const float* const row = logits + static_cast<size_t>(token) * num_experts;
  float biased[kExpertsPerLane];
#pragma unroll
  for (int i = 0; i < kExpertsPerLane; ++i) {
    const int e = i * 32 + lane;
    biased[i] = -INFINITY;
    if (e < num_experts) {
      const float value = Sigmoid(row[e]) + bias[e];
      if (value == value) biased[i] = value;
    }
  }
  uint32_t taken = 0;  // bit i: expert 32 i + lane; also those that do not exist
#pragma unroll
  for (int i = 0; i < kExpertsPerLane; ++i) {
    if (i * 32 + lane >= num_experts) taken |= 1u << i;
  }
  const uint32_t absent = taken;
  for (int k = 0; k < experts_per_token; ++k) {
    float best = -INFINITY;
    int best_expert = 1 << 30;
#pragma unroll
    for (int i = 0; i < kExpertsPerLane; ++i) {
      if (taken >> i & 1) continue;
      if (best_expert == 1 << 30 || biased[i] > best) {
        best = biased[i];
        best_expert = i * 32 + lane;
      }
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, best, mask);
      const int other_expert = __shfl_xor_sync(0xffffffffu, best_expert, mask);
      if (other > best || (other == best && other_expert < best_expert)) {
        best = other;
        best_expert = other_expert;
      }
    }
    if (best_expert % 32 == lane) taken |= 1u << (best_expert / 32);
  }

  // Ascending ids: the place of an expert is the number of chosen ones before it.
  const uint32_t chosen = taken & ~absent;
  int before = 0;
#pragma unroll
  for (int i = 0; i < kExpertsPerLane; ++i) {
    const bool mine = chosen >> i & 1;
    const uint32_t lanes = __ballot_sync(0xffffffffu, mine);
    if (mine) {
      const int place = before + __popc(lanes & ((1u << lane) - 1));
      const int e = i * 32 + lane;
      expert_ids[static_cast<size_t>(token) * experts_per_token + place] = e;
      chosen_scores[warp][place] = Sigmoid(row[e]);
    }
    before += __popc(lanes);
  }
  __syncwarp();
  float sum = 0.0f;
  for (int k = 0; k < experts_per_token; ++k) sum += chosen_scores[warp][k];
  for (int k = lane; k < experts_per_token; k += 32) {
    expert_weights[static_cast<size_t>(token) * experts_per_token + k] =
        __fdiv_rn(chosen_scores[warp][k], sum + 1e-20f);
  }
}

__global__ void ForceKernel(int num_slots, int num_experts, int distinct, int shift,
                            int32_t* expert_ids) {
  const int slot = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (slot < num_slots) expert_ids[slot] = ForcedExpert(slot, distinct, num_experts, shift);
}

// A warp a tile of 16 experts and 16 columns.
__global__ void PackRouterKernel(const float* w, const float* norm, int num_experts, int hidden,
                                 uint4* packed) {
  const int lane = threadIdx.x, expert_tile = blockIdx.x, tile = blockIdx.y;
  const int expert = expert_tile * 16 + lane / 4;
  const int column = tile * kRouterTileColumns + lane % 4 * 2;
  const auto weight = [&](int e, int c) {
    return e < num_experts ? __fmul_rn(w[static_cast<size_t>(e) * hidden + c], norm[c]) : 0.0f;
  };
  const auto pair = [&](int term, int e, int c) {
    const auto part = [&](float x) { return term == 0 ? x : __fsub_rn(x, RoundedToBf16(x)); };
    return PackBf16(part(weight(e, c)), part(weight(e, c + 1)));
  };
  uint4* const to =
      packed + (static_cast<size_t>(tile) * gridDim.x + expert_tile) * kExpertTileVectors + lane;
  for (int term = 0; term < 2; ++term) {
    to[term * 32] = {pair(term, expert, column), pair(term, expert + 8, column),
                     pair(term, expert, column + 8), pair(term, expert + 8, column + 8)};
  }
}

template <int kGroups>
void LaunchLogits(const float* x, const float* scales, const float* w, int num_tokens, int hidden,
                  int num_experts, float* logits, cudaStream_t stream) {
  const dim3 grid(NumExpertTiles(num_experts), CeilDiv(num_tokens, kGroups * kGroupTokens));
  LogitsKernel<kGroups><<<grid, kWarps * 32, 0, stream>>>(
      x, scales, reinterpret_cast<const uint4*>(w), num_tokens, hidden, num_experts, logits);
  CheckLaunch("LogitsKernel");
}

}  // namespace

void PackRouter(const float* w, const float* norm, int num_experts, int hidden, float* packed,
                cudaStream_t stream) {
  KERNELS_CHECK(hidden % kRouterTileColumns, ==, 0);
  const dim3 grid(NumExpertTiles(num_experts), hidden / kRouterTileColumns);
  PackRouterKernel<<<grid, 32, 0, stream>>>(w, norm, num_experts, hidden,
                                            reinterpret_cast<uint4*>(packed));
  CheckLaunch("PackRouterKernel");
}

size_t PackedRouterFloats(int num_experts, int hidden) {
  return static_cast<size_t>(NumExpertTiles(num_experts)) * 16 * hidden;
}

void RouteTopK(const RouteParams& params, cudaStream_t stream) {
  const int num_tokens = params.num_tokens, num_experts = params.num_experts;
  const int experts_per_token = params.experts_per_token;
  KERNELS_CHECK(params.hidden % kRouterTileColumns, ==, 0);
  KERNELS_CHECK(num_experts, <=, 32 * kExpertsPerLane);
  KERNELS_CHECK(experts_per_token, >, 0);
  KERNELS_CHECK(experts_per_token, <=, num_experts);
  KERNELS_CHECK(experts_per_token, <=, kExpertsPerTokenMax);
  if (num_tokens == 0) return;
  auto* const logits = static_cast<float*>(params.workspace);
  const auto launch = num_tokens <= kGroupTokens ? LaunchLogits<1> : LaunchLogits<kManyGroups>;
  launch(params.residual, params.scales, params.packed, num_tokens, params.hidden, num_experts,
         logits, stream);
  TopKKernel<<<CeilDiv(num_tokens, kTopWarps), kTopWarps * 32, 0, stream>>>(
      logits, params.bias, num_tokens, num_experts, experts_per_token, params.expert_ids,
      params.expert_weights);
  CheckLaunch("TopKKernel");
}

void ForceExperts(int num_tokens, int experts_per_token, int num_experts, int distinct, int shift,
                  int32_t* expert_ids, cudaStream_t stream) {
  KERNELS_CHECK(distinct, >, 0);
  KERNELS_CHECK(distinct, <=, num_experts);
  const int num_slots = num_tokens * experts_per_token;
  if (num_slots == 0) return;
  ForceKernel<<<CeilDiv(num_slots, 128), 128, 0, stream>>>(num_slots, num_experts, distinct, shift,
                                                           expert_ids);
  CheckLaunch("ForceKernel");
}

size_t RouteWorkspaceBytes(int num_tokens_max, int num_experts) {
  return static_cast<size_t>(num_tokens_max) * num_experts * sizeof(float);
}

}  // namespace ultraspeed::kernels::cuda
