// Attention of a round by the consumer warps of the resident engine: one unit of work after
// another, bit for bit what ProjectQkv and Attention give.
//
// The order of additions is theirs (attention.cu); who adds is not. A unit is latency bound, so its
// twelve warps share one group of three chunks of 64 keys where a warp of Attention walks alone:
//   before the projections are there   cached keys to registers, cached values to shared memory
//   heads     q of the pairs, keys and values of the new rows (all warps)
//   scores    warp w: keys 16w .. 16w + 15 of the group, and their maxima
//   weights   of the same keys, with the maximum that the online softmax has after their chunk
//   values    warps 0..3: 32 value dims each, chunk by chunk; warps 4, 5: the sums of weights of
//             pairs 0..7 and 8..15; the others: new rows into the cache
// with a consumers' barrier after each of them. A window of 128 keys is one group for a single row;
// a segment of a full layer is three. The chain of a group is 12 (dim 192) + 24 dependent mma.
// Bytes of a unit: (D + Dv) * 2 per key, from L2.
#pragma once

#include "kernels/cuda/resident/attention_inputs.cuh"

namespace ultraspeed::kernels::cuda::resident {

constexpr int kValueWarps = 4;  // one per scheduler
constexpr int kWarpValueTiles = kValueDim / 8 / kValueWarps;
constexpr int kSumWarp = kValueWarps;     // the first of two
constexpr int kCacheWarp = kSumWarp + 2;  // the first of the others

// The pairs whose rows of an mma a lane holds: lane / 4 (index 0) and lane / 4 + 8 (index 1).
struct LanePairs {
  int row[2];    // of the round; -1 past the unit's last pair
  float max[2];  // of the scores so far: equal in all warps
};
__device__ __forceinline__ int PairOfLane(int i) {
  return static_cast<int>(threadIdx.x) % kWarpLanes / 4 + 8 * i;
}
__device__ __forceinline__ LanePairs PairsOfLane(const Unit& unit) {
  const auto row = [&](int i) {
    const int pair = PairOfLane(i);
    return pair < unit.num_pairs ? unit.RowOf(unit.pair_begin + pair) : -1;
  };
  return {{row(0), row(1)}, {kNoScore, kNoScore}};
}
// Q head of pair `pair` of the unit, which is of row `row`.
__device__ __forceinline__ int HeadOf(const Unit& unit, int pair, int row) {
  return unit.kv_head * unit.group + unit.pair_begin + pair - row * unit.group;
}

// What a lane has to know of its warp's part of a group.
struct GroupView {
  uint32_t seen_steps;  // SeenSteps
  uint32_t visible;     // bit 4n + j: the pair of score [n][j] sees its key
  int first_row;        // as WarpKeys::TakeNewRows

  __device__ __forceinline__ bool IsSeenByWarp() const {
    return (seen_steps >> threadIdx.x / kWarpLanes & 1) != 0;
  }
};
__device__ __forceinline__ GroupView GroupViewOf(const AttentionTask& task, const Unit& unit,
                                                 const LanePairs& pairs, int group) {
  const int index =
      group * kGroupChunks + static_cast<int>(threadIdx.x) / kWarpLanes / kWarpsPerChunk;
  const Chunk chunk = ChunkAt(unit, index);
  const int first_key = FirstKeyOfWarp(chunk);
  GroupView view = {SeenSteps(unit, group), 0, first_key - chunk.first_new};
  if (!view.IsSeenByWarp()) return view;
  const int lane_key = first_key + static_cast<int>(threadIdx.x) % 4 * 2;
  const bool is_block = index >= unit.num_cache_chunks;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (pairs.row[i] < 0) continue;
    const int first = is_block ? 0 : FirstKey(task, unit.position, pairs.row[i]);
    const int end = is_block ? unit.num_rows : EndKey(task, unit.position, pairs.row[i]);
    // The lane's keys lie 0, 1, 8 and 9 after lane_key.
    const uint32_t before_end = (1u << min(max(end - lane_key, 0), 10)) - 1;
    const uint32_t before_first = (1u << min(max(first - lane_key, 0), 10)) - 1;
    const uint32_t seen = before_end & ~before_first;
    view.visible |= (seen & 3) << (2 * i) | (seen >> 8 & 3) << (2 * i + 4);
  }
  return view;
}

