// Attention of a few rows and one key-value head, for all query heads of the group. Up to
// kQueriesAtOnce pairs of row and head, the queries, read a key together.
//
// Keys come in chunks of 64, counted from first_key, the block's keys after the cache's; within a
// chunk: scores by bf16 dot products, an online softmax in fp32, then keys in ascending order, acc
// = fma(p, v, acc). A chunk never mixes cache and block. The sink joins the denominator at the end.
// A key that only some of the queries see has weight 0 for the others, which changes nothing of
// theirs. Included once per instruction set inside namespace ULTRASPEED_ISA.

constexpr int kQueriesAtOnce = 4;
constexpr int kChunkKeys = 64;
constexpr int kHeadDimsMax = 512;
constexpr float kMinusInfinity = -__builtin_inff();

template <int kQueries>
struct AttentionState {
  Factor q[kQueries][kHeadDimsMax / 32];  // 32 of D each
  int last_key[kQueries];                 // of the cache
  float max[kQueries];
  float sum[kQueries];
  float acc[kQueries][kHeadDimsMax];
};

// dots[h * kKeys + j]: lanes that add up to q[h] * k[j].
template <int kQueries, int kKeys>
INLINE void DotKeys(const AttentionState<kQueries>& state, const bf16* const* k, int dim, F* dots) {
  constexpr int kKeysAtOnce = kSumsInRegisters / kQueries;
#pragma GCC unroll 16
  for (int first = 0; first < kKeys; first += kKeysAtOnce) {
    F sums[kKeysAtOnce][kQueries] = {};
    for (int d = 0; d < dim; d += 32) {
#pragma GCC unroll 16
      for (int j = 0; j < kKeysAtOnce; ++j) {
        const Factor key = ToFactor(LoadW(k[first + j] + d));
#pragma GCC unroll 4
        for (int h = 0; h < kQueries; ++h) sums[j][h] = Dot(sums[j][h], key, state.q[h][d / 32]);
      }
    }
#pragma GCC unroll 16
    for (int j = 0; j < kKeysAtOnce; ++j) {
#pragma GCC unroll 4
      for (int h = 0; h < kQueries; ++h) dots[h * kKeys + first + j] = sums[j][h];
    }
  }
}

// The next keys are asked for ahead of their turn, values while their keys are read.
INLINE void PrefetchRow(const bf16* row, int dims) {
  for (int d = 0; d < dims; d += 32) __builtin_prefetch(row + d);
}

