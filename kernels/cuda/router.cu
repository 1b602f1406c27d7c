// The expert router: fp32 logits, sigmoid, the K largest of score + bias.
//
// Logits: a warp adds up one slot (router_product.cuh) of up to 64 experts and 64 tokens, a thread
// block every fourth slot. For few tokens the weights' bytes rule (E * H * 4), for many what thread
// blocks read again (from L2).
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

// A thread block has the slots of one residue modulo kParts, a warp each; TopKKernel adds the parts
// up. Both are halves of the tree of router_product.cuh.
constexpr int kParts = 4;
constexpr int kWarps = kRouterSlots / kParts;
constexpr int kGroupTokens = 8;
constexpr int kTopWarps = 4;
constexpr int kExpertsMax = 1024;
constexpr int kExpertsPerTokenMax = 64;

__device__ uint32_t RoundPair(const float* pair) {
  const float2 x = *reinterpret_cast<const float2*>(pair);
  return PackBf16(x.x, x.y);
}

// The sums of the slots of residue blockIdx.z modulo kParts: kExpertTiles of 16 experts, kGroups of
// eight tokens.
template <int kExpertTiles, int kGroups>
__global__ void __launch_bounds__(kWarps * 32)
    LogitsKernel(const float* x, const uint4* w, int num_tokens, int hidden, int num_experts,
                 float* parts /*[kParts, T, E]*/) {
  extern __shared__ float4 sums[];  // [kWarps / 2][kExpertTiles * kGroups][32]
  constexpr int kTiles = kExpertTiles * kGroups;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int first_token = blockIdx.y * kGroups * kGroupTokens, part = blockIdx.z;
  const int num_tiles = hidden / kRouterTileColumns, num_chunks = NumRouterChunks(num_tiles);
  const int num_expert_tiles = NumExpertTiles(num_experts);
  const int first_expert_tile = blockIdx.x * kExpertTiles;
  float4 slot[kExpertTiles][kGroups] = {};
  for (int chunk = part + warp * kParts; chunk < num_chunks; chunk += kRouterSlots) {
    const int first_tile = chunk * kRouterChunkTiles;
    // Tiles past the last count as zeros, which add nothing to a sum that begins with +0.
    uint2 rows[kGroups][kRouterChunkTiles];
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {  // tokens past the end repeat the last one, are not stored
      const int token = min(first_token + i * kGroupTokens + g, num_tokens - 1);
      const float* const row = x + static_cast<size_t>(token) * hidden + 2 * t;
#pragma unroll
      for (int j = 0; j < kRouterChunkTiles; ++j) {
        if (first_tile + j >= num_tiles) {
          rows[i][j] = {};
          continue;
        }
        const float* const columns = row + (first_tile + j) * kRouterTileColumns;
        rows[i][j] = {RoundPair(columns), RoundPair(columns + 8)};
      }
    }
#pragma unroll
    for (int e = 0; e < kExpertTiles; ++e) {
      const int expert_tile = min(first_expert_tile + e, num_expert_tiles - 1);
      uint4 terms[kRouterChunkTiles][2];
#pragma unroll
      for (int j = 0; j < kRouterChunkTiles; ++j) {
        const int tile = min(first_tile + j, num_tiles - 1);
        const uint4* const operands =
            w + (static_cast<size_t>(tile) * num_expert_tiles + expert_tile) * kExpertTileVectors +
            lane;
        terms[j][0] = operands[0];
        terms[j][1] = operands[32];
      }
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        RouterChunkSum sum;
#pragma unroll
        for (int j = 0; j < kRouterChunkTiles; ++j) {
          sum.Add(terms[j], rows[i][j].x, rows[i][j].y);
        }
        slot[e][i] = Add(slot[e][i], {sum.Total(0), sum.Total(1), sum.Total(2), sum.Total(3)});
      }
    }
  }
  for (int half = kWarps / 2; half >= 1; half /= 2) {
    if (warp >= half && warp < 2 * half) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        sums[((warp - half) * kTiles + i) * 32 + lane] = slot[i / kGroups][i % kGroups];
      }
    }
    __syncthreads();
    if (warp < half) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        float4& sum = slot[i / kGroups][i % kGroups];
        sum = Add(sum, sums[(warp * kTiles + i) * 32 + lane]);
      }
    }
    __syncthreads();
  }
  if (warp > 0) return;
  float* const out = parts + static_cast<size_t>(part) * num_tokens * num_experts;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    const float4 sum = slot[i / kGroups][i % kGroups];
    const auto store = [&](int row, int expert, float value) {
      const int token = first_token + i % kGroups * kGroupTokens + row;
      expert += (first_expert_tile + i / kGroups) * 16;
      if (token < num_tokens && expert < num_experts) {
        out[static_cast<size_t>(token) * num_experts + expert] = value;
      }
    };
    store(2 * t, g, sum.x);
    store(2 * t + 1, g, sum.y);
    store(2 * t, g + 8, sum.z);
    store(2 * t + 1, g + 8, sum.w);
  }
}