// Scores of the warp's 16 keys, as two mma leave them; -inf where a pair does not see a key.
template <int kDim>
__device__ __forceinline__ void Score(const WarpKeys<kDim>& keys, const bf16* q,
                                      const GroupView& view, float (&scores)[2][4]) {
  const int lane = threadIdx.x % kWarpLanes;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) scores[n][j] = 0.0f;
  }
  if (view.IsSeenByWarp()) {
    // Matrix m = lane / 8 of a load: pairs 8 * (m % 2) + .., dims 8 * (m / 2) + ..
    const uint32_t row = SharedAddress(q) + lane % 16 * kDim * 2;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t a[4];
      LoadMatrices(a, row + ((step * 2 + lane / 16) ^ (lane % 8)) * 16);
      const uint32_t* const b = keys.words[step / 2] + step % 2 * 4;
      Mma(scores[0], a, b[0], b[1]);
      Mma(scores[1], a, b[2], b[3]);
    }
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if ((view.visible >> (4 * n + j) & 1) == 0) scores[n][j] = -__builtin_inff();
    }
  }
}

// The maxima of the warp's keys, for all warps.
template <int kDim>
__device__ __forceinline__ void StoreMaxima(const float (&scores)[2][4],
                                            UnitScratch<kDim>& shared) {
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float max = fmaxf(fmaxf(scores[0][2 * i], scores[0][2 * i + 1]),
                      fmaxf(scores[1][2 * i], scores[1][2 * i + 1]));
    max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, 1));
    max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, 2));
    if (lane % 4 == 0) shared.maxima[lane / 4 + 8 * i][warp] = max;
  }
}

// Takes all warps' maxima into pairs.max, chunk by chunk. rescale[c][i]: what the online softmax
// multiplies pair i's sum and values with before chunk c; shift[i]: WeightShift at the warp's
// chunk.
template <int kDim>
__device__ __forceinline__ void TakeMaxima(const UnitScratch<kDim>& shared, float scale,
                                           LanePairs& pairs, float (&rescale)[kGroupChunks][2],
                                           float (&shift)[2]) {
  static_assert(kWarpsPerChunk == 4, "the maxima of a chunk are a float4");
  const int lane = threadIdx.x % kWarpLanes;
  const int own_chunk = threadIdx.x / kWarpLanes / kWarpsPerChunk;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const auto* const maxima = reinterpret_cast<const float4*>(shared.maxima[lane / 4 + 8 * i]);
#pragma unroll
    for (int c = 0; c < kGroupChunks; ++c) {
      const float4 m = maxima[c];
      const float max = fmaxf(pairs.max[i], fmaxf(fmaxf(m.x, m.y), fmaxf(m.z, m.w)));
      rescale[c][i] = Rescale(pairs.max[i], max, scale);
      if (c == own_chunk) shift[i] = WeightShift(max, scale);
      pairs.max[i] = max;
    }
  }
}

template <int kDim>
__device__ __forceinline__ void StoreWeights(const float (&scores)[2][4], float scale,
                                             const float (&shift)[2], UnitScratch<kDim>& shared) {
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    shared.weights[warp * 2 + n][lane] = {
        Weight(scores[n][0], scale, shift[0]), Weight(scores[n][1], scale, shift[0]),
        Weight(scores[n][2], scale, shift[1]), Weight(scores[n][3], scale, shift[1])};
  }
}

// What a step of 16 keys adds to the values of a warp.
struct ValueOperands {
  float4 p[2];                         // of the two key tiles
  uint32_t high[4], low[4];            // p as A operands
  uint32_t b[kWarpValueTiles / 2][4];  // of two value tiles each
};

