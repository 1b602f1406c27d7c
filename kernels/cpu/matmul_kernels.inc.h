// Matrix product of tiles of 16 rows with up to kTokenBlock tokens: a weight vector is decoded once
// and used for many tokens.
//
// One lane is one output row, so nothing is summed across lanes. The order of an output's sum, the
// same everywhere: column pairs in ascending order, of a pair column 2p+1 and then 2p, each by a
// fused multiply-add (that is what vdpbf16ps does). FP8 sums each block of 128 columns from zero,
// MXFP4 each block of 32, and fuses scale * block onto the total. Included once per instruction set
// inside namespace ULTRASPEED_ISA.

// ---- kTiles tiles of 16 rows by kTokens tokens
// --------------------------------------------------------------------------------------

// Two columns of a token for all rows.
INLINE W BroadcastPair(const bf16* x) {
  uint32_t pair;
  __builtin_memcpy(&pair, x, 4);
  return SplatPair(pair);
}

// acc += the columns [begin, end) of the tiles. REQUIRES: both are multiples of 8.
template <typename Tile, int kTiles, int kTokens>
INLINE void AddColumns(const uint8_t* codes, size_t tile_bytes, const bf16* const* x, int begin,
                       int end, F (*acc)[kTokens]) {
  constexpr int kColumns = 2 * Tile::kPairs;
  for (int column = begin; column < end; column += kColumns) {
    const uint8_t* unit = codes + column / kColumns * 64;
    if constexpr (kTokens <= 2) {
      // Many tiles: keep the inputs in registers and decode one tile at a time.
      W inputs[Tile::kPairs][kTokens];
#pragma GCC unroll 4
      for (int p = 0; p < Tile::kPairs; ++p) {
#pragma GCC unroll 2
        for (int t = 0; t < kTokens; ++t) inputs[p][t] = BroadcastPair(x[t] + column + 2 * p);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kTiles; ++i) {
        W weights[Tile::kPairs];
        Tile::Decode(unit + i * tile_bytes, weights);
#pragma GCC unroll 4
        for (int p = 0; p < Tile::kPairs; ++p) {
#pragma GCC unroll 2
          for (int t = 0; t < kTokens; ++t) acc[i][t] = Dot(acc[i][t], weights[p], inputs[p][t]);
        }
      }
    } else {
      // Many tokens: keep the weights in registers.
      W weights[kTiles][Tile::kPairs];
#pragma GCC unroll 4
      for (int i = 0; i < kTiles; ++i) Tile::Decode(unit + i * tile_bytes, weights[i]);
#pragma GCC unroll 4
      for (int p = 0; p < Tile::kPairs; ++p) {
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) {
          const W input = BroadcastPair(x[t] + column + 2 * p);
#pragma GCC unroll 4
          for (int i = 0; i < kTiles; ++i) acc[i][t] = Dot(acc[i][t], weights[i][p], input);
        }
      }
    }
  }
}

INLINE Rows From(const Rows& rows, int row) {
  return {rows.first + static_cast<size_t>(row) * rows.stride, rows.stride};
}

template <typename Tile, int kTiles, int kTokens>
void Tiles(const MatrixView& w, int tile, const Rows& rows, float* const* out) {
  const bf16* x[kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) x[t] = From(rows, t).first;
  const uint8_t* codes = w.codes + static_cast<size_t>(tile) * w.tile_bytes;
  F total[kTiles][kTokens] = {};
  if constexpr (Tile::kFormat == WeightFormat::kBf16) {
    AddColumns<Tile, kTiles, kTokens>(codes, w.tile_bytes, x, 0, w.num_cols, total);
  } else {
    constexpr int kBlock = Tile::kBlockColumns;
    const int num_blocks = (w.num_cols + kBlock - 1) / kBlock;
    for (int block = 0; block < num_blocks; ++block) {
      F acc[kTiles][kTokens];
#pragma GCC unroll 8
      for (int i = 0; i < kTiles; ++i) {
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) acc[i][t] = F{};
      }
      const int end = (block + 1) * kBlock;
      AddColumns<Tile, kTiles, kTokens>(codes, w.tile_bytes, x, block * kBlock,
                                        end < w.num_cols ? end : w.num_cols, acc);
#pragma GCC unroll 8
      for (int i = 0; i < kTiles; ++i) {
        const F scale = Tile::Scale(w, tile + i, block, num_blocks);
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) total[i][t] = Fma(scale, acc[i][t], total[i][t]);
      }
    }
  }
  for (int i = 0; i < kTiles; ++i) {
    const int row = (tile + i) * kLanes;
    for (int t = 0; t < kTokens; ++t) StorePart(out[t] + row, total[i][t], w.num_rows - row);
  }
}

