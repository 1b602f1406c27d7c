// Made-up weights and the machine's read ceiling, for benchmarks at shapes that have no checkpoint.
//
// Callers: worker/cuda. As the operations: device pointers, only enqueues on `stream`. Values are a
// pure function of (seed, index).
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/ops.h"

namespace ultraspeed::kernels::cuda {

// Uniform in [mean - spread, mean + spread].
void FillUniform(float* out, size_t count, float mean, float spread, uint64_t seed,
                 cudaStream_t stream);
void FillUniformBf16(bf16* out, size_t count, float mean, float spread, uint64_t seed,
                     cudaStream_t stream);
// E4M3 codes of magnitude 1/8 to 2, root mean square about 0.9.
void FillE4m3(uint8_t* out, size_t count, uint64_t seed, cudaStream_t stream);
// Any byte: two E2M1 codes.
void FillBytes(uint8_t* out, size_t count, uint64_t seed, cudaStream_t stream);

// Reads `bytes` (a multiple of 16) once with all SMs; `sink` is one device word of no
// meaning.
void ReadAll(const void* data, size_t bytes, uint32_t* sink, cudaStream_t stream);

}  // namespace ultraspeed::kernels::cuda
