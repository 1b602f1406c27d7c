// What the parts of ultraspeed-cuda-kernels-bench share: device buffers, the clock, the ceilings
// and the lines of the table.
//
// A figure is the best of several replays of a CUDA graph of many calls. Calls walk over copies of
// what they read that are larger than the L2 together, so that it comes from memory as it does in a
// round. Thread: main only.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>

namespace ultraspeed::kernels::cuda {

inline constexpr double kPeakFlops = 790e12;               // H200, dense bf16, large products
inline constexpr size_t kCopiesBytes = size_t{400} << 20;  // of all copies together, at least
inline constexpr int kCallsMin = 8;

// Device memory full of made-up bytes.
class Buffer {
 public:
  Buffer(size_t bytes, cudaStream_t stream);
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

class Bench {
 public:
  // Makes the stream and measures the read ceiling. REQUIRES: a CUDA device.
  Bench();

  cudaStream_t stream() const { return stream_; }
  Buffer Allocate(size_t bytes) const { return Buffer(bytes, stream_); }
  // Copies host memory to the buffer; `host` may go once this returns.
  void Upload(const Buffer& buffer, const void* host, size_t bytes) const;
  // Seconds of one call; `call(i)` enqueues call i on the stream.
  double SecondsOf(int calls, const std::function<void(int)>& call) const;
  // One line: time, and how near the read ceiling and the tensor cores' rate it is. `operations` 0:
  // none that tensor cores do.
  void Report(const char* name, int rows, double seconds, double bytes, double operations) const;

 private:
  cudaStream_t stream_ = nullptr;
  double read_ceiling_ = 0;  // bytes per second
};

void MeasureProducts(const Bench& bench);           // cuda_products_bench.cu
void MeasureAttention(const Bench& bench);          // cuda_attention_bench.cu
void MeasureResidentAttention(const Bench& bench);  // cuda_resident_attention_bench.cu
void MeasureSampling(const Bench& bench);           // cuda_sampling_bench.cu

}  // namespace ultraspeed::kernels::cuda
