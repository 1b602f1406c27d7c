// Attention of a layer in parts: up to 64 pairs share one part's keys, chunk after chunk, and leave
// partial results that CombinePair folds.
//
// Two warps attend a tile of 16 pairs: each makes the scores of 32 of the chunk's 64 keys, then the
// values of 64 of the 128 dims; weights go through shared memory. Four more warps bring keys and
// values, one chunk ahead, make this round's rows and write them into the cache. Barriers of all
// consumers in a chunk:
//   arrived   keys are there: scores, and their maxima
//   scored    weights, which take the place of the chunk's keys
//   weighted  values, from zero; then the chunk's result is merged into the part's
// Bytes of a unit: (D + Dv) * 2 per key, 4 D per pair, 528 per pair of partials.
#pragma once

#include "kernels/cuda/resident/attention_inputs.cuh"

namespace ultraspeed::kernels::cuda::resident {

constexpr int kTileWarps = 2 * kUnitTilesMax;
constexpr int kLoaderWarps = kAttentionWarps - kTileWarps;
constexpr int kLoaderThreads = kLoaderWarps * kWarpLanes;

template <int kDim>
struct alignas(128) PartScratch {
  // Tiles as in the cache, of chunks in turn. keys[1] begins with q: swizzled, row = pair. A
  // chunk's weights follow its keys: of (tile, step), two A operands, high and low terms.
  bf16 keys[2][kChunkKeys * kDim];
  bf16 values[kChunkKeys * kValueDim];
  float sums[kUnitTilesMax][kChunkSteps][2][kWarpLanes];  // StepSum of pairs lane / 4 and + 8
  float maxima[kUnitTilesMax][2][kWarpPairs];             // of the halves of a chunk
  // Of units of several chunks: q's last steps of 16 dims as A operands (HeldQueries).
  static constexpr int kHeldSteps = kDim / 16 / 3;
  uint4 queries[kUnitTilesMax][kDim / 16 - kHeldSteps][kWarpLanes];

  using Weights = uint4[kUnitTilesMax][kChunkSteps][2][kWarpLanes];
  static_assert(sizeof(Weights) <= sizeof(bf16[kChunkKeys * kDim]));
  static_assert(kUnitTilesMax * kWarpPairs <= kChunkKeys, "q takes the place of keys");
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
    const int row = i / kUnits;
    const bool is_new = row >= keys.new_key && row < keys.new_key + keys.row_end - keys.row_begin;
    if (is_new) continue;
    CopyAsync16(reinterpret_cast<uint4*>(to) + i, from + i,
                row >= keys.seen && row < keys.cached_end);
  }
}

// Asks for what the block reads next to come to L2: chunks after the first of this unit.
__device__ __forceinline__ void PrefetchTile(const void* cache, int64_t tile, int dim) {
  const auto* const from = static_cast<const bf16*>(cache) + tile;
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(kChunkKeys * dim * 2)
               : "memory");
}

template <int kDim>
class PartLoader {
 public:
  __device__ __forceinline__ PartLoader(const AttentionTask& task, const RoundView& round,
                                        const PartUnit& unit, PartScratch<kDim>& shared)
      : task_(task), round_(round), unit_(unit), shared_(shared) {}

  // Before the projections are there: the first chunk's keys and values.
  __device__ __forceinline__ void Begin() {
    SetChunk(unit_.chunk_begin);
    CopyKeys(0);
    CopyValues();
    CommitCopies();
    const int chunk = unit_.chunk_begin + 1 + thread() / 2;
    if (chunk < unit_.chunk_end) {
      const int64_t page = PageOfChunk(task_, round_, chunk);
      const bool is_key = thread() % 2 == 0;
      const int dim = is_key ? kDim : kValueDim;
      PrefetchTile(is_key ? task_.cache.k : task_.cache.v,
                   TileOffset(page, unit_.kv_head, task_.num_kv_heads, dim), dim);
    }
  }

