// worker/cuda of a build without CUDA.
#include "kernels/check.h"
#include "worker/cuda/device.h"

namespace ultraspeed::worker {

void SetNodeEnvironment() {}

absl::Status CudaUsable() {
  return absl::FailedPreconditionError(
      "this build has no CUDA executor (configured with ULTRASPEED_CUDA=OFF)");
}

absl::StatusOr<std::unique_ptr<ModelExecutor>> CreateCudaExecutor(
    const ExecutorOptions& /*options*/) {
  return CudaUsable();
}

absl::StatusOr<RandomModel> CreateRandomCudaModel(const ModelConfig& /*config*/,
                                                  const ExecutorOptions& /*options*/,
                                                  int /*num_ranks_alone*/) {
  return CudaUsable();
}

void UseResidentEngine(ModelExecutor& /*executor*/, bool /*use*/) {}
void ForceDistinctExperts(ModelExecutor& /*executor*/, int /*a_layer*/) {}

absl::StatusOr<ResidentRoundTimes> MeasureResidentRounds(ModelExecutor& /*executor*/,
                                                         const Round& /*round*/,
                                                         const ResidentRounds& /*what*/) {
  return CudaUsable();
}

absl::StatusOr<NodeSums> MeasureNodeSums(int /*num_gpus*/, int64_t /*num_calls*/) {
  return CudaUsable();
}

double MeasureDeviceReadBandwidth(size_t /*bytes*/) {
  KERNELS_CHECK(CudaUsable().ok(), ==, true);
  return 0;
}

}  // namespace ultraspeed::worker
