#include "worker/cuda/node_group.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "worker/cuda/check.h"
#include "worker/cuda/device.h"

namespace ultraspeed::worker::cuda {
namespace {

namespace ops = kernels::cuda;

// A part of an inbox: 1 MiB. What is larger goes through NCCL, whose rate is then worth its start.
constexpr size_t kInboxWords = size_t{1} << 18;
constexpr size_t kAlignment = 256;
constexpr int kSlicedRanksMin = 4;
constexpr size_t kSliceUnit = 8;  // numbers of 16 bytes of a part

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// All GPUs must run the same kernels with the same grids.
absl::Status CheckDevices(int num_ranks) {
  int num_visible = 0;
  CUDA_CHECK(cudaGetDeviceCount(&num_visible));
  if (num_ranks > num_visible) {
    return absl::InvalidArgumentError(absl::StrCat("gpus: is ", num_ranks, "; ", num_visible,
                                                   num_visible == 1 ? " is" : " are", " visible"));
  }
  cudaDeviceProp first;
  CUDA_CHECK(cudaGetDeviceProperties(&first, 0));
  for (int device = 1; device < num_ranks; ++device) {
    cudaDeviceProp other;
    CUDA_CHECK(cudaGetDeviceProperties(&other, device));
    if (std::strcmp(first.name, other.name) != 0 ||
        first.multiProcessorCount != other.multiProcessorCount) {
      return absl::FailedPreconditionError(absl::StrCat(
          "GPU ", device, " is ", other.name, " with ", other.multiProcessorCount,
          " multiprocessors, GPU 0 is ", first.name, " with ", first.multiProcessorCount,
          "; the GPUs that share a model must be of one kind"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

DeviceScope::DeviceScope(int device) {
  CUDA_CHECK(cudaGetDevice(&before_));
  CUDA_CHECK(cudaSetDevice(device));
}

DeviceScope::~DeviceScope() { CUDA_CHECK(cudaSetDevice(before_)); }

absl::StatusOr<std::unique_ptr<NodeGroup>> NodeGroup::Create(const NodeOptions& options) {
  const int num_ranks = options.num_ranks;
  if (absl::Status status = CudaUsable(); !status.ok()) return status;
  if (absl::Status status = CheckDevices(num_ranks); !status.ok()) return status;
  std::unique_ptr<NodeGroup> group(new NodeGroup(num_ranks));
  const absl::Status peers = options.use_peers
                                 ? group->MapPeers()
                                 : absl::FailedPreconditionError("peer memory is not to be used");
  absl::StatusOr<std::unique_ptr<NcclGroup>> nccl = NcclGroup::Create(num_ranks);
  if (!peers.ok() && !nccl.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat(peers.message(), ", and there is no NCCL: ", nccl.status().message()));
  }
  group->has_peers_ = peers.ok();
  if (nccl.ok()) group->nccl_ = *std::move(nccl);
  group->description_ = !peers.ok() ? absl::StrCat("sums through NCCL (", peers.message(), ")")
                        : group->nccl_ != nullptr
                            ? "sums over peer memory and NCCL"
                            : absl::StrCat("sums over peer memory (", nccl.status().message(), ")");
  group->TakeInboxes(options.wait_ns_max);
  return group;
}

NodeGroup::NodeGroup(int num_ranks)
    : peers_(static_cast<size_t>(num_ranks)),
      memory_(static_cast<size_t>(num_ranks)),
      threads_(num_ranks) {
  KERNELS_CHECK(num_ranks, <=, ops::kPeersMax);
}

NodeGroup::~NodeGroup() {
  for (int rank = 0; rank < num_ranks(); ++rank) {
    const DeviceScope scope(rank);
    CUDA_CHECK(cudaDeviceSynchronize());
  }
  for (uint8_t* const memory : memory_) CUDA_CHECK(cudaFree(memory));
  if (reports_ != nullptr) CUDA_CHECK(cudaFreeHost(reports_));
}

// Both ways between any two, or not at all.
absl::Status NodeGroup::MapPeers() {
  for (int from = 0; from < num_ranks(); ++from) {
    for (int to = 0; to < num_ranks(); ++to) {
      int can_access = 1;
      if (from != to) CUDA_CHECK(cudaDeviceCanAccessPeer(&can_access, from, to));
      if (can_access == 0) {
        return absl::FailedPreconditionError(
            absl::StrCat("GPU ", from, " cannot map the memory of GPU ", to));
      }
    }
  }
  for (int from = 0; from < num_ranks(); ++from) {
    const DeviceScope scope(from);
    for (int to = 0; to < num_ranks(); ++to) {
      if (from == to) continue;
      const cudaError_t error = cudaDeviceEnablePeerAccess(to, 0);
      if (error == cudaErrorPeerAccessAlreadyEnabled) {
        (void)cudaGetLastError();  // by an earlier group of this process
        continue;
      }
      if (error != cudaSuccess) {
        (void)cudaGetLastError();
        return absl::FailedPreconditionError(absl::StrCat(
            "GPU ", from, " does not map the memory of GPU ", to, ": ", cudaGetErrorString(error)));
      }
    }
  }
  return absl::OkStatus();
}

void NodeGroup::TakeInboxes(uint64_t wait_ns_max) {
  void* reports = nullptr;
  CUDA_CHECK(cudaHostAlloc(&reports, sizeof(ops::PeerWaitReport) * peers_.size(),
                           cudaHostAllocPortable | cudaHostAllocMapped));
  std::memset(reports, 0, sizeof(ops::PeerWaitReport) * peers_.size());
  reports_ = static_cast<ops::PeerWaitReport*>(reports);
  const size_t inbox_bytes = Aligned(ops::PeerInboxBytes(num_ranks(), kInboxWords));
  for (int rank = 0; rank < num_ranks(); ++rank) {
    const DeviceScope scope(rank);
    void* memory = nullptr;
    CUDA_CHECK(cudaMalloc(&memory, inbox_bytes + 2 * kAlignment));
    CUDA_CHECK(cudaMemset(memory, 0, inbox_bytes + 2 * kAlignment));
    memory_[static_cast<size_t>(rank)] = static_cast<uint8_t*>(memory);
  }
  if (nccl_ != nullptr) ConnectNccl();
  for (int rank = 0; rank < num_ranks(); ++rank) {
    const auto r = static_cast<size_t>(rank);
    ops::PeerInbox& peers = peers_[r];
    peers.rank = rank;
    peers.num_ranks = num_ranks();
    peers.inbox = reinterpret_cast<uint32_t*>(memory_[r]);
    peers.capacity = kInboxWords;
    peers.turn = reinterpret_cast<ops::PeerTurn*>(memory_[r] + inbox_bytes);
    peers.report = &reports_[r];
    peers.wait_ns_max = wait_ns_max;
    for (size_t other = 0; other < peers_.size(); ++other)
      peers.push[other] = reinterpret_cast<uint32_t*>(memory_[other]) + r * kInboxWords;
    const DeviceScope scope(rank);
    ops::EmptyPeerInbox(peers, nullptr);
    CUDA_CHECK(cudaDeviceSynchronize());
  }
}

// NCCL connects GPUs when they first exchange something, which takes memory and time: now, while
// all are idle, and not in a captured graph.
void NodeGroup::ConnectNccl() {
  constexpr size_t kPartBytes = 1024;
  Run([this](int rank) {
    uint8_t* const from = memory_[static_cast<size_t>(rank)];
    uint8_t* const to = from + peers_.size() * kPartBytes;
    nccl_->AllGather(rank, from, kPartBytes, to, nullptr);
    nccl_->AllToAll(rank, from, kPartBytes, to, nullptr);
    CUDA_CHECK(cudaDeviceSynchronize());
  });
}

void NodeGroup::Run(const std::function<void(int)>& work) {
  threads_.Run([&](int rank) {
    CUDA_CHECK(cudaSetDevice(rank));
    work(rank);
  });
}

void NodeGroup::Sum(int rank, float* data, size_t count, void* workspace, cudaStream_t stream) {
  if (has_peers_ && (count <= 2 * kInboxWords || nccl_ == nullptr)) {
    ops::SumOverPeers(peers(rank), data, count, stream);
  } else {
    SumThroughNccl(rank, data, count, workspace, stream);
  }
}

void NodeGroup::SumThroughNccl(int rank, float* data, size_t count, void* workspace,
                               cudaStream_t stream) {
  if (num_ranks() >= kSlicedRanksMin && DividesIntoSlices(count)) {
    SumOfSlices(rank, data, count, workspace, stream);
  } else {
    SumOfGathered(rank, data, count, workspace, stream);
  }
}

void NodeGroup::SumOfGathered(int rank, float* data, size_t count, void* workspace,
                              cudaStream_t stream) {
  KERNELS_CHECK(nccl_ != nullptr, ==, true);
  auto* const own = static_cast<uint32_t*>(workspace);
  const size_t words = ops::SumWords(count);
  uint32_t* const all = own + words;
  ops::RoundPart(data, count, own, stream);
  nccl_->AllGather(rank, own, words * sizeof(uint32_t), all, stream);
  ops::AddParts(all, num_ranks(), count, data, stream);
}

bool NodeGroup::DividesIntoSlices(size_t count) const {
  return count % (kSliceUnit * peers_.size()) == 0;
}

void NodeGroup::SumOfSlices(int rank, float* data, size_t count, void* workspace,
                            cudaStream_t stream) {
  KERNELS_CHECK(nccl_ != nullptr, ==, true);
  KERNELS_CHECK(DividesIntoSlices(count), ==, true);
  const size_t slice = count / peers_.size(), words = ops::SumWords(count);
  auto* const own = static_cast<uint32_t*>(workspace);  // [ranks, slice]
  uint32_t* const all = own + words;                    // [ranks, slice]
  // The parts are on their way when their numbers are written over.
  float* const sum = data + static_cast<size_t>(rank) * slice;
  ops::RoundPart(data, count, own, stream);
  nccl_->AllToAll(rank, own, ops::SumWords(slice) * sizeof(uint32_t), all, stream);
  ops::AddParts(all, num_ranks(), slice, sum, stream);
  nccl_->AllGather(rank, sum, slice * sizeof(float), data, stream);
}

size_t NodeGroup::SumWorkspaceBytes(int num_ranks, size_t count) {
  return (static_cast<size_t>(num_ranks) + 1) * ops::SumWords(count) * sizeof(uint32_t);
}

void NodeGroup::Gather(int rank, const float* part, int rows, int columns, float* out,
                       void* workspace, cudaStream_t stream) {
  const size_t count = static_cast<size_t>(rows) * static_cast<size_t>(columns);
  if (has_peers_ && (count <= kInboxWords || nccl_ == nullptr)) {
    ops::GatherOverPeers(peers(rank), part, rows, columns, out, stream);
    return;
  }
  nccl_->AllGather(rank, part, count * sizeof(float), workspace, stream);
  ops::PlaceParts(static_cast<const float*>(workspace), num_ranks(), rows, columns, out, stream);
}

size_t NodeGroup::GatherWorkspaceBytes(int num_ranks, int rows, int columns) {
  return static_cast<size_t>(num_ranks) * static_cast<size_t>(rows) * static_cast<size_t>(columns) *
         sizeof(float);
}

void NodeGroup::Meet(int rank, cudaStream_t stream) {
  KERNELS_CHECK(has_peers_, ==, true);
  // A sum of nothing much: it ends when every rank has sent its part.
  uint8_t* const word = memory_[static_cast<size_t>(rank)] +
                        Aligned(ops::PeerInboxBytes(num_ranks(), kInboxWords)) + kAlignment;
  ops::SumOverPeers(peers(rank), reinterpret_cast<float*>(word), 1, stream);
}

void NodeGroup::Settle(cudaStream_t stream) {
  CUDA_CHECK(cudaStreamSynchronize(stream));
  threads_.Meet();
}

void NodeGroup::CheckWaits(int rank) const {
  for (size_t r = 0; r < peers_.size(); ++r) {
    const volatile ops::PeerWaitReport& report = reports_[r];
    if (report.is_stuck == 0) continue;
    std::fprintf(stderr,
                 "GPU %zu waited more than %.1f s for the data of GPU %d in operation %u of the "
                 "node's sums and gathers\n",
                 r, static_cast<double>(peers_[r].wait_ns_max) * 1e-9, report.peer,
                 report.operation);
    std::abort();
  }
  if (nccl_ != nullptr) nccl_->CheckErrors(rank);
}

}  // namespace ultraspeed::worker::cuda
