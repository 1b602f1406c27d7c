#include "worker/cuda/staging.h"

#include "worker/cuda/check.h"

namespace ultraspeed::worker::cuda {

StagingMemory PinnedStaging() {
  return {.allocate = [](size_t bytes) -> void* {
            void* block = nullptr;
            if (cudaHostAlloc(&block, bytes, cudaHostAllocPortable) == cudaSuccess) return block;
            (void)cudaGetLastError();  // the caller reports it; later launches must not see it
            return nullptr;
          },
          .release = [](void* block) { CUDA_CHECK(cudaFreeHost(block)); }};
}

CopiesInFlight::~CopiesInFlight() {
  WaitForAll();
  for (const cudaEvent_t event : idle_events_) CUDA_CHECK(cudaEventDestroy(event));
}

void CopiesInFlight::Keep(std::vector<std::shared_ptr<const uint8_t>> leases) {
  while (!batches_.empty()) {
    const cudaError_t state = cudaEventQuery(batches_.front().done);
    if (state == cudaErrorNotReady) {
      (void)cudaGetLastError();
      break;
    }
    CUDA_CHECK(state);
    idle_events_.push_back(batches_.front().done);
    batches_.pop_front();
  }
  if (leases.empty()) return;
  cudaEvent_t done = nullptr;
  if (idle_events_.empty()) {
    CUDA_CHECK(cudaEventCreateWithFlags(&done, cudaEventDisableTiming));
  } else {
    done = idle_events_.back();
    idle_events_.pop_back();
  }
  CUDA_CHECK(cudaEventRecord(done, stream_));
  batches_.push_back({done, std::move(leases)});
}

void CopiesInFlight::WaitForAll() {
  for (const Batch& batch : batches_) {
    CUDA_CHECK(cudaEventSynchronize(batch.done));
    idle_events_.push_back(batch.done);
  }
  batches_.clear();
}

}  // namespace ultraspeed::worker::cuda
