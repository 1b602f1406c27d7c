// The masks of rounds on the resident kernel, sent to it while it runs.
//
// First one round's masks, then the number of rounds that have theirs, by a stream of their own
// beside the kernel.
// Owner: ResidentEngine, one for each rank. Thread: the engine thread, or that of its rank while it
// is made.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/resident/program.h"
#include "worker/cuda/device_memory.h"
#include "worker/cuda/mask_buffer.h"

namespace ultraspeed::worker::cuda {

class MaskMail {
 public:
  // `num_masked`: where the rank's kernel looks for that number. With an arena that counts, only
  // counts.
  MaskMail(int vocabulary_used, uint32_t* num_masked, DeviceArena& arena);
  ~MaskMail();
  MaskMail(const MaskMail&) = delete;
  MaskMail& operator=(const MaskMail&) = delete;

  MaskBuffer& buffer() { return buffer_; }
  kernels::cuda::resident::ChoiceMasks ForProgram() const;

  // Sends the first rows of `filled`, this rank's or another one's: the kernel has the masks of
  // `num_masked` rounds then. REQUIRES, here and below: the rank's device is current.
  void Send(const MaskBuffer& filled, int num_rows, uint32_t num_masked);
  // Whatever masks the kernel waits for, it goes on; returns when it has been told.
  void Release();

 private:
  void SendNumber(uint32_t num_masked);

  MaskBuffer buffer_;
  uint32_t* const device_num_masked_;
  uint32_t* pinned_num_masked_ = nullptr;
  cudaStream_t stream_ = nullptr;
};

}  // namespace ultraspeed::worker::cuda
