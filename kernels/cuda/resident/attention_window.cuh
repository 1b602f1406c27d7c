// Attention of a layer whose window is attended whole: a tile of 16 pairs, at most 135 keys and 32
// of the value dims in one go, by the twelve consumer warps of a block.
//
// A unit is latency bound, so all that earlier rounds left comes to shared memory before the
// projections are there. Then, with a consumers' barrier after each:
//   heads     q of the pairs, keys and values of the new rows (all warps)
//   scores    warp w: the step of 16 keys w, and its maxima; warps 10, 11: new rows into the cache
//   weights   of the same keys, relative to the maximum of their chunk
//   values    warps 0, 1: 16 dims each, of all chunks, and the output
// The longest chain of mma is 12 + 8. Bytes of a unit: 2 D + 64 per key, from L2.
#pragma once

#include "kernels/cuda/resident/attention_inputs.cuh"

namespace ultraspeed::kernels::cuda::resident {

constexpr int kWaitWarp = kAttentionWarps - 1;  // waits for the projections
constexpr int kQuarterUnits = kQuarterDims / kUnitElements;

template <int kDim>
struct alignas(128) WindowScratch {
  struct Weights {
    uint4 weights[kWindowStepsMax][2][kWarpLanes];  // A operands of a step: high, then low terms
    float sums[kWindowSlots][2][kWarpLanes];        // StepSum of pairs lane / 4 and + 8
  };
  union {
    bf16 keys[kWindowRows * kDim];  // InRows
    Weights after;                  // when all scores are known
  };
  bf16 values[kWindowRows * kQuarterDims];     // see QuarterElement
  bf16 q[kWarpPairs * kDim];                   // likewise, row = pair of the unit
  float maxima[kWarpPairs][kWindowSlots + 4];  // padded for the banks
};
static_assert(sizeof(WindowScratch<192>) <= kAttentionScratchBytes);
static_assert(kWindowStepsMax <= kAttentionWarps - 2);

// Rows of 64 bytes whose unit u lies at u ^ (row / 2 % 4): eight rows of one unit are in all banks.
__device__ __forceinline__ int QuarterElement(int row, int column) {
  return row * kQuarterDims + ((column / kUnitElements) ^ (row / 2 % 4)) * kUnitElements +
         column % kUnitElements;
}

// Starts the copies of the unit's cached keys and values. Values that no pair sees become zeros,
// since memory that no row of this pass may see can hold anything, and 0 * NaN would spread; rows
// of this round are left out.
template <int kDim>
__device__ __forceinline__ void CopyWindow(const AttentionTask& task, const RoundView& round,
                                           const WindowUnit& unit, WindowScratch<kDim>& shared) {
  constexpr int kChunks = kWindowSlots / kChunkSteps;
  const int zero = unit.RowZero(), chunk_begin = zero / kChunkKeys;
  const int cached_end = min(unit.end, unit.position);
  int pages[kChunks];
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    pages[c] =
        (chunk_begin + c) * kChunkKeys < cached_end ? PageOfChunk(task, round, chunk_begin + c) : 0;
  }
  const auto in_cache = [&](const void* cache, int key, int dim, int place) {
    const int c = key / kChunkKeys - chunk_begin;
    const int page = c == 0 ? pages[0] : c == 1 ? pages[1] : c == 2 ? pages[2] : pages[3];
    return static_cast<const bf16*>(cache) +
           TileOffset(page, unit.kv_head, task.num_kv_heads, dim) +
           PlaceElement(key % kChunkKeys, place);
  };
  {
    constexpr int kUnits = kDim / kUnitElements;
    constexpr int kRowsAtOnce = kConsumerThreads / kUnits;
    static_assert(kConsumerThreads % kUnits == 0 && kWindowRows % kRowsAtOnce == 0);
    const int place = static_cast<int>(threadIdx.x) % kUnits;
    int row = static_cast<int>(threadIdx.x) / kUnits;
#pragma unroll 3
    for (int r = 0; r < kWindowRows / kRowsAtOnce; ++r, row += kRowsAtOnce) {
      const int key = zero + row;
      if (key < unit.first || key >= cached_end) continue;
      CopyAsync16(shared.keys + row * kDim + place * kUnitElements,
                  in_cache(task.cache.k, key, kDim, place), true);
    }
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < kWindowRows * kQuarterUnits; i += kConsumerThreads) {
    const int row = i / kQuarterUnits, u = i % kQuarterUnits, key = zero + row;
    const bool cached = key >= unit.first && key < cached_end;
    if (key >= unit.position + unit.row_begin && key < unit.position + unit.row_end) continue;
    const int from = (unit.quarter * kQuarterUnits + u) ^ (key % 8);
    CopyAsync16(shared.values + QuarterElement(row, u * kUnitElements),
                cached ? in_cache(task.cache.v, key, kValueDim, from) : task.cache.v, cached);
  }
  CommitCopies();
}

