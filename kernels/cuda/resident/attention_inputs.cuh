// How q, keys and values come to the warps of a unit: cached keys from L2 through registers to mma
// fragments, cached values by asynchronous copies, and this round's rows from the fp32 projections.
//
// Other blocks wrote cache and projections, so both are read past L1. What the cache holds at this
// round's own positions is never used: other units may be writing it right now.
#pragma once

#include <cstddef>

#include "kernels/cuda/device/copy.cuh"
#include "kernels/cuda/qkv_head.cuh"
#include "kernels/cuda/resident/attention_unit.cuh"

namespace ultraspeed::kernels::cuda::resident {

// The warp's 16 keys of a group. Loaded, words[j] of lane 4g + t are the 16-byte units 4j + t of
// keys g and g + 8: whole sectors. Staged, words[j] are what ldmatrix would load from the tile: the
// B operands of mma steps 2j and 2j + 1, each {keys 0..7: b0, b1, keys 8..15: b0, b1}.
template <int kDim>
struct WarpKeys {
  static constexpr int kBlocks = kDim / 32;
  uint32_t words[kBlocks][8];

  // Keys of the chunk whose warp this is, as far as the cache has them. `page` is not used if it
  // has none.
  __device__ __forceinline__ void Load(const AttentionTask& task, const Unit& unit,
                                       const Chunk& chunk, int page) {
    const int lane = threadIdx.x % kWarpLanes;
    const int key = threadIdx.x / kWarpLanes % kWarpsPerChunk * kWarpKeys;  // in the chunk
    const int cached_end = min(chunk.end, chunk.first_new);
    const auto* const tile =
        reinterpret_cast<const uint4*>(static_cast<const bf16*>(task.cache.k) +
                                       TileOffset(page, unit.kv_head, task.num_kv_heads, kDim));
    // Unit 4j + t of a row with row % 8 = g lies at (4j + t) ^ g: as below for even and odd j.
    const uint4* const row = tile + (key + lane / 4) * (kDim / kUnitElements);
    const uint4* const units[2] = {row + (lane % 4 ^ lane / 4), row + (lane % 4 ^ lane / 4 ^ 4)};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int first = chunk.begin + key + 8 * i;
      const bool wanted = first < cached_end && first + 8 > chunk.first;
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
        uint4 unit_of_key = {0, 0, 0, 0};
        if (wanted) unit_of_key = __ldcg(units[j % 2] + j / 2 * 8 + i * kDim);
        words[j][4 * i] = unit_of_key.x;
        words[j][4 * i + 1] = unit_of_key.y;
        words[j][4 * i + 2] = unit_of_key.z;
        words[j][4 * i + 3] = unit_of_key.w;
      }
    }
  }

  // `stage`: 1 KB of the warp's own. Key k's unit 4j + u lies in 64 bytes at k * 64, at slot
  // u ^ (k / 2 % 4): neither stores nor ldmatrix meet bank conflicts.
  __device__ __forceinline__ void Stage(void* stage) {
    const int lane = threadIdx.x % kWarpLanes;
    const uint32_t address = SharedAddress(stage);
    auto* const store = reinterpret_cast<uint4*>(stage) + lane / 4 * 4 + (lane % 4 ^ lane / 8);
    // Matrix m = lane / 8 of a load: keys 8 * (m / 2) + .., unit m % 2 of the step.
    const int key = lane % 8, half = lane / 8 % 2;
    const uint32_t row = address + lane / 16 * 512 + key * 64;
    const uint32_t even = row + (half ^ key / 2) * 16, odd = row + ((half + 2) ^ key / 2) * 16;
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
      uint32_t(&w)[8] = words[j];
      store[0] = {w[0], w[1], w[2], w[3]};
      store[32] = {w[4], w[5], w[6], w[7]};
      __syncwarp();
      uint32_t first[4], second[4];
      LoadMatrices(first, even);
      LoadMatrices(second, odd);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        w[i] = first[i];
        w[4 + i] = second[i];
      }
      __syncwarp();
    }
  }

  // Staged fragments of keys that are rows of this round come from `new_keys` instead. `first_row`:
  // the row that the warp's first key is or, outside [0, kRowsMax), would be.
  __device__ __forceinline__ void TakeNewRows(int first_row, const bf16* new_keys) {
    const int lane = threadIdx.x % kWarpLanes;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = first_row + 8 * i + lane / 4;
      if (!__any_sync(kAllLanes, row >= 0 && row < kRowsMax)) continue;
      if (row < 0 || row >= kRowsMax) continue;
      // Unit u = 8 * high + low of the row lies at 8 * high + (low ^ row % 8).
      const bf16* const at = new_keys + row * kDim + lane % 4 * 2;
#pragma unroll
      for (int low = 0; low < 8; ++low) {
        const auto* const units =
            reinterpret_cast<const uint32_t*>(at + (low ^ row) * kUnitElements);
#pragma unroll
        for (int high = 0; high < kDim / 64; ++high) {
          const int step = high * 4 + low / 2;
          words[step / 2][step % 2 * 4 + 2 * i + low % 2] = units[high * 32];
        }
      }
    }
  }
};

