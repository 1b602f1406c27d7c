// Host memory that a GPU copies from by itself, and the copies under way.
//
// Callers: device_weights.cc. Thread: PinnedStaging any; a CopiesInFlight belongs to the thread
// that enqueues on its stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "worker/model/read_options.h"

namespace ultraspeed::worker::cuda {

// Page-locked and usable by every GPU of the process.
StagingMemory PinnedStaging();

// Keeps staging memory leased until the copies from it that a stream was given are done.
class CopiesInFlight {
 public:
  explicit CopiesInFlight(cudaStream_t stream) : stream_(stream) {}
  ~CopiesInFlight();  // waits for them
  CopiesInFlight(const CopiesInFlight&) = delete;
  CopiesInFlight& operator=(const CopiesInFlight&) = delete;

  // Everything enqueued so far may read these. Gives back what is done.
  void Keep(std::vector<std::shared_ptr<const uint8_t>> leases);
  void WaitForAll();

 private:
  struct Batch {
    cudaEvent_t done;
    std::vector<std::shared_ptr<const uint8_t>> leases;
  };

  const cudaStream_t stream_;
  std::deque<Batch> batches_;
  std::vector<cudaEvent_t> idle_events_;
};

}  // namespace ultraspeed::worker::cuda
