// What crosses between host and device for one pass of a round: a struct of small arrays that
// exists twice, in pinned and in device memory, and is copied as one piece each way.
//
// Owner: CudaExecutor, one for prefill and one for each draft block, so that their device addresses
// are fixed and captured graphs stay valid. Thread: the engine thread.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/ops.h"
#include "worker/cuda/device_memory.h"

namespace ultraspeed::worker::cuda {

struct PassCapacity {
  int sequences = 0;       // S
  int tokens = 0;          // prefill: rows; decode: anchors
  int samples = 0;         // rows that choose a token
  int drafts = 0;          // drafted rows, S * (block - 1)
  int pages = 0;           // page table entries of a sequence
  int expert_choices = 0;  // of all MoE layers whose experts are counted
};

// Host to device, before the pass. Pages come last: only as much as is filled is copied.
struct PassInput {
  int64_t* position = nullptr;                        // [S] of each sequence's first row
  kernels::cuda::SampleRow* samples = nullptr;        // [samples]
  kernels::cuda::SampleRow* draft_samples = nullptr;  // [drafts], place after place
  int32_t* tokens = nullptr;                          // [tokens]
  int32_t* first_row = nullptr;                       // [S]
  int32_t* num_rows = nullptr;                        // [S]
  int32_t* slot = nullptr;                            // [S]
  int32_t* sample_rows = nullptr;                     // [samples] rows of the pass
  int32_t* draft_first_row = nullptr;                 // [S] of the drafter's blocks
  int32_t* draft_num_rows = nullptr;                  // [S]
  int32_t* draft_rows = nullptr;                      // [drafts] likewise; of the drafter's pass
  int32_t* given_drafts = nullptr;                    // [drafts] likewise; if not the drafter's
  int32_t* pages = nullptr;                           // [S, capacity.pages]
};

// Device to host, after the pass.
struct PassOutput {
  int32_t* tokens = nullptr;        // [samples]
  float* logprobs = nullptr;        // [samples]
  int32_t* num_accepted = nullptr;  // [S]
  int32_t* top_tokens = nullptr;    // [samples, alternatives]
  float* top_logprobs = nullptr;    // likewise
};

// The most alternatives that a step may ask for.
inline constexpr int kAlternativesMax = 8;

class PassBuffers {
 public:
  PassBuffers(const PassCapacity& capacity, DeviceArena& arena);
  ~PassBuffers();
  PassBuffers(PassBuffers&& other) noexcept;
  PassBuffers(const PassBuffers&) = delete;
  PassBuffers& operator=(const PassBuffers&) = delete;
  PassBuffers& operator=(PassBuffers&&) = delete;

  const PassCapacity& capacity() const { return capacity_; }

  PassInput host_input, input;         // pinned, device
  PassOutput host_output, output;      // pinned, device
  int32_t* kept = nullptr;             // device [S]: rows whose state is committed
  int32_t* drafts = nullptr;           // device [drafts], sequence after sequence
  int32_t* drafts_by_place = nullptr;  // device [drafts], place in the block after place
  int32_t* block_tokens = nullptr;     // device [samples]: anchor and drafts of each block
  int32_t* host_expert_ids = nullptr;  // pinned [expert_choices]

  // Both enqueue one copy. `num_sequences` with `num_pages` page table entries of the last one.
  void Upload(int num_sequences, int num_pages, cudaStream_t stream);
  void Download(cudaStream_t stream);

 private:
  PassCapacity capacity_;
  uint8_t* pinned_ = nullptr;
  size_t pages_offset_ = 0;
  size_t output_bytes_ = 0;
};

}  // namespace ultraspeed::worker::cuda
