#include "tests/worker/cpu/bundled_model.h"
#include "worker/cuda/device.h"

namespace ultraspeed::worker {

absl::Status DeviceUnderTest() { return CudaUsable(); }

std::unique_ptr<ModelExecutor> LoadBundledModel(const BundledModelOptions& options) {
  absl::StatusOr<std::unique_ptr<ModelExecutor>> executor =
      CreateCudaExecutor({.model_folder = kBundledModel,
                          .max_sequences = options.max_sequences,
                          .kv_tokens = 16384,
                          .num_snapshots = 3});
  if (!executor.ok()) ADD_FAILURE() << executor.status();
  return executor.ok() ? *std::move(executor) : nullptr;
}

}  // namespace ultraspeed::worker
