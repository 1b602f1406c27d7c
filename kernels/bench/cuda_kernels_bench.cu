// ultraspeed-cuda-kernels-bench: time of the operations at the served shape's rank (one of eight),
// beside the read ceiling measured in this process and the tensor cores' dense bf16 rate.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "kernels/bench/cuda_bench.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/synthetic.h"

namespace ultraspeed::kernels::cuda {

Buffer::Buffer(size_t bytes, cudaStream_t stream) {
  CheckCuda(cudaMalloc(&data_, bytes + 16), "cudaMalloc");
  FillBytes(static_cast<uint8_t*>(data_), bytes / 16 * 16, 7, stream);
}

Buffer::~Buffer() { cudaFree(data_); }

Bench::Bench() {
  constexpr size_t kBytes = size_t{4} << 30;
  CheckCuda(cudaStreamCreate(&stream_), "cudaStreamCreate");
  const Buffer data = Allocate(kBytes), sink = Allocate(64);
  const double seconds =
      SecondsOf(2, [&](int) { ReadAll(data.as<void>(), kBytes, sink.as<uint32_t>(), stream_); });
  read_ceiling_ = kBytes / seconds;
  std::printf("read ceiling %.0f GB/s (4 GiB), tensor cores taken as %.0f TFLOP/s\n",
              read_ceiling_ * 1e-9, kPeakFlops * 1e-12);
}

void Bench::Upload(const Buffer& buffer, const void* host, size_t bytes) const {
  CheckCuda(cudaMemcpyAsync(buffer.as<void>(), host, bytes, cudaMemcpyHostToDevice, stream_),
            "cudaMemcpyAsync");
  CheckCuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
}

double Bench::SecondsOf(int calls, const std::function<void(int)>& call) const {
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  CheckCuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < calls; ++i) call(i);
  CheckCuda(cudaStreamEndCapture(stream_, &graph), "capture");
  CheckCuda(cudaGraphInstantiate(&replay, graph, 0), "cudaGraphInstantiate");
  cudaEvent_t start, end;
  CheckCuda(cudaEventCreate(&start), "cudaEventCreate");
  CheckCuda(cudaEventCreate(&end), "cudaEventCreate");
  float best = 1e30f;
  for (int i = 0; i < 5; ++i) {
    CheckCuda(cudaEventRecord(start, stream_), "cudaEventRecord");
    CheckCuda(cudaGraphLaunch(replay, stream_), "cudaGraphLaunch");
    CheckCuda(cudaEventRecord(end, stream_), "cudaEventRecord");
    CheckCuda(cudaEventSynchronize(end), "cudaEventSynchronize");
    float milliseconds;
    CheckCuda(cudaEventElapsedTime(&milliseconds, start, end), "cudaEventElapsedTime");
    if (i > 0) best = std::min(best, milliseconds);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  return best * 1e-3 / calls;
}

void Bench::Report(const char* name, int rows, double seconds, double bytes,
                   double operations) const {
  std::printf("%-32s T %5d  %9.2f us  %7.0f GB/s %5.1f %% of read", name, rows, seconds * 1e6,
              bytes / seconds * 1e-9, 100 * bytes / seconds / read_ceiling_);
  if (operations > 0) {
    std::printf("  %6.1f TFLOP/s %5.1f %%", operations / seconds * 1e-12,
                100 * operations / seconds / kPeakFlops);
  }
  std::printf("\n");
  std::fflush(stdout);
}

namespace {

// `group`: what to measure; null: everything.
int Main(const char* group) {
  constexpr struct {
    const char* name;
    void (*measure)(const Bench&);
  } kGroups[] = {{"products", MeasureProducts},
                 {"attention", MeasureAttention},
                 {"resident_attention", MeasureResidentAttention},
                 {"sampling", MeasureSampling}};
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::fprintf(stderr, "no CUDA device on this machine\n");
    return 1;
  }
  const Bench bench;
  for (const auto& [name, measure] : kGroups) {
    if (group == nullptr || std::strcmp(group, name) == 0) measure(bench);
  }
  CheckCuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  return 0;
}

}  // namespace
}  // namespace ultraspeed::kernels::cuda

// ultraspeed-cuda-kernels-bench [products | attention | resident_attention | sampling]
int main(int argc, char** argv) {
  return ultraspeed::kernels::cuda::Main(argc > 1 ? argv[1] : nullptr);
}
