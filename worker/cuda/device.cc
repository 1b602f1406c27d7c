#include "worker/cuda/device.h"

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/synthetic.h"
#include "worker/cuda/check.h"
#include "worker/cuda/cuda_executor.h"
#include "worker/cuda/node_executor.h"

namespace ultraspeed::worker {
namespace {

constexpr int kComputeMajor = 9;  // the kernels are built for sm_90a alone
constexpr int kComputeMinor = 0;

}  // namespace

void SetNodeEnvironment() {
  setenv("CUDA_MODULE_LOADING", "EAGER", /*overwrite=*/0);
  setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0);
}

absl::Status CudaUsable() {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    (void)cudaGetLastError();
    return absl::FailedPreconditionError(
        absl::StrCat("no usable NVIDIA driver: ", cudaGetErrorString(error)));
  }
  if (count == 0) return absl::FailedPreconditionError("no NVIDIA GPU found");
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, 0); error != cudaSuccess) {
    (void)cudaGetLastError();
    return absl::FailedPreconditionError(
        absl::StrCat("GPU 0 cannot be used: ", cudaGetErrorString(error)));
  }
  if (properties.major != kComputeMajor || properties.minor != kComputeMinor) {
    return absl::FailedPreconditionError(absl::StrCat(
        "GPU 0 is ", properties.name, ", compute capability ", properties.major, ".",
        properties.minor, "; the kernels need ", kComputeMajor, ".", kComputeMinor, " (Hopper)"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ModelExecutor>> CreateCudaExecutor(const ExecutorOptions& options) {
  if (options.num_ranks > 1) return cuda::NodeExecutor::Create({.executor = options});
  return cuda::CudaExecutor::Create({.executor = options});
}

absl::StatusOr<RandomModel> CreateRandomCudaModel(const ModelConfig& config,
                                                  const ExecutorOptions& options,
                                                  int num_ranks_alone) {
  const auto described = [](absl::StatusOr<std::unique_ptr<cuda::GpuExecutor>> executor)
      -> absl::StatusOr<RandomModel> {
    if (!executor.ok()) return executor.status();
    RandomModel model;
    model.bytes = (*executor)->bytes();
    model.memory = (*executor)->memory().ToString();
    model.executor = *std::move(executor);
    return model;
  };
  const cuda::CudaOptions of_gpu = {.executor = options, .num_ranks_alone = num_ranks_alone};
  if (options.num_ranks > 1) return described(cuda::NodeExecutor::CreateRandom(config, of_gpu));
  return described(cuda::CudaExecutor::CreateRandom(config, of_gpu));
}

double MeasureDeviceReadBandwidth(size_t bytes) {
  constexpr int kPasses = 10;
  bytes = bytes / 16 * 16;
  void* data = nullptr;
  uint32_t* sink = nullptr;
  cudaEvent_t begin, end;
  CUDA_CHECK(cudaMalloc(&data, bytes));
  CUDA_CHECK(cudaMalloc(&sink, sizeof(*sink)));
  CUDA_CHECK(cudaMemset(data, 1, bytes));
  CUDA_CHECK(cudaEventCreate(&begin));
  CUDA_CHECK(cudaEventCreate(&end));
  float best_ms = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    CUDA_CHECK(cudaEventRecord(begin));
    kernels::cuda::ReadAll(data, bytes, sink, nullptr);
    CUDA_CHECK(cudaEventRecord(end));
    CUDA_CHECK(cudaEventSynchronize(end));
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    best_ms = pass == 0 ? ms : std::min(best_ms, ms);
  }
  CUDA_CHECK(cudaEventDestroy(begin));
  CUDA_CHECK(cudaEventDestroy(end));
  CUDA_CHECK(cudaFree(data));
  CUDA_CHECK(cudaFree(sink));
  return static_cast<double>(bytes) / (1e-3 * static_cast<double>(best_ms));
}

}  // namespace ultraspeed::worker
