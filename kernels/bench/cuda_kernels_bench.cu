// ultraspeed-cuda-kernels-bench: time of the matrix products at the served shape's rank (one of
// eight), beside the read ceiling measured in this process and the tensor cores' dense bf16 rate.
//
// Each figure is the best of several replays of a CUDA graph of calls that walk over copies of the
// weights larger than the L2 together, so that weights come from memory as they do in a round.
// Weights are random bytes: the figures are of time only.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <random>
#include <set>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/synthetic.h"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr double kPeakFlops = 790e12;               // H200, dense bf16, what large products reach
constexpr size_t kWeightBytes = size_t{400} << 20;  // of all copies together, at least
constexpr int kCallsMin = 8;

cudaStream_t stream;
double read_ceiling;  // bytes per second

class Buffer {
 public:
  explicit Buffer(size_t bytes) {
    CheckCuda(cudaMalloc(&data_, bytes + 16), "cudaMalloc");
    FillBytes(static_cast<uint8_t*>(data_), bytes / 16 * 16, 7, stream);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

// Seconds of one call; `call(i)` enqueues call i on the stream.
double SecondsOf(int calls, const std::function<void(int)>& call) {
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < calls; ++i) call(i);
  CheckCuda(cudaStreamEndCapture(stream, &graph), "capture");
  CheckCuda(cudaGraphInstantiate(&replay, graph, 0), "cudaGraphInstantiate");
  cudaEvent_t start, end;
  CheckCuda(cudaEventCreate(&start), "cudaEventCreate");
  CheckCuda(cudaEventCreate(&end), "cudaEventCreate");
  float best = 1e30f;
  for (int i = 0; i < 5; ++i) {
    CheckCuda(cudaEventRecord(start, stream), "cudaEventRecord");
    CheckCuda(cudaGraphLaunch(replay, stream), "cudaGraphLaunch");
    CheckCuda(cudaEventRecord(end, stream), "cudaEventRecord");
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

void Report(const char* name, int tokens, double seconds, double bytes, double operations) {
  std::printf("%-28s T %5d  %9.2f us  %7.0f GB/s %5.1f %% of read  %6.1f TFLOP/s %5.1f %%\n", name,
              tokens, seconds * 1e6, bytes / seconds * 1e-9, 100 * bytes / seconds / read_ceiling,
              operations / seconds * 1e-12, 100 * operations / seconds / kPeakFlops);
  std::fflush(stdout);
}

void MeasureReadCeiling() {
  constexpr size_t kBytes = size_t{4} << 30;
  const Buffer data(kBytes), sink(64);
  const double seconds =
      SecondsOf(2, [&](int) { ReadAll(data.as<void>(), kBytes, sink.as<uint32_t>(), stream); });
  read_ceiling = kBytes / seconds;
  std::printf("read ceiling %.0f GB/s (4 GiB), tensor cores taken as %.0f TFLOP/s\n",
              read_ceiling * 1e-9, kPeakFlops * 1e-12);
}

struct LinearShape {
  const char* name;
  WeightFormat format;
  int rows, cols;
};
constexpr LinearShape kLinearShapes[] = {
    {"qkv fp8 3392x6144", WeightFormat::kFp8Block128, 3392, 6144},
    {"o_proj bf16 6144x2048", WeightFormat::kBf16, 6144, 2048},
    {"lm_head bf16 19072x6144", WeightFormat::kBf16, 19072, 6144},
    {"drafter mlp bf16 4096x6144", WeightFormat::kBf16, 4096, 6144},
    {"drafter fc bf16 768x30720", WeightFormat::kBf16, 768, 30720},
};

void MeasureLinear(const LinearShape& shape, int tokens) {
  const size_t bytes = PackedBytes(shape.format, shape.rows, shape.cols);
  const int copies = static_cast<int>(std::max<size_t>(2, kWeightBytes / bytes));
  const Buffer weights(bytes * copies), x(size_t{2} * tokens * shape.cols),
      out(size_t{4} * tokens * shape.rows);
  const auto matrix = [&](int i) {
    return Matrix{shape.format, shape.rows, shape.cols, weights.as<uint8_t>() + i % copies * bytes};
  };
  const Buffer workspace(LinearWorkspaceBytes(matrix(0), tokens));
  const double seconds = SecondsOf(std::max(copies, kCallsMin), [&](int i) {
    Linear(matrix(i), x.as<bf16>(), tokens, out.as<float>(), workspace.as<void>(), stream);
  });
  Report(shape.name, tokens, seconds, static_cast<double>(bytes),
         2.0 * tokens * shape.rows * shape.cols);
}

// Uniform routing, another choice in every call.
void MeasureExperts(const Buffer& weights, int tokens) {
  constexpr int kHidden = 6144, kFfn = 256, kExperts = 384, kPerToken = 8;
  const ExpertBytes bytes = PackedExpertBytes(WeightFormat::kMxfp4, kFfn, kHidden);
  const Experts experts = {WeightFormat::kMxfp4,
                           kExperts,
                           kFfn,
                           kHidden,
                           weights.as<uint8_t>(),
                           weights.as<uint8_t>() + kExperts * bytes.gate_up};
  const int calls = tokens <= 64 ? 16 : 4;
  std::mt19937 random(static_cast<unsigned>(tokens));
  std::vector<int32_t> ids;
  size_t num_distinct = 0;
  for (int call = 0; call < calls; ++call) {
    std::set<int32_t> distinct;
    for (int t = 0; t < tokens; ++t) {
      std::set<int32_t> chosen;
      while (chosen.size() < kPerToken) chosen.insert(static_cast<int32_t>(random() % kExperts));
      ids.insert(ids.end(), chosen.begin(), chosen.end());
      distinct.insert(chosen.begin(), chosen.end());
    }
    num_distinct += distinct.size();
  }
  const size_t slots = static_cast<size_t>(tokens) * kPerToken;
  const Buffer device_ids(ids.size() * 4), expert_weights(slots * 4),
      x(size_t{2} * tokens * kHidden), out(size_t{4} * tokens * kHidden),
      workspace(MoeWorkspaceBytes(experts, kPerToken, tokens));
  CheckCuda(cudaMemcpyAsync(device_ids.as<void>(), ids.data(), ids.size() * 4,
                            cudaMemcpyHostToDevice, stream),
            "cudaMemcpyAsync");
  const double seconds = SecondsOf(calls, [&](int i) {
    MixtureOfExperts({.experts = experts,
                      .experts_per_token = kPerToken,
                      .x = x.as<bf16>(),
                      .expert_ids = device_ids.as<int32_t>() + i * slots,
                      .expert_weights = expert_weights.as<float>(),
                      .num_tokens = tokens,
                      .out = out.as<float>(),
                      .workspace = workspace.as<void>()},
                     stream);
  });
  char name[64];
  const double mean_distinct = static_cast<double>(num_distinct) / calls;
  std::snprintf(name, sizeof(name), "experts mxfp4 U %.1f", mean_distinct);
  Report(name, tokens, seconds, mean_distinct * static_cast<double>(bytes.gate_up + bytes.down),
         6.0 * static_cast<double>(slots) * kFfn * kHidden);
}

void MeasureRouter(int tokens) {
  constexpr int kHidden = 6144, kExperts = 384, kPerToken = 8, kCopies = 40;
  const Buffer w(size_t{4} * kExperts * kHidden * kCopies), bias(kExperts * 4),
      x(size_t{2} * tokens * kHidden), ids(size_t{4} * tokens * kPerToken),
      weights(size_t{4} * tokens * kPerToken), workspace(RouteWorkspaceBytes(tokens, kExperts));
  const double seconds = SecondsOf(kCopies, [&](int i) {
    RouteTopK(x.as<bf16>(), w.as<float>() + size_t{kExperts} * kHidden * i, bias.as<float>(),
              tokens, kHidden, kExperts, kPerToken, ids.as<int32_t>(), weights.as<float>(),
              workspace.as<void>(), stream);
  });
  Report("router fp32 384x6144", tokens, seconds, 4.0 * kExperts * kHidden,
         2.0 * tokens * kExperts * kHidden);
}

int Main() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::fprintf(stderr, "no CUDA device on this machine\n");
    return 1;
  }
  CheckCuda(cudaStreamCreate(&stream), "cudaStreamCreate");
  MeasureReadCeiling();
  for (const LinearShape& shape : kLinearShapes) {
    for (int tokens : {1, 8, 16, 32, 64, 128, 512, 2048, 8192}) {
      if (tokens > 128 && shape.rows > 10000) continue;  // logits of many rows are never wanted
      MeasureLinear(shape, tokens);
    }
  }
  const ExpertBytes bytes = PackedExpertBytes(WeightFormat::kMxfp4, 256, 6144);
  const Buffer weights(384 * (bytes.gate_up + bytes.down));
  for (int tokens : {1, 2, 4, 8, 16, 64, 128, 512, 2048, 8192}) MeasureExperts(weights, tokens);
  for (int tokens : {1, 8, 16, 64, 512, 8192}) MeasureRouter(tokens);
  CheckCuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  return 0;
}

}  // namespace
}  // namespace ultraspeed::kernels::cuda

int main() { return ultraspeed::kernels::cuda::Main(); }
