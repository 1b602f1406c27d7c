// Attention by Intel AMX: up to 16 queries, pairs of row and head, of one key-value head.
//
// Rows of the cache are tiles as they lie: scores[key][query] = keys x queries, whose lanes are
// queries, so that a softmax needs nothing across lanes. Weights enter the second product as two
// bf16 terms, an error near 2^-17, and values as pairs of keys.
//
// The order, which depends on a row's position and on what it sees alone: chunks of 64 keys that
// begin at multiples of 64, the block's keys after the cache's, from 0. Within a chunk: scores by
// groups of 32 dims ascending, an online softmax in fp32 whose sum adds up every fourth key,
// ascending, and then the four sums as a tree; acc, rescaled, plus groups of 32 keys ascending, of
// each the upper terms before the lower ones (groups: amx_tiles.inc.h). A key that a query does not
// see has weight 0, which changes at most the sign of a zero: the output has none. Included once
// per instruction set inside namespace ULTRASPEED_ISA.

constexpr int kQueryTile = 16;
constexpr int kKeyTiles = kChunkKeys / kTileRows;
constexpr int kKeyGroups = kChunkKeys / kTileColumns;  // of 32 keys

// rows[c][r] = rows[r][c], of 16 x 16 values of 32 bits.
INLINE void Transpose(F* rows) {
  __m512 a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    const auto x = reinterpret_cast<__m512>(rows[i]), y = reinterpret_cast<__m512>(rows[i + 1]);
    a[i] = _mm512_unpacklo_ps(x, y);
    a[i + 1] = _mm512_unpackhi_ps(x, y);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c) {
      const __m512d x = _mm512_castps_pd(a[i + c]), y = _mm512_castps_pd(a[i + 2 + c]);
      b[i + 2 * c] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
      b[i + 2 * c + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
    }
  }
  // A quarter L of b[4 i + c] has column 4 L + c of rows 4 i .. 4 i + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 even_low = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88);
    const __m512 even_high = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xdd);
    const __m512 odd_high = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xdd);
    rows[c] = reinterpret_cast<F>(_mm512_shuffle_f32x4(even_low, even_high, 0x88));
    rows[4 + c] = reinterpret_cast<F>(_mm512_shuffle_f32x4(odd_low, odd_high, 0x88));
    rows[8 + c] = reinterpret_cast<F>(_mm512_shuffle_f32x4(even_low, even_high, 0xdd));
    rows[12 + c] = reinterpret_cast<F>(_mm512_shuffle_f32x4(odd_low, odd_high, 0xdd));
  }
}

// The nearest number of 8 bits of significand (Veltkamp).
INLINE F EightBits(F x) {
  const F scaled = x * 65537.0f;
  return scaled - (scaled - x);
}

// Words of 32 bits: a's upper half, then b's.
INLINE F UpperHalves(F a, F b) { return AsF((AsU(a) >> 16) | (AsU(b) & 0xffff0000u)); }

// Keys [begin, end) of a chunk are there; key 0 is first_key of the cache or of the block.
struct KeyChunk {
  const bf16* k[kChunkKeys];
  const bf16* v[kChunkKeys];
  int begin, end;
  int first_key;
  bool is_of_block;
};

class TileAttention {
 public:
  // Queries [first, first + count) of the rows of a task, which look into the same cache and block.
  TileAttention(const AttentionTask& task, int first, int count)
      : task_(task),
        params_(*task.params),
        group_(params_.num_q_heads / params_.num_kv_heads),
        first_(first),
        count_(count) {}

  void Run() {
    ConfigureTiles(kTileRows);
    FindKeys();
    LoadQueries();
    KeyChunk chunk;
    while (NextChunk(chunk)) Attend(chunk);
    Finish();
  }

 private:
  int RowOf(int query) const { return task_.row + (first_ + query) / group_; }
  int HeadOf(int query) const { return task_.kv_head * group_ + (first_ + query) % group_; }
  const AttentionRow& row() const { return params_.rows[RowOf(0)]; }
  size_t PlaceOf(int query) const {
    return static_cast<size_t>(RowOf(query)) * params_.num_q_heads + HeadOf(query);
  }

  void FindKeys() {
    end_key_ = 0;
    next_key_ = INT32_MAX;
    for (int i = 0; i < kQueryTile; ++i) {
      first_key_[i] = i < count_ ? params_.rows[RowOf(i)].first_key : 0;
      last_key_[i] = i < count_ ? params_.rows[RowOf(i)].last_key : -1;
      if (first_key_[i] > last_key_[i]) continue;
      next_key_ = first_key_[i] < next_key_ ? first_key_[i] : next_key_;
      end_key_ = last_key_[i] + 1 > end_key_ ? last_key_[i] + 1 : end_key_;
    }
    next_block_key_ = 0;
    end_block_key_ = row().block_k != nullptr ? row().block_rows : 0;
  }