// Adds a group's weighted values: warp w < kValueWarps, value tiles 4w .. 4w + 3.
template <int kDim>
__device__ __forceinline__ void AddValues(const UnitScratch<kDim>& shared, uint32_t seen_steps,
                                          const float (&rescale)[kGroupChunks][2],
                                          float (&values)[kWarpValueTiles][4]) {
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
  // Matrix m = lane / 8 of a transposed load: keys 8 * (m % 2) + .., dims 8 * (m / 2) + ..
  const uint32_t row = SharedAddress(shared.values[0]) + lane % 16 * kValueDim * 2;
  const auto load = [&](int step, ValueOperands& o) {
    o.p[0] = shared.weights[step * 2][lane];
    o.p[1] = shared.weights[step * 2 + 1][lane];
#pragma unroll
    for (int n = 0; n < kWarpValueTiles; n += 2) {
      const int tile = warp * kWarpValueTiles + n + lane / 16;
      LoadMatricesTransposed(o.b[n / 2],
                             row + step * 16 * kValueDim * 2 + (tile ^ (lane % 8)) * 16);
    }
  };
  const auto split = [](ValueOperands& o) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      WarpTile<kDim>::SplitWeights(o.p[i].x, o.p[i].y, o.high[2 * i], o.low[2 * i]);
      WarpTile<kDim>::SplitWeights(o.p[i].z, o.p[i].w, o.high[2 * i + 1], o.low[2 * i + 1]);
    }
  };
  const auto multiply = [&](const uint32_t(&a)[4], const ValueOperands& o) {
#pragma unroll
    for (int n = 0; n < kWarpValueTiles; ++n) {
      Mma(values[n], a, o.b[n / 2][n % 2 * 2], o.b[n / 2][n % 2 * 2 + 1]);
    }
  };
  // The mma of all steps are one chain, so a step's operands are made while those before it run.
  // Steps that no pair sees have weights of 0 and are left out.
  uint32_t rest = seen_steps;
  int chunk = -1;
  const auto add_step = [&](ValueOperands& now, ValueOperands& next) {
    const int step = __ffs(rest) - 1;
    rest &= rest - 1;
    if (step / 4 != chunk) {
      chunk = step / 4;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float factor = chunk == 0   ? rescale[0][i]
                             : chunk == 1 ? rescale[1][i]
                                          : rescale[2][i];
#pragma unroll
        for (int n = 0; n < kWarpValueTiles; ++n) {
          values[n][2 * i] = __fmul_rn(values[n][2 * i], factor);
          values[n][2 * i + 1] = __fmul_rn(values[n][2 * i + 1], factor);
        }
      }
    }
    load(rest == 0 ? step : __ffs(rest) - 1, next);
    multiply(now.high, now);
    split(next);
    multiply(now.low, now);
  };
  ValueOperands a, b;
  load(__ffs(rest) - 1, a);
  split(a);
#pragma unroll 1
  while (true) {
    add_step(a, b);
    if (rest == 0) break;
    add_step(b, a);
    if (rest == 0) break;
  }
}

// Adds a group's weights of pair lane / 4 + 8 * i: the lane's share of the sum.
template <int kDim>
__device__ __forceinline__ void AddWeights(const UnitScratch<kDim>& shared, int i,
                                           const float (&rescale)[kGroupChunks][2], float& sum) {
  constexpr int kKeyTiles = kChunkKeys / 8;
  const int lane = threadIdx.x % kWarpLanes;
#pragma unroll
  for (int c = 0; c < kGroupChunks; ++c) {
    float sum_of_chunk = 0.0f;
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
      const float2 p = reinterpret_cast<const float2*>(&shared.weights[c * kKeyTiles + n][lane])[i];
      sum_of_chunk = __fadd_rn(sum_of_chunk, p.x);
      sum_of_chunk = __fadd_rn(sum_of_chunk, p.y);
    }
    sum = fmaf(sum, i == 0 ? rescale[c][0] : rescale[c][1], sum_of_chunk);
  }
}

__device__ __forceinline__ AttentionPartial& PartialOf(const AttentionTask& task, int row_head,
                                                       int segment) {
  return static_cast<AttentionPartial*>(
      task.partials)[static_cast<int64_t>(row_head) * task.partials_stride + segment];
}

