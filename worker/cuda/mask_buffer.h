// What constraints allow in the sampled rows of a pass, on its way to the device.
//
// Owner: CudaExecutor, MaskMail. Thread: the engine thread, or that of its rank.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "absl/types/span.h"
#include "worker/batch.h"
#include "worker/cuda/device_memory.h"

namespace ultraspeed::worker::cuda {

class MaskBuffer {
 public:
  // For rows of `vocabulary_used` tokens, at most `vocabulary`. With an arena that counts, only
  // counts.
  MaskBuffer(int rows_max, int vocabulary, int vocabulary_used, DeviceArena& arena);
  ~MaskBuffer();
  MaskBuffer(const MaskBuffer&) = delete;
  MaskBuffer& operator=(const MaskBuffer&) = delete;

  const uint32_t* device() const { return device_; }  // [rows_max, row_words]
  int row_words() const { return row_words_; }

  // Rows from `first_row` on, one for each of a step's choices: what `constraint` allows behind
  // `drafts`, everything where that is null or a draft before is not allowed. REQUIRES: no upload
  // is under way.
  void Fill(int first_row, int num_rows, const TokenConstraint* constraint,
            absl::Span<const int32_t> drafts);
  void Upload(int num_rows, cudaStream_t stream) const { UploadFrom(*this, num_rows, stream); }
  // What `filled`, of the same rows, was filled with.
  void UploadFrom(const MaskBuffer& filled, int num_rows, cudaStream_t stream) const;

 private:
  const int row_words_;
  uint32_t* device_ = nullptr;
  uint32_t* pinned_ = nullptr;
};

}  // namespace ultraspeed::worker::cuda
