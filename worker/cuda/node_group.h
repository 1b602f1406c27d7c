// The GPUs of a node that share one model: a thread for each, the memory that they map of each
// other, and the sums and gathers that join them.
//
// A sum has one order of addition, whichever way its parts travel (kernels/cuda/collectives.h):
// small ones go through peer memory in one kernel, larger ones through NCCL where it is there.
// Owner and caller: NodeExecutor; the forward passes through RankLink. Thread: Run on the engine
// thread; the collectives inside Run, on the ranks' threads.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/collectives.h"
#include "worker/cuda/nccl_group.h"
#include "worker/model/sharding_plan.h"
#include "worker/rank_threads.h"

namespace ultraspeed::worker::cuda {

struct NodeOptions {
  int num_ranks = 1;
  // How long a rank may wait for another before the process aborts.
  uint64_t wait_ns_max = 4'000'000'000;
  bool use_peers = true;  // false: everything through NCCL, as where memory cannot be mapped
};

class NodeGroup {
 public:
  // GPUs 0 .. num_ranks - 1. INVALID_ARGUMENT: more than are visible; FAILED_PRECONDITION: one that
  // the kernels do not run on, GPUs of two kinds, or neither peer memory nor NCCL.
  static absl::StatusOr<std::unique_ptr<NodeGroup>> Create(const NodeOptions& options);
  ~NodeGroup();
  NodeGroup(const NodeGroup&) = delete;
  NodeGroup& operator=(const NodeGroup&) = delete;

  int num_ranks() const { return threads_.num_ranks(); }
  // Whether every GPU maps every other's memory.
  bool has_peers() const { return has_peers_; }
  NcclGroup* nccl() { return nccl_.get(); }  // null: not there
  // "sums over peer memory and NCCL", or why not.
  const std::string& description() const { return description_; }

  // Calls work(rank) for all ranks at once, each on its own thread with its GPU current.
  void Run(const std::function<void(int rank)>& work);

  // ---- Inside Run, by every rank, in the same order. They only enqueue.

  // Replaces every rank's data by the sum over ranks. `workspace`: SumWorkspaceBytes.
  void Sum(int rank, float* data /*[count]*/, size_t count, void* workspace, cudaStream_t stream);
  static size_t SumWorkspaceBytes(int num_ranks, size_t count);
  // The same through NCCL, whatever the size, in the better of two ways. REQUIRES: nccl().
  void SumThroughNccl(int rank, float* data, size_t count, void* workspace, cudaStream_t stream);
  // Gathered: every rank gets all parts and adds them. Sliced: each adds one slice, then all gather
  // the sums, which is fewer bytes from four ranks on. REQUIRES: DividesIntoSlices(count).
  void SumOfGathered(int rank, float* data, size_t count, void* workspace, cudaStream_t stream);
  void SumOfSlices(int rank, float* data, size_t count, void* workspace, cudaStream_t stream);
  bool DividesIntoSlices(size_t count) const;
  // out[row, r * columns + i] = rank r's part[row, i]. `workspace`: GatherWorkspaceBytes.
  void Gather(int rank, const float* part /*[rows, columns]*/, int rows, int columns,
              float* out /*[rows, ranks * columns]*/, void* workspace, cudaStream_t stream);
  static size_t GatherWorkspaceBytes(int num_ranks, int rows, int columns);
  // What is enqueued afterwards begins when all ranks have come here. REQUIRES: has_peers.
  void Meet(int rank, cudaStream_t stream);

  // ---- By a rank's thread, not enqueued.

  // Waits until every GPU is idle, and for all ranks: for what must not happen while one rank waits
  // for another on its GPU, because it may wait for GPUs itself.
  void Settle(cudaStream_t stream);
  // Aborts with a message if a GPU gave up waiting for another, or NCCL met an error.
  void CheckWaits(int rank) const;

  // For what calls kernels/cuda/collectives.h by itself.
  const kernels::cuda::PeerInbox& peers(int rank) const {
    return peers_[static_cast<size_t>(rank)];
  }

 private:
  explicit NodeGroup(int num_ranks);
  absl::Status MapPeers();
  void TakeInboxes(uint64_t wait_ns_max);
  void ConnectNccl();

  bool has_peers_ = false;
  std::string description_;
  std::vector<kernels::cuda::PeerInbox> peers_;       // [ranks]
  std::vector<uint8_t*> memory_;                      // [ranks] what peers_ points to, and a word
  kernels::cuda::PeerWaitReport* reports_ = nullptr;  // pinned [ranks]
  std::unique_ptr<NcclGroup> nccl_;
  RankThreads threads_;
};

// Makes one GPU current for a scope, as its rank's thread has it.
class DeviceScope {
 public:
  explicit DeviceScope(int device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = 0;
};

}  // namespace ultraspeed::worker::cuda
