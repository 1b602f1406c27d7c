// The activation between the two products of a dense MLP.
#include "kernels/cuda/device/numbers.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void SwiGluKernel(const float* gate_up, int ffn_width, bf16* out) {
  const int column = blockIdx.x * kThreads + threadIdx.x;
  if (column >= ffn_width) return;
  const size_t row = blockIdx.y;
  const float* gate = gate_up + row * 2 * ffn_width;
  out[row * ffn_width + column] = SwiGluProduct(gate[column], gate[ffn_width + column]);
}

}  // namespace

void SwiGlu(const float* gate_up, int num_tokens, int ffn_width, bf16* out, cudaStream_t stream) {
  if (num_tokens == 0) return;
  const dim3 grid(CeilDiv(ffn_width, kThreads), num_tokens);
  SwiGluKernel<<<grid, kThreads, 0, stream>>>(gate_up, ffn_width, out);
  CheckLaunch("SwiGluKernel");
}

}  // namespace ultraspeed::kernels::cuda