  // The projections are there.
  __device__ __forceinline__ void Run(const Group& group) {
    for (int chunk = unit_.chunk_begin; chunk < unit_.chunk_end; ++chunk) {
      const int buffer = (chunk - unit_.chunk_begin) % 2;
      const bool first = chunk == unit_.chunk_begin, last = chunk + 1 == unit_.chunk_end;
      if (keys_.row_begin < keys_.row_end) {
        LoadChunkWithRows(group, buffer, first);
      } else {
        WaitCopies<0>();
        AttentionBarrier();  // arrived
        if (!first) CopyValues();
        CommitCopies();
      }
      const ChunkKeys keys = keys_;
      const int64_t page = page_;
      AttentionBarrier();  // scored
      if (!last) {
        SetChunk(chunk + 1);
        CopyKeys(buffer ^ 1);
      }
      CommitCopies();
      WaitCopies<1>();
      AttentionBarrier();  // weighted
      if (StoresRows() && keys.row_begin < keys.row_end) {
        StoreRows<kValueDim>(shared_.values, keys.new_key, task_.cache.v,
                             TileOffset(page, unit_.kv_head, task_.num_kv_heads, kValueDim),
                             keys.new_key, keys.row_end - keys.row_begin, thread(), kLoaderThreads);
      }
    }
  }

 private:
  __device__ static __forceinline__ int thread() {
    return static_cast<int>(threadIdx.x) - kTileWarps * kWarpLanes;
  }
  // Once for each kv head.
  __device__ __forceinline__ bool StoresRows() const {
    return unit_.pair_begin == 0 && !unit_.is_block;
  }
  __device__ __forceinline__ void SetChunk(int chunk) {
    keys_ = KeysOfChunk(task_, round_, unit_, chunk);
    page_ = unit_.is_block ? 0 : PageOfChunk(task_, round_, chunk);
  }
  __device__ __forceinline__ void CopyKeys(int buffer) {
    CopyTile<kDim>(task_.cache.k, TileOffset(page_, unit_.kv_head, task_.num_kv_heads, kDim), keys_,
                   thread(), shared_.keys[buffer]);
  }
  __device__ __forceinline__ void CopyValues() {
    CopyTile<kValueDim>(task_.cache.v,
                        TileOffset(page_, unit_.kv_head, task_.num_kv_heads, kValueDim), keys_,
                        thread(), shared_.values);
  }

  // A chunk with rows of this round, up to the barrier "arrived". Both kinds of heads are requested
  // at once; until then the values of the chunk before may be in use.
  __device__ __forceinline__ void LoadChunkWithRows(const Group& group, int buffer, bool first) {
    constexpr int kHeads = kBandRows / kLoaderWarps;
    const int warp = thread() / kWarpLanes;
    const auto move = [&](HeadKind kind, bf16* tile) {
      return [=, this](int i) -> HeadMove {
        const int row = keys_.row_begin + warp + i * kLoaderWarps;
        return {kind, row, 0, row < keys_.row_end ? tile : nullptr,
                keys_.new_key + row - keys_.row_begin};
      };
    };
    HeadBatch<kDim, kHeads> new_keys(task_, round_, group, unit_.kv_head, task_.k_norm,
                                     move(HeadKind::kKey, shared_.keys[buffer]));
    HeadBatch<kDim, kHeads> new_values(task_, round_, group, unit_.kv_head, nullptr,
                                       move(HeadKind::kValue, shared_.values));
    new_keys.Load(task_);
    new_values.Load(task_);
    new_keys.Store(task_);
    if (first) new_values.Store(task_);
    WaitCopies<0>();
    AttentionBarrier();  // arrived
    if (!first) {
      new_values.Store(task_);
      CopyValues();
    }
    CommitCopies();
    if (StoresRows()) {
      StoreRows<kDim>(shared_.keys[buffer], keys_.new_key, task_.cache.k,
                      TileOffset(page_, unit_.kv_head, task_.num_kv_heads, kDim), keys_.new_key,
                      keys_.row_end - keys_.row_begin, thread(), kLoaderThreads);
    }
  }

