// One model over the GPUs of a node, for tests: on 2 GPUs, and on 4 where they are.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/worker/cpu/bundled_model.h"
#include "worker/cuda/device.h"
#include "worker/cuda/node_executor.h"

namespace ultraspeed::worker {

inline constexpr int kRankSlots = 4;
inline constexpr uint64_t kWaitNsMax = 20'000'000'000;  // a loaded machine starts threads late

inline const bool kEnvironmentIsSet = (SetNodeEnvironment(), true);

inline int NumGpus() {
  int count = 0;
  return CudaUsable().ok() && cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

class CudaRanksTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(kEnvironmentIsSet);
    if (NumGpus() < 2) GTEST_SKIP() << "needs 2 GPUs, has " << NumGpus();
  }

  static std::vector<int> RankCounts() {
    return NumGpus() >= 4 ? std::vector<int>{2, 4} : std::vector<int>{2};
  }
  static cuda::CudaOptions Options(const std::string& folder, int num_ranks) {
    return {.executor = {.model_folder = folder,
                         .max_sequences = kRankSlots,
                         .kv_tokens = 16384,
                         .num_snapshots = 1,
                         .num_ranks = num_ranks},
            .wait_ns_max = kWaitNsMax};
  }
  static std::unique_ptr<cuda::NodeExecutor> LoadRanks(const std::string& folder, int num_ranks) {
    absl::StatusOr<std::unique_ptr<cuda::NodeExecutor>> executor =
        cuda::NodeExecutor::Create(Options(folder, num_ranks));
    if (!executor.ok()) ADD_FAILURE() << executor.status();
    return executor.ok() ? *std::move(executor) : nullptr;
  }
  static std::unique_ptr<cuda::CudaExecutor> LoadWhole(const std::string& folder) {
    absl::StatusOr<std::unique_ptr<cuda::CudaExecutor>> executor =
        cuda::CudaExecutor::Create(Options(folder, 1));
    if (!executor.ok()) ADD_FAILURE() << executor.status();
    return executor.ok() ? *std::move(executor) : nullptr;
  }
  static std::vector<int32_t> Prompt(size_t begin, size_t count) {
    static const std::vector<int32_t> text = Reference().Values<int32_t>("tokens");
    std::vector<int32_t> prompt(count);
    for (size_t i = 0; i < count; ++i) prompt[i] = text[(begin + i) % text.size()];
    return prompt;
  }
};

}  // namespace ultraspeed::worker
