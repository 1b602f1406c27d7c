// Top-k and top-p without sorting the vocabulary.
//
// Tokens compete as one number each, their Rank: larger logits first, then lower ids. What a filter
// keeps is a prefix of the descending ranks, so a filter is one boundary rank. A histogram over the
// distance from the largest logit narrows the boundary to a few bins; FindBoundary finishes among
// the tokens of those bins. Probabilities are added as 40-bit fixed point: sums are exact, and
// atomic additions in any order give the same bits.
#pragma once

#include "kernels/cuda/device/reduce.cuh"
#include "kernels/cuda/ops.h"

namespace ultraspeed::kernels::cuda {

inline constexpr int kBins = 2048;
inline constexpr float kBinsPerNat = 64.0f;  // the last bin takes everything 32 nats down
inline constexpr float kMinusInfinity = -__builtin_inff();

using Atomic64 = unsigned long long;  // what CUDA's 64-bit atomics take

__device__ inline bool Filters(const SamplingSpec& spec) {
  return spec.temperature > 0.0f && (spec.top_k > 0 || spec.top_p < 1.0f);
}

// Larger logits have larger ranks; of equal logits (-0 = +0) the lower token.
__device__ inline uint64_t RankOf(float scaled, int32_t token) {
  const uint32_t bits = __float_as_uint(scaled + 0.0f);
  const uint32_t ascending = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return uint64_t{ascending} << 32 | static_cast<uint32_t>(~token);
}
__device__ inline int32_t TokenOf(uint64_t rank) { return ~static_cast<int32_t>(rank); }
__device__ inline float ScaledOf(uint64_t rank) {
  const auto ascending = static_cast<uint32_t>(rank >> 32);
  return __uint_as_float((ascending >> 31) != 0 ? ascending & 0x7fffffffu : ~ascending);
}

__device__ inline int BinOf(float scaled, float max) {
  const float distance = (max - scaled) * kBinsPerNat;
  return distance < kBins - 1 ? static_cast<int>(distance) : kBins - 1;
}
// Probability relative to the most likely token's, in units of 2^-40.
__device__ inline uint64_t MassOf(float scaled, float max) {
  return __float2ull_rn(expf(scaled - max) * 0x1p40f);
}
// The mass at which top-p stops.
__device__ inline uint64_t WantedMass(float top_p, uint64_t mass) {
  return static_cast<uint64_t>(ceil(static_cast<double>(top_p) * static_cast<double>(mass)));
}

// Sum of `value` over all threads before this one; `total` of all. Block of a multiple of 32.
__device__ inline uint64_t ExclusiveSum(uint64_t value, uint64_t& total,
                                        uint64_t* shared /*[warps]*/) {
  const int lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes;
  uint64_t inclusive = value;
#pragma unroll
  for (int step = 1; step < kWarpLanes; step *= 2) {
    const uint64_t below = __shfl_up_sync(kAllLanes, inclusive, step);
    if (lane >= step) inclusive += below;
  }
  if (lane == kWarpLanes - 1) shared[warp] = inclusive;
  __syncthreads();
  uint64_t before = 0;
  total = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarpLanes; ++w) {
    if (w == warp) before = total;
    total += shared[w];
  }
  __syncthreads();
  return before + inclusive - value;
}

// A bin where a running sum reaches a target, and the sum before it.
struct Crossing {
  int bin;
  uint64_t before;
};

// First bin at which the sum of amounts reaches `target` (of at least 1); the last bin if none
// does. All threads call it and get the result. kThreads = blockDim.x.
template <int kThreads, typename Amount>
__device__ Crossing FindCrossing(const Amount* amounts /*[kBins]*/, uint64_t target) {
  constexpr int kPerThread = kBins / kThreads;
  __shared__ uint64_t scratch[kThreads / kWarpLanes];
  __shared__ Crossing found;
  uint64_t own = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) own += amounts[threadIdx.x * kPerThread + i];
  uint64_t total;
  uint64_t sum = ExclusiveSum(own, total, scratch);
  if (threadIdx.x == kThreads - 1 && total < target) {
    found = {kBins - 1, total - amounts[kBins - 1]};
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int bin = static_cast<int>(threadIdx.x) * kPerThread + i;
    const uint64_t amount = amounts[bin];
    if (sum < target && sum + amount >= target) found = {bin, sum};
    sum += amount;
  }
  __syncthreads();
  const Crossing result = found;
  __syncthreads();
  return result;
}

// The rank r in `ranks` such that the amounts of all ranks >= r reach `target` (of at least 1) and
// those of the ranks above do not; the smallest rank if they never do. Every pass splits the ranks
// that are left into up to 2048 bins of equal width. REQUIRES: count > 0.
template <int kThreads, typename AmountOf>
__device__ uint64_t FindBoundary(const uint64_t* ranks, int count, uint64_t target,
                                 AmountOf amount_of) {
  __shared__ Atomic64 amounts[kBins];
  __shared__ uint64_t scratch[kThreads / kWarpLanes];
  uint64_t low = 0, high = ~uint64_t{0};
  while (true) {
    uint64_t smallest = ~uint64_t{0}, largest = 0;
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const uint64_t rank = ranks[i];
      if (rank < low || rank > high) continue;
      smallest = SmallerInteger()(smallest, rank);
      largest = LargerInteger()(largest, rank);
    }
    low = BlockReduce(smallest, SmallerInteger(), scratch);
    high = BlockReduce(largest, LargerInteger(), scratch);
    if (low >= high) return low;
    for (int bin = threadIdx.x; bin < kBins; bin += kThreads) amounts[bin] = 0;
    __syncthreads();
    const uint64_t range = high - low;
    const int shift = max(0, 64 - __clzll(static_cast<long long>(range)) - 11);
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const uint64_t rank = ranks[i];
      if (rank < low || rank > high) continue;
      atomicAdd(&amounts[(high - rank) >> shift], static_cast<Atomic64>(amount_of(rank)));
    }
    __syncthreads();
    const Crossing crossing = FindCrossing<kThreads>(amounts, target);
    // A target that is never reached ends in the bin of the smallest rank.
    const uint64_t last_bin = range >> shift;
    const uint64_t bin = static_cast<uint64_t>(crossing.bin) < last_bin ? crossing.bin : last_bin;
    target -= crossing.before < target ? crossing.before : target;
    high -= bin << shift;
    const uint64_t width = uint64_t{1} << shift;
    if (high - low >= width) low = high - (width - 1);
  }
}

}  // namespace ultraspeed::kernels::cuda