template <typename Tile, int kTiles, int kTokens>
INLINE void TilesFrom(const MatrixView& w, int& tile, int end, const Rows& x, float* const* out) {
  for (; tile + kTiles <= end; tile += kTiles) Tiles<Tile, kTiles, kTokens>(w, tile, x, out);
}

#if defined(__AVX512F__)

// Enough independent sums to hide the latency of vdpbf16ps, few enough to stay in 32 registers.
template <typename Tile, int kTokens>
void AllTiles(const MatrixView& w, int tile, int end, const Rows& x, float* const* out) {
  if constexpr (kTokens <= 2) TilesFrom<Tile, 8, kTokens>(w, tile, end, x, out);
  if constexpr (kTokens <= 4) TilesFrom<Tile, 4, kTokens>(w, tile, end, x, out);
  TilesFrom<Tile, 2, kTokens>(w, tile, end, x, out);
  TilesFrom<Tile, 1, kTokens>(w, tile, end, x, out);
}

template <typename Tile>
void EightTokens(const MatrixView& w, int tile, int end, const Rows& x, int num_tokens,
                 float* const* out) {
  switch (num_tokens) {
    case 1:
      return AllTiles<Tile, 1>(w, tile, end, x, out);
    case 2:
      return AllTiles<Tile, 2>(w, tile, end, x, out);
    case 3:
      return AllTiles<Tile, 3>(w, tile, end, x, out);
    case 4:
      return AllTiles<Tile, 4>(w, tile, end, x, out);
    case 5:
      return AllTiles<Tile, 5>(w, tile, end, x, out);
    case 6:
      return AllTiles<Tile, 6>(w, tile, end, x, out);
    case 7:
      return AllTiles<Tile, 7>(w, tile, end, x, out);
    default:
      return AllTiles<Tile, 8>(w, tile, end, x, out);
  }
}

template <typename Tile>
void MatMulFormat(const MatrixView& w, int tile, int end, const Rows& x, int num_tokens,
                  float* const* out) {
  for (int t = 0; t < num_tokens; t += 8) {
    EightTokens<Tile>(w, tile, end, From(x, t), num_tokens - t < 8 ? num_tokens - t : 8, out + t);
  }
}

#elif defined(__AVX2__)

// With 16 registers, weights of many tokens are decoded to fp32 in memory, once for all tokens, and
// so are the tokens' inputs, once for kTilesAtOnce tiles: what is left for each token is to
// multiply.

constexpr int kChunkColumns = 128;  // a multiple of every format's block; 8 KiB of a tile
constexpr int kTilesAtOnce = 4;

template <typename Tile>
INLINE void DecodeColumns(const uint8_t* codes, int num_columns, float* weights) {
  constexpr int kColumns = 2 * Tile::kPairs;
  for (int column = 0; column < num_columns; column += kColumns) {
    const uint8_t* const unit = codes + column / kColumns * 64;
    // The tile's next chunk, whose turn comes when the other tiles have had theirs.
    __builtin_prefetch(unit + kChunkColumns / kColumns * 64);
    W pairs[Tile::kPairs];
    Tile::Decode(unit, pairs);
#pragma GCC unroll 4
    for (int p = 0; p < Tile::kPairs; ++p) {
      float* const pair = weights + (column + 2 * p) * kLanes;
      Store(pair, EvenBf16(pairs[p]));
      Store(pair + kLanes, OddBf16(pairs[p]));
    }
  }
}

// sums[t] += decoded columns [begin, end) x inputs[t], in the order of Dot.
template <int kTokens>
INLINE void MultiplyColumns(const float* weights, const float* inputs, int begin, int end,
                            F* sums) {
  for (int column = begin; column < end; column += 2) {
    const F even = Load(weights + column * kLanes), odd = Load(weights + (column + 1) * kLanes);
    const float* const x = inputs + column;
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) sums[t] = Fma(odd, Splat(x[t * kChunkColumns + 1]), sums[t]);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) sums[t] = Fma(even, Splat(x[t * kChunkColumns]), sums[t]);
  }
}

// The chunk that begins at column `first` of one tile, for 1..kSumsInRegisters tokens.
template <typename Tile, int kTokens>
void MultiplyChunk(const MatrixView& w, int tile, int first, int num_columns, const float* weights,
                   const float* inputs, F* total) {
  F sums[kTokens];
  if constexpr (Tile::kFormat == WeightFormat::kBf16) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) sums[t] = total[t];
    MultiplyColumns<kTokens>(weights, inputs, 0, num_columns, sums);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) total[t] = sums[t];
  } else {
    constexpr int kBlock = Tile::kBlockColumns;
    const int num_blocks = (w.num_cols + kBlock - 1) / kBlock;
    for (int begin = 0; begin < num_columns; begin += kBlock) {
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) sums[t] = F{};
      const int end = begin + kBlock < num_columns ? begin + kBlock : num_columns;
      MultiplyColumns<kTokens>(weights, inputs, begin, end, sums);
      const F scale = Tile::Scale(w, tile, (first + begin) / kBlock, num_blocks);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) total[t] = Fma(scale, sums[t], total[t]);
    }
  }
}

