// Many copies of device memory in a launch: what a snapshot of all rings is made of would take
// longer to enqueue one by one than to move.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kCopiesPerLaunch = 128;  // that fit the parameters of a kernel
constexpr int kVectorsPerThread = 4;   // of 16 bytes

struct Copies {
  Copy list[kCopiesPerLaunch];
};
static_assert(sizeof(Copies) <= 4096);

// Grid: pieces of the longest copy, copies.
__global__ void __launch_bounds__(kThreads) CopyKernel(const __grid_constant__ Copies copies) {
  const Copy& copy = copies.list[blockIdx.y];
  const auto* const from = static_cast<const uint4*>(copy.from);
  auto* const to = static_cast<uint4*>(copy.to);
  const size_t count = copy.bytes / sizeof(uint4);
  const size_t first = size_t{blockIdx.x} * kThreads * kVectorsPerThread + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kVectorsPerThread; ++i) {
    const size_t index = first + i * kThreads;
    if (index < count) to[index] = from[index];
  }
}

}  // namespace

void CopyAll(const std::vector<Copy>& copies, cudaStream_t stream) {
  for (size_t begin = 0; begin < copies.size(); begin += kCopiesPerLaunch) {
    const size_t count = std::min<size_t>(kCopiesPerLaunch, copies.size() - begin);
    Copies part = {};
    size_t bytes_max = 0;
    for (size_t i = 0; i < count; ++i) {
      part.list[i] = copies[begin + i];
      KERNELS_CHECK(part.list[i].bytes % sizeof(uint4), ==, size_t{0});
      bytes_max = std::max(bytes_max, part.list[i].bytes);
    }
    if (bytes_max == 0) continue;
    const size_t block_bytes = size_t{kThreads} * kVectorsPerThread * sizeof(uint4);
    const dim3 grid(static_cast<unsigned>((bytes_max + block_bytes - 1) / block_bytes),
                    static_cast<unsigned>(count));
    CopyKernel<<<grid, kThreads, 0, stream>>>(part);
    CheckLaunch("CopyKernel");
  }
}

}  // namespace ultraspeed::kernels::cuda
