// The expert router: fp32 logits, sigmoid, the K largest of score + bias.
//
// Logits: H is cut into blocks of 256 columns, added up as device/dot.cuh says; blocks ascending.
// It is the order in which the resident engine's lanes hold a row. A warp keeps kExperts experts of
// eight tokens, a quad each: lane t of it has columns 32 j + 8 t + (0..7). For few tokens kExperts
// is 1 and the weights' bytes rule (E * H * 4), for many it is 4 and multiply-adds do.
#include <cmath>

#include "kernels/check.h"
#include "kernels/cuda/device/dot.cuh"
#include "kernels/cuda/device/numbers.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kWarps = 4;  // of a thread block of LogitsKernel; blocks of columns are dealt to them
constexpr int kTokens = 8;  // of a thread block
constexpr int kBlockColumns = 256;
constexpr int kBlocksMax = 64;
constexpr int kFewTokens = 32;
constexpr int kTopWarps = 4;
constexpr int kExpertsPerLane = 32;  // E <= 1024
constexpr int kExpertsPerTokenMax = 64;

template <int kExperts>
__global__ void __launch_bounds__(kWarps * 32)
    LogitsKernel(const bf16* x, const float* w, int num_tokens, int hidden, int num_experts,
                 float* logits) {
  __shared__ float block_sums[kBlocksMax][kExperts * kTokens];
  const int first_expert = blockIdx.x * kExperts, first_token = blockIdx.y * kTokens;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int num_blocks = (hidden + kBlockColumns - 1) / kBlockColumns;

  // Rows past the end repeat the last one and are not stored.
  const float* expert_rows[kExperts];
#pragma unroll
  for (int e = 0; e < kExperts; ++e) {
    expert_rows[e] = w + static_cast<size_t>(min(first_expert + e, num_experts - 1)) * hidden;
  }
  const bf16* const row = x + static_cast<size_t>(min(first_token + g, num_tokens - 1)) * hidden;
  for (int block = warp; block < num_blocks; block += kWarps) {
    constexpr int kPerLane = kBlockColumns / 32;
    float sums[kExperts][kPerLane] = {};
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int column = block * kBlockColumns + 32 * j + 8 * t;
      if (column >= hidden) break;
      const uint4 input = *reinterpret_cast<const uint4*>(row + column);
#pragma unroll
      for (int e = 0; e < kExperts; ++e) {
        const auto* const weights = reinterpret_cast<const float4*>(expert_rows[e] + column);
        sums[e][j] = Dot8(input, weights[0], weights[1]);
      }
    }
#pragma unroll
    for (int e = 0; e < kExperts; ++e) {
#pragma unroll
      for (int half = kPerLane / 2; half >= 1; half /= 2) {
#pragma unroll
        for (int j = 0; j < half; ++j) sums[e][j] = __fadd_rn(sums[e][j], sums[e][j + half]);
      }
      const float sum = QuadSum(sums[e][0]);
      if (t == 0) block_sums[block][e * kTokens + g] = sum;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kExperts * kTokens; i += kWarps * 32) {
    const int expert = first_expert + i / kTokens, token = first_token + i % kTokens;
    if (expert >= num_experts || token >= num_tokens) continue;
    float sum = block_sums[0][i];
    for (int block = 1; block < num_blocks; ++block) sum = __fadd_rn(sum, block_sums[block][i]);
    logits[static_cast<size_t>(token) * num_experts + expert] = sum;
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

template <int kExperts>
void LaunchLogits(const bf16* x, const float* w, int num_tokens, int hidden, int num_experts,
                  float* logits, cudaStream_t stream) {
  const dim3 grid(CeilDiv(num_experts, kExperts), CeilDiv(num_tokens, kTokens));
  LogitsKernel<kExperts>
      <<<grid, kWarps * 32, 0, stream>>>(x, w, num_tokens, hidden, num_experts, logits);
  CheckLaunch("LogitsKernel");
}

}  // namespace

void RouteTopK(const bf16* x, const float* w, const float* bias, int num_tokens, int hidden,
               int num_experts, int experts_per_token, int32_t* expert_ids, float* expert_weights,
               void* workspace, cudaStream_t stream) {
  KERNELS_CHECK(hidden % 8, ==, 0);
  KERNELS_CHECK(hidden, <=, kBlockColumns * kBlocksMax);
  KERNELS_CHECK(num_experts, <=, 32 * kExpertsPerLane);
  KERNELS_CHECK(experts_per_token, >, 0);
  KERNELS_CHECK(experts_per_token, <=, num_experts);
  KERNELS_CHECK(experts_per_token, <=, kExpertsPerTokenMax);
  if (num_tokens == 0) return;
  auto* const logits = static_cast<float*>(workspace);
  if (num_tokens <= kFewTokens) {
    LaunchLogits<1>(x, w, num_tokens, hidden, num_experts, logits, stream);
  } else {
    LaunchLogits<4>(x, w, num_tokens, hidden, num_experts, logits, stream);
  }
  TopKKernel<<<CeilDiv(num_tokens, kTopWarps), kTopWarps * 32, 0, stream>>>(
      logits, bias, num_tokens, num_experts, experts_per_token, expert_ids, expert_weights);
  CheckLaunch("TopKKernel");
}

size_t RouteWorkspaceBytes(int num_tokens_max, int num_experts) {
  return static_cast<size_t>(num_tokens_max) * num_experts * sizeof(float);
}

}  // namespace ultraspeed::kernels::cuda
