#include "tests/worker/cpu/bundled_model.h"
#include "worker/cpu/cpu_executor.h"

namespace ultraspeed::worker {

absl::Status DeviceUnderTest() { return absl::OkStatus(); }

std::unique_ptr<ModelExecutor> LoadBundledModel(const BundledModelOptions& options) {
  absl::StatusOr<std::unique_ptr<CpuExecutor>> executor =
      CpuExecutor::Create({.model_folder = kBundledModel,
                           .max_sequences = options.max_sequences,
                           .kv_tokens = 16384,
                           .num_snapshots = 3,
                           .num_threads = options.num_threads});
  if (!executor.ok()) ADD_FAILURE() << executor.status();
  return executor.ok() ? *std::move(executor) : nullptr;
}

}  // namespace ultraspeed::worker