// Starts the copies of a group's cached values; values that no pair sees become zeros, since memory
// that no row of this pass may see can hold anything, and 0 * NaN would spread. Rows of this round
// are left to StoreNewValues.
template <int kDim>
__device__ __forceinline__ void CopyValues(const AttentionTask& task, const Unit& unit, int group,
                                           const GroupPages& pages, UnitScratch<kDim>& shared) {
  constexpr int kUnits = kValueDim / kUnitElements;
  constexpr int kRowsAtOnce = kConsumerThreads / kUnits;
  const int row = static_cast<int>(threadIdx.x) / kUnits;
#pragma unroll
  for (int c = 0; c < kGroupChunks; ++c) {
    const Chunk chunk = ChunkAt(unit, group * kGroupChunks + c);
    if (chunk.end == 0) break;
    const int first = chunk.first - chunk.begin, end = chunk.end - chunk.begin;
    const int first_new = chunk.first_new - chunk.begin;
    const bf16* const from = static_cast<const bf16*>(task.cache.v) +
                             TileOffset(pages.page[c], unit.kv_head, task.num_kv_heads, kValueDim) +
                             threadIdx.x * kUnitElements;
    bf16* const to = shared.values[c] + threadIdx.x * kUnitElements;
#pragma unroll
    for (int r = 0; r < kChunkKeys; r += kRowsAtOnce) {
      const bool seen = row + r >= first && row + r < end;
      if (row + r >= kChunkKeys || (seen && row + r >= first_new)) continue;
      CopyAsync16(to + r * kValueDim, from + r * kValueDim, seen);
    }
  }
  CommitCopies();
}

// This round's values in the group's tiles.
template <int kDim>
__device__ __forceinline__ void StoreNewValues(const Unit& unit, int group,
                                               UnitScratch<kDim>& shared) {
  constexpr int kUnits = kValueDim / kUnitElements;
  static_assert(kRowsMax * kUnits <= kConsumerThreads);
  const int row = unit.row_begin + static_cast<int>(threadIdx.x) / kUnits;
  if (row >= unit.row_end) return;
  const int key = unit.is_drafter ? row : unit.position + row;
  const int index = unit.is_drafter ? unit.num_cache_chunks : key / kChunkKeys - unit.chunk_begin;
  const int c = index - group * kGroupChunks;
  if (c < 0 || c >= kGroupChunks) return;
  const int column = static_cast<int>(threadIdx.x) % kUnits * kUnitElements;
  *reinterpret_cast<uint4*>(shared.values[c] +
                            SwizzledElement(key % kChunkKeys, column, kValueDim)) =
      *reinterpret_cast<const uint4*>(shared.new_values + row * kValueDim + column);
}

