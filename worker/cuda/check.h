// CUDA_CHECK: a failed call after start-up is dead hardware or our own bug; the context is
// unusable, so it prints the call and aborts (a restart is cheap, the router goes elsewhere).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

#define CUDA_CHECK(call)                                                                    \
  do {                                                                                      \
    const cudaError_t cuda_check_error = (call);                                            \
    if (cuda_check_error != cudaSuccess) [[unlikely]] {                                     \
      std::fprintf(stderr, "%s:%d: CUDA_CHECK failed: %s: %s\n", __FILE__, __LINE__, #call, \
                   cudaGetErrorString(cuda_check_error));                                   \
      std::abort();                                                                         \
    }                                                                                       \
  } while (false)
