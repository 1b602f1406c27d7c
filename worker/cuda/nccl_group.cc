#include "worker/cuda/nccl_group.h"

#include <dlfcn.h>
#include <nccl.h>

#include <cstdio>
#include <cstdlib>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace ultraspeed::worker::cuda {
namespace {

constexpr const char* kLibrary = "libnccl.so.2";

struct Functions {
  decltype(&ncclCommInitAll) comm_init_all = nullptr;
  decltype(&ncclCommDestroy) comm_destroy = nullptr;
  decltype(&ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclGroupStart) group_start = nullptr;
  decltype(&ncclGroupEnd) group_end = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) receive = nullptr;
  decltype(&ncclGetErrorString) get_error_string = nullptr;
};

// Stays open to the end of the process.
absl::StatusOr<Functions> OpenLibrary() {
  void* const library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return absl::FailedPreconditionError(absl::StrCat("NCCL: ", dlerror()));
  Functions functions;
  absl::Status status;
  const auto find = [&](const char* name, auto& function) {
    void* const symbol = dlsym(library, name);
    if (symbol == nullptr && status.ok())
      status = absl::FailedPreconditionError(absl::StrCat(kLibrary, ": has no ", name));
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
  };
  find("ncclCommInitAll", functions.comm_init_all);
  find("ncclCommDestroy", functions.comm_destroy);
  find("ncclCommGetAsyncError", functions.comm_get_async_error);
  find("ncclAllGather", functions.all_gather);
  find("ncclAllReduce", functions.all_reduce);
  find("ncclGroupStart", functions.group_start);
  find("ncclGroupEnd", functions.group_end);
  find("ncclSend", functions.send);
  find("ncclRecv", functions.receive);
  find("ncclGetErrorString", functions.get_error_string);
  if (!status.ok()) return status;
  return functions;
}

class OpenedNcclGroup : public NcclGroup {
 public:
  OpenedNcclGroup(const Functions& functions, std::vector<ncclComm_t> communicators)
      : nccl_(functions), communicators_(std::move(communicators)) {}
  ~OpenedNcclGroup() override {
    for (const ncclComm_t communicator : communicators_) nccl_.comm_destroy(communicator);
  }

  void AllGather(int rank, const void* part, size_t part_bytes, void* all,
                 cudaStream_t stream) override {
    Check(nccl_.all_gather(part, all, part_bytes, ncclUint8, Of(rank), stream), "ncclAllGather");
  }
  void AllToAll(int rank, const void* parts, size_t part_bytes, void* all,
                cudaStream_t stream) override {
    Check(nccl_.group_start(), "ncclGroupStart");
    for (size_t r = 0; r < communicators_.size(); ++r) {
      const int other = static_cast<int>(r);
      Check(nccl_.send(static_cast<const uint8_t*>(parts) + r * part_bytes, part_bytes, ncclUint8,
                       other, Of(rank), stream),
            "ncclSend");
      Check(nccl_.receive(static_cast<uint8_t*>(all) + r * part_bytes, part_bytes, ncclUint8, other,
                          Of(rank), stream),
            "ncclRecv");
    }
    Check(nccl_.group_end(), "ncclGroupEnd");
  }
  void AllReduce(int rank, float* data, size_t count, cudaStream_t stream) override {
    Check(nccl_.all_reduce(data, data, count, ncclFloat32, ncclSum, Of(rank), stream),
          "ncclAllReduce");
  }
  void CheckErrors(int rank) override {
    ncclResult_t error = ncclSuccess;
    Check(nccl_.comm_get_async_error(Of(rank), &error), "ncclCommGetAsyncError");
    Check(error, "NCCL");
  }

 private:
  ncclComm_t Of(int rank) const { return communicators_[static_cast<size_t>(rank)]; }
  // As CUDA_CHECK: the process is of no more use.
  void Check(ncclResult_t result, const char* what) const {
    if (result == ncclSuccess) return;
    std::fprintf(stderr, "%s: %s\n", what, nccl_.get_error_string(result));
    std::abort();
  }

  const Functions nccl_;
  const std::vector<ncclComm_t> communicators_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<NcclGroup>> NcclGroup::Create(int num_ranks) {
  // A program that uses multicast can put a host's NVLink switches out of service when it dies.
  setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0);
  const absl::StatusOr<Functions> functions = OpenLibrary();
  if (!functions.ok()) return functions.status();
  std::vector<int> devices;
  for (int rank = 0; rank < num_ranks; ++rank) devices.push_back(rank);
  std::vector<ncclComm_t> communicators(devices.size());
  const ncclResult_t result =
      functions->comm_init_all(communicators.data(), num_ranks, devices.data());
  if (result != ncclSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat("NCCL: ncclCommInitAll: ", functions->get_error_string(result)));
  }
  return std::make_unique<OpenedNcclGroup>(*functions, std::move(communicators));
}

}  // namespace ultraspeed::worker::cuda
