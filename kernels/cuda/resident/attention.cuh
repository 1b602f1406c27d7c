// Attention of a round by the consumer warps of the resident engine: one unit of work after
// another, bit for bit what ProjectQkv and Attention give.
//
// The order of additions is theirs (attention.cu); who adds is not. A unit is latency bound, so its
// twelve warps share one group of three chunks of 64 keys where a warp of Attention walks alone:
//   before the projections are there   cached keys to registers, cached values to shared memory
//   heads     q of the pairs, keys and values of the new rows (all warps)
//   scores    warp w: keys 16w .. 16w + 15 of the group, and their maxima
//   weights   of the same keys, with the maximum that the online softmax has after their chunk
//   values    warps 0..7: 16 value dims each, chunk by chunk; warps 8, 9: the sums of weights of
//             pairs 0..7 and 8..15; warps 10, 11: new rows into the cache
// with a consumers' barrier after each of the last four. A window of 128 keys is one group for a
// single row; a segment of a full layer is three. The chain of a group is 12 (dim 192) + 24
// dependent mma. Bytes of a unit: (D + Dv) * 2 per key, from L2.
#pragma once

#include "kernels/cuda/resident/attention_inputs.cuh"

namespace ultraspeed::kernels::cuda::resident {

constexpr int kValueWarps = kValueDim / 16;
constexpr int kSumWarp = kValueWarps;     // the first of two
constexpr int kCacheWarp = kSumWarp + 2;  // the first of two
static_assert(kCacheWarp + 2 == kAttentionWarps);

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

// Scores of the warp's 16 keys, as two mma leave them; -inf where a pair does not see a key.
template <int kDim>
__device__ __forceinline__ void Score(const AttentionTask& task, const WarpKeys<kDim>& keys,
                                      const bf16* q, const Unit& unit, const Chunk& chunk,
                                      bool is_seen, bool is_cache_chunk, const LanePairs& pairs,
                                      float (&scores)[2][4]) {
  const int lane = threadIdx.x % kWarpLanes;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) scores[n][j] = 0.0f;
  }
  if (is_seen) {
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
  for (int i = 0; i < 2; ++i) {
    int first = 0, end = 0;
    if (is_seen && pairs.row[i] >= 0) {
      first = is_cache_chunk ? FirstKey(task, unit.position, pairs.row[i]) : 0;
      end = is_cache_chunk ? EndKey(task, unit.position, pairs.row[i]) : unit.num_rows;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int key = FirstKeyOfWarp(chunk) + j / 2 * 8 + lane % 4 * 2 + j % 2;
      if (key < first || key >= end) scores[j / 2][2 * i + j % 2] = -__builtin_inff();
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

// Adds a group's weighted values: warp w < kValueWarps, value dims 16w .. 16w + 15.
template <int kDim>
__device__ __forceinline__ void AddValues(const UnitScratch<kDim>& shared, uint32_t seen_steps,
                                          const float (&rescale)[kGroupChunks][2],
                                          float (&values)[2][4]) {
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
  // Matrix m = lane / 8 of a transposed load: keys 8 * (m % 2) + .., dims 8 * (m / 2) + ..
  const uint32_t row = SharedAddress(shared.values[0]) + lane % 16 * kValueDim * 2 +
                       ((warp * 2 + lane / 16) ^ (lane % 8)) * 16;
  // A step's operands are made while the mma before it run: they are one chain.
  constexpr int kSteps = kGroupChunks * kChunkKeys / 16;
  struct Operands {
    float4 p[2];
    uint32_t b[4], high[4], low[4];
  };
  const auto load = [&](int step, Operands& o) {
    o.p[0] = shared.weights[step * 2][lane];
    o.p[1] = shared.weights[step * 2 + 1][lane];
    LoadMatricesTransposed(o.b, row + step * 16 * kValueDim * 2);
  };
  const auto split = [](Operands& o) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      WarpTile<kDim>::SplitWeights(o.p[i].x, o.p[i].y, o.high[2 * i], o.low[2 * i]);
      WarpTile<kDim>::SplitWeights(o.p[i].z, o.p[i].w, o.high[2 * i + 1], o.low[2 * i + 1]);
    }
  };
  Operands now, next;
  load(0, now);
  split(now);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (step + 1 < kSteps) load(step + 1, next);
    if (step % 4 == 0) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j)
          values[n][j] = __fmul_rn(values[n][j], rescale[step / 4][j / 2]);
      }
    }
    const bool seen = (seen_steps >> step & 1) != 0;  // if not, all weights are 0
    if (seen) {
      Mma(values[0], now.high, now.b[0], now.b[1]);
      Mma(values[1], now.high, now.b[2], now.b[3]);
    }
    if (step + 1 < kSteps) split(next);
    if (seen) {
      Mma(values[0], now.low, now.b[0], now.b[1]);
      Mma(values[1], now.low, now.b[2], now.b[3]);
    }
    now = next;
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
// REQUIRES: kDim = qk_head_dim; rotary_dims = kRotaryDims; a bf16 cache with Dv = 128; at most 16 q
// heads per kv head; earlier uses of `scratch` lie behind a barrier of the consumers. Calls in a
// row need none between them; whoever else uses `scratch` afterwards does.
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
  const int sum_index = warp == kSumWarp + 1 ? 1 : 0;  // of LanePairs, in a warp that adds weights

  WarpKeys<kDim> keys;
  uint32_t seen_steps;
  {
    const Unit own = UnitAt(task, round, index);
    if (own.num_chunks == 0) {  // a segment that only later pairs reach
      wait_for_projections();
      return;
    }
    const GroupPages pages = PagesOf(task, round, own, 0);
    keys.Load(task, own, ChunkAt(own, own_chunk), own_page(pages));
    CopyValues(task, own, 0, pages, shared);
    seen_steps = SeenSteps(own, 0);
    if (threadIdx.x == 0) shared.unit = own;
  }
  const Unit& unit = shared.unit;
  AttentionBarrier();
  {
    NewHeads<kDim> heads(task, unit);
    wait_for_projections();
    heads.Load(task);
    // While those are under way.
    if ((seen_steps >> warp & 1) != 0) keys.Stage(shared.weights[warp * 2]);
    heads.Store(task, scratch);
  }
  GroupPages pages = PagesOf(task, round, unit, 1);
  LanePairs pairs = PairsOfLane(unit);
  const int sum_row = sum_index == 0 ? pairs.row[0] : pairs.row[1];
  Sink sink = {false, 0.0f};
  if (warp >= kSumWarp && sum_row >= 0) {
    sink = SinkOf(task.sinks, HeadOf(unit, PairOfLane(sum_index), sum_row));
  }
  AttentionBarrier();

  float values[2][4] = {};
  float sum = 0.0f;
  for (int group = 0;; ++group) {
    const bool is_last = (group + 1) * kGroupChunks >= unit.num_chunks;
    const bool is_seen = (seen_steps >> warp & 1) != 0;
    const int own_index = group * kGroupChunks + own_chunk;
    float scores[2][4];
    {
      const Chunk chunk = ChunkAt(unit, own_index);
      if (is_seen) {
        if (group > 0) keys.Stage(shared.weights[warp * 2]);
        keys.TakeNewRows(unit, chunk, shared.new_keys);
      }
      Score(task, keys, shared.q, unit, chunk, is_seen, own_index < unit.num_cache_chunks, pairs,
            scores);
    }
    if (!is_last) {
      keys.Load(task, unit, ChunkAt(unit, own_index + kGroupChunks), own_page(pages));
    }
    StoreMaxima(scores, shared);
    StoreNewValues(unit, group, shared);
    AttentionBarrier();

    float rescale[kGroupChunks][2], shift[2];
    TakeMaxima(shared, scale, pairs, rescale, shift);
    StoreWeights(scores, scale, shift, shared);
    WaitCopies<0>();
    AttentionBarrier();

    if (warp < kValueWarps) {
      AddValues(shared, seen_steps, rescale, values);
    } else if (warp < kCacheWarp) {
      AddWeights(shared, sum_index, rescale, sum);
    } else if (group == 0 && !unit.is_drafter) {
      StoreInCache(task, round, unit, shared, threadIdx.x - kCacheWarp * kWarpLanes,
                   2 * kWarpLanes);
    }
    if (is_last) break;
    AttentionBarrier();
    CopyValues(task, unit, group + 1, pages, shared);
    pages = PagesOf(task, round, unit, group + 2);
    seen_steps = SeenSteps(unit, group + 1);
  }

  // What a lane writes where; a segment that a row does not see is not read by CombinePair.
  const bool is_full = unit.is_full;
  const auto row_head_to_write = [&](int i) {
    const int row = pairs.row[i];
    const bool writes =
        row >= 0 && (!is_full || EndKey(task, unit.position, row) > unit.segment * kSegmentKeys);
    return writes ? row * task.num_q_heads + HeadOf(unit, PairOfLane(i), row) : -1;
  };
  if (warp >= kSumWarp && warp < kCacheWarp) {
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
    for (int n = 0; n < 2; ++n) {
      const int column = warp * 16 + n * 8 + lane % 4 * 2;
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