  const AttentionTask& task_;
  const RoundView& round_;
  const PartUnit& unit_;
  PartScratch<kDim>& shared_;
  ChunkKeys keys_;
  int64_t page_;
};

// ---- The tiles' part

// What a warp holds of its tile over the chunks of a part. A lane holds pairs lane / 4 and
// lane / 4 + 8 (index i) and columns 2 * (lane % 4) + {0, 1} of every 8 of the warp's 64 dims.
constexpr int kHalfKeyTiles = kChunkKeys / 2 / 8;
constexpr int kHalfValueTiles = kValueDim / 2 / 8;
struct HalfTile {
  float values[kHalfValueTiles][4];
  Softmax state[2];
  int first_key[2], end_key[2];  // as WarpTile
};

// Queries of a tile as A operands: in shared memory or, once their place is needed, a third of them
// in registers and the others in a place of their own. More in registers drive others out, to L2.
template <int kDim>
struct SharedQueries {
  uint32_t row;

  // Matrix m = lane / 8 of a load: pairs 8 * (m % 2) + .., dims 8 * (m / 2) + ..
  __device__ __forceinline__ explicit SharedQueries(const bf16* tile)
      : row(SharedAddress(tile) + threadIdx.x % 16 * kDim * 2) {}
  __device__ __forceinline__ void Get(int step, uint32_t (&a)[4]) const {
    const int lane = threadIdx.x % kWarpLanes;
    LoadMatrices(a, row + ((step * 2 + lane / 16) ^ (lane % 8)) * 16);
  }
};
template <int kDim>
struct HeldQueries {
  static constexpr int kHeldSteps = PartScratch<kDim>::kHeldSteps;
  uint32_t a[kHeldSteps][4];
  uint32_t others;  // shared address of the lane's part of the last steps

  // Both warps of a tile write the same, so none waits for the other.
  __device__ __forceinline__ HeldQueries(const SharedQueries<kDim>& shared,
                                         uint4 (&last)[kDim / 16 - kHeldSteps][kWarpLanes])
      : others(SharedAddress(&last[0][threadIdx.x % kWarpLanes])) {
#pragma unroll
    for (int step = 0; step < kHeldSteps; ++step) shared.Get(step, a[step]);
#pragma unroll
    for (int step = kHeldSteps; step < kDim / 16; ++step) {
      uint32_t q[4];
      shared.Get(step, q);
      last[step - kHeldSteps][threadIdx.x % kWarpLanes] = {q[0], q[1], q[2], q[3]};
    }
    __syncwarp();
  }
  __device__ __forceinline__ void Get(int step, uint32_t (&to)[4]) const {
    if (step < kHeldSteps) {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i] = a[step][i];
    } else {
      asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                   : "r"(others + (step - kHeldSteps) * kWarpLanes * 16));
    }
  }
};

// Scores of the 32 keys from `begin` on, -inf where a pair does not see a key.
template <int kDim, typename Queries>
__device__ __forceinline__ void ScoreHalf(const HalfTile& tile, const Queries& queries,
                                          const bf16* keys, int begin,
                                          float (&scores)[kHalfKeyTiles][4]) {
  const int lane = threadIdx.x % kWarpLanes;
#pragma unroll
  for (int n = 0; n < kHalfKeyTiles; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) scores[n][j] = 0.0f;
  }
  // Matrix m = lane / 8 of a load: keys 8 * (m / 2) + .., dims 8 * (m % 2) + ..
  const int key = (lane / 16) * 8 + lane % 8;  // + 16 per pair of tiles: same key % 8
  const uint32_t row = SharedAddress(keys) + key * kDim * 2;
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    uint32_t a[4];
    queries.Get(step, a);
    const uint32_t unit = ((step * 2 + lane / 8 % 2) ^ (lane % 8)) * 16;
