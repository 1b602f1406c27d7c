// NCCL for the GPUs of a node: one process, a communicator and a thread for each.
//
// The library is opened when a group is made, so a program starts where it is not installed. It
// serves where GPUs cannot map each other's memory, and for what is larger than is well sent at
// once. NVLink multicast stays off unless the environment says otherwise. A build without nccl.h
// links nccl_missing.cc, which refuses. Owner: NodeGroup. Thread: Create at start-up; the rest on
// the ranks' threads, each for its own rank.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"

namespace ultraspeed::worker::cuda {

class NcclGroup {
 public:
  // FAILED_PRECONDITION says what is missing.
  static absl::StatusOr<std::unique_ptr<NcclGroup>> Create(int num_ranks);
  virtual ~NcclGroup() = default;

  // All ranks' parts, one behind the other. Only enqueues, as does the next one.
  virtual void AllGather(int rank, const void* part, size_t part_bytes,
                         void* all /*[ranks, part_bytes]*/, cudaStream_t stream) = 0;
  // Part r goes to rank r; rank r's part for this one comes to place r.
  virtual void AllToAll(int rank, const void* parts /*[ranks, part_bytes]*/, size_t part_bytes,
                        void* all /*[ranks, part_bytes]*/, cudaStream_t stream) = 0;
  // data = sum over ranks, in an order of NCCL's own: for comparison only.
  virtual void AllReduce(int rank, float* data, size_t count, cudaStream_t stream) = 0;
  // Aborts with a message if the rank's communicator has met an error.
  virtual void CheckErrors(int rank) = 0;
};

}  // namespace ultraspeed::worker::cuda