// The heads that the unit needs of this round's projections: q of its pairs, then keys, then values
// of the rows that it sees; head i is warp i % 12's. A lane holds dims lane, lane + 32, ... Norms
// come with heads of 128 dims only (the drafter's).
template <int kDim>
class NewHeads {
 public:
  // Reads what no projection has to come before.
  __device__ __forceinline__ NewHeads(const AttentionTask& task, const Unit& unit) {
    const HeadLayout layout = {task.group_stride, unit.group, task.num_kv_heads, kDim, kValueDim};
    const int columns[] = {HeadColumn(layout, HeadKind::kQuery, unit.kv_head, 0),
                           HeadColumn(layout, HeadKind::kKey, unit.kv_head, 0),
                           HeadColumn(layout, HeadKind::kValue, unit.kv_head, 0)};
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
      const Head head = HeadAt(unit, i);
      out_[i] = -1;
      column_[i] = 0;
      cosine_[i] = sine_[i] = 0.0f;
#pragma unroll
      for (int j = 0; j < kElements; ++j) norm_[i][j] = 0.0f;
      if (!head.exists) continue;
      const bool is_value = head.kind == HeadKind::kValue;
      const bool is_query = head.kind == HeadKind::kQuery;
      column_[i] = head.row * task.row_width + head.q_head * kDim + Lane() +
                   (is_query   ? columns[0]
                    : is_value ? columns[2]
                               : columns[1]);
      const int row = is_query ? IndexOf(i) : head.row;
      out_[i] = (is_value   ? kNewValues
                 : is_query ? kQ
                            : kNewKeys) +
                (is_value ? row * kValueDim + Lane() : SwizzledElement(row, Lane(), kDim));
      const float* const rope =
          task.rope + static_cast<int64_t>(unit.position + head.row) * kRotaryDims + Lane();
      cosine_[i] = __ldg(rope);
      sine_[i] = __ldg(rope + kWarpLanes);
      if constexpr (kHasNorms) {
        const float* const norm = is_query ? task.q_norm : task.k_norm;
        if (norm == nullptr) continue;
#pragma unroll
        for (int j = 0; j < kElements; ++j) norm_[i][j] = __ldg(norm + Lane() + j * kWarpLanes);
      }
    }
  }

  __device__ __forceinline__ void Load(const AttentionTask& task) {
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
#pragma unroll
      for (int j = 0; j < kElements; ++j) {
        const int end = j < kValueDim / kWarpLanes ? kPastScratch : kNewValues;
        x_[i][j] = 0.0f;
        if (out_[i] >= 0 && out_[i] < end) {
          x_[i][j] = __ldcg(task.qkv + column_[i] + j * kWarpLanes);
        }
      }
    }
  }

  __device__ __forceinline__ void Store(const AttentionTask& task, uint8_t* scratch) {
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
      if (out_[i] < 0) continue;
      float(&x)[kElements] = x_[i];
      bf16* const out = reinterpret_cast<bf16*>(scratch) + out_[i];
      if (out_[i] >= kNewValues) {
#pragma unroll
        for (int j = 0; j < kValueDim / kWarpLanes; ++j) {
          out[j * kWarpLanes] = RoundToBf16(ScaleValue(x[j], task.value_scale));
        }
        continue;
      }
      if constexpr (kHasNorms) {
        if ((out_[i] < kNewKeys ? task.q_norm : task.k_norm) != nullptr) {
          float squares = 0.0f;
#pragma unroll
          for (int j = 0; j < kElements; ++j) squares = fmaf(x[j], x[j], squares);
          const float scale = HeadNormScale(squares, kDim, task.epsilon);
#pragma unroll
          for (int j = 0; j < kElements; ++j) x[j] = NormElement(x[j], scale, norm_[i][j]);
        }
      }
      static_assert(kRotaryDims == 2 * kWarpLanes, "a lane holds both elements of its rotary pair");
      const float first = x[0], second = x[1];
      x[0] = Rotate(first, second, cosine_[i], sine_[i], true);
      x[1] = Rotate(second, first, cosine_[i], sine_[i], false);
      // Swizzled: the element 32 columns on has bit 2 of its unit flipped, 64 columns on lie 64 on.
      bf16* const odd = reinterpret_cast<bf16*>(scratch) + (out_[i] ^ kWarpLanes);
#pragma unroll
      for (int j = 0; j < kElements; ++j) {
        (j % 2 == 0 ? out : odd)[j / 2 * 2 * kWarpLanes] = RoundToBf16(x[j]);
      }
    }
  }

 private:
  static constexpr int kHeads =
      (kWarpPairs + 2 * kRowsMax + kAttentionWarps - 1) / kAttentionWarps;  // of a warp
  static constexpr int kElements = kDim / kWarpLanes;                       // of a lane
  static constexpr bool kHasNorms = kDim == 128;
  // Where heads go, in elements of the scratch memory: tells the kinds apart, too.
  using Scratch = UnitScratch<kDim>;
  static constexpr int kQ = offsetof(Scratch, q) / sizeof(bf16);
  static constexpr int kNewKeys = offsetof(Scratch, new_keys) / sizeof(bf16);
  static constexpr int kNewValues = offsetof(Scratch, new_values) / sizeof(bf16);
  static constexpr int kPastScratch = sizeof(Scratch) / sizeof(bf16);
  static_assert(kQ < kNewKeys && kNewKeys < kNewValues);

  struct Head {
    HeadKind kind;
    int row;     // of the round
    int q_head;  // of the group
    bool exists;
  };
  __device__ static __forceinline__ int Lane() { return threadIdx.x % kWarpLanes; }
  __device__ static __forceinline__ int IndexOf(int i) {
    return static_cast<int>(threadIdx.x) / kWarpLanes + i * kAttentionWarps;
  }
  __device__ static __forceinline__ Head HeadAt(const Unit& unit, int i) {
    int index = IndexOf(i);
    if (index < unit.num_pairs) {
      const int pair = unit.pair_begin + index;
      const int row = unit.RowOf(pair);
      return {HeadKind::kQuery, row, pair - row * unit.group, true};
    }
    index -= unit.num_pairs;
    const int num_rows = unit.row_end - unit.row_begin;
    if (index < num_rows) return {HeadKind::kKey, unit.row_begin + index, 0, true};
    index -= num_rows;
    return {HeadKind::kValue, unit.row_begin + index, 0, index < num_rows};
  }

  int column_[kHeads];  // in all rows of task.qkv, of dim 0 + lane
  int out_[kHeads];     // element of the scratch memory, of dim 0 + lane; -1: no such head
  float cosine_[kHeads], sine_[kHeads];
  float norm_[kHeads][kElements];
  float x_[kHeads][kElements];
};