// Scores of 16 keys from `first` on, as two mma leave them; -inf where a pair does not see a key.
template <int kDim>
__device__ __forceinline__ void ScoreStep(const WindowScratch<kDim>& shared, int first, int zero,
                                          const int (&first_key)[2], const int (&end_key)[2],
                                          float (&scores)[2][4]) {
  const int lane = threadIdx.x % kWarpLanes;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) scores[n][j] = 0.0f;
  }
  // Matrix m = lane / 8 of a load of q: pairs 8 * (m % 2) + .., dims 8 * (m / 2) + ..; of keys:
  // keys 8 * (m / 2) + .., dims 8 * (m % 2) + .. Eight keys that no pair sees may lie outside the
  // tile.
  const uint32_t q = SharedAddress(shared.q) + lane % 16 * kDim * 2;
  const int eight = min(max(first - zero + lane / 16 * 8, 0), kWindowRows - 8);
  const uint32_t key = SharedAddress(shared.keys) + (eight + lane % 8) * kDim * 2;
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    uint32_t a[4], b[4];
    LoadMatrices(a, q + ((step * 2 + lane / 16) ^ (lane % 8)) * 16);
    LoadMatrices(b, key + ((step * 2 + lane / 8 % 2) ^ (lane % 8)) * 16);
    Mma(scores[0], a, b[0], b[1]);
    Mma(scores[1], a, b[2], b[3]);
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int k = first + n * 8 + lane % 4 * 2 + j % 2;
      if (k < first_key[j / 2] || k >= end_key[j / 2]) scores[n][j] = -__builtin_inff();
    }
  }
}

// Largest score of a pair in a chunk, of which `maxima` has the steps'.
__device__ __forceinline__ float ChunkMax(const float* maxima) {
  static_assert(kChunkSteps == 4);
  const float4 m = *reinterpret_cast<const float4*>(maxima);
  return fmaxf(fmaxf(m.x, m.y), fmaxf(m.z, m.w));
}

// The end of a unit: weighted values of 16 dims, warp 0 or 1, chunk by chunk, and from them the
// output. `out`: of the lane's pairs, at the unit's first dim; null: no such pair.
template <int kDim>
__device__ __forceinline__ void WriteWindowValues(const WindowScratch<kDim>& shared,
                                                  const WindowUnit& unit, float scale,
                                                  const Sink (&sinks)[2], bf16* const (&out)[2]) {
  constexpr int kChunks = kWindowSlots / kChunkSteps;
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
  const int first_slot = unit.first_step % kChunkSteps;
  const int row_of_first = unit.first_step * kStepKeys - unit.RowZero() + lane / 8 % 2 * 8;
  // Matrix m = lane / 8 of a transposed load: keys 8 * (m % 2) + .., dims 8 * (m / 2) + ..
  const auto row_of_step = [&](int step) {
    const int eight = min(max(row_of_first + step * kStepKeys, 0), kWindowRows - 8);
    return SharedAddress(shared.values +
                         QuarterElement(eight + lane % 8, (warp * 2 + lane / 16) * kUnitElements));
  };
  float chunks[kChunks][2][4] = {};
  float sums[kChunks][2] = {};
#pragma unroll
  for (int j = 0; j < kChunkSteps; ++j) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int slot = c * kChunkSteps + j, step = slot - first_slot;
      if (step < 0 || step >= unit.num_steps) continue;  // weights of 0
      uint32_t b[4];
      LoadMatricesTransposed(b, row_of_step(step));
      const uint4 high = shared.after.weights[step][0][lane];
      const uint4 low = shared.after.weights[step][1][lane];
      const uint32_t a[2][4] = {{high.x, high.y, high.z, high.w}, {low.x, low.y, low.z, low.w}};
      Mma(chunks[c][0], a[0], b[0], b[1]);
      Mma(chunks[c][1], a[0], b[2], b[3]);
      Mma(chunks[c][0], a[1], b[0], b[1]);
      Mma(chunks[c][1], a[1], b[2], b[3]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        sums[c][i] = __fadd_rn(sums[c][i], shared.after.sums[slot][i][lane]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    Softmax state = {kNoScore, 0.0f};
    float values[2][2] = {};
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const float max = ChunkMax(&shared.maxima[lane / 4 + 8 * i][c * kChunkSteps]);
      Factors factors;
      state = Merge(state, {max, WeightSum(sums[c][i])}, scale, factors);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          values[n][j] = MergeValue(values[n][j], chunks[c][n][2 * i + j], factors);
        }
      }
    }
    if (out[i] == nullptr) continue;
    const float factor = OutputFactor(state, scale, sinks[i]);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      *reinterpret_cast<uint32_t*>(out[i] + (warp * 2 + n) * 8 + lane % 4 * 2) =
          OutputPair(values[n][0], values[n][1], factor);
    }
  }
}

