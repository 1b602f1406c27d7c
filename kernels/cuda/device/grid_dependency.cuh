// Programmatic dependent launch: a kernel that was launched with LaunchEarly may start while the
// kernel before it in the stream drains, and fetch weights until WaitForEarlierKernels.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/launch.h"

namespace ultraspeed::kernels::cuda {

// Until here a kernel may read nothing but weights, and write nothing. Every thread calls it.
__device__ __forceinline__ void WaitForEarlierKernels() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
// From here on the next kernel may start wherever this one leaves room.
__device__ __forceinline__ void AllowNextKernel() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

template <typename... Parameters, typename... Arguments>
void LaunchEarly(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes,
                 cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  CheckCuda(cudaLaunchKernelEx(&config, kernel, arguments...), "cudaLaunchKernelEx");
}

}  // namespace ultraspeed::kernels::cuda
