// Device memory as one allocation that is planned before anything is loaded.
//
// Everything that lives on the device takes its bytes from a DeviceArena, in one fixed order. The
// same construction code runs twice: over an arena that only counts, which gives the MemoryPlan,
// and over one that holds memory. So the plan is exact and needs no second list of sizes. Caller:
// CudaExecutor. Thread: start-up only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ultraspeed::worker::cuda {

enum class MemoryKind : uint8_t {
  kWeights,
  kKvPages,       // of the full layers: --kv-tokens
  kRings,         // of the sliding layers: --max-sequences, --max-batch-tokens
  kDrafterRings,  // likewise
  kActivations,   // of one pass: --max-batch-tokens
  kWorkspace,     // of the operations, shared: --max-batch-tokens
  kRoundData,     // what crosses between host and device each round: --max-sequences
  kStaging,       // while loading
  kCount,
};

struct MemoryPlan {
  std::array<size_t, static_cast<size_t>(MemoryKind::kCount)> bytes = {};

  size_t& operator[](MemoryKind kind) { return bytes[static_cast<size_t>(kind)]; }
  size_t operator[](MemoryKind kind) const { return bytes[static_cast<size_t>(kind)]; }
  size_t total() const;
  std::string ToString() const;  // "71.20 GB weights + 3.36 GB KV pages + ..."
};

// OK if the plan and a reserve for the driver fit into `free_bytes`; else RESOURCE_EXHAUSTED with
// the numbers and the flags that would help. Pure.
absl::Status CheckFits(const MemoryPlan& plan, size_t free_bytes);

class DeviceArena {
 public:
  static constexpr size_t kAlignment = 256;

  DeviceArena() = default;  // counts: Take gives null
  // Zeroed memory for everything of the plan. RESOURCE_EXHAUSTED if the driver refuses.
  static absl::StatusOr<std::unique_ptr<DeviceArena>> Create(const MemoryPlan& plan);
  ~DeviceArena();
  DeviceArena(const DeviceArena&) = delete;
  DeviceArena& operator=(const DeviceArena&) = delete;

  bool counting() const { return base_ == nullptr; }
  // A place between two Takes. What is taken from one to another lies in one piece.
  struct Mark {
    size_t used = 0;
    MemoryPlan taken;
  };
  Mark mark() const { return {used_, taken_}; }
  // Gives back what was taken since, to be taken anew. REQUIRES: nobody uses it.
  void Rewind(const Mark& mark) {
    used_ = mark.used;
    taken_ = mark.taken;
  }
  // REQUIRES: not counting.
  uint8_t* At(const Mark& mark) const { return base_ + mark.used; }
  // Bytes taken so far.
  const MemoryPlan& taken() const { return taken_; }

  void* TakeBytes(MemoryKind kind, size_t bytes);
  template <typename T>
  T* Take(MemoryKind kind, size_t count) {
    return static_cast<T*>(TakeBytes(kind, count * sizeof(T)));
  }
  // Takes and fills.
  template <typename T>
  T* Upload(MemoryKind kind, const std::vector<T>& values) {
    T* const place = Take<T>(kind, values.size());
    if (place != nullptr) Copy(values.data(), values.size() * sizeof(T), place);
    return place;
  }

 private:
  static void Copy(const void* host, size_t bytes, void* device);

  uint8_t* base_ = nullptr;
  size_t capacity_ = 0;
  size_t used_ = 0;
  MemoryPlan taken_;
};

// Scratch memory that all operations share, because they run one after another on one stream: every
// user states its need while the forward passes are built; the largest is taken at the end.
class Workspace {
 public:
  void Require(size_t bytes) { bytes_ = bytes > bytes_ ? bytes : bytes_; }
  void TakeFrom(DeviceArena& arena) { data_ = arena.TakeBytes(MemoryKind::kWorkspace, bytes_); }
  void* data() const { return data_; }

 private:
  size_t bytes_ = 0;
  void* data_ = nullptr;
};

}  // namespace ultraspeed::worker::cuda
