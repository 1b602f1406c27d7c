// Attention of a layer in parts of one chunk: up to 64 pairs share its keys, and leave partial
// results that CombinePair folds.
//
// Two warps attend a tile of 16 pairs: each makes the scores of 32 of the chunk's 64 keys, then the
// values of 64 of the 128 dims; weights go through shared memory. Four more warps bring keys and
// values, make this round's rows and write them into the cache. Barriers of all consumers:
//   begun     the projections are there
//   arrived   keys are there: scores, and their maxima
//   scored    weights, which take the place of the keys
//   weighted  values
// Bytes of a unit: (D + Dv) * 2 per key, 4 D per pair, 528 per pair of partials.
#pragma once

#include "kernels/cuda/resident/attention_inputs.cuh"

namespace ultraspeed::kernels::cuda::resident {

constexpr int kTileWarps = 2 * kUnitTilesMax;
constexpr int kLoaderWarps = kAttentionWarps - kTileWarps;
constexpr int kLoaderThreads = kLoaderWarps * kWarpLanes;

template <int kDim>
struct alignas(128) PartScratch {
  // Tiles as in the cache; of q, row = pair.
  union {
    bf16 keys[kChunkKeys * kDim];
    // When all scores are known: of (tile, step), two A operands, high and low terms.
    uint4 weights[kUnitTilesMax][kChunkSteps][2][kWarpLanes];
  };
  bf16 q[kUnitTilesMax * kWarpPairs * kDim];
  bf16 values[kChunkKeys * kValueDim];
  float sums[kUnitTilesMax][kChunkSteps][2][kWarpLanes];  // StepSum of pairs lane / 4 and + 8
  float maxima[kUnitTilesMax][2][kWarpPairs];             // of the halves of the chunk
  static_assert(kUnitTilesMax * kWarpPairs == kChunkKeys, "q is a tile as in the cache");
};
static_assert(sizeof(PartScratch<192>) <= kAttentionScratchBytes);

// ---- The loaders' part

// Keys of a chunk that matter: cached ones in [seen, cached_end) and rows [row_begin, row_end) of
// the round from key `new_key` on; all of them as offsets in the chunk.
struct ChunkKeys {
  int seen, cached_end;
  int row_begin, row_end;
  int new_key;  // of row_begin
};
__device__ __forceinline__ ChunkKeys KeysOfChunk(const AttentionTask& task, const RoundView& round,
                                                 const PartUnit& unit, int chunk) {
  if (unit.is_block) return {0, 0, 0, round.num_rows, 0};
  const int position = static_cast<int>(round.position), begin = chunk * kChunkKeys;
  ChunkKeys keys;
  keys.seen = FirstKey(task, position, 0) - begin;
  keys.cached_end = position - begin;
  keys.row_begin = keys.row_end = keys.new_key = 0;
  if (task.drafter) return keys;
  keys.row_begin = max(0, begin - position);
  keys.row_end = max(keys.row_begin, min(round.num_rows, begin + kChunkKeys - position));
  keys.new_key = position + keys.row_begin - begin;
  return keys;
}

// Starts the copies of a chunk's tile of keys or values; rows that hold neither cached nor new keys
// become zeros, since memory that no row of this pass may see can hold anything, and 0 * NaN would
// spread.
template <int kDim>
__device__ __forceinline__ void CopyTile(const void* cache, int64_t tile, const ChunkKeys& keys,
                                         int thread, bf16* to) {
  constexpr int kUnits = kDim / kUnitElements;
  const auto* const from = reinterpret_cast<const uint4*>(static_cast<const bf16*>(cache) + tile);
#pragma unroll 4
  for (int i = thread; i < kChunkKeys * kUnits; i += kLoaderThreads) {
    const int row = i / kPartUnits % kChunkKeys;
    const bool is_new = row >= keys.new_key && row < keys.new_key + keys.row_end - keys.row_begin;
    if (is_new) continue;
    CopyAsync16(reinterpret_cast<uint4*>(to) + i, from + i,
                row >= keys.seen && row < keys.cached_end);
  }
}

template <int kDim>
class PartLoader {
 public:
  __device__ __forceinline__ PartLoader(const AttentionTask& task, const RoundView& round,
                                        const PartUnit& unit, PartScratch<kDim>& shared)
      : task_(task),
        round_(round),
        unit_(unit),
        shared_(shared),
        keys_(KeysOfChunk(task, round, unit, unit.chunk_begin)),
        page_(unit.is_block ? 0 : PageOfChunk(task, round, unit.chunk_begin)) {}

