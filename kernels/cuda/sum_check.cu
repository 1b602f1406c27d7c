// Mapping: a thread per element, strided. Values: sum_check.h.
#include <algorithm>

#include "kernels/cuda/device/numbers.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sum_check.h"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr size_t kBlocksMax = 256;

__device__ __forceinline__ uint32_t Mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

// Magnitudes 2^-12 to 2^12, so that the order of addition shows; one in 32 is a zero.
__device__ __forceinline__ float ValueOf(uint32_t call, int rank, uint32_t i) {
  const uint32_t bits = Mix(Mix(Mix(call) + static_cast<uint32_t>(rank)) + i);
  const uint32_t sign = bits & 0x80000000u;
  if ((bits & 31u) == 0) return __uint_as_float(sign);
  const uint32_t exponent = 115u + (bits >> 5 & 0xffu) % 25u;
  return __uint_as_float(sign | exponent << 23 | Mix(bits) >> 9);
}

__global__ void __launch_bounds__(kThreads)
    FillKernel(float* data, size_t count, uint32_t call, int rank) {
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<size_t>(gridDim.x) * kThreads)
    data[i] = ValueOf(call, rank, static_cast<uint32_t>(i));
}

__device__ __forceinline__ bool SameBits(float a, float b) {
  return __float_as_uint(a) == __float_as_uint(b);
}

__global__ void __launch_bounds__(kThreads)
    CheckSumKernel(const float* sum, size_t count, uint32_t call, int num_ranks,
                   unsigned long long* num_wrong) {
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<size_t>(gridDim.x) * kThreads) {
    float want = 0.0f;
    for (int r = 0; r < num_ranks; ++r) {
      float part = Bf16ToFloat(RoundToBf16(ValueOf(call, r, static_cast<uint32_t>(i))));
      if (part == 0.0f) part = 0.0f;  // of either sign
      want = r == 0 ? part : __fadd_rn(want, part);
    }
    if (!SameBits(sum[i], want)) atomicAdd(num_wrong, 1ull);
  }
}

__global__ void __launch_bounds__(kThreads)
    CheckGatherKernel(const float* out, int rows, int columns, uint32_t call, int num_ranks,
                      unsigned long long* num_wrong) {
  const size_t width = static_cast<size_t>(num_ranks) * columns, count = rows * width;
  for (size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<size_t>(gridDim.x) * kThreads) {
    const size_t row = i / width, rank = i % width / columns, column = i % width % columns;
    float want =
        ValueOf(call, static_cast<int>(rank), static_cast<uint32_t>(row * columns + column));
    if (want == 0.0f) want = 0.0f;  // of either sign
    if (!SameBits(out[i], want)) atomicAdd(num_wrong, 1ull);
  }
}

unsigned GridOf(size_t count) {
  return static_cast<unsigned>(
      std::clamp<size_t>((count + kThreads - 1) / kThreads, 1, kBlocksMax));
}

}  // namespace

void FillPart(float* data, size_t count, uint32_t call, int rank, cudaStream_t stream) {
  FillKernel<<<GridOf(count), kThreads, 0, stream>>>(data, count, call, rank);
  CheckLaunch("FillPart");
}

void CheckSum(const float* sum, size_t count, uint32_t call, int num_ranks,
              unsigned long long* num_wrong, cudaStream_t stream) {
  CheckSumKernel<<<GridOf(count), kThreads, 0, stream>>>(sum, count, call, num_ranks, num_wrong);
  CheckLaunch("CheckSum");
}

void CheckGather(const float* out, int rows, int columns, uint32_t call, int num_ranks,
                 unsigned long long* num_wrong, cudaStream_t stream) {
  const size_t count = static_cast<size_t>(rows) * columns * num_ranks;
  CheckGatherKernel<<<GridOf(count), kThreads, 0, stream>>>(out, rows, columns, call, num_ranks,
                                                            num_wrong);
  CheckLaunch("CheckGather");
}

}  // namespace ultraspeed::kernels::cuda
