// The rows of a ring that a snapshot keeps, in one array with it: the last window of positions
// before `position`. A position lies at its remainder, in the ring and in the snapshot.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/ops.h"
#include "worker/cpu/zeroed_array.h"

namespace ultraspeed::worker {

enum class SnapshotCopy : uint8_t { kSave, kLoad };

class RingSnapshot {
 public:
  // In an array of `num_slots` rings, and behind them a window for each snapshot.
  RingSnapshot(int64_t num_slots, int64_t ring_tokens, int64_t window, int snapshot, int slot,
               int64_t position)
      : ring_begin_(slot * ring_tokens),
        ring_tokens_(ring_tokens),
        snapshot_begin_(num_slots * ring_tokens + snapshot * window),
        window_(window),
        position_(position) {}

  // Each row is `width` elements.
  void Copy(SnapshotCopy direction, ZeroedArray<kernels::bf16>& rows, size_t width) const {
    const bool save = direction == SnapshotCopy::kSave;
    for (int64_t p = std::max<int64_t>(0, position_ - window_); p < position_; ++p) {
      kernels::bf16* const ring =
          &rows[static_cast<size_t>(ring_begin_ + p % ring_tokens_) * width];
      kernels::bf16* const kept = &rows[static_cast<size_t>(snapshot_begin_ + p % window_) * width];
      std::copy_n(save ? ring : kept, width, save ? kept : ring);
    }
  }

 private:
  const int64_t ring_begin_;  // row of the array
  const int64_t ring_tokens_;
  const int64_t snapshot_begin_;  // likewise
  const int64_t window_;
  const int64_t position_;
};

}  // namespace ultraspeed::worker