  // Where the next chunk lies; false if there is none.
  bool NextChunk(KeyChunk& chunk) {
    chunk.is_of_block = next_key_ >= end_key_;
    int& next = chunk.is_of_block ? next_block_key_ : next_key_;
    const int end = chunk.is_of_block ? end_block_key_ : end_key_;
    if (next >= end) return false;
    chunk.first_key = next / kChunkKeys * kChunkKeys;
    chunk.begin = next - chunk.first_key;
    chunk.end = end - chunk.first_key < kChunkKeys ? end - chunk.first_key : kChunkKeys;
    next = chunk.first_key + chunk.end;
    if (chunk.is_of_block) {
      const size_t base = static_cast<size_t>(task_.kv_head) * end + chunk.first_key;
      for (int j = 0; j < chunk.end; ++j) {
        SetRow(chunk, j, row().block_k, row().block_v, base + j);
      }
      return true;
    }
    const KvView& kv = *row().kv;
    for (int j = chunk.begin; j < chunk.end;) {
      const int key = chunk.first_key + j, page = key / kv.page_tokens;
      const int offset = key - page * kv.page_tokens;
      const size_t base = FirstRowOfPage(task_, page);
      for (int i = offset; i < kv.page_tokens && j < chunk.end; ++i, ++j) {
        SetRow(chunk, j, kv.k, kv.v, base + i);
      }
    }
    return true;
  }
  void SetRow(KeyChunk& chunk, int j, const bf16* k, const bf16* v, size_t row) const {
    chunk.k[j] = k + row * params_.qk_head_dim;
    chunk.v[j] = v + row * params_.v_head_dim;
  }

  void LoadQueries() {
    for (int d = 0; d < params_.qk_head_dim; d += kTileColumns) {
      F rows[kQueryTile] = {};
      for (int i = 0; i < count_; ++i) {
        rows[i] = AsF(LoadW(params_.q + PlaceOf(i) * params_.qk_head_dim + d));
      }
      Transpose(rows);
      for (int i = 0; i < kQueryTile; ++i) Store(queries_[d / kTileColumns][i], rows[i]);
    }
    max_ = Splat(-1e30f);
    sum_ = F{};
    for (int d = 0; d < params_.v_head_dim; d += kLanes) {
      for (int i = 0; i < kQueryTile; ++i) Store(acc_[AccTile(d)][i], F{});
      if (params_.v_head_dim - d == kLanes) {
        for (int i = 0; i < kQueryTile; ++i) Store(acc_[AccTile(d) + 1][i], F{});
      }
    }
  }
  // Two tiles of sums for 32 dims; which of the 32 go where: Interleave.
  static int AccTile(int dim) { return dim / kLanes; }

