#include "worker/cuda/device_memory.h"

#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/check.h"
#include "worker/cuda/check.h"

namespace ultraspeed::worker::cuda {
namespace {

constexpr size_t kReserveBytes = size_t{768} << 20;  // context, modules, graphs

struct KindText {
  const char* name;
  const char* lower;  // the flags that make it smaller
};
constexpr KindText kKinds[] = {
    {"weights", ""},
    {"KV pages", "--kv-tokens"},
    {"rings", "--max-sequences or --max-batch-tokens"},
    {"drafter rings", "--max-sequences or --max-batch-tokens"},
    {"activations", "--max-batch-tokens"},
    {"workspace", "--max-batch-tokens"},
    {"round data", "--max-sequences"},
    {"staging while loading", ""},
};
static_assert(std::size(kKinds) == static_cast<size_t>(MemoryKind::kCount));

std::string Gigabytes(size_t bytes) {
  return absl::StrFormat("%.2f GB", static_cast<double>(bytes) / 1e9);
}

}  // namespace

size_t MemoryPlan::total() const { return std::accumulate(bytes.begin(), bytes.end(), size_t{0}); }

std::string MemoryPlan::ToString() const {
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] == 0) continue;
    absl::StrAppend(&text, text.empty() ? "" : " + ", Gigabytes(bytes[i]), " ", kKinds[i].name);
  }
  return text;
}

absl::Status CheckFits(const MemoryPlan& plan, size_t free_bytes) {
  const size_t needed = plan.total() + kReserveBytes;
  if (needed <= free_bytes) return absl::OkStatus();
  // The largest part that a flag can shrink.
  size_t largest = static_cast<size_t>(MemoryKind::kKvPages);
  for (size_t i = 0; i < plan.bytes.size(); ++i) {
    if (*kKinds[i].lower != '\0' && plan.bytes[i] > plan.bytes[largest]) largest = i;
  }
  const size_t shortage = needed - free_bytes;
  const std::string advice =
      plan.bytes[largest] >= shortage
          ? absl::StrCat("lower ", kKinds[largest].lower, ", which decides on ",
                         Gigabytes(plan.bytes[largest]))
          : "no flag can make up for that: the weights need a larger or an emptier GPU";
  return absl::ResourceExhaustedError(
      absl::StrCat("device memory: ", Gigabytes(needed), " needed (", plan.ToString(), " + ",
                   Gigabytes(kReserveBytes), " reserve), ", Gigabytes(free_bytes), " free, ",
                   Gigabytes(shortage), " short; ", advice));
}

absl::StatusOr<std::unique_ptr<DeviceArena>> DeviceArena::Create(const MemoryPlan& plan) {
  auto arena = std::make_unique<DeviceArena>();
  arena->capacity_ = plan.total();
  void* base = nullptr;
  if (const cudaError_t error = cudaMalloc(&base, arena->capacity_); error != cudaSuccess) {
    (void)cudaGetLastError();  // reported here; later launches must not see it
    return absl::ResourceExhaustedError(
        absl::StrCat("device memory: ", Gigabytes(plan.total()),
                     " refused by the driver: ", cudaGetErrorString(error)));
  }
  arena->base_ = static_cast<uint8_t*>(base);
  CUDA_CHECK(cudaMemset(base, 0, arena->capacity_));
  CUDA_CHECK(cudaDeviceSynchronize());  // other streams write here next
  return arena;
}

DeviceArena::~DeviceArena() {
  if (base_ != nullptr) CUDA_CHECK(cudaFree(base_));
}

void* DeviceArena::TakeBytes(MemoryKind kind, size_t bytes) {
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  taken_[kind] += rounded;
  uint8_t* const place = counting() ? nullptr : base_ + used_;
  used_ += rounded;
  if (!counting()) KERNELS_CHECK(used_, <=, capacity_);
  return place;
}

void DeviceArena::Copy(const void* host, size_t bytes, void* device) {
  CUDA_CHECK(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice));
}

}  // namespace ultraspeed::worker::cuda
