// How this round's q, keys and values come from the fp32 projections to the warps of a unit, and
// into the cache. What was cached before comes by asynchronous copies.
//
// Other blocks wrote cache and projections, so both are read past L1. What the cache holds at this
// round's own positions is never used: other units may be writing it right now.
#pragma once

#include "kernels/cuda/device/copy.cuh"
#include "kernels/cuda/qkv_head.cuh"
#include "kernels/cuda/resident/attention_unit.cuh"

namespace ultraspeed::kernels::cuda::resident {

// ---- This round's projections

// How a swizzled tile lies in shared memory: as in the cache, or in whole rows of any number. Part
// p, columns 64 p to 64 p + 63, begins so many elements behind the first.
struct InParts {
  static constexpr int kRowElements = kPartColumns;
  __device__ static constexpr int PartBegin(int part) { return part * kPartElements; }
};
template <int kDim>
struct InRows {
  static constexpr int kRowElements = kDim;
  __device__ static constexpr int PartBegin(int part) { return part * kPartColumns; }
};

// One head of a row, and where it goes: `to_row` of a tile.
struct HeadMove {
  HeadKind kind;
  int row;     // of the sequence
  int q_head;  // of the group
  bf16* tile;  // null: no such head
  int to_row;
};

// kHeads heads of a warp, requested together: norm and rotary or the value scale, then rounding. A
// lane holds dims lane, lane + 32, ... Norms come with heads of 128 dims only.
template <int kDim, int kHeads, typename Tile>
class HeadBatch {
 public:
  // `move(i)` of head i. `norm`: of its queries or its keys, may be null. Reads nothing that a
  // projection has to come before.
  template <typename MoveFn>
  __device__ __forceinline__ HeadBatch(const AttentionTask& task, const RoundView& round,
                                       const Group& group, int kv_head, const float* norm,
                                       MoveFn move)
      : norm_(norm) {
    const HeadLayout layout = {task.group_stride, group.size, task.num_kv_heads, kDim, kValueDim};
    const int columns[] = {HeadColumn(layout, HeadKind::kQuery, kv_head, 0),
                           HeadColumn(layout, HeadKind::kKey, kv_head, 0),
                           HeadColumn(layout, HeadKind::kValue, kv_head, 0)};
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
      const HeadMove head = move(i);
      const bool is_value = head.kind == HeadKind::kValue;
      is_value_ |= is_value ? 1u << i : 0u;
      column_[i] = -1;
      to_[i] = 0;
      cosine_[i] = sine_[i] = 0.0f;
      if (head.tile == nullptr) continue;
      column_[i] = (round.first_row + head.row) * task.row_width + head.q_head * kDim + Lane() +
                   (head.kind == HeadKind::kQuery ? columns[0]
                    : is_value                    ? columns[2]
                                                  : columns[1]);
      to_[i] = SharedAddress(head.tile + head.to_row * Tile::kRowElements +
                             ((Lane() / kUnitElements) ^ (head.to_row % 8)) * kUnitElements +
                             Lane() % kUnitElements);
      if (is_value) continue;
      const float* const rope = task.rope + (round.position + head.row) * kRotaryDims + Lane();
      cosine_[i] = __ldg(rope);
      sine_[i] = __ldg(rope + kWarpLanes);
    }
  }

  __device__ __forceinline__ void Load(const AttentionTask& task) {
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
#pragma unroll
      for (int j = 0; j < kElements; ++j) {
        x_[i][j] = 0.0f;
        if (column_[i] >= 0 && (j < kValueDim / kWarpLanes || !IsValue(i))) {
          x_[i][j] = __ldcg(task.qkv + column_[i] + j * kWarpLanes);
        }
      }
    }
  }

  __device__ __forceinline__ void Store(const AttentionTask& task) {
    Store(task, [](int part) { return Tile::PartBegin(part); });
  }
  // Where parts lie elsewhere: `part_begin(p)` instead of Tile's.
  template <typename PartFn>
  __device__ __forceinline__ void Store(const AttentionTask& task, PartFn part_begin) {
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
      if (column_[i] < 0) continue;
      float(&x)[kElements] = x_[i];
      if (IsValue(i)) {
#pragma unroll
        for (int j = 0; j < kValueDim / kWarpLanes; ++j) x[j] = ScaleValue(x[j], task.value_scale);
      } else {
        Norm(x, task.epsilon);
        static_assert(kRotaryDims == 2 * kWarpLanes, "a lane holds both elements of its pair");
        const float first = x[0], second = x[1];
        x[0] = Rotate(first, second, cosine_[i], sine_[i], true);
        x[1] = Rotate(second, first, cosine_[i], sine_[i], false);
      }
      // Swizzled: the element 32 columns on has bit 2 of its unit flipped.
#pragma unroll
      for (int j = 0; j < kElements; ++j) {
        if (j >= kValueDim / kWarpLanes && IsValue(i)) continue;
        const uint32_t to = (j % 2 == 0 ? to_[i] : to_[i] ^ kWarpLanes * 2) + part_begin(j / 2) * 2;
        asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(RoundToBf16(x[j])) : "memory");
      }
    }
  }

 private:
  static constexpr int kElements = kDim / kWarpLanes;  // of a lane
  static constexpr bool kHasNorms = kDim == 128;

  __device__ static __forceinline__ int Lane() { return threadIdx.x % kWarpLanes; }
  __device__ __forceinline__ bool IsValue(int i) const { return (is_value_ >> i & 1) != 0; }
  __device__ __forceinline__ void Norm(float (&x)[kElements], float epsilon) const {
    if (!kHasNorms || norm_ == nullptr) return;
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < kElements; ++j) squares = fmaf(x[j], x[j], squares);
    const float scale = HeadNormScale(squares, kDim, epsilon);
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      x[j] = NormElement(x[j], scale, __ldg(norm_ + Lane() + j * kWarpLanes));
    }
  }

  const float* const norm_;
  uint32_t is_value_ = 0;  // bit i: head i is one
  int column_[kHeads];     // in all rows of task.qkv, of dim 0 + lane; -1: no such head
  uint32_t to_[kHeads];    // shared address of dim 0 + lane
  float cosine_[kHeads], sine_[kHeads];
  float x_[kHeads][kElements];
};

// ---- Into the cache

// `count` rows of this round, by `num_threads` threads: from a tile of a chunk in shared memory to
// the same rows of the page's tile.
template <int kDim>
__device__ __forceinline__ void StoreRows(const bf16* chunk, void* cache, int64_t tile,
                                          int first_row, int count, int thread, int num_threads) {
  constexpr int kUnits = kDim / kUnitElements;
  bf16* const page = static_cast<bf16*>(cache) + tile;
  for (int i = thread; i < count * kUnits; i += num_threads) {
    const int place = PlaceElement(first_row + i / kUnits, i % kUnits);
    *reinterpret_cast<uint4*>(page + place) = *reinterpret_cast<const uint4*>(chunk + place);
  }
}

}  // namespace ultraspeed::kernels::cuda::resident