  void Attend(const KeyChunk& chunk) {
    // What each query sees of the chunk.
    const I first_seen = chunk.is_of_block ? I{} : first_key_ - chunk.first_key;
    const I last_seen = chunk.is_of_block ? I{} + (kChunkKeys - 1) : last_key_ - chunk.first_key;
    Score(chunk);
    // Only groups of 32 keys of which some are there take part.
    const int begin = chunk.begin / kTileColumns * kTileColumns;
    const int end = (chunk.end + kTileColumns - 1) / kTileColumns * kTileColumns;
    F largest = Splat(kMinusInfinity);
    for (int j = begin; j < end; ++j) {
      const F score = Load(scores_[j]) * params_.score_scale;
      const I seen = (first_seen <= j) & (last_seen >= j);
      const F masked = j < chunk.begin || j >= chunk.end
                           ? Splat(kMinusInfinity)
                           : Select(seen, score, Splat(kMinusInfinity));
      Store(scores_[j], masked);
      largest = Max(masked, largest);
    }
    const F new_max = Max(largest, max_);
    const F rescale = Exp(max_ - new_max);
    max_ = new_max;
    F sums[4] = {};
    for (int j = begin; j < end; j += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const F weight = Exp(Load(scores_[j + i]) - new_max);
        Store(scores_[j + i], weight);
        sums[i] += weight;
      }
    }
    sum_ = Fma(sum_, rescale, (sums[0] + sums[1]) + (sums[2] + sums[3]));
    Rescale(rescale);
    SplitWeights(begin, end);
    // 64 dims are made ready while those before are multiplied.
    LoadWeights(begin, end);
    const int dims = params_.v_head_dim;
    for (int d = 0; d < dims + 64; d += 64) {
      for (int i = d; i < d + 64 && i < dims; i += 32) Interleave(chunk, begin, end, i);
      for (int i = d - 64; i >= 0 && i < d && i < dims; i += 32) AddValues(begin, end, i);
    }
  }

  // scores_[key][query]; of absent keys anything.
  void Score(const KeyChunk& chunk) {
    const auto dims = static_cast<size_t>(params_.qk_head_dim);
    const bf16* tiles[kKeyTiles] = {};  // null: no key is there
    size_t strides[kKeyTiles] = {};
    for (int i = chunk.begin / kTileRows; i * kTileRows < chunk.end; ++i) {
      const int j = i * kTileRows;
      const bool whole = j >= chunk.begin && j + kTileRows <= chunk.end &&
                         chunk.k[j + kTileRows - 1] == chunk.k[j] + (kTileRows - 1) * dims;
      tiles[i] = whole ? chunk.k[j] : keys_[i][0];
      strides[i] = whole ? dims : kHeadDimsMax;
      if (!whole) CopyKeys(chunk, j, keys_[i]);
    }
    Repeat<kKeyTiles>([&](auto i) { LoadTile<i.value>(kZeroTile, kTileRowBytes); });
    for (int d = 0; d < params_.qk_head_dim; d += kTileColumns) {
      LoadTile<kWeightRegister>(queries_[d / kTileColumns], kTileRowBytes);
      Repeat<kKeyTiles>([&](auto i) {
        if (tiles[i.value] == nullptr) return;
        constexpr int kKeys = i.value % 2 == 0 ? kInputRegister : kWeightRegister + 1;
        LoadTile<kKeys>(tiles[i.value] + d, strides[i.value] * sizeof(bf16));
        MultiplyTiles<i.value, kKeys, kWeightRegister>();
      });
    }
    Repeat<kKeyTiles>([&](auto i) { StoreTile<i.value>(scores_[i.value * kTileRows]); });
  }
  void CopyKeys(const KeyChunk& chunk, int first, bf16 (*rows)[kHeadDimsMax]) const {
    for (int r = 0; r < kTileRows; ++r) {
      const int j = first + r;
      const bool there = j >= chunk.begin && j < chunk.end;
      for (int d = 0; d < params_.qk_head_dim; d += kTileColumns) {
        StoreW(rows[r] + d, there ? LoadW(chunk.k[j] + d) : W{});
      }
    }
  }

  void Rescale(F rescale) {
    alignas(64) float factors[kQueryTile];
    Store(factors, rescale);
    bool changes = false;
    for (int i = 0; i < count_; ++i) changes |= factors[i] != 1.0f;
    if (!changes) return;
    const int num_tiles = (params_.v_head_dim + 31) / 32 * 2;
    for (int tile = 0; tile < num_tiles; ++tile) {
      for (int i = 0; i < count_; ++i) {
        Store(acc_[tile][i], Load(acc_[tile][i]) * factors[i]);
      }
    }
  }

  // values_: tiles of 32 keys by 16 dims, a row two keys. Of 32 dims, the first tile has those of
  // the lower halves of their 8.
  void Interleave(const KeyChunk& chunk, int begin, int end, int dim) {
    const bool whole = params_.v_head_dim - dim >= 32;
    const auto row = [&](int j) {
      if (j < chunk.begin || j >= chunk.end) return __m512i{};
      if (whole) return reinterpret_cast<__m512i>(LoadW(chunk.v[j] + dim));
      const auto half = *reinterpret_cast<const UnalignedHalfW*>(chunk.v[j] + dim);
      return _mm512_zextsi256_si512(reinterpret_cast<__m256i>(half));
    };
    auto& values = values_[dim / 32 % 4];
    for (int j = begin; j < end; j += 2) {
      const __m512i first = row(j), second = row(j + 1);
      const int group = j / kTileColumns, pair = j % kTileColumns / 2;
      StoreW(values[group][0][pair], reinterpret_cast<W>(_mm512_unpacklo_epi16(first, second)));
      StoreW(values[group][1][pair], reinterpret_cast<W>(_mm512_unpackhi_epi16(first, second)));
    }
  }

  // weights_[group]: tiles of 16 queries by 32 keys, the upper terms and the lower ones.
  void SplitWeights(int begin, int end) {
    for (int j = begin; j < end; j += kTileColumns) {
      F upper[kTileRows], lower[kTileRows];
#pragma GCC unroll 16
      for (int pair = 0; pair < kTileRows; ++pair) {
        const F first = Load(scores_[j + 2 * pair]), second = Load(scores_[j + 2 * pair + 1]);
        const F first_upper = EightBits(first), second_upper = EightBits(second);
        upper[pair] = UpperHalves(first_upper, second_upper);
        lower[pair] = UpperHalves(EightBits(first - first_upper), EightBits(second - second_upper));
      }
      Transpose(upper);
      Transpose(lower);
      for (int i = 0; i < kQueryTile; ++i) {
        Store(weights_[j / kTileColumns][0][i], upper[i]);
        Store(weights_[j / kTileColumns][1][i], lower[i]);
      }
    }
  }

  // Registers: sums 0 and 1, values 2 and 3, weights from 4.
  void LoadWeights(int begin, int end) {
    Repeat<2 * kKeyGroups>([&](auto i) {
      if (i.value / 2 * kTileColumns < begin || i.value / 2 * kTileColumns >= end) return;
      LoadTile<4 + i.value>(weights_[i.value / 2][i.value % 2], kTileRowBytes);
    });
  }
  void AddValues(int begin, int end, int dim) {
    float(*const sums)[kQueryTile][kLanes] = acc_ + AccTile(dim);
    auto& values = values_[dim / 32 % 4];
    Repeat<2>([&](auto i) { LoadTile<i.value>(sums[i.value], kTileRowBytes); });
    Repeat<kKeyGroups>([&](auto g) {
      if (g.value * kTileColumns < begin || g.value * kTileColumns >= end) return;
      Repeat<2>([&](auto i) {
        LoadTile<2 + i.value>(values[g.value][i.value], kTileRowBytes);
        MultiplyTiles<i.value, 4 + 2 * g.value, 2 + i.value>();
        MultiplyTiles<i.value, 4 + 2 * g.value + 1, 2 + i.value>();
      });
    });
    Repeat<2>([&](auto i) { StoreTile<i.value>(sums[i.value]); });
  }

  void Finish() {
    F sum = sum_, scale = Splat(1.0f);
    if (params_.sinks != nullptr) {
      F sink = {};
      for (int i = 0; i < count_; ++i) sink[i] = params_.sinks[HeadOf(i)];
      const F max = Max(sink, max_);
      scale = Exp(max_ - max);
      sum = Fma(sum, scale, Exp(sink - max));
    }
    const F inverse = Select(sum > 0.0f, scale / sum, F{});
    for (int i = 0; i < count_; ++i) {
      bf16* const out = params_.out + PlaceOf(i) * params_.v_head_dim;
      for (int d = 0; d < params_.v_head_dim; d += 32) {
        const F a = Load(acc_[AccTile(d)][i]), b = Load(acc_[AccTile(d) + 1][i]);
        const auto put = [&](int dim, F value) {
          StoreBf16Part(out + dim, value * inverse[i] + 0.0f, kLanes);
        };
        put(d,
            __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23));
        if (params_.v_head_dim - d == kLanes) continue;
        put(d + kLanes, __builtin_shufflevector(a, b, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15,
                                                28, 29, 30, 31));
      }
    }
  }

  const AttentionTask& task_;
  const AttentionParams& params_;
  const int group_, first_, count_;
  I first_key_, last_key_;  // of the cache, of each query
  int next_key_, end_key_;  // of the cache, of the next chunk and after the last one; likewise:
  int next_block_key_, end_block_key_;
  F max_, sum_;
  alignas(64) float queries_[kHeadDimsMax / kTileColumns][kTileRows][kQueryTile];  // pairs of dims
  alignas(64) float scores_[kChunkKeys][kQueryTile];                               // then weights
  alignas(64) float weights_[kKeyGroups][2][kQueryTile][kTileRows];
  alignas(64) bf16 keys_[kKeyTiles][kTileRows][kHeadDimsMax];  // copies of what is no tile in place
  alignas(64) float values_[4][kKeyGroups][2][kTileRows][kLanes];
  alignas(64) float acc_[kHeadDimsMax / kLanes][kQueryTile][kLanes];
};

// Whether a row looks into the same cache and block as the one before, and their keys meet.
INLINE bool Continues(const AttentionRow& row, const AttentionRow& before) {
  return row.kv == before.kv && row.block_k == before.block_k && row.block_v == before.block_v &&
         row.block_rows == before.block_rows && row.first_key >= before.first_key &&
         row.first_key <= before.last_key + 1 && row.last_key >= before.last_key;
}

void AttendByTiles(const AttentionTask& task) {
  const int group = task.params->num_q_heads / task.params->num_kv_heads;
  for (int row = 0; row < task.num_rows;) {
    int end = row + 1;
    const AttentionRow* const rows = task.params->rows + task.row;
    while (end < task.num_rows && Continues(rows[end], rows[end - 1])) ++end;
    const AttentionTask part = {task.params, task.row + row, end - row, task.kv_head};
    for (int query = 0; query < part.num_rows * group; query += kQueryTile) {
      const int left = part.num_rows * group - query;
      TileAttention(part, query, left < kQueryTile ? left : kQueryTile).Run();
    }
    row = end;
  }
}
