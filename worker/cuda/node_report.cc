// The sums and gathers of a node, checked call by call and timed by size.
#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/cuda/sum_check.h"
#include "worker/cuda/check.h"
#include "worker/cuda/device.h"
#include "worker/cuda/node_group.h"

namespace ultraspeed::worker {
namespace {

namespace ops = kernels::cuda;
using cuda::NodeGroup;

constexpr uint64_t kWaitNsMax = 10'000'000'000;
constexpr size_t kBytesMin = size_t{1} << 10, kBytesMax = size_t{8} << 20;
constexpr size_t kCountMax = kBytesMax / sizeof(float);
constexpr int kSumsPerGraph = 20, kReplays = 21, kWarmUpReplays = 3;
constexpr size_t kCopyBytes = size_t{256} << 20;

// Rows of a block, of a prefill chunk, and sizes that end in the middle of everything.
constexpr size_t kCheckedCounts[] = {1,     2,       3,    7,    8,     9,     15,
                                     127,   384,     1000, 6144, 12288, 49152, 5 * 6144 + 1,
                                     49153, 3 * 384, 63,   8191, 131,   65537};
constexpr int kLargeEvery = 1000;  // calls; more than one piece of an inbox
constexpr size_t kLargeCount = 1'200'007;
constexpr int kGatherEvery = 8;
constexpr int kGatherRows = 8, kGatherColumns = 1007;

// One rank's stream and memory, on its GPU.
class RankBench {
 public:
  RankBench(NodeGroup& group, int rank) : group_(group), rank_(rank) {
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    data_ = Take<float>(kCountMax);
    gathered_ = Take<float>(static_cast<size_t>(group.num_ranks()) * kGatherRows * kGatherColumns);
    num_wrong_ = Take<unsigned long long>(1);
    workspace_ = Take<uint8_t>(NodeGroup::SumWorkspaceBytes(group.num_ranks(), kCountMax));
    CUDA_CHECK(cudaEventCreate(&begin_));
    CUDA_CHECK(cudaEventCreate(&end_));
    CUDA_CHECK(cudaDeviceSynchronize());
  }
  ~RankBench() {
    CUDA_CHECK(cudaDeviceSynchronize());
    for (void* const memory : memory_) CUDA_CHECK(cudaFree(memory));
    CUDA_CHECK(cudaEventDestroy(begin_));
    CUDA_CHECK(cudaEventDestroy(end_));
    CUDA_CHECK(cudaStreamDestroy(stream_));
  }
  RankBench(const RankBench&) = delete;
  RankBench& operator=(const RankBench&) = delete;

  // Returns how many elements were wrong.
  int64_t Check(int64_t num_calls) {
    const int num_ranks = group_.num_ranks();
    for (int64_t i = 0; i < num_calls; ++i) {
      const auto call = static_cast<uint32_t>(i);
      const size_t count = i % kLargeEvery == kLargeEvery - 1
                               ? kLargeCount
                               : kCheckedCounts[static_cast<size_t>(i) % std::size(kCheckedCounts)];
      ops::FillPart(data_, count, call, rank_, stream_);
      group_.Sum(rank_, data_, count, workspace_, stream_);
      ops::CheckSum(data_, count, call, num_ranks, num_wrong_, stream_);
      if (i % kGatherEvery != 0) continue;
      ops::FillPart(data_, size_t{kGatherRows} * kGatherColumns, call, rank_, stream_);
      group_.Gather(rank_, data_, kGatherRows, kGatherColumns, gathered_, workspace_, stream_);
      ops::CheckGather(gathered_, kGatherRows, kGatherColumns, call, num_ranks, num_wrong_,
                       stream_);
    }
    unsigned long long num_wrong = 0;
    CUDA_CHECK(cudaMemcpyAsync(&num_wrong, num_wrong_, sizeof(num_wrong), cudaMemcpyDeviceToHost,
                               stream_));
    CUDA_CHECK(cudaStreamSynchronize(stream_));
    group_.CheckWaits(rank_);
    return static_cast<int64_t>(num_wrong);
  }

  // Median time of one of kSumsPerGraph sums in a replayed graph.
  template <typename Sum>
  double MedianUs(Sum sum) {
    cudaGraph_t captured = nullptr;
    cudaGraphExec_t graph = nullptr;
    CUDA_CHECK(cudaMemsetAsync(data_, 0, kBytesMax, stream_));
    group_.Settle(stream_);
    CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < kSumsPerGraph; ++i) sum(data_, workspace_, stream_);
    CUDA_CHECK(cudaStreamEndCapture(stream_, &captured));
    CUDA_CHECK(cudaGraphInstantiate(&graph, captured, 0));
    CUDA_CHECK(cudaGraphUpload(graph, stream_));
    std::vector<double> us;
    for (int i = 0; i < kWarmUpReplays + kReplays; ++i) {
      group_.Settle(stream_);
      // The first replay brings the ranks together, so that no start of a thread is timed.
      CUDA_CHECK(cudaGraphLaunch(graph, stream_));
      CUDA_CHECK(cudaEventRecord(begin_, stream_));
      CUDA_CHECK(cudaGraphLaunch(graph, stream_));
      CUDA_CHECK(cudaEventRecord(end_, stream_));
      CUDA_CHECK(cudaStreamSynchronize(stream_));
      float ms = 0;
      CUDA_CHECK(cudaEventElapsedTime(&ms, begin_, end_));
      if (i >= kWarmUpReplays) us.push_back(1e3 * static_cast<double>(ms) / kSumsPerGraph);
    }
    group_.CheckWaits(rank_);
    group_.Settle(stream_);
    CUDA_CHECK(cudaGraphExecDestroy(graph));
    CUDA_CHECK(cudaGraphDestroy(captured));
    group_.Settle(stream_);
    std::sort(us.begin(), us.end());
    return us[us.size() / 2];
  }

