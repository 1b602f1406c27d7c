// Device memory for tests, and the one way a test says that it has no GPU.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <vector>

namespace ultraspeed::kernels::cuda {

// First line of every test that needs a GPU.
#define SKIP_WITHOUT_GPU()                                                             \
  do {                                                                                 \
    int device_count = 0;                                                              \
    if (cudaGetDeviceCount(&device_count) != cudaSuccess || device_count == 0) {       \
      GTEST_SKIP() << "no CUDA device: this test runs on a machine with a Hopper GPU"; \
    }                                                                                  \
  } while (false)

inline void Expect(cudaError_t error) {
  ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
}

// Waits for all launched work and reports what failed in it.
inline void Synchronize() {
  Expect(cudaGetLastError());
  Expect(cudaDeviceSynchronize());
}

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) {
    Expect(cudaMalloc(&data_, (count + 1) * sizeof(T)));
    Fill(0xff);  // NaNs and absurd indices: what a kernel must not rely on
  }
  DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { Set(values); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  T* get() const { return data_; }
  void Fill(int byte) { Expect(cudaMemset(data_, byte, count_ * sizeof(T))); }
  void Set(const std::vector<T>& values) {
    Expect(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> ToHost() const {
    Synchronize();
    std::vector<T> values(count_);
    Expect(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t count_;
};

}  // namespace ultraspeed::kernels::cuda
