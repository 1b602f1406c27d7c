// The pages of a ring that a snapshot keeps, in one cache with it: the last window before a page's
// border.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "kernels/cuda/ops.h"

namespace ultraspeed::worker::cuda {

// Pages of a cache of rings, and of snapshots behind them.
struct RingPlan {
  int64_t num_slots = 0;
  int64_t num_snapshots = 0;
  int64_t ring_pages = 0;
  int64_t window_pages = 0;

  int64_t num_pages() const { return num_slots * ring_pages + num_snapshots * window_pages; }
};

enum class SnapshotCopy : uint8_t { kSave, kLoad };

// Appends the copies of one layer. `position`: a multiple of P.
void AddSnapshotCopies(SnapshotCopy direction, const kernels::cuda::KvCache& cache,
                       const RingPlan& plan, int snapshot, int slot, int64_t position,
                       std::vector<kernels::cuda::Copy>& copies);

}  // namespace ultraspeed::worker::cuda
