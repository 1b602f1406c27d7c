// worker/cuda of a build without CUDA.
#include "kernels/check.h"
#include "worker/cuda/device.h"

namespace ultraspeed::worker {

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
                                                  int /*num_ranks*/) {
  return CudaUsable();
}

void UseResidentEngine(ModelExecutor& /*executor*/, bool /*use*/) {}

absl::StatusOr<ResidentRoundTimes> MeasureResidentRounds(ModelExecutor& /*executor*/,
                                                         const SequenceStep& /*step*/,
                                                         const ResidentRounds& /*what*/) {
  return CudaUsable();
}

double MeasureDeviceReadBandwidth(size_t /*bytes*/) {
  KERNELS_CHECK(CudaUsable().ok(), ==, true);
  return 0;
}

}  // namespace ultraspeed::worker
