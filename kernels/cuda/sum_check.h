// Made-up parts of sums and gathers over ranks, and the check of what came of them, on the device:
// for a benchmark that checks many thousands of calls.
//
// Every GPU can make up every rank's part, so none needs another's memory to know the right answer:
// the sum that collectives.h describes, in rank order, bit for bit. Callers: worker/cuda. As
// kernels/cuda/ops.h: every call only enqueues.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace ultraspeed::kernels::cuda {

// The part of `rank` in call `call`: any magnitude, with zeros of both signs among them.
void FillPart(float* data /*[count]*/, size_t count, uint32_t call, int rank, cudaStream_t stream);

// Adds the number of elements of a sum whose bits are wrong to `num_wrong`.
void CheckSum(const float* sum /*[count]*/, size_t count, uint32_t call, int num_ranks,
              unsigned long long* num_wrong, cudaStream_t stream);
// Likewise of a gather.
void CheckGather(const float* out /*[rows, ranks * columns]*/, int rows, int columns, uint32_t call,
                 int num_ranks, unsigned long long* num_wrong, cudaStream_t stream);

}  // namespace ultraspeed::kernels::cuda
