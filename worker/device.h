// Where a model runs: --device auto|cpu|cuda of every program, decided in one place.
//
// Thread: any; start-up only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "worker/model_executor.h"

namespace ultraspeed::worker {

enum class Device : uint8_t { kCpu, kCuda };

struct DeviceChoice {
  Device device;
  std::string reason;  // one line for the log
};

// `name`: auto, cpu or cuda; auto is cuda where it is usable, else cpu. `cuda`: CudaUsable().
// INVALID_ARGUMENT for another name; `cuda` itself where it is asked for and not usable.
absl::StatusOr<DeviceChoice> ChooseDevice(std::string_view name, const absl::Status& cuda);
absl::StatusOr<DeviceChoice> ChooseDevice(std::string_view name);

absl::StatusOr<std::unique_ptr<ModelExecutor>> CreateExecutor(Device device,
                                                              const ExecutorOptions& options);

}  // namespace ultraspeed::worker
