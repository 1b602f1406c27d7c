// The loaders of attention in segments (attention_segments.cuh): keys and values of a block's units
// into the ring.
#pragma once

#include "kernels/cuda/resident/attention_segment_ring.cuh"

namespace ultraspeed::kernels::cuda::resident {

// One warp asks for keys, one for values; all of them put together what is not in the cache.
template <int kDim>
class SegmentLoader {
 public:
  __device__ __forceinline__ SegmentLoader(const AttentionTask& task, SegmentScratch<kDim>& shared)
      : task_(task), group_(GroupOf(task)), shared_(shared) {}

  // Units [begin, end) of `work`. All loaders call it, and wait for the projections by `wait` in
  // one warp.
  template <typename Work, typename WaitFn>
  __device__ __forceinline__ void Run(const Work& work, int begin, int end, WaitFn wait) {
    // Earlier rounds wrote the cache by ordinary stores.
    asm volatile("fence.proxy.async.global;" ::: "memory");
    UnitWalk<Work> walk(work, task_, group_, begin);
    SegmentUnit unit = walk.Unit();
    int pages = PagesOf(work.views[unit.view], unit.part);
#pragma unroll 1
    for (int i = 0; i < end - begin; ++i) {
      const RoundView& round = work.views[unit.view];
      // A unit ahead, so that nobody waits for them.
      walk.Next();
      const SegmentUnit next = walk.Exists() ? walk.Unit() : unit;
      const int next_pages = PagesOf(work.views[next.view], next.part);
      const int cached_chunks = static_cast<int>(round.position) / kChunkKeys;
#pragma unroll 1
      for (int chunk = unit.part.chunk_begin; chunk < unit.part.chunk_end; ++chunk) {
        const bool first = chunk == unit.part.chunk_begin;
        const int page = __shfl_sync(kAllLanes, pages, chunk - unit.part.chunk_begin);
        if (chunk < cached_chunks) {
          if (first && Loader() == 0) Tell(unit, i);
          if (Loader() == 0) CopyKeys(unit, page);
          if (Loader() == kWarpLanes) CopyValues(unit, page);
        } else {
          MakeChunk(round, unit, page, chunk * kChunkKeys, wait);
          if (first && Loader() == 0) Tell(unit, i);
          if (Loader() == 0) {
            for (int part = 0; part < kChunkParts; ++part) Arrive(Full(part), 1);
          }
        }
        __syncwarp();
        number_ += kChunkParts;
      }
      unit = next;
      pages = next_pages;
    }
  }

 private:
  static constexpr int kKeyParts = kDim / kPartColumns, kValueParts = kValueDim / kPartColumns;
  static constexpr int kChunkParts = kKeyParts + kValueParts;

  static __device__ __forceinline__ int Loader() {
    return Thread() - kFirstFinisherWarp * kWarpLanes;
  }
  static __device__ __forceinline__ void LoadersMeet() {
    NamedBarrier<kFinisherBarrier, kFinisherThreads>();
  }
  // Lane i: of chunk i of the unit.
  __device__ __forceinline__ int PagesOf(const RoundView& round, const PartUnit& unit) const {
    const int lane = Thread() % kWarpLanes;
    return PageOfChunk(task_, round, min(unit.chunk_begin + lane, unit.chunk_end - 1));
  }
  __device__ __forceinline__ void WaitForRoom(int part) const {
    const RingPlace place(number_ + part);
    WaitBarrier(&shared_.empty[place.slot], place.parity ^ 1);
  }
  __device__ __forceinline__ void WaitForRoom(int begin, int end) const {
    for (int part = begin; part < end; ++part) WaitForRoom(part);
  }
  __device__ __forceinline__ bf16* Slot(int part) const {
    return shared_.slots[RingPlace(number_ + part).slot];
  }
  __device__ __forceinline__ uint64_t* Full(int part) const {
    return &shared_.full[RingPlace(number_ + part).slot];
  }
  // Before the unit's first part is there. The place is free when there is room for that part.
  __device__ __forceinline__ void Tell(const SegmentUnit& unit, int index) const {
    WaitForRoom(0);
    shared_.units[index % kUnitsKnown] = unit;
  }
  __device__ __forceinline__ int64_t TileOf(const SegmentUnit& unit, int page, int dim) const {
    return TileOffset(page, unit.part.kv_head, task_.num_kv_heads, dim);
  }

  // Of a chunk that the cache holds.
  __device__ __forceinline__ void CopyKeys(const SegmentUnit& unit, int page) const {
    CopyParts(static_cast<const bf16*>(task_.cache.k) + TileOf(unit, page, kDim), 0, kKeyParts);
  }
  __device__ __forceinline__ void CopyValues(const SegmentUnit& unit, int page) const {
    CopyParts(static_cast<const bf16*>(task_.cache.v) + TileOf(unit, page, kValueDim), kKeyParts,
              kChunkParts);
  }
  __device__ __forceinline__ void CopyParts(const bf16* tile, int begin, int end) const {
#pragma unroll
    for (int part = begin; part < end; ++part) {
      WaitForRoom(part);
      BulkCopy(Slot(part), tile + (part - begin) * kPartElements, kPartBytes, Full(part));
    }
  }