// Runs unit `index` of AttentionUnits; all consumer threads call it. Calls wait_for_projections()
// once: before it only what earlier rounds wrote is read. Results: task.out, or in a full layer the
// unit's partials.
// REQUIRES: kDim = qk_head_dim; rotary_dims = kRotaryDims; norms only if kDim is 128; a bf16 cache
// with Dv = 128; at most 16 q heads per kv head; a ring that holds all chunks that a unit sees;
// earlier uses of `scratch` lie behind a barrier of the consumers. Calls in a row need none between
// them; whoever else uses `scratch` afterwards does.
template <int kDim, typename WaitFn>
__device__ void AttendUnit(const AttentionTask& task, const RoundView& round, int index,
                           uint8_t* scratch, WaitFn wait_for_projections) {
  auto& shared = *reinterpret_cast<UnitScratch<kDim>*>(scratch);
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
  const int own_chunk = warp / kWarpsPerChunk;
  const auto own_page = [&](const GroupPages& pages) {
    return own_chunk == 0 ? pages.page[0] : own_chunk == 1 ? pages.page[1] : pages.page[2];
  };
  const float scale = ScoreScale(task.score_scale);
  const bool adds_weights = warp >= kSumWarp && warp < kCacheWarp;
  const int sum_index = warp == kSumWarp + 1 ? 1 : 0;  // of LanePairs, if it does

  WarpKeys<kDim> keys;
  GroupPages pages;
  LanePairs pairs;
  GroupView view;
  Sink sink = {false, 0.0f};
  {
    const Unit own = UnitAt(task, round, index);
    if (own.num_chunks == 0) {  // a segment that only later pairs reach
      wait_for_projections();
      return;
    }
    pages = PagesOf(task, round, own, 0);
    keys.Load(task, own, ChunkAt(own, own_chunk), own_page(pages));
    CopyValues(task, own, 0, pages, shared);
    if (own.num_chunks > kGroupChunks) pages = PagesOf(task, round, own, 1);
    pairs = PairsOfLane(own);
    view = GroupViewOf(task, own, pairs, 0);
    const int sum_row = sum_index == 0 ? pairs.row[0] : pairs.row[1];
    if (adds_weights && sum_row >= 0) {
      sink = SinkOf(task.sinks, HeadOf(own, PairOfLane(sum_index), sum_row));
    }
    if (threadIdx.x == 0) shared.unit = own;
  }
  const Unit& unit = shared.unit;
  AttentionBarrier();
  {
    NewHeads<kDim> heads(task, unit);
    wait_for_projections();
    heads.Load(task);
    if (view.IsSeenByWarp()) keys.Stage(shared.weights[warp * 2]);  // while those are under way
    heads.Store(task, scratch);
  }
  AttentionBarrier();

  float values[kWarpValueTiles][4] = {};
  float sum = 0.0f;
#pragma unroll 1
  for (int group = 0;; ++group) {
    if (view.IsSeenByWarp()) {
      if (group > 0) keys.Stage(shared.weights[warp * 2]);
      keys.TakeNewRows(view.first_row, shared.new_keys);
    }
    float scores[2][4];
    Score(keys, shared.q, view, scores);
    const int next_chunk = (group + 1) * kGroupChunks;
    const bool is_last = next_chunk >= unit.num_chunks;
    if (!is_last) keys.Load(task, unit, ChunkAt(unit, next_chunk + own_chunk), own_page(pages));
    StoreMaxima(scores, shared);
    StoreNewValues(unit, group, shared);
    AttentionBarrier();

    float rescale[kGroupChunks][2], shift[2];
    TakeMaxima(shared, scale, pairs, rescale, shift);
    StoreWeights(scores, scale, shift, shared);
    WaitCopies<0>();
    AttentionBarrier();

    if (warp < kValueWarps) {
      AddValues(shared, view.seen_steps, rescale, values);
    } else if (adds_weights) {
      AddWeights(shared, sum_index, rescale, sum);
    } else if (group == 0 && !unit.is_drafter) {
      StoreInCache(task, round, unit, shared, threadIdx.x - kCacheWarp * kWarpLanes,
                   (kAttentionWarps - kCacheWarp) * kWarpLanes);
    }
    if (is_last) break;
    AttentionBarrier();
    CopyValues(task, unit, group + 1, pages, shared);
    pages = PagesOf(task, round, unit, group + 2);
    view = GroupViewOf(task, unit, pairs, group + 1);
  }

  // What a lane writes where; a segment that a row does not see is not read by CombinePair.
  const bool is_full = unit.is_full;
  const auto row_head_to_write = [&](int i) {
    const int row = pairs.row[i];
    const bool writes =
        row >= 0 && (!is_full || EndKey(task, unit.position, row) > unit.segment * kSegmentKeys);
    return writes ? row * task.num_q_heads + HeadOf(unit, PairOfLane(i), row) : -1;
  };
  if (adds_weights) {
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    const Softmax state = {sum_index == 0 ? pairs.max[0] : pairs.max[1], sum};
    const int row_head = sum_index == 0 ? row_head_to_write(0) : row_head_to_write(1);
    if (lane % 4 == 0 && row_head >= 0) {
      if (is_full) {
        PartialOf(task, row_head, unit.segment).state = state;
      } else {
        shared.factors[PairOfLane(sum_index)] = OutputFactor(state, scale, sink);
      }
    }
  }
  const int segment = unit.segment;
  const int row_heads[2] = {row_head_to_write(0), row_head_to_write(1)};
  AttentionBarrier();  // the last: from here on other warps may be in the next unit
  if (warp >= kValueWarps) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (row_heads[i] < 0) continue;
    const float factor = is_full ? 0.0f : shared.factors[PairOfLane(i)];
#pragma unroll
    for (int n = 0; n < kWarpValueTiles; ++n) {
      const int column = (warp * kWarpValueTiles + n) * 8 + lane % 4 * 2;
      const float x = values[n][2 * i], y = values[n][2 * i + 1];
      if (is_full) {
        float* const out = PartialOf(task, row_heads[i], segment).values;
        *reinterpret_cast<float2*>(out + column) = {x, y};
      } else {
        bf16* const out = task.out + row_heads[i] * kValueDim;
        *reinterpret_cast<uint32_t*>(out + column) = OutputPair(x, y, factor);
      }
    }
  }
}