  NodeSumTimes Times(size_t bytes) {
    const size_t count = bytes / sizeof(float);
    NodeSumTimes times;
    times.bytes = bytes;
    if (group_.has_peers()) {
      times.peers_us = MedianUs([&](float* data, void* /*workspace*/, cudaStream_t stream) {
        ops::SumOverPeers(group_.peers(rank_), data, count, stream);
      });
    }
    if (cuda::NcclGroup* const nccl = group_.nccl(); nccl != nullptr) {
      times.parts_us = MedianUs([&](float* data, void* workspace, cudaStream_t stream) {
        group_.SumThroughNccl(rank_, data, count, workspace, stream);
      });
      times.nccl_us = MedianUs([&](float* data, void* /*workspace*/, cudaStream_t stream) {
        nccl->AllReduce(rank_, data, count, stream);
      });
    }
    return times;
  }

 private:
  template <typename T>
  T* Take(size_t count) {
    void* memory = nullptr;
    CUDA_CHECK(cudaMalloc(&memory, count * sizeof(T)));
    CUDA_CHECK(cudaMemset(memory, 0, count * sizeof(T)));
    memory_.push_back(memory);
    return static_cast<T*>(memory);
  }

  NodeGroup& group_;
  const int rank_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  std::vector<void*> memory_;
  float* data_ = nullptr;      // [kCountMax]
  float* gathered_ = nullptr;  // [kGatherRows, ranks * kGatherColumns]
  unsigned long long* num_wrong_ = nullptr;
  uint8_t* workspace_ = nullptr;
};

// One way, from GPU 0 to GPU 1, best of several copies.
double MeasurePeerCopy() {
  constexpr int kCopies = 5;
  void* from = nullptr;
  void* to = nullptr;
  {
    const cuda::DeviceScope scope(1);
    CUDA_CHECK(cudaMalloc(&to, kCopyBytes));
  }
  const cuda::DeviceScope scope(0);
  CUDA_CHECK(cudaMalloc(&from, kCopyBytes));
  CUDA_CHECK(cudaMemset(from, 0, kCopyBytes));
  cudaEvent_t begin, end;
  CUDA_CHECK(cudaEventCreate(&begin));
  CUDA_CHECK(cudaEventCreate(&end));
  float best_ms = 0;
  for (int i = 0; i < kCopies; ++i) {
    CUDA_CHECK(cudaEventRecord(begin));
    CUDA_CHECK(cudaMemcpyPeerAsync(to, 1, from, 0, kCopyBytes, nullptr));
    CUDA_CHECK(cudaEventRecord(end));
    CUDA_CHECK(cudaEventSynchronize(end));
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    best_ms = i == 0 ? ms : std::min(best_ms, ms);
  }
  CUDA_CHECK(cudaEventDestroy(begin));
  CUDA_CHECK(cudaEventDestroy(end));
  CUDA_CHECK(cudaFree(from));
  CUDA_CHECK(cudaFree(to));
  return static_cast<double>(kCopyBytes) / (1e-3 * static_cast<double>(best_ms));
}

}  // namespace

absl::StatusOr<NodeSums> MeasureNodeSums(int num_gpus, int64_t num_calls) {
  if (num_gpus < 2) return absl::InvalidArgumentError("--gpus: must be at least 2");
  absl::StatusOr<std::unique_ptr<NodeGroup>> created =
      NodeGroup::Create({.num_ranks = num_gpus, .wait_ns_max = kWaitNsMax});
  if (!created.ok()) return created.status();
  NodeGroup& group = **created;
  NodeSums report;
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  report.device = std::string(properties.name) + "; " + group.description();
  report.peer_bytes_per_second = MeasurePeerCopy();
  std::vector<std::unique_ptr<RankBench>> ranks(static_cast<size_t>(num_gpus));
  group.Run([&](int rank) {
    ranks[static_cast<size_t>(rank)] = std::make_unique<RankBench>(group, rank);
  });
  std::vector<int64_t> num_wrong(ranks.size());
  const auto start = std::chrono::steady_clock::now();
  group.Run([&](int rank) {
    const auto r = static_cast<size_t>(rank);
    num_wrong[r] = ranks[r]->Check(num_calls);
  });
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  report.check_seconds = elapsed.count();
  report.num_sums = num_calls;
  report.num_gathers = (num_calls + kGatherEvery - 1) / kGatherEvery;
  for (const int64_t count : num_wrong) report.num_wrong += count;
  for (size_t bytes = kBytesMin; bytes <= kBytesMax; bytes *= 2) {
    std::vector<NodeSumTimes> times(ranks.size());
    group.Run([&](int rank) {
      const auto r = static_cast<size_t>(rank);
      times[r] = ranks[r]->Times(bytes);
    });
    NodeSumTimes slowest = times.front();
    for (const NodeSumTimes& of_rank : times) {
      slowest.peers_us = std::max(slowest.peers_us, of_rank.peers_us);
      slowest.parts_us = std::max(slowest.parts_us, of_rank.parts_us);
      slowest.nccl_us = std::max(slowest.nccl_us, of_rank.nccl_us);
    }
    const double sent = static_cast<double>(bytes) / 2 * (num_gpus - 1);  // parts are bf16
    slowest.floor_us = 1e6 * sent / report.peer_bytes_per_second;
    report.times.push_back(slowest);
  }
  group.Run([&](int rank) { ranks[static_cast<size_t>(rank)].reset(); });
  return report;
}

}  // namespace ultraspeed::worker