// This round's keys and values into the cache: those of the rows whose first pair is the unit's,
// keys by the first quarter, so that each is written once. `thread` of `num_threads`.
template <int kDim>
__device__ __forceinline__ void StoreWindowRows(const AttentionTask& task, const RoundView& round,
                                                const WindowUnit& unit, const Group& group,
                                                const WindowScratch<kDim>& shared, int thread,
                                                int num_threads) {
#pragma unroll 1
  for (int row = unit.row_begin; row < unit.row_end; ++row) {
    const int first_pair = row * group.size - unit.pair_begin;
    if (first_pair < 0 || first_pair >= kWarpPairs) continue;
    const int key = unit.position + row, from_row = key - unit.RowZero();
    const int page = PageOfChunk(task, round, key / kChunkKeys);
    const auto in_cache = [&](void* cache, int dim, int place) {
      return reinterpret_cast<uint4*>(static_cast<bf16*>(cache) +
                                      TileOffset(page, unit.kv_head, task.num_kv_heads, dim) +
                                      PlaceElement(key % kChunkKeys, place));
    };
    if (unit.quarter == 0 && thread < kDim / kUnitElements) {
      *in_cache(task.cache.k, kDim, thread) =
          reinterpret_cast<const uint4*>(shared.keys + from_row * kDim)[thread];
    }
    const int u = num_threads - 1 - thread;
    if (u < kQuarterUnits) {
      *in_cache(task.cache.v, kValueDim, (unit.quarter * kQuarterUnits + u) ^ (key % 8)) =
          *reinterpret_cast<const uint4*>(shared.values +
                                          QuarterElement(from_row, u * kUnitElements));
    }
  }
}