// A merged result in a warp: a lane holds value dims 4 * lane .. 4 * lane + 3.
struct LaneResult {
  Softmax state = {kNoScore, 0.0f};
  float4 values = {0.0f, 0.0f, 0.0f, 0.0f};

  __device__ __forceinline__ void Add(Softmax later, float4 later_values, float scale) {
    Factors factors;
    state = Merge(state, later, scale, factors);
    values = {MergeValue(values.x, later_values.x, factors),
              MergeValue(values.y, later_values.y, factors),
              MergeValue(values.z, later_values.z, factors),
              MergeValue(values.w, later_values.w, factors)};
  }
};

// Segments [begin, end) of one pair, in order.
__device__ __forceinline__ LaneResult FoldSegments(const AttentionPartial* partials, int begin,
                                                   int end, float scale, int lane) {
  constexpr int kAtOnce = 8;  // requested before the first is merged
  LaneResult result;
  for (; begin < end; begin += kAtOnce) {
    Softmax states[kAtOnce];
    float4 values[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (begin + i >= end) continue;
      const AttentionPartial& partial = partials[begin + i];
      const float2 state = __ldcg(reinterpret_cast<const float2*>(&partial.state));
      states[i] = {state.x, state.y};
      values[i] = __ldcg(reinterpret_cast<const float4*>(partial.values) + lane);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (begin + i < end) result.Add(states[i], values[i], scale);
    }
  }
  return result;
}

// Full layers, after all units of the layer are done everywhere: folds the segments of (row, head)
// pair `pair` in [0, num_rows * Hq) into its output. All consumer threads call it: a warp per span
// of 16 segments, then warp 0 folds the spans. Up to 8192 keys warp 0 does everything and the
// others return at once. Uses of `scratch` as in AttendUnit.
__device__ inline void CombinePair(const AttentionTask& task, const RoundView& round, int pair,
                                   uint8_t* scratch) {
  struct Spans {
    float4 values[kAttentionWarps][kWarpLanes];
    Softmax states[kAttentionWarps];
  };
  static_assert(sizeof(Spans) <= kAttentionScratchBytes);
  auto& spans = *reinterpret_cast<Spans*>(scratch);
  constexpr int kSegmentsPerSpan = kSpanKeys / kSegmentKeys;
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
  const int end_key = EndKey(task, static_cast<int>(round.position), pair / task.num_q_heads);
  const int num_segments = (end_key + kSegmentKeys - 1) / kSegmentKeys;
  const int num_spans = (num_segments + kSegmentsPerSpan - 1) / kSegmentsPerSpan;
  const float scale = ScoreScale(task.score_scale);
  const AttentionPartial* const partials = &PartialOf(task, pair, 0);

  LaneResult total;
  for (int first = 0; first < num_spans; first += kAttentionWarps) {
    const int span = first + warp;
    LaneResult result;
    if (span < num_spans) {
      const int begin = span * kSegmentsPerSpan;
      result =
          FoldSegments(partials, begin, min(num_segments, begin + kSegmentsPerSpan), scale, lane);
    }
    if (num_spans == 1) {
      total.Add(result.state, result.values, scale);
      break;
    }
    spans.values[warp][lane] = result.values;
    if (lane == 0) spans.states[warp] = result.state;
    AttentionBarrier();
    if (warp == 0) {
      for (int i = 0; i < min(kAttentionWarps, num_spans - first); ++i) {
        total.Add(spans.states[i], spans.values[i][lane], scale);
      }
    }
    AttentionBarrier();
  }
  if (warp != 0) return;
  const float factor =
      OutputFactor(total.state, scale, SinkOf(task.sinks, pair % task.num_q_heads));
  reinterpret_cast<uint2*>(task.out + static_cast<int64_t>(pair) * kValueDim)[lane] = {
      OutputPair(total.values.x, total.values.y, factor),
      OutputPair(total.values.z, total.values.w, factor)};
}

}  // namespace ultraspeed::kernels::cuda::resident
