#include "worker/device.h"

#include "absl/strings/str_cat.h"
#include "worker/cpu/cpu_executor.h"
#include "worker/cuda/device.h"

namespace ultraspeed::worker {

absl::StatusOr<DeviceChoice> ChooseDevice(std::string_view name, const absl::Status& cuda) {
  if (name == "cpu") return DeviceChoice{Device::kCpu, "asked for"};
  if (name == "cuda") {
    if (!cuda.ok()) return cuda;
    return DeviceChoice{Device::kCuda, "asked for"};
  }
  if (name != "auto") {
    return absl::InvalidArgumentError(
        absl::StrCat("device: is ", std::string(name), "; must be auto, cpu or cuda"));
  }
  if (!cuda.ok()) return DeviceChoice{Device::kCpu, std::string(cuda.message())};
  return DeviceChoice{Device::kCuda, "usable GPU found"};
}

absl::StatusOr<DeviceChoice> ChooseDevice(std::string_view name) {
  return ChooseDevice(name, name == "cpu" ? absl::OkStatus() : CudaUsable());
}

absl::StatusOr<std::unique_ptr<ModelExecutor>> CreateExecutor(Device device,
                                                              const ExecutorOptions& options) {
  if (device == Device::kCuda) return CreateCudaExecutor(options);
  return CpuExecutor::Create(options);
}

}  // namespace ultraspeed::worker