  // A chunk of keys from `begin` on, with rows of this round or keys that nobody sees: these become
  // zeros, since memory that no row of this pass may see can hold anything, and 0 * NaN would
  // spread. All parts lie in their slots when it returns, but have not arrived.
  template <typename WaitFn>
  __device__ __forceinline__ void MakeChunk(const RoundView& round, const SegmentUnit& unit,
                                            int page, int begin, WaitFn wait) const {
    // Who asked for a place's last contents knows which of its uses has to be over.
    if (Loader() == 0) WaitForRoom(0, kKeyParts);
    if (Loader() == kWarpLanes) WaitForRoom(kKeyParts, kChunkParts);
    LoadersMeet();
    const int position = static_cast<int>(round.position);
    CopyRows(static_cast<const bf16*>(task_.cache.k) + TileOf(unit, page, kDim), 0, kKeyParts,
             position - begin);
    CopyRows(static_cast<const bf16*>(task_.cache.v) + TileOf(unit, page, kValueDim), kKeyParts,
             kChunkParts, position - begin);
    CommitCopies();
    if (Loader() < kWarpLanes) wait();
    WaitCopies<0>();
    LoadersMeet();
    MakeRows(round, unit, page, begin);
    FenceBulkCopies();
    LoadersMeet();
  }
  // Rows [0, count) of a page's tile into parts [begin, end), zeros into the others.
  __device__ __forceinline__ void CopyRows(const bf16* tile, int begin, int end, int count) const {
    constexpr int kPieces = kChunkKeys * kPartUnits;
    for (int part = begin; part < end; ++part) {
      bf16* const to = Slot(part);
      const bf16* const from = tile + (part - begin) * kPartElements;
#pragma unroll
      for (int i = Loader(); i < kPieces; i += kFinisherThreads) {
        CopyAsync16(to + i * kUnitElements, from + i * kUnitElements, i / kPartUnits < count);
      }
    }
  }
  // The round's rows among the keys from `begin` on, into the slots and, once for each kv head, the
  // cache. A warp's heads of both kinds are requested at once.
  __device__ __forceinline__ void MakeRows(const RoundView& round, const SegmentUnit& unit,
                                           int page, int begin) const {
    constexpr int kHeads = (kBandRows + kFinisherWarps - 1) / kFinisherWarps;
    const int position = static_cast<int>(round.position), warp = Loader() / kWarpLanes;
    const int row_begin = max(0, begin - position);
    const int row_end = min(round.num_rows, begin + kChunkKeys - position);
    const auto move = [&](HeadKind kind, bf16* first_part) {
      return [=](int i) -> HeadMove {
        const int row = row_begin + warp + i * kFinisherWarps;
        return {kind, row, 0, row < row_end ? first_part : nullptr, position + row - begin};
      };
    };
    HeadBatch<kDim, kHeads, InParts> keys(task_, round, group_, unit.part.kv_head, task_.k_norm,
                                          move(HeadKind::kKey, Slot(0)));
    HeadBatch<kDim, kHeads, InParts> values(task_, round, group_, unit.part.kv_head, nullptr,
                                            move(HeadKind::kValue, Slot(kKeyParts)));
    keys.Load(task_);
    values.Load(task_);
    keys.Store(task_, [&](int part) { return static_cast<int>(Slot(part) - Slot(0)); });
    values.Store(task_, [&](int part) {
      return static_cast<int>(Slot(kKeyParts + part) - Slot(kKeyParts));
    });
    if (unit.part.pair_begin > 0) return;
    __syncwarp();
    bf16* const key_page = static_cast<bf16*>(task_.cache.k) + TileOf(unit, page, kDim);
    bf16* const value_page = static_cast<bf16*>(task_.cache.v) + TileOf(unit, page, kValueDim);
    for (int row = row_begin + warp; row < row_end; row += kFinisherWarps) {
      for (int i = Thread() % kWarpLanes; i < kChunkParts * kPartUnits; i += kWarpLanes) {
        const int part = i / kPartUnits,
                  place = PlaceElement(position + row - begin, i % kPartUnits);
        bf16* const tile = part < kKeyParts ? key_page + part * kPartElements
                                            : value_page + (part - kKeyParts) * kPartElements;
        *reinterpret_cast<uint4*>(tile + place) =
            *reinterpret_cast<const uint4*>(Slot(part) + place);
      }
    }
  }

  const AttentionTask& task_;
  const Group group_;
  SegmentScratch<kDim>& shared_;
  uint32_t number_ = 0;  // of the next chunk's first part
};

}  // namespace ultraspeed::kernels::cuda::resident
