// The rows of a ring that a snapshot keeps, in one array with it: the last window of positions
// before `position`. A position lies at its remainder, in the ring and in the snapshot.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/ops.h"
#include "worker/cpu/zeroed_array.h"

namespace ultraspeed::worker {

enum class SnapshotCopy : uint8_t { kSave, kLoad };

struct RingSnapshot {
  int64_t ring_begin;  // row of the array
  int64_t ring_tokens;
  int64_t snapshot_begin;  // likewise
  int64_t window;
  int64_t position;

  // Each row is `width` elements.
  void Copy(SnapshotCopy direction, ZeroedArray<kernels::bf16>& rows, size_t width) const {
    for (int64_t p = std::max<int64_t>(0, position - window); p < position; ++p) {
      kernels::bf16* const ring = &rows[static_cast<size_t>(ring_begin + p % ring_tokens) * width];
      kernels::bf16* const kept = &rows[static_cast<size_t>(snapshot_begin + p % window) * width];
      const bool save = direction == SnapshotCopy::kSave;
      std::copy_n(save ? ring : kept, width, save ? kept : ring);
    }
  }
};

}  // namespace ultraspeed::worker
