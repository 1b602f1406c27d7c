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

  // Each position has a row of `width` elements of each head, one head's rows after the other's.
  void Copy(SnapshotCopy direction, ZeroedArray<kernels::bf16>& rows, int num_heads,
            size_t width) const {
    const bool save = direction == SnapshotCopy::kSave;
    for (int head = 0; head < num_heads; ++head) {
      for (int64_t p = std::max<int64_t>(0, position_ - window_); p < position_; ++p) {
        const int64_t in_ring = ring_begin_ * num_heads + head * ring_tokens_ + p % ring_tokens_;
        const int64_t kept = snapshot_begin_ * num_heads + head * window_ + p % window_;
        std::copy_n(&rows[static_cast<size_t>(save ? in_ring : kept) * width], width,
                    &rows[static_cast<size_t>(save ? kept : in_ring) * width]);
      }
    }
  }

 private:
  const int64_t ring_begin_;  // positions of the array before it
  const int64_t ring_tokens_;
  const int64_t snapshot_begin_;  // likewise
  const int64_t window_;
  const int64_t position_;
};

}  // namespace ultraspeed::worker