// One warp a token; lane l holds experts l, l + 32, ..., at most kExpertsPerLane.
template <int kExpertsPerLane>
__global__ void __launch_bounds__(kTopWarps * 32)
    TopKKernel(const float* parts, const float* scales, const float* bias, int num_tokens,
               int num_experts, int experts_per_token, int32_t* expert_ids, float* expert_weights) {
  __shared__ float chosen_scores[kTopWarps][kExpertsPerTokenMax];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int token = blockIdx.x * kTopWarps + warp;
  if (token >= num_tokens) return;
  const size_t part_stride = static_cast<size_t>(num_tokens) * num_experts;
  const float* const row = parts + static_cast<size_t>(token) * num_experts;
  const float scale = scales[token];
  float scores[kExpertsPerLane], biased[kExpertsPerLane];
#pragma unroll
  for (int i = 0; i < kExpertsPerLane; ++i) {
    const int e = i * 32 + lane;
    biased[i] = -INFINITY;
    scores[i] = 0.0f;
    if (e >= num_experts) continue;
    const auto part = [&](int i) { return row[i * part_stride + e]; };
    const float sum = __fadd_rn(__fadd_rn(part(0), part(2)), __fadd_rn(part(1), part(3)));
    scores[i] = Sigmoid(__fmul_rn(scale, sum));
    const float value = scores[i] + bias[e];
    if (value == value) biased[i] = value;
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
      chosen_scores[warp][place] = scores[i];
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

template <int kExpertTiles, int kGroups>
void LaunchLogits(const RouteParams& params, float* parts, cudaStream_t stream) {
  constexpr int kSharedBytes = kWarps / 2 * kExpertTiles * kGroups * 32 * sizeof(float4);
  const auto kernel = LogitsKernel<kExpertTiles, kGroups>;
  static OncePerDevice configured;
  AllowSharedMemory(configured, kernel, kSharedBytes, "LogitsKernel shared memory");
  const dim3 grid(CeilDiv(NumExpertTiles(params.num_experts), kExpertTiles),
                  CeilDiv(params.num_tokens, kGroups * kGroupTokens), kParts);
  kernel<<<grid, kWarps * 32, kSharedBytes, stream>>>(
      params.residual, reinterpret_cast<const uint4*>(params.packed), params.num_tokens,
      params.hidden, params.num_experts, parts);
  CheckLaunch("LogitsKernel");
}

template <int kExpertsPerLane>
void LaunchTopK(const RouteParams& params, const float* parts, cudaStream_t stream) {
  TopKKernel<kExpertsPerLane><<<CeilDiv(params.num_tokens, kTopWarps), kTopWarps * 32, 0, stream>>>(
      parts, params.scales, params.bias, params.num_tokens, params.num_experts,
      params.experts_per_token, params.expert_ids, params.expert_weights);
  CheckLaunch("TopKKernel");
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
  KERNELS_CHECK(num_experts, <=, kExpertsMax);
  KERNELS_CHECK(experts_per_token, >, 0);
  KERNELS_CHECK(experts_per_token, <=, num_experts);
  KERNELS_CHECK(experts_per_token, <=, kExpertsPerTokenMax);
  if (num_tokens == 0) return;
  auto* const parts = static_cast<float*>(params.workspace);
  const auto logits = num_tokens <= kGroupTokens        ? LaunchLogits<1, 1>
                      : num_tokens <= 16 * kGroupTokens ? LaunchLogits<2, 4>
                                                        : LaunchLogits<4, 8>;
  logits(params, parts, stream);
  const auto top_k = num_experts <= 128   ? LaunchTopK<4>
                     : num_experts <= 384 ? LaunchTopK<12>
                                          : LaunchTopK<32>;
  top_k(params, parts, stream);
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
  return size_t{kParts} * num_tokens_max * num_experts * sizeof(float);
}

}  // namespace ultraspeed::kernels::cuda