  // Before the projections are there: cached keys and values.
  __device__ __forceinline__ void Begin() {
    CopyTile<kDim>(task_.cache.k, Tile(kDim), keys_, thread(), shared_.keys);
    CopyTile<kValueDim>(task_.cache.v, Tile(kValueDim), keys_, thread(), shared_.values);
    CommitCopies();
  }

  // The projections are there.
  __device__ __forceinline__ void Run(const Group& group) {
    const bool has_rows = keys_.row_begin < keys_.row_end;
    // Once for each kv head.
    const bool stores_rows = has_rows && unit_.pair_begin == 0 && !unit_.is_block;
    if (has_rows) MakeRows(group);
    WaitCopies<0>();
    AttentionBarrier();  // arrived
    const int count = keys_.row_end - keys_.row_begin;
    if (stores_rows) {
      StoreRows<kDim>(shared_.keys, task_.cache.k, Tile(kDim), keys_.new_key, count, thread(),
                      kLoaderThreads);
    }
    AttentionBarrier();  // scored
    AttentionBarrier();  // weighted
    if (stores_rows) {
      StoreRows<kValueDim>(shared_.values, task_.cache.v, Tile(kValueDim), keys_.new_key, count,
                           thread(), kLoaderThreads);
    }
  }

 private:
  __device__ static __forceinline__ int thread() {
    return static_cast<int>(threadIdx.x) - kTileWarps * kWarpLanes;
  }
  __device__ __forceinline__ int64_t Tile(int dim) const {
    return TileOffset(page_, unit_.kv_head, task_.num_kv_heads, dim);
  }
  // Both kinds of heads are requested at once.
  __device__ __forceinline__ void MakeRows(const Group& group) {
    constexpr int kHeads = kBandRows / kLoaderWarps;
    const int warp = thread() / kWarpLanes;
    const auto move = [&](HeadKind kind, bf16* tile) {
      return [=, this](int i) -> HeadMove {
        const int row = keys_.row_begin + warp + i * kLoaderWarps;
        return {kind, row, 0, row < keys_.row_end ? tile : nullptr,
                keys_.new_key + row - keys_.row_begin};
      };
    };
    HeadBatch<kDim, kHeads, InParts> new_keys(task_, round_, group, unit_.kv_head, task_.k_norm,
                                              move(HeadKind::kKey, shared_.keys));
    HeadBatch<kDim, kHeads, InParts> new_values(task_, round_, group, unit_.kv_head, nullptr,
                                                move(HeadKind::kValue, shared_.values));
    new_keys.Load(task_);
    new_values.Load(task_);
    new_keys.Store(task_);
    new_values.Store(task_);
  }

  const AttentionTask& task_;
  const RoundView& round_;
  const PartUnit& unit_;
  PartScratch<kDim>& shared_;
  const ChunkKeys keys_;
  const int64_t page_;
};

// ---- The tiles' part

// A lane holds pairs lane / 4 and lane / 4 + 8 (index i) and columns 2 * (lane % 4) + {0, 1} of
// every 8 of the warp's 32 keys or 64 dims.
constexpr int kHalfKeyTiles = kChunkKeys / 2 / 8;
constexpr int kHalfValueTiles = kValueDim / 2 / 8;

// Scores of the 32 keys from `begin` on, -inf where pair i does not see a key. `q`, `keys`: the
// first row of the tile, of the keys.
template <int kDim>
__device__ __forceinline__ void ScoreHalf(const bf16* q, const bf16* keys, int begin,
                                          const int (&first_key)[2], const int (&end_key)[2],
                                          float (&scores)[kHalfKeyTiles][4]) {
  const int lane = threadIdx.x % kWarpLanes;
#pragma unroll
  for (int n = 0; n < kHalfKeyTiles; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) scores[n][j] = 0.0f;
  }
  // Matrix m = lane / 8 of a load of q: pairs 8 * (m % 2) + .., dims 8 * (m / 2) + ..; of keys:
  // keys 8 * (m / 2) + .., dims 8 * (m % 2) + ..
  constexpr int kRowBytes = kPartColumns * 2;
  const uint32_t pair = SharedAddress(q) + lane % 16 * kRowBytes;
  const int key_of_lane = (lane / 16) * 8 + lane % 8;  // + 16 per pair of tiles: same key % 8
  const uint32_t key = SharedAddress(keys) + key_of_lane * kRowBytes;
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    const int part = step / 4 * kPartBytes, unit = step % 4 * 2;
    uint32_t a[4];
    LoadMatrices(a, pair + part + ((unit + lane / 16) ^ (lane % 8)) * 16);
    const uint32_t place = part + ((unit + lane / 8 % 2) ^ (lane % 8)) * 16;
#pragma unroll
    for (int n = 0; n < kHalfKeyTiles; n += 2) {
      uint32_t b[4];
      LoadMatrices(b, key + n * 8 * kRowBytes + place);
      Mma(scores[n], a, b[0], b[1]);
      Mma(scores[n + 1], a, b[2], b[3]);
    }
  }
