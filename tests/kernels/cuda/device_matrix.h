// A checkpoint matrix whose codes and scales lie in device memory, for the tests of matrix
// products.
#pragma once

#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/random_data.h"

namespace ultraspeed::kernels::cuda {

class GpuTest : public testing::Test {
 protected:
  void SetUp() override { SKIP_WITHOUT_GPU(); }
};

struct OnDevice {
  DeviceArray<uint8_t> codes;
  DeviceArray<float> scales_f32;
  DeviceArray<uint8_t> scales_e8m0;
  CheckpointMatrix checkpoint;

  explicit OnDevice(const TestMatrix& w)
      : codes(w.codes),
        scales_f32(w.scales_f32),
        scales_e8m0(w.scales_e8m0),
        checkpoint{w.format,    w.num_rows,       w.num_cols,
                   codes.get(), scales_f32.get(), scales_e8m0.get()} {}
};

// The same, packed.
struct DeviceMatrix {
  DeviceArray<uint8_t> packed;
  Matrix matrix;

  explicit DeviceMatrix(const TestMatrix& w)
      : packed(PackedBytes(w.format, w.num_rows, w.num_cols)),
        matrix(Pack(OnDevice(w).checkpoint, packed.get(), nullptr)) {
    Synchronize();
  }
};

}  // namespace ultraspeed::kernels::cuda