template <typename Tile>
INLINE void MultiplyTokens(const MatrixView& w, int tile, int first, int num_columns,
                           const float* weights, const float* inputs, int num_tokens, F* total) {
  int t = 0;
  for (; t + kSumsInRegisters <= num_tokens; t += kSumsInRegisters) {
    MultiplyChunk<Tile, kSumsInRegisters>(w, tile, first, num_columns, weights,
                                          inputs + t * kChunkColumns, total + t);
  }
  const float* const rest = inputs + t * kChunkColumns;
  switch (num_tokens - t) {
    case 3:
      return MultiplyChunk<Tile, 3>(w, tile, first, num_columns, weights, rest, total + t);
    case 2:
      return MultiplyChunk<Tile, 2>(w, tile, first, num_columns, weights, rest, total + t);
    case 1:
      return MultiplyChunk<Tile, 1>(w, tile, first, num_columns, weights, rest, total + t);
    default:
      return;
  }
}

template <typename Tile>
void TilesOfMany(const MatrixView& w, int tile, int end, const Rows& x, int num_tokens,
                 float* const* out) {
  alignas(64) float inputs[kTokenBlock * kChunkColumns];
  alignas(64) float weights[kChunkColumns * kLanes];
  F totals[kTilesAtOnce][kTokenBlock];
  for (; tile < end; tile += kTilesAtOnce) {
    const int num_tiles = end - tile < kTilesAtOnce ? end - tile : kTilesAtOnce;
    for (int i = 0; i < num_tiles; ++i) {
      for (int t = 0; t < num_tokens; ++t) totals[i][t] = F{};
    }
    for (int first = 0; first < w.num_cols; first += kChunkColumns) {
      const int left = w.num_cols - first;
      const int num_columns = left < kChunkColumns ? left : kChunkColumns;
      for (int t = 0; t < num_tokens; ++t) {
        for (int c = 0; c < num_columns; c += kLanes) {
          Store(inputs + t * kChunkColumns + c, LoadBf16(From(x, t).first + first + c));
        }
      }
      for (int i = 0; i < num_tiles; ++i) {
        const uint8_t* const codes = w.codes + static_cast<size_t>(tile + i) * w.tile_bytes;
        DecodeColumns<Tile>(codes + first / (2 * Tile::kPairs) * 64, num_columns, weights);
        MultiplyTokens<Tile>(w, tile + i, first, num_columns, weights, inputs, num_tokens,
                             totals[i]);
      }
    }
    for (int i = 0; i < num_tiles; ++i) {
      const int row = (tile + i) * kLanes;
      for (int t = 0; t < num_tokens; ++t) StorePart(out[t] + row, totals[i][t], w.num_rows - row);
    }
  }
}

template <typename Tile>
void MatMulFormat(const MatrixView& w, int tile, int end, const Rows& x, int num_tokens,
                  float* const* out) {
  switch (num_tokens) {
    case 1:
      TilesFrom<Tile, 4, 1>(w, tile, end, x, out);
      return TilesFrom<Tile, 1, 1>(w, tile, end, x, out);
    case 2:
      TilesFrom<Tile, 2, 2>(w, tile, end, x, out);
      return TilesFrom<Tile, 1, 2>(w, tile, end, x, out);
    case 4:
      return TilesFrom<Tile, 1, 4>(w, tile, end, x, out);
    default:
      return TilesOfMany<Tile>(w, tile, end, x, num_tokens, out);
  }
}

#else

template <typename Tile>
void MatMulFormat(const MatrixView& w, int tile, int end, const Rows& x, int num_tokens,
                  float* const* out) {
  for (int t = 0; t < num_tokens; ++t) {
    for (int i = tile; i < end; ++i) Tiles<Tile, 1, 1>(w, i, From(x, t), out + t);
  }
}

#endif

void MatMulByVectors(const MatrixView& w, int row_begin, int row_end, const Rows& x, int num_tokens,
                     float* const* out) {
  const int tile = row_begin / kLanes;
  const int end = (row_end + kLanes - 1) / kLanes;
  switch (w.format) {
    case WeightFormat::kBf16:
      return MatMulFormat<Bf16Tile>(w, tile, end, x, num_tokens, out);
    case WeightFormat::kFp8Block128:
      return MatMulFormat<Fp8Tile>(w, tile, end, x, num_tokens, out);
    case WeightFormat::kMxfp4:
      return MatMulFormat<Mxfp4Tile>(w, tile, end, x, num_tokens, out);
  }
}