#pragma unroll
    for (int n = 0; n < kHalfKeyTiles; n += 2) {
      uint32_t b[4];
      LoadMatrices(b, row + n * 8 * kDim * 2 + unit);
      Mma(scores[n], a, b[0], b[1]);
      Mma(scores[n + 1], a, b[2], b[3]);
    }
  }
#pragma unroll
  for (int n = 0; n < kHalfKeyTiles; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int k = begin + n * 8 + lane % 4 * 2 + j % 2;
      if (k < tile.first_key[j / 2] || k >= tile.end_key[j / 2]) scores[n][j] = -__builtin_inff();
    }
  }
}

// A chunk's values of value tiles first .. first + 3 of the warp's dims, from zero.
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
  const uint32_t row = SharedAddress(values) + lane % 16 * kValueDim * 2;
#pragma unroll
  for (int step = 0; step < kChunkSteps; ++step) {
    const uint4 high = weights[step][0][lane], low = weights[step][1][lane];
    const uint32_t a[2][4] = {{high.x, high.y, high.z, high.w}, {low.x, low.y, low.z, low.w}};
#pragma unroll
    for (int n = 0; n < kValueTilesAtOnce; n += 2) {
      uint32_t b[4];
      LoadMatricesTransposed(
          b, row + step * kStepKeys * kValueDim * 2 + ((first + n + lane / 16) ^ (lane % 8)) * 16);
      Mma(chunk[n], a[0], b[0], b[1]);
      Mma(chunk[n + 1], a[0], b[2], b[3]);
      Mma(chunk[n], a[1], b[0], b[1]);
      Mma(chunk[n + 1], a[1], b[2], b[3]);
    }
  }
}

// Warp w of kTileWarps: half w % 2 of tile w / 2 of the unit, from "arrived" of the first chunk to
// the partials. A warp without a tile only keeps the barriers. kOneChunk: the unit has no more.
template <int kDim, bool kOneChunk>
__device__ __forceinline__ void AttendTiles(const AttentionTask& task, const RoundView& round,
                                            const Group& group, const PartUnit& unit,
                                            PartScratch<kDim>& shared) {
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
  const int t = warp / 2, half = warp % 2;
  const float scale = ScoreScale(task.score_scale);
  const int num_chunks = kOneChunk ? 1 : unit.chunk_end - unit.chunk_begin;
  if (t * kWarpPairs >= unit.num_pairs) {
    for (int i = 0; i < 3 * num_chunks; ++i) AttentionBarrier();
    return;
  }
  const auto pair_of = [&](int i) { return t * kWarpPairs + lane / 4 + 8 * i; };
  const auto row_of = [&](int i) {
    return group.RowOf(unit.pair_begin + min(pair_of(i), unit.num_pairs - 1));
  };
  // Of pair i; null past the last.
  const auto partial_of = [&](int i) -> AttentionPartial* {
    if (pair_of(i) >= unit.num_pairs) return nullptr;
    const int row = row_of(i);
    return &PartialOf(task,
                      (round.first_row + row) * task.num_q_heads + unit.kv_head * group.size +
                          unit.pair_begin + pair_of(i) - row * group.size,
                      unit.part);
  };
  HalfTile tile;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = row_of(i), position = static_cast<int>(round.position);
    tile.first_key[i] = unit.is_block ? 0 : FirstKey(task, position, row);
    tile.end_key[i] = unit.is_block ? round.num_rows : EndKey(task, position, row);
    tile.state[i] = {kNoScore, 0.0f};
  }
  // One chunk, its queries given: from scores to what `take` makes of the chunk's values.
  const auto attend = [&](const auto& queries, int i, auto take) {
    bf16* const keys = shared.keys[i % 2];
    auto& weights = reinterpret_cast<typename PartScratch<kDim>::Weights*>(keys)[0][t];
    float p[kHalfKeyTiles][4];
    ScoreHalf<kDim>(tile, queries, keys + half * (kChunkKeys / 2) * kDim,
                    (unit.chunk_begin + i) * kChunkKeys + half * (kChunkKeys / 2), p);
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
      weights[step][0][lane] = {high[0], high[1], high[2], high[3]};
      weights[step][1][lane] = {low[0], low[1], low[2], low[3]};
    }
    AttentionBarrier();  // weighted
    Factors factors[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = 0.0f;
#pragma unroll
      for (int s = 0; s < kChunkSteps; ++s) sum = __fadd_rn(sum, shared.sums[t][s][r][lane]);
      tile.state[r] = Merge(tile.state[r], {max[r], WeightSum(sum)}, scale, factors[r]);
    }