#pragma unroll
  for (int n = 0; n < kHalfKeyTiles; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int k = begin + n * 8 + lane % 4 * 2 + j % 2;
      if (k < first_key[j / 2] || k >= end_key[j / 2]) scores[n][j] = -__builtin_inff();
    }
  }
}

// The chunk's values of value tiles first .. first + 3 of all dims, from zero.
constexpr int kValueTilesAtOnce = 4;
__device__ __forceinline__ void ChunkValues(const uint4 (&weights)[kChunkSteps][2][kWarpLanes],
                                            const bf16* values, int first,
                                            float (&chunk)[kValueTilesAtOnce][4]) {
  const int lane = threadIdx.x % kWarpLanes;
#pragma unroll
  for (int n = 0; n < kValueTilesAtOnce; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) chunk[n][j] = 0.0f;
  }
  // Matrix m = lane / 8 of a transposed load: keys 8 * (m % 2) + .., dims 8 * (m / 2) + ..
  const uint32_t row =
      SharedAddress(values) + first / kPartUnits * kPartBytes + lane % 16 * kPartColumns * 2;
#pragma unroll
  for (int step = 0; step < kChunkSteps; ++step) {
    const uint4 high = weights[step][0][lane], low = weights[step][1][lane];
    const uint32_t a[2][4] = {{high.x, high.y, high.z, high.w}, {low.x, low.y, low.z, low.w}};
#pragma unroll
    for (int n = 0; n < kValueTilesAtOnce; n += 2) {
      uint32_t b[4];
      LoadMatricesTransposed(b, row + step * kStepKeys * kPartColumns * 2 +
                                    ((first % kPartUnits + n + lane / 16) ^ (lane % 8)) * 16);
      Mma(chunk[n], a[0], b[0], b[1]);
      Mma(chunk[n + 1], a[0], b[2], b[3]);
      Mma(chunk[n], a[1], b[0], b[1]);
      Mma(chunk[n + 1], a[1], b[2], b[3]);
    }
  }
}

// Warp w of kTileWarps: half w % 2 of tile w / 2 of the unit, from "arrived" to the partials. A
// warp without a tile only keeps the barriers.
template <int kDim>
__device__ __forceinline__ void AttendTiles(const AttentionTask& task, const RoundView& round,
                                            const Group& group, const PartUnit& unit,
                                            PartScratch<kDim>& shared) {
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
  const int t = warp / 2, half = warp % 2;
  const float scale = ScoreScale(task.score_scale);
  if (t * kWarpPairs >= unit.num_pairs) {
    for (int i = 0; i < 3; ++i) AttentionBarrier();
    return;
  }
  AttentionPartial* partials[2];
  int first_key[2], end_key[2];  // as WarpTile
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int pair = t * kWarpPairs + lane / 4 + 8 * i, position = static_cast<int>(round.position);
    partials[i] = PartialOfPair(task, round, group, unit, pair);
    const int row = group.RowOf(unit.pair_begin + min(pair, unit.num_pairs - 1));
    first_key[i] = unit.is_block ? 0 : FirstKey(task, position, row);
    end_key[i] = unit.is_block ? round.num_rows : EndKey(task, position, row);
  }
  AttentionBarrier();  // arrived
  float p[kHalfKeyTiles][4];
  constexpr int kHalf = kChunkKeys / 2;
  ScoreHalf<kDim>(shared.q + t * kWarpPairs * kPartColumns,
                  shared.keys + half * kHalf * kPartColumns,
                  unit.chunk_begin * kChunkKeys + half * kHalf, first_key, end_key, p);
  float max[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    max[r] = kNoScore;
#pragma unroll
    for (int n = 0; n < kHalfKeyTiles; ++n) {
      max[r] = fmaxf(max[r], fmaxf(p[n][2 * r], p[n][2 * r + 1]));
    }
    max[r] = ScoreMax(max[r]);
    if (lane % 4 == 0) shared.maxima[t][half][lane / 4 + 8 * r] = max[r];
  }
  AttentionBarrier();  // scored
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    max[r] = fmaxf(max[r], shared.maxima[t][half ^ 1][lane / 4 + 8 * r]);
  }
