// What those who attend a layer in segments share: a block's units, and the shared memory in which
// they hand chunks on.
#pragma once

#include "kernels/cuda/resident/attention_inputs.cuh"
#include "kernels/cuda/resident/sync.cuh"

namespace ultraspeed::kernels::cuda::resident {

constexpr int kGroupWarps = kUnitTilesMax;  // a tile of pairs each
constexpr int kWeighGroups = kValueDim / kPartColumns;
static_assert(kConsumerWarps == (1 + kWeighGroups) * kGroupWarps);
constexpr int kSlots = 5;       // of the ring, a part each
constexpr int kUnitsKnown = 4;  // more than the loaders are ahead

// A unit and whose it is.
struct SegmentUnit {
  int view;  // of its sequence
  PartUnit part;
};

template <int kDim>
struct alignas(128) SegmentScratch {
  bf16 queries[kDim * kUnitTilesMax * kWarpPairs];  // a tile as in the cache, row = pair
  bf16 slots[kSlots][kPartElements];
  // Of the chunk that is being weighed, row = pair: weights as tiles of the cache, high and low
  // terms, and what joins its values to those before.
  bf16 weights[2][kPartElements];
  Factors factors[kUnitTilesMax * kWarpPairs];
  uint64_t full[kSlots], empty[kSlots];
  uint64_t weighted, weights_free;
  SegmentUnit units[kUnitsKnown];  // unit i of the block at i % kUnitsKnown, by the loaders
};
static_assert(sizeof(SegmentScratch<192>) <= kAttentionScratchBytes);

// The sequences of a pass and how their layer is cut. `plan_of(view)` knows how many units each
// has.
template <typename PlanFn>
struct SegmentWork {
  const RoundView* views;
  int num_views;
  PlanFn plan_of;

  __device__ __forceinline__ int NumUnits() const {
    int count = 0;
    for (int v = 0; v < num_views; ++v) count += plan_of(views[v]).num_units;
    return count;
  }
};
// A block's share of the units of a layer: [begin, end).
struct UnitShare {
  int begin, end;
};
template <typename Work>
__device__ __forceinline__ UnitShare ShareOfUnits(const Work& work, int member, int num_members) {
  const int num_units = work.NumUnits();
  const int each = Quotient(num_units, num_members), extra = num_units - each * num_members;
  const int begin = member * each + min(member, extra);
  return {begin, begin + each + (member < extra ? 1 : 0)};
}

// The units in order, from number `index` on.
template <typename Work>
class UnitWalk {
 public:
  __device__ __forceinline__ UnitWalk(const Work& work, const AttentionTask& task,
                                      const Group& group, int index)
      : work_(work), task_(task), group_(group), plan_(work.plan_of(work.views[0])), index_(index) {
    FindView();
  }
  __device__ __forceinline__ SegmentUnit Unit() const {
    return {view_, PartUnitAt(task_, work_.views[view_], plan_, group_, index_)};
  }
  __device__ __forceinline__ void Next() {
    ++index_;
    FindView();
  }
  // Whether there is a unit.
  __device__ __forceinline__ bool Exists() const { return view_ < work_.num_views; }

 private:
  __device__ __forceinline__ void FindView() {
    while (index_ >= plan_.num_units) {
      index_ -= plan_.num_units;
      if (++view_ == work_.num_views) return;
      plan_ = work_.plan_of(work_.views[view_]);
    }
  }

  const Work& work_;
  const AttentionTask& task_;
  const Group& group_;
  PartPlan plan_;
  int view_ = 0, index_;  // of its units
};

// A part's place in the ring, by its number since the phase's start.
struct RingPlace {
  int slot;
  uint32_t parity;  // of its use

  explicit __device__ __forceinline__ RingPlace(uint32_t number)
      : slot(static_cast<int>(number % kSlots)), parity(number / kSlots % 2) {}
};

}  // namespace ultraspeed::kernels::cuda::resident