// Writes this round's keys and values into the cache: those of the rows whose first pair is the
// unit's, so that each is written once. `thread` of `num_threads`.
template <int kDim>
__device__ __forceinline__ void StoreInCache(const AttentionTask& task, const RoundView& round,
                                             const Unit& unit, const UnitScratch<kDim>& shared,
                                             int thread, int num_threads) {
  constexpr int kKeyUnits = kDim / kUnitElements;
  constexpr int kUnits = kKeyUnits + kValueDim / kUnitElements;  // of a row
  for (int i = thread; i < (unit.row_end - unit.row_begin) * kUnits; i += num_threads) {
    const int row = unit.row_begin + i / kUnits;
    const int first_pair = row * unit.group - unit.pair_begin;
    if (first_pair < 0 || first_pair >= kWarpPairs) continue;
    const int position = unit.position + row;
    const int page = PageOfChunk(task, round, unit, position / kChunkKeys - unit.chunk_begin);
    const bool is_key = i % kUnits < kKeyUnits;
    const int column = (is_key ? i % kUnits : i % kUnits - kKeyUnits) * kUnitElements;
    const int dim = is_key ? kDim : kValueDim;
    const bf16* const from = is_key ? shared.new_keys + SwizzledElement(row, column, kDim)
                                    : shared.new_values + row * kValueDim + column;
    bf16* const to = static_cast<bf16*>(is_key ? task.cache.k : task.cache.v) +
                     TileOffset(page, unit.kv_head, task.num_kv_heads, dim) +
                     SwizzledElement(position % kChunkKeys, column, dim);
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
  }
}

}  // namespace ultraspeed::kernels::cuda::resident
