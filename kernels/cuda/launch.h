// What every launcher needs: errors of a launch are our own bugs or a dead device, so they abort.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "kernels/check.h"

namespace ultraspeed::kernels::cuda {

inline void CheckCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s: %s\n", what, cudaGetErrorString(error));
  std::abort();
}

// Call after a launch: catches bad grids and missing code, not device faults (those surface when
// the stream is next waited for).
inline void CheckLaunch(const char* kernel) { CheckCuda(cudaGetLastError(), kernel); }

constexpr int kDevicesMax = 16;

// Runs something once on each device, where a thread first comes to it: a kernel's attributes
// belong to the device that is current when they are set.
class OncePerDevice {
 public:
  template <typename Action>
  void Run(Action action) {
    int device = 0;
    CheckCuda(cudaGetDevice(&device), "cudaGetDevice");
    KERNELS_CHECK(device, <, kDevicesMax);
    std::call_once(flags_[device], action);
  }

 private:
  std::once_flag flags_[kDevicesMax];
};

// Gives a kernel its dynamic shared memory beyond 48 KB, where a thread first comes to it.
template <typename Kernel>
void AllowSharedMemory(OncePerDevice& once, Kernel kernel, int bytes, const char* name) {
  once.Run([&] {
    CheckCuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
              name);
  });
}

// Of the current device; all devices of a process are of one kind.
inline int NumMultiprocessors() {
  static const int count = [] {
    int device = 0, value = 0;
    CheckCuda(cudaGetDevice(&device), "cudaGetDevice");
    CheckCuda(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device),
              "cudaDeviceGetAttribute");
    return value;
  }();
  return count;
}

constexpr int CeilDiv(int a, int b) { return (a + b - 1) / b; }

}  // namespace ultraspeed::kernels::cuda
