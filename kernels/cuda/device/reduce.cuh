// Reductions over a warp and over a group of warps, in one fixed order that depends on the number
// of warps only.
//
// Group versions: every thread calls them, every thread gets the result; `shared` has one element
// per warp and may be used again at once.
#pragma once

#include <cstdint>

namespace ultraspeed::kernels::cuda {

inline constexpr int kWarpLanes = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// A value and the token that has it; larger values win, then lower tokens.
struct Candidate {
  float value;
  int32_t token;
};

struct AddFloats {
  __device__ float operator()(float a, float b) const { return __fadd_rn(a, b); }
};
struct AddIntegers {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a + b; }
};
struct LargerFloat {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct LargerInteger {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};
struct SmallerInteger {
  __device__ uint64_t operator()(uint64_t a, uint64_t b) const { return a < b ? a : b; }
};
struct BetterCandidate {
  __device__ Candidate operator()(Candidate a, Candidate b) const {
    const bool second = b.value > a.value || (b.value == a.value && b.token < a.token);
    return second ? b : a;
  }
};

template <typename T>
__device__ T ShuffleXor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}
template <>
__device__ inline Candidate ShuffleXor(Candidate value, int mask) {
  return {__shfl_xor_sync(kAllLanes, value.value, mask),
          __shfl_xor_sync(kAllLanes, value.token, mask)};
}

template <typename T, typename Combine>
__device__ T WarpReduce(T value, Combine combine) {
#pragma unroll
  for (int mask = kWarpLanes / 2; mask > 0; mask /= 2) {
    value = combine(value, ShuffleXor(value, mask));
  }
  return value;
}

// Threads that work together; NumThreads is a multiple of 32. Kernels have groups of their own.
struct ThreadBlock {
  __device__ int Thread() const { return static_cast<int>(threadIdx.x); }
  __device__ int NumThreads() const { return static_cast<int>(blockDim.x); }
  __device__ void Sync() const { __syncthreads(); }
};

template <typename Group, typename T, typename Combine>
__device__ T GroupReduce(Group group, T value, Combine combine, T* shared /*[warps]*/) {
  value = WarpReduce(value, combine);
  const int thread = group.Thread();
  if (thread % kWarpLanes == 0) shared[thread / kWarpLanes] = value;
  group.Sync();
  value = shared[0];
  for (int warp = 1; warp < group.NumThreads() / kWarpLanes; ++warp) {
    value = combine(value, shared[warp]);
  }
  group.Sync();
  return value;
}

template <typename T, typename Combine>
__device__ T BlockReduce(T value, Combine combine, T* shared /*[warps]*/) {
  return GroupReduce(ThreadBlock(), value, combine, shared);
}

}  // namespace ultraspeed::kernels::cuda