#pragma unroll
    for (int first = 0; first < kHalfValueTiles; first += kValueTilesAtOnce) {
      float chunk[kValueTilesAtOnce][4];
      ChunkValues(weights, shared.values, half * kHalfValueTiles + first, chunk);
      take(first, chunk, factors);
    }
  };
  const auto store_state = [&](int i, AttentionPartial& partial) {
    if (half == 0 && lane % 4 == 0) partial.state = tile.state[i];
  };
  const auto store = [&](AttentionPartial& partial, int n, float x, float y) {
    reinterpret_cast<float2*>(partial.values)[(half * kHalfValueTiles + n) * 4 + lane % 4] = {x, y};
  };
  AttentionBarrier();  // arrived
  const SharedQueries<kDim> queries(shared.keys[1] + t * kWarpPairs * kDim);
  if constexpr (kOneChunk) {
    AttentionPartial* const partials[2] = {partial_of(0), partial_of(1)};
    attend(queries, 0, [&](int first, const auto& chunk, const auto&) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (partials[i] == nullptr) continue;
        if (first == 0) store_state(i, *partials[i]);
#pragma unroll
        for (int n = 0; n < kValueTilesAtOnce; ++n) {
          store(*partials[i], first + n, chunk[n][2 * i], chunk[n][2 * i + 1]);
        }
      }
    });
  } else {
    const HeldQueries<kDim> held(queries, shared.queries[t]);
#pragma unroll
    for (int n = 0; n < kHalfValueTiles; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) tile.values[n][j] = 0.0f;
    }
#pragma unroll 1
    for (int i = 0; i < num_chunks; ++i) {
      if (i > 0) AttentionBarrier();  // arrived
      attend(held, i, [&](int first, const auto& chunk, const auto& factors) {
#pragma unroll
        for (int n = 0; n < kValueTilesAtOnce; ++n) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float& value = tile.values[first + n][j];
            value = MergeValue(value, chunk[n][j], factors[j / 2]);
          }
        }
      });
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      AttentionPartial* const partial = partial_of(i);
      if (partial == nullptr) continue;
      store_state(i, *partial);
#pragma unroll
      for (int n = 0; n < kHalfValueTiles; ++n) {
        store(*partial, n, tile.values[n][2 * i], tile.values[n][2 * i + 1]);
      }
    }
  }
}

// Runs unit `index` of the plan; all consumer threads call it. Calls `wait` in one warp: before it
// only what earlier rounds wrote is read. Results: the unit's partials. kOneChunk: the plan's
// part_chunks is 1.
// REQUIRES: kDim = qk_head_dim; rotary_dims = kRotaryDims; norms only if kDim is 128; a bf16 cache
// with Dv = 128; at most 16 q heads per kv head; a ring that holds all chunks that a row sees; a
// barrier of the consumers between other uses of `scratch` and this one, on both sides.
template <int kDim, bool kOneChunk, typename WaitFn>
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
    AttentionBarrier();
    loader.Run(group);
    return;
  }
  {
    constexpr int kHeads = kUnitTilesMax * kWarpPairs / kTileWarps;
    HeadBatch<kDim, kHeads> queries(
        task, round, group, unit.kv_head, task.q_norm, [&](int i) -> HeadMove {
          const int h = warp + i * kTileWarps, pair = unit.pair_begin + h;
          const int row = group.RowOf(pair);
          return {HeadKind::kQuery, row, pair - row * group.size,
                  h < unit.num_pairs ? shared.keys[1] : nullptr, h};
        });
    AttentionBarrier();
    queries.Load(task);
    queries.Store(task);
  }
  AttendTiles<kDim, kOneChunk>(task, round, group, unit, shared);
}