// Runs unit `index` of WindowUnits; all consumer threads call it. Calls `wait` in warp kWaitWarp:
// before it only what earlier rounds wrote is read. Results: task.out.
// REQUIRES: kDim = qk_head_dim; rotary_dims = kRotaryDims; no norms; a bf16 cache with Dv = 128; at
// most 16 q heads per kv head; a ring that holds all chunks that a unit sees; a barrier of the
// consumers between other uses of `scratch` and this one, on both sides.
template <int kDim, typename WaitFn>
__device__ __forceinline__ void AttendWindow(const AttentionTask& task, const RoundView& round,
                                             int index, uint8_t* scratch, WaitFn wait) {
  auto& shared = *reinterpret_cast<WindowScratch<kDim>*>(scratch);
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
  const float scale = ScoreScale(task.score_scale);
  const Group group = GroupOf(task);
  const WindowUnit unit = WindowUnitAt(task, round, group, index);
  CopyWindow(task, round, unit, shared);
  for (int i = threadIdx.x; i < kWarpPairs * (kWindowSlots + 4); i += kConsumerThreads) {
    (&shared.maxima[0][0])[i] = kNoScore;  // of steps that no pair sees
  }
  {
    constexpr int kHeads = (kWarpPairs + kBandRows) / kAttentionWarps;
    static_assert(kHeads * kAttentionWarps == kWarpPairs + kBandRows);
    HeadBatch<kDim, kHeads, InRows<kDim>> heads(
        task, round, group, unit.kv_head, nullptr, [&](int i) -> HeadMove {
          const int h = warp + i * kAttentionWarps;
          if (h < unit.num_pairs) {
            const int pair = unit.pair_begin + h, row = group.RowOf(pair);
            return {HeadKind::kQuery, row, pair - row * group.size, shared.q, h};
          }
          const int row = unit.row_begin + h - unit.num_pairs;
          return {HeadKind::kKey, row, 0, row < unit.row_end ? shared.keys : nullptr,
                  unit.position + row - unit.RowZero()};
        });
    // A lane of warps 0..7 has one value of a row.
    static_assert(kQuarterDims == kWarpLanes && kBandRows <= kAttentionWarps);
    const int value_row = unit.row_begin + warp;
    const HeadLayout layout = {task.group_stride, group.size, task.num_kv_heads, kDim, kValueDim};
    const float* const value_of_row = task.qkv + (round.first_row + value_row) * task.row_width +
                                      HeadColumn(layout, HeadKind::kValue, unit.kv_head, 0) +
                                      unit.quarter * kQuarterDims + lane;
    if (warp == kWaitWarp) wait();
    AttentionBarrier();
    heads.Load(task);
    const float value = value_row < unit.row_end ? __ldcg(value_of_row) : 0.0f;
    heads.Store(task);
    if (value_row < unit.row_end) {
      shared.values[QuarterElement(unit.position + value_row - unit.RowZero(), lane)] =
          RoundToBf16(ScaleValue(value, task.value_scale));
    }
  }
  WaitCopies<0>();
  AttentionBarrier();

  const bool has_step = warp < unit.num_steps;
  const int slot = unit.first_step % kChunkSteps + warp;
  const auto row_of = [&](int i) {
    return group.RowOf(unit.pair_begin + min(lane / 4 + 8 * i, unit.num_pairs - 1));
  };
  float scores[2][4];
  if (has_step) {
    int first_key[2], end_key[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      first_key[i] = FirstKey(task, unit.position, row_of(i));
      end_key[i] = EndKey(task, unit.position, row_of(i));
    }
    ScoreStep(shared, (unit.first_step + warp) * kStepKeys, unit.RowZero(), first_key, end_key,
              scores);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float max = ScoreMax(fmaxf(fmaxf(scores[0][2 * i], scores[0][2 * i + 1]),
                                       fmaxf(scores[1][2 * i], scores[1][2 * i + 1])));
      if (lane % 4 == 0) shared.maxima[lane / 4 + 8 * i][slot] = fmaxf(kNoScore, max);
    }
  } else if (warp >= kWindowStepsMax) {
    StoreWindowRows(task, round, unit, group, shared, threadIdx.x - kWindowStepsMax * kWarpLanes,
                    kConsumerThreads - kWindowStepsMax * kWarpLanes);
  }
  AttentionBarrier();
  if (has_step) {
    uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* const maxima =
          shared.maxima[lane / 4 + 8 * i] + slot / kChunkSteps * kChunkSteps;
      const float shift = WeightShift(ChunkMax(maxima), scale);
      float w[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) w[j] = Weight(scores[j / 2][2 * i + j % 2], scale, shift);
      shared.after.sums[slot][i][lane] = StepSum(w[0], w[1], w[2], w[3]);
      SplitWeights(w[0], w[1], high[i], low[i]);
      SplitWeights(w[2], w[3], high[2 + i], low[2 + i]);
    }
    shared.after.weights[warp][0][lane] = {high[0], high[1], high[2], high[3]};
    shared.after.weights[warp][1][lane] = {low[0], low[1], low[2], low[3]};
  }
  Sink sinks[2];
  bf16* out[2];
  if (warp < 2) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int pair = lane / 4 + 8 * i, row = row_of(i);
      const int head = unit.kv_head * group.size + unit.pair_begin + pair - row * group.size;
      const bool exists = pair < unit.num_pairs;
      sinks[i] = SinkOf(exists ? task.sinks : nullptr, head);
      out[i] = exists ? task.out + ((round.first_row + row) * task.num_q_heads + head) * kValueDim +
                            unit.quarter * kQuarterDims
                      : nullptr;
    }
  }
  AttentionBarrier();
  if (warp < 2) WriteWindowValues(shared, unit, scale, sinks, out);
}

}  // namespace ultraspeed::kernels::cuda::resident