#pragma unroll
  for (int s = 0; s < kChunkSteps / 2; ++s) {
    const int step = half * (kChunkSteps / 2) + s;
    uint32_t high[4], low[4];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float shift = WeightShift(max[r], scale);
      float w[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) w[j] = Weight(p[2 * s + j / 2][2 * r + j % 2], scale, shift);
      shared.sums[t][step][r][lane] = StepSum(w[0], w[1], w[2], w[3]);
      SplitWeights(w[0], w[1], high[r], low[r]);
      SplitWeights(w[2], w[3], high[2 + r], low[2 + r]);
    }
    shared.weights[t][step][0][lane] = {high[0], high[1], high[2], high[3]};
    shared.weights[t][step][1][lane] = {low[0], low[1], low[2], low[3]};
  }
  AttentionBarrier();  // weighted
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = 0.0f;
#pragma unroll
    for (int s = 0; s < kChunkSteps; ++s) sum = __fadd_rn(sum, shared.sums[t][s][r][lane]);
    sum = WeightSum(sum);
    Factors nothing_before;
    const Softmax state = Merge({kNoScore, 0.0f}, {max[r], sum}, scale, nothing_before);
    if (partials[r] != nullptr && half == 0 && lane % 4 == 0) partials[r]->state = state;
  }
#pragma unroll
  for (int i = 0; i < kHalfValueTiles; i += kValueTilesAtOnce) {
    const int first = half * kHalfValueTiles + i;
    float chunk[kValueTilesAtOnce][4];
    ChunkValues(shared.weights[t], shared.values, first, chunk);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (partials[r] == nullptr) continue;
#pragma unroll
      for (int n = 0; n < kValueTilesAtOnce; ++n) {
        reinterpret_cast<float2*>(partials[r]->values)[(first + n) * 4 + lane % 4] = {
            chunk[n][2 * r], chunk[n][2 * r + 1]};
      }
    }
  }
}

// Runs unit `index` of the plan, whose part_chunks is 1; all consumer threads call it. Calls `wait`
// in one warp: before it only what earlier rounds wrote is read. Results: the unit's partials.
// REQUIRES: kDim = qk_head_dim; rotary_dims = kRotaryDims; norms only if kDim is 128; a bf16 cache
// with Dv = 128; at most 16 q heads per kv head; a ring that holds all chunks that a row sees; a
// barrier of the consumers between other uses of `scratch` and this one, on both sides.
template <int kDim, typename WaitFn>
__device__ __forceinline__ void AttendPart(const AttentionTask& task, const RoundView& round,
                                           const PartPlan& plan, int index, uint8_t* scratch,
                                           WaitFn wait) {
  auto& shared = *reinterpret_cast<PartScratch<kDim>*>(scratch);
  const int warp = threadIdx.x / kWarpLanes;
  const Group group = GroupOf(task);
  const PartUnit unit = PartUnitAt(task, round, plan, group, index);
  if (warp >= kTileWarps) {
    PartLoader<kDim> loader(task, round, unit, shared);
    loader.Begin();
    if (warp == kAttentionWarps - 1) wait();
    AttentionBarrier();  // begun
    loader.Run(group);
    return;
  }
  {
    constexpr int kHeads = kUnitTilesMax * kWarpPairs / kTileWarps;
    HeadBatch<kDim, kHeads, InParts> queries(
        task, round, group, unit.kv_head, task.q_norm, [&](int i) -> HeadMove {
          const int h = warp + i * kTileWarps, pair = unit.pair_begin + h;
          const int row = group.RowOf(pair);
          return {HeadKind::kQuery, row, pair - row * group.size,
                  h < unit.num_pairs ? shared.q : nullptr, h};
        });
    AttentionBarrier();  // begun
    queries.Load(task);
    queries.Store(task);
  }
  AttendTiles<kDim>(task, round, group, unit, shared);
}

}  // namespace ultraspeed::kernels::cuda::resident