// ---- The fold

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

// After all units of the layer are done everywhere: folds the parts of (row, head) pair `pair` in
// [0, rows of all sequences * Hq), whose sequence has `plan`, into its output. All consumer threads
// call it. Parts that a row does not see leave its result as it was. Warps fold what comes first in
// the order (attention.cu): chunks to segments, or segments to spans; warp 0 folds what they made,
// or at once the chunks of a window. `scratch` as in AttendPart. Bytes: 528 per part.
__device__ inline void CombinePair(const AttentionTask& task, const PartPlan& plan, int pair,
                                   uint8_t* scratch) {
  constexpr int kAtOnce = kChunkPartsMax;
  constexpr int kPieces = sizeof(AttentionPartial) / 16;
  static_assert(kAtOnce * sizeof(AttentionPartial) <= kAttentionScratchBytes);
  static_assert(kChunkPartsMax <= kSpanKeys / kChunkKeys, "chunks are parts within one span only");
  static_assert(kAtOnce % (kSpanKeys / kSegmentKeys) == 0 && kAtOnce % kSegmentChunks == 0);
  auto* const parts = reinterpret_cast<AttentionPartial*>(scratch);
  const int warp = threadIdx.x / kWarpLanes, lane = threadIdx.x % kWarpLanes;
  const float scale = ScoreScale(task.score_scale);
  const AttentionPartial* const partials = &PartialOf(task, pair, 0);
  const int fold_parts = task.window > 0         ? 1
                         : plan.part_chunks == 1 ? kSegmentChunks
                                                 : kSpanKeys / kSegmentKeys;
  const Sink sink = SinkOf(task.sinks, pair - Quotient(pair, task.num_q_heads) * task.num_q_heads);
  const auto fold = [&](LaneResult& result, int begin, int end, int stride) {
#pragma unroll 4
    for (int i = begin; i < end; i += stride) {
      result.Add(parts[i].state, reinterpret_cast<const float4*>(parts[i].values)[lane], scale);
    }
  };

  LaneResult total;
  for (int first = 0; first < plan.num_parts; first += kAtOnce) {
    const int count = min(kAtOnce, plan.num_parts - first);
    if (first > 0) AttentionBarrier();
#pragma unroll 4
    for (int i = threadIdx.x; i < count * kPieces; i += kConsumerThreads) {
      CopyAsync16(scratch + i * 16, reinterpret_cast<const uint4*>(partials + first) + i, true);
    }
    CommitCopies();
    WaitCopies<0>();
    AttentionBarrier();
    if (fold_parts > 1) {
      for (int begin = warp * fold_parts; begin < count; begin += kAttentionWarps * fold_parts) {
        LaneResult result;
        fold(result, begin, min(count, begin + fold_parts), 1);
        __syncwarp();
        reinterpret_cast<float4*>(parts[begin].values)[lane] = result.values;
        if (lane == 0) parts[begin].state = result.state;
      }
      AttentionBarrier();
    }
    if (warp == 0) fold(total, 0, count, fold_parts);
  }
  if (warp != 0) return;
  const float factor = OutputFactor(total.state, scale, sink);
  reinterpret_cast<uint2*>(task.out + static_cast<int64_t>(pair) * kValueDim)[lane] = {
      OutputPair(total.values.x, total.values.y, factor),
      OutputPair(total.values.z, total.values.w, factor)};
}

}  // namespace ultraspeed::kernels::cuda::resident