// k and v: the rows of this chunk, padded with valid rows to a multiple of kLanes; query h sees the
// first num_seen[h] of num_keys.
template <int kQueries>
void AttendChunk(AttentionState<kQueries>& state, const bf16* const* k, const bf16* const* v,
                 int num_keys, const int* num_seen, float score_scale, int dim, int value_dim) {
  alignas(64) float p[kQueries][kChunkKeys];
  constexpr int kKeys = kLanes / kQueries;  // whose sums across lanes fill a vector
  for (int j = 0; j < num_keys; j += kKeys) {
    for (int i = j; i < j + kKeys; ++i) {
      if (i + kKeys < num_keys) PrefetchRow(k[i + kKeys], dim);
      PrefetchRow(v[i], value_dim);
    }
    F dots[kLanes];
    DotKeys<kQueries, kKeys>(state, k + j, dim, dots);
    float scores[kLanes];
    Store(scores, Sum16(dots) * score_scale);
    for (int h = 0; h < kQueries; ++h) __builtin_memcpy(p[h] + j, scores + h * kKeys, 4 * kKeys);
  }
  for (int h = 0; h < kQueries; ++h) {
    for (int j = num_seen[h]; j < kChunkKeys; ++j) p[h][j] = kMinusInfinity;
  }
  float rescale[kQueries];
  for (int h = 0; h < kQueries; ++h) {
    F largest = Load(p[h]);
    for (int j = kLanes; j < kChunkKeys; j += kLanes) largest = Max(Load(p[h] + j), largest);
    const float chunk_max = MaxLane(largest);
    const float new_max = chunk_max > state.max[h] ? chunk_max : state.max[h];
    rescale[h] = Exp(Splat(state.max[h] - new_max))[0];
    F sum = {};
    for (int j = 0; j < kChunkKeys; j += kLanes) {
      const F weight = Exp(Load(p[h] + j) - new_max);
      Store(p[h] + j, weight);
      sum += weight;
    }
    state.sum[h] = FmaScalar(state.sum[h], rescale[h], Sum(sum));
    state.max[h] = new_max;
  }
  constexpr int kVectors = 4 / kRegistersOfVector;
  for (int d = 0; d < value_dim;) {
    if (value_dim - d >= kVectors * kLanes) {
      F acc[kQueries][kVectors];
#pragma GCC unroll 4
      for (int h = 0; h < kQueries; ++h) {
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i) {
          acc[h][i] = Load(state.acc[h] + d + i * kLanes) * rescale[h];
        }
      }
      for (int j = 0; j < num_keys; ++j) {
        F value[kVectors];
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i) value[i] = LoadBf16(v[j] + d + i * kLanes);
#pragma GCC unroll 4
        for (int h = 0; h < kQueries; ++h) {
          const F weight = Splat(p[h][j]);
#pragma GCC unroll 4
          for (int i = 0; i < kVectors; ++i) acc[h][i] = Fma(weight, value[i], acc[h][i]);
        }
      }
#pragma GCC unroll 4
      for (int h = 0; h < kQueries; ++h) {
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i) Store(state.acc[h] + d + i * kLanes, acc[h][i]);
      }
      d += kVectors * kLanes;
    } else {
      F acc[kQueries];
      for (int h = 0; h < kQueries; ++h) acc[h] = Load(state.acc[h] + d) * rescale[h];
      for (int j = 0; j < num_keys; ++j) {
        const F value = LoadBf16(v[j] + d);
        for (int h = 0; h < kQueries; ++h) acc[h] = Fma(Splat(p[h][j]), value, acc[h]);
      }
      for (int h = 0; h < kQueries; ++h) Store(state.acc[h] + d, acc[h]);
      d += kLanes;
    }
  }
}

// Of the task's head in the cache of its first row; `page` counts from the sequence's begin.
INLINE size_t FirstRowOfPage(const AttentionTask& task, int page) {
  const KvView& kv = *task.params->rows[task.row].kv;
  return KvRow(kv, task.params->num_kv_heads, task.kv_head, int64_t{page} * kv.page_tokens);
}

