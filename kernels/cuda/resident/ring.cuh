// The ring of weights: the producer warp streams pieces of any size into it, across the borders of
// phases and rounds; consumers read them in order.
//
// Weights do not depend on what a round computes, so the next phase's pieces are under way while
// the blocks wait for each other. Only the experts are known late: there the producer waits for the
// choice. Every piece is read once a round, hence the hint to let it go from L2 first.
#pragma once

#include "kernels/cuda/resident/block.cuh"

namespace ultraspeed::kernels::cuda::resident {

__device__ __forceinline__ void BulkCopyOnce(void* shared, const void* global, uint32_t bytes,
                                             uint64_t* barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1], "
      "%2, [%3], %4;" ::"r"(SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(SharedAddress(barrier)), "l"(policy)
      : "memory");
}

// Entries under way or being read. A reader waits for an entry by the parity of its barrier alone:
// the entry's last use must be over by then. It is, because between two entries that a warp reads
// in a phase lie fewer than this many, and all warps have met since the last phase.
constexpr int kLiveEntries = kRingEntries / 2;

// The producer warp's view; all of its lanes call everything together. It has little time for an
// entry: a tile of an expert is multiplied in less than a microsecond.
class RingWriter {
 public:
  __device__ RingWriter(const Block& block, int lane) : block_(block), lane_(lane) {
    static_assert(kRingEntries == kWarpLanes);
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy_));
  }

  // False: the kernel is about to end.
  __device__ __forceinline__ bool Push(const void* data, uint32_t bytes) {
    return PushSeveral(1, bytes, data);
  }
  // One entry of `count` pieces, one behind the other; lane i names piece i.
  __device__ __forceinline__ bool PushSeveral(int count, uint32_t piece_bytes, const void* data) {
    const uint32_t bytes = count * piece_bytes;
    const uint32_t size = (bytes + 127) / 128 * 128;
    // A piece is not cut: the end of the ring stays empty.
    const bool wraps = head_ + size > kRingBytes;
    const uint32_t offset = wraps ? 0 : head_;
    const uint32_t taken = wraps ? size + kRingBytes - head_ : size;
    while (used_ + taken > kRingBytes || next_ - oldest_ == kLiveEntries) {
      if (!Reclaim()) return false;
    }
    Shared& shared = block_.shared();
    const int entry = next_ % kRingEntries;
    if (lane_ == entry) taken_ = taken;
    if (lane_ < count) {
      if (lane_ == 0) {
        shared.entry_offset[entry] = offset;
        ArriveExpecting(&shared.full[entry], bytes);
      }
      BulkCopyOnce(shared.ring + offset + lane_ * piece_bytes, data, piece_bytes,
                   &shared.full[entry], policy_);
    }
    head_ = offset + size;
    used_ += taken;
    ++next_;
    return true;
  }
  // All entries, once their readers are done. False: the kernel is about to end.
  __device__ __forceinline__ bool TakeBack() {
    while (oldest_ != next_) {
      if (!Reclaim()) return false;
    }
    return true;
  }
  // Until at most `count` entries are under way.
  __device__ __forceinline__ void WaitForCopies(uint32_t count) {
    if (next_ < count + 1) return;
    const uint32_t entry = next_ - 1 - count;
    block_.WaitBarrier(WaitsFor::kWeights, &block_.shared().full[entry % kRingEntries],
                       entry / kRingEntries & 1);
  }
  // Waits for copies that nobody will read: shared memory must outlive them.
  __device__ void Drain() {
    for (; oldest_ != next_; ++oldest_) {
      const int entry = oldest_ % kRingEntries;
      block_.WaitBarrier(WaitsFor::kWeights, &block_.shared().full[entry],
                         oldest_ / kRingEntries & 1);
    }
  }

 private:
  // Takes back the oldest entry once its readers are done.
  __device__ __forceinline__ bool Reclaim() {
    const int entry = oldest_ % kRingEntries;
    const uint32_t parity = oldest_ / kRingEntries & 1;
    bool is_free = false;
    block_.Wait(WaitsFor::kRoomInRing, [&] {
      is_free = IsDone(&block_.shared().empty[entry], parity);
      return __all_sync(kAllLanes, is_free || block_.shared().exits != 0) != 0;
    });
    if (!__all_sync(kAllLanes, is_free)) return false;
    used_ -= __shfl_sync(kAllLanes, taken_, entry);
    ++oldest_;
    return true;
  }

  const Block block_;
  const int lane_;
  uint64_t policy_;
  uint32_t taken_ = 0;  // of entry number lane_
  uint32_t head_ = 0, used_ = 0;
  uint32_t next_ = 0, oldest_ = 0;
};

// A consumer warp's view.
class RingReader {
 public:
  // Entry `i` of this phase, when it is there. The whole warp calls it.
  __device__ __forceinline__ const uint8_t* Wait(const Block& block, uint32_t i) const {
    const BarrierPhase full = Full(block, i);
    block.Wait(WaitsFor::kWeights, [&] { return IsDone(full); });
    __syncwarp();
    return At(block, i);
  }
  __device__ __forceinline__ bool IsThere(const Block& block, uint32_t i) const {
    return IsDone(Full(block, i));
  }
  __device__ __forceinline__ void Release(const Block& block, uint32_t i, uint32_t arrivals,
                                          int lane) const {
    __syncwarp();
    if (lane == 0) ReleaseAsLane(block, i, arrivals);
  }
  // The same for several entries at once: each lane waits for one of its own, or for none.
  __device__ __forceinline__ void WaitForLanes(const Block& block, bool waits, uint32_t i) const {
    const BarrierPhase full = Full(block, i);
    block.Wait(WaitsFor::kWeights, [&] {
      const bool is_there = !waits || IsDone(full);
      return __all_sync(kAllLanes, is_there) != 0;
    });
  }
  __device__ __forceinline__ const uint8_t* At(const Block& block, uint32_t i) const {
    return block.shared().ring + block.shared().entry_offset[(first_ + i) % kRingEntries];
  }
  __device__ __forceinline__ void ReleaseAsLane(const Block& block, uint32_t i,
                                                uint32_t arrivals) const {
    Arrive(&block.shared().empty[(first_ + i) % kRingEntries], arrivals);
  }
  __device__ __forceinline__ BarrierPhase Full(const Block& block, uint32_t i) const {
    const uint32_t entry = first_ + i;
    return {SharedAddress(&block.shared().full[entry % kRingEntries]), entry / kRingEntries & 1};
  }
  __device__ __forceinline__ void Advance(uint32_t count) { first_ += count; }

 private:
  uint32_t first_ = 0;
};

}  // namespace ultraspeed::kernels::cuda::resident
