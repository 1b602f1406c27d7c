#include "worker/device.h"

#include <gtest/gtest.h>

#include "worker/cuda/device.h"

namespace ultraspeed::worker {
namespace {

const absl::Status kNoDriver = absl::FailedPreconditionError("no usable NVIDIA driver: none");

TEST(DeviceTest, AutoTakesTheGpuWhereItIsUsable) {
  EXPECT_EQ(ChooseDevice("auto", absl::OkStatus())->device, Device::kCuda);
  const absl::StatusOr<DeviceChoice> choice = ChooseDevice("auto", kNoDriver);
  ASSERT_TRUE(choice.ok());
  EXPECT_EQ(choice->device, Device::kCpu);
  EXPECT_EQ(choice->reason, "no usable NVIDIA driver: none");
}

TEST(DeviceTest, CudaIsRefusedWhereItIsNotUsable) {
  EXPECT_EQ(ChooseDevice("cuda", kNoDriver).status(), kNoDriver);
  EXPECT_EQ(ChooseDevice("cuda", absl::OkStatus())->device, Device::kCuda);
  EXPECT_EQ(ChooseDevice("cpu", kNoDriver)->device, Device::kCpu);
  EXPECT_EQ(ChooseDevice("tpu", absl::OkStatus()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// Whatever this machine and this build are, auto finds a device and cuda says why not.
TEST(DeviceTest, ThisMachine) {
  const absl::Status cuda = CudaUsable();
  const absl::StatusOr<DeviceChoice> choice = ChooseDevice("auto");
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_EQ(choice->device == Device::kCuda, cuda.ok());
  EXPECT_FALSE(choice->reason.empty());
  EXPECT_EQ(CreateExecutor(Device::kCuda, {.model_folder = "no-such-folder"}).ok(), false);
}

}  // namespace
}  // namespace ultraspeed::worker