// Queries [first, first + kQueries) of a task whose rows SeeTheSame.
template <int kQueries>
void AttendQueries(const AttentionTask& task, int first) {
  const AttentionParams& params = *task.params;
  const AttentionRow& row = params.rows[task.row];
  const int group = params.num_q_heads / params.num_kv_heads;
  const auto row_of = [&](int h) { return task.row + (first + h) / group; };
  const auto head_of = [&](int h) { return task.kv_head * group + (first + h) % group; };
  const auto place_of = [&](int h) {
    return static_cast<size_t>(row_of(h)) * params.num_q_heads + head_of(h);
  };
  const int dim = params.qk_head_dim;
  const int value_dim = params.v_head_dim;
  AttentionState<kQueries> state;
  int last_key = -1;
  for (int h = 0; h < kQueries; ++h) {
    state.last_key[h] = params.rows[row_of(h)].last_key;
    if (state.last_key[h] > last_key) last_key = state.last_key[h];
    const bf16* const q = params.q + place_of(h) * dim;
    for (int d = 0; d < dim; d += 32) state.q[h][d / 32] = ToFactor(LoadW(q + d));
    state.max[h] = -1e30f;
    state.sum[h] = 0.0f;
    for (int d = 0; d < value_dim; d += kLanes) Store(state.acc[h] + d, F{});
  }
  const bf16* k[kChunkKeys];
  const bf16* v[kChunkKeys];
  const auto attend = [&](int num_keys, const int* num_seen) {
    for (int j = num_keys; j % kLanes != 0; ++j) {
      k[j] = k[num_keys - 1];
      v[j] = v[num_keys - 1];
    }
    AttendChunk<kQueries>(state, k, v, num_keys, num_seen, params.score_scale, dim, value_dim);
  };
  const auto up_to = [](int count) {
    return count < 0 ? 0 : count < kChunkKeys ? count : kChunkKeys;
  };
  int num_seen[kQueries];
  for (int key = row.first_key; key <= last_key; key += kChunkKeys) {
    const int num_keys = up_to(last_key - key + 1);
    for (int h = 0; h < kQueries; ++h) num_seen[h] = up_to(state.last_key[h] - key + 1);
    const KvView& kv = *row.kv;
    int page = key / kv.page_tokens;
    int offset = key - page * kv.page_tokens;
    size_t base = FirstRowOfPage(task, page);
    for (int j = 0; j < num_keys; ++j) {
      if (offset == kv.page_tokens) {
        offset = 0;
        base = FirstRowOfPage(task, ++page);
      }
      k[j] = kv.k + (base + offset) * dim;
      v[j] = kv.v + (base + offset) * value_dim;
      ++offset;
    }
    attend(num_keys, num_seen);
  }
  if (row.block_k != nullptr) {
    for (int key = 0; key < row.block_rows; key += kChunkKeys) {
      const int num_keys = up_to(row.block_rows - key);
      for (int h = 0; h < kQueries; ++h) num_seen[h] = num_keys;
      for (int j = 0; j < num_keys; ++j) {
        const size_t block_row = static_cast<size_t>(task.kv_head) * row.block_rows + key + j;
        k[j] = row.block_k + block_row * dim;
        v[j] = row.block_v + block_row * value_dim;
      }
      attend(num_keys, num_seen);
    }
  }
  for (int h = 0; h < kQueries; ++h) {
    float sum = state.sum[h];
    float scale = 1.0f;
    if (params.sinks != nullptr) {
      const float sink = params.sinks[head_of(h)];
      const float max = sink > state.max[h] ? sink : state.max[h];
      scale = Exp(Splat(state.max[h] - max))[0];
      sum = FmaScalar(sum, scale, Exp(Splat(sink - max))[0]);
    }
    const float inverse = sum > 0.0f ? scale / sum : 0.0f;
    bf16* out = params.out + place_of(h) * value_dim;
    for (int d = 0; d < value_dim; d += kLanes) {
      StoreBf16Part(out + d, Load(state.acc[h] + d) * inverse, kLanes);
    }
  }
}

// Whether the rows of a task see the same keys, but for the newest.
INLINE bool SeeTheSame(const AttentionTask& task) {
  const AttentionRow& row = task.params->rows[task.row];
  for (int r = 1; r < task.num_rows; ++r) {
    const AttentionRow& other = task.params->rows[task.row + r];
    if (other.kv != row.kv || other.first_key != row.first_key || other.block_k != row.block_k ||
        other.block_v != row.block_v || other.block_rows != row.block_rows) {
      return false;
    }
  }
  return true;
}

void AttendByVectors(const AttentionTask& task) {
  if (!SeeTheSame(task)) {
    for (int r = 0; r < task.num_rows; ++r) {
      AttendByVectors({task.params, task.row + r, 1, task.kv_head});
    }
    return;
  }
  const int end = task.params->num_q_heads / task.params->num_kv_heads * task.num_rows;
  int query = 0;
  for (; query + kQueriesAtOnce <= end; query += kQueriesAtOnce) {
    AttendQueries<kQueriesAtOnce>(task, query);
  }
  for (; query + 2 <= end; query += 2) AttendQueries<2>(task, query);
  for (; query < end; ++query) AttendQueries<1>(task, query);
}
