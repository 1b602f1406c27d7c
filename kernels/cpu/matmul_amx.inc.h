// Matrix product by Intel AMX of tiles of 16 rows with up to kTokenBlock tokens, of which up to 16
// are a tile of inputs, a group.
//
// 16 units of BF16 weights are what a tile register wants, so they go from memory to registers; FP8
// and MXFP4 are decoded to memory, 128 columns ahead of their product, once for all tokens. The
// order of an output's sum, whatever the number of tokens: groups of 32 columns ascending, each as
// in amx_tiles.inc.h. FP8 sums each block of 128 columns from zero and fuses scale * block onto the
// total; an MXFP4 weight enters with its scale. The oracle is tests/kernels/amx_test.cc.
//
// Measured on a Xeon with AMX: of a round of 8 rows, decoding takes most (FP8 20 ns and MXFP4 21 ns
// for 16 rows by 32 columns, the product 5) and memory the rest; asking for weights ahead made
// FP8 products of a whole model 1.6 times as fast. Included once per instruction set inside
// namespace ULTRASPEED_ISA.

// Weights are asked for that much ahead: nobody else does where a page ends.
constexpr size_t kBytesAhead = 6144;
INLINE void Prefetch(const uint8_t* line) { __builtin_prefetch(line + kBytesAhead); }

// The tokens of a product. Groups have equally many rows; the last one overlaps the one before if
// it must, and computes the same bits again.
struct Batch {
  Rows x;
  int num_groups;
  int group_rows;
  int last_group;  // its first token
};
INLINE Batch MakeBatch(const Rows& x, int num_tokens) {
  const int group_rows = num_tokens < kTileRows ? num_tokens : kTileRows;
  return {x, (num_tokens + kTileRows - 1) / kTileRows, group_rows, num_tokens - group_rows};
}
INLINE int FirstToken(const Batch& batch, int group) {
  return group == batch.num_groups - 1 ? batch.last_group : group * kTileRows;
}
template <int kRegister>
INLINE void LoadInputs(const Batch& batch, int group, int column) {
  const size_t token = static_cast<size_t>(FirstToken(batch, group));
  LoadTile<kRegister>(batch.x.first + token * batch.x.stride + column,
                      batch.x.stride * sizeof(bf16));
}

// ---- BF16: weights as they lie
// -------------------------------------------------------------------------------------------------

// kTiles tiles of 16 rows by kGroups groups: at most 4 tiles of sums.
template <int kGroups, int kTiles>
void Bf16Tiles(const MatrixView& w, int tile, const Batch& batch, float* const* out) {
  static_assert(kGroups * kTiles <= kSumRegisters);
  const uint8_t* const codes = w.codes + static_cast<size_t>(tile) * w.tile_bytes;
  // With up to two groups the inputs stay in their registers for all tiles.
  constexpr int kInputRegisters = kGroups <= 2 ? kGroups : 3;
  constexpr int kFirstWeights = kInputRegister + kInputRegisters;
  Repeat<kGroups * kTiles>([&](auto i) { LoadTile<i.value>(kZeroTile, kTileRowBytes); });
  for (int column = 0; column < w.num_cols; column += kTileColumns) {
    const uint8_t* const units = codes + static_cast<size_t>(column) * (kTileRowBytes / 2);
    Repeat<kTiles>([&](auto i) {
      constexpr int kWeights = kFirstWeights + i.value % (kTileRegisters - kFirstWeights);
      for (int row = 0; row < kTileRows; ++row) {
        Prefetch(units + i.value * w.tile_bytes + row * kTileRowBytes);
      }
      LoadTile<kWeights>(units + i.value * w.tile_bytes, kTileRowBytes);
      Repeat<kGroups>([&](auto g) {
        constexpr int kInputs = kInputRegister + g.value % kInputRegisters;
        if constexpr (i.value == 0) LoadInputs<kInputs>(batch, g.value, column);
        MultiplyTiles<i.value * kGroups + g.value, kInputs, kWeights>();
      });
    });
  }
  Repeat<kGroups * kTiles>([&](auto i) {
    alignas(64) float sums[kTileRows * kLanes];
    StoreTile<i.value>(sums);
    const int row = (tile + i.value / kGroups) * kLanes;
    const int first = FirstToken(batch, i.value % kGroups);
    for (int t = 0; t < batch.group_rows; ++t) {
      StorePart(out[first + t] + row, Load(sums + t * kLanes), w.num_rows - row);
    }
  });
}

template <int kGroups, int kTiles>
void MatMulBf16(const MatrixView& w, int tile, int end, const Batch& batch, float* const* out) {
  for (; tile + kTiles <= end; tile += kTiles) Bf16Tiles<kGroups, kTiles>(w, tile, batch, out);
  for (; tile < end; ++tile) Bf16Tiles<kGroups, 1>(w, tile, batch, out);
}

// ---- FP8 and MXFP4: decoded to memory
// -------------------------------------------------------------------------------------------------

constexpr int kChunkColumns = 128;  // a block of FP8
constexpr int kChunkTiles = kChunkColumns / kTileColumns;
constexpr size_t kTileBytes = kTileRows * kTileRowBytes;

// Columns [column, column + 32 num_tiles) of a tile of rows.
struct Chunk {
  int tile;
  int column;
  int num_tiles;
};

// A matrix over GF(2) for every byte of vgf2p8affineqb: row[i] has the bits whose parity is bit 7 -
// i of the result.
constexpr int64_t BitMatrix(const uint8_t (&row)[8]) {
  uint64_t matrix = 0;
  for (int i = 0; i < 8; ++i) matrix |= static_cast<uint64_t>(row[i]) << (8 * i);
  return static_cast<int64_t>(matrix);
}
constexpr uint8_t kNoBits = 0;

// How 32 columns of a tile of rows become a tile of weights, whose rows of 64 bytes have two
// columns each; codes are those columns' units.
struct Fp8Product {
  using Tile = Fp8Tile;
  static constexpr bool kSumsBlocks = true;  // from zero, and fuses scale * block onto a total
  // Of s e3 e2 e1 e0 m2 m1 m0: the low byte is e0 m2 m1 m0 0000; the high one is s and the 7 bits
  // of 60 + (e >> 1), which are 1000000 | e >> 1 if e3 is set and else 0111100 | e >> 1.
  static constexpr int64_t kLowByte =
      BitMatrix({0x08, 0x04, 0x02, 0x01, kNoBits, kNoBits, kNoBits, kNoBits});
  static constexpr int64_t kHighByte = BitMatrix({0x80, 0x40, 0x40, 0x40, 0x40, 0x40, 0x20, 0x10});
  static constexpr int kHighOfZero = 0x3c;

  INLINE void Decode(const MatrixView& w, int tile, int column, const uint8_t* codes,
                     uint8_t* weights) {
    const size_t i = static_cast<size_t>(tile) * (w.num_cols / kTileColumns) +
                     static_cast<size_t>(column / kTileColumns);
    if (__builtin_expect((w.all_normal[i / 8] >> (i % 8) & 1) != 0, 1)) {
      const __m512i low = _mm512_set1_epi64(kLowByte), high = _mm512_set1_epi64(kHighByte);
      DecodeUnits(codes, weights, [=](Codes unit) -> Bf16Bytes {
        return {_mm512_gf2p8affine_epi64_epi8(unit, low, 0),
                _mm512_gf2p8affine_epi64_epi8(unit, high, kHighOfZero)};
      });
    } else {
      DecodeUnits(codes, weights, E4m3ToBytes);
    }
  }

 private:
  template <typename ToBytes>
  INLINE void DecodeUnits(const uint8_t* codes, uint8_t* weights, const ToBytes& to_bytes) {
#pragma GCC unroll 8
    for (int unit = 0; unit < kTileColumns / 4; ++unit) {
      W pairs[Tile::kPairs];
      Interleave(to_bytes(LoadCodes(codes + unit * 64, 0)), 0, pairs[0], pairs[1]);
      StoreW(weights + unit * 128, pairs[0]);
      StoreW(weights + unit * 128 + 64, pairs[1]);
    }
  }
};

// With its scale, an MXFP4 weight is a bf16, but for the scales that MatrixView::exact_in_bf16
// excludes.
struct Mxfp4Product {
  using Tile = Mxfp4Tile;
  static constexpr bool kSumsBlocks = false;
  // The high byte of e2m1 codes times 2^126: exponents that a subtraction of 253 - scale makes
  // right. Of zeros it is 0, and the subtraction saturates, whatever the low byte.
  struct alignas(64) HighBytes {
    uint8_t value[64];
  };
  static constexpr HighBytes MakeHighBytes() {
    HighBytes table = {};
    for (int i = 0; i < 64; ++i) {
      const int sign = i & 2, is_large = i & 1;
      const bool is_zero = (i & 13) == 4;
      table.value[i] = is_zero ? 0 : static_cast<uint8_t>(sign << 6 | 0x7e | is_large);
    }
    return table;
  }
  static constexpr int64_t kLowByte =
      BitMatrix({0x08, 0x04, kNoBits, kNoBits, kNoBits, kNoBits, kNoBits, kNoBits});

  INLINE void Decode(const MatrixView& w, int tile, int column, const uint8_t* codes,
                     uint8_t* weights) {
    static constexpr HighBytes kHighBytes = MakeHighBytes();
    const size_t block = static_cast<size_t>(tile) * (w.num_cols / kTileColumns) +
                         static_cast<size_t>(column / kTileColumns);
    const U exponent =
        253u - Widen(*reinterpret_cast<const Bytes*>(w.scales_e8m0 + block * kLanes));
    const auto down = reinterpret_cast<__m512i>((exponent << 7) | (exponent << 23));
    const auto store = [=](const Bf16Bytes& bytes, uint8_t* out) {
      W pairs[2];
      Interleave(bytes, 0, pairs[0], pairs[1]);
      for (int s = 0; s < 2; ++s) {
        StoreW(out + s * 64,
               reinterpret_cast<W>(_mm512_subs_epu16(reinterpret_cast<__m512i>(pairs[s]), down)));
      }
    };
    const Codes table = _mm512_load_si512(kHighBytes.value);
    const Codes low_bytes = _mm512_set1_epi8(static_cast<char>(0xc0));
    const Codes move_low = _mm512_set1_epi64(kLowByte);
#pragma GCC unroll 4
    for (int unit = 0; unit < kTileColumns / 8; ++unit) {
      const Codes both = LoadCodes(codes + unit * 64, 0);
      store(
          {_mm512_gf2p8affine_epi64_epi8(both, move_low, 0), _mm512_permutexvar_epi8(both, table)},
          weights + unit * 256);
      store({_mm512_and_si512(both, low_bytes),
             _mm512_permutexvar_epi8(_mm512_srli_epi16(both, 4), table)},
            weights + unit * 256 + 128);
    }
  }
};

// Multiplies tiles of rows one after the other, in chunks; tile by tile of a chunk, the next one is
// decoded. Sums that are complete leave their registers when the next ones need those.
template <typename Product>
class DecodedProduct {
 public:
  DecodedProduct(const MatrixView& w, int tile, int end, const Batch& batch, float* const* out)
      : w_(w), batch_(batch), out_(out), first_tile_(tile), end_tile_(end) {}

  void Run() {
    Chunk chunk = ChunkAt(first_tile_, 0), last = chunk;
    for (int i = 0; i < chunk.num_tiles; ++i) Decode(chunk, i, weights_[0]);
    for (int c = 0; chunk.num_tiles > 0; ++c) {
      const Chunk next = Next(chunk);
      const bool begins = Product::kSumsBlocks || chunk.column == 0;
      if (begins) Begin();
      Repeat<kChunkTiles>([&](auto i) {
        if (i.value < next.num_tiles) Decode(next, i.value, weights_[(c + 1) % 2]);
        if (i.value < chunk.num_tiles) Multiply<i.value>(chunk, weights_[c % 2]);
      });
      if (begins && c > 0) Finish(last);
      last = chunk;
      chunk = next;
    }
    Begin();
    Finish(last);
  }

 private:
  using Tile = typename Product::Tile;

  // No tiles: behind the last chunk.
  Chunk ChunkAt(int tile, int column) const {
    if (tile == end_tile_) return {tile, 0, 0};
    const int left = (w_.num_cols - column) / kTileColumns;
    return {tile, column, left < kChunkTiles ? left : kChunkTiles};
  }
  Chunk Next(const Chunk& chunk) const {
    const int column = chunk.column + kChunkColumns;
    return column < w_.num_cols ? ChunkAt(chunk.tile, column) : ChunkAt(chunk.tile + 1, 0);
  }

  void Decode(const Chunk& chunk, int i, uint8_t* weights) const {
    constexpr int kColumns = 2 * Tile::kPairs;  // of a unit
    const int column = chunk.column + i * kTileColumns;
    const uint8_t* const codes = w_.codes + static_cast<size_t>(chunk.tile) * w_.tile_bytes +
                                 static_cast<size_t>(column / kColumns) * 64;
    for (int unit = 0; unit < kTileColumns / kColumns; ++unit) Prefetch(codes + unit * 64);
    Product::Decode(w_, chunk.tile, column, codes, weights + i * kTileBytes);
  }

  // Saves what the registers of sums have, and clears them.
  void Begin() {
    Repeat<kSumRegisters>([&](auto g) {
      if (g.value >= batch_.num_groups) return;
      StoreTile<g.value>(sums_[g.value]);
      LoadTile<g.value>(kZeroTile, kTileRowBytes);
    });
  }
  template <int i>
  void Multiply(const Chunk& chunk, const uint8_t* weights) {
    constexpr int kWeights = kWeightRegister + i % 3;
    LoadTile<kWeights>(weights + i * kTileBytes, kTileRowBytes);
    Repeat<kSumRegisters>([&](auto g) {
      if (g.value >= batch_.num_groups) return;
      LoadInputs<kInputRegister>(batch_, g.value, chunk.column + i * kTileColumns);
      MultiplyTiles<g.value, kInputRegister, kWeights>();
    });
  }

  // Saved sums, which end with this chunk, go to the totals, and those to the output.
  void Finish(const Chunk& chunk) {
    const int row = chunk.tile * kLanes;
    const bool is_first = chunk.column == 0;
    const bool is_last = chunk.column + kChunkColumns >= w_.num_cols;
    F scale = {};
    if constexpr (Product::kSumsBlocks) {
      const int num_blocks = (w_.num_cols + kChunkColumns - 1) / kChunkColumns;
      scale = Tile::Scale(w_, chunk.tile, chunk.column / kChunkColumns, num_blocks);
    }
    for (int g = 0; g < batch_.num_groups; ++g) {
      float* const* const out = out_ + FirstToken(batch_, g);
      for (int t = 0; t < batch_.group_rows; ++t) {
        F total = Load(sums_[g] + t * kLanes);
        if constexpr (Product::kSumsBlocks) {
          float* const place = totals_[g] + t * kLanes;
          total = Fma(scale, total, is_first ? F{} : Load(place));
          if (!is_last) {
            Store(place, total);
            continue;
          }
        }
        StorePart(out[t] + row, total, w_.num_rows - row);
      }
    }
  }

  const MatrixView& w_;
  const Batch& batch_;
  float* const* const out_;
  const int first_tile_, end_tile_;
  alignas(64) uint8_t weights_[2][kChunkTiles * kTileBytes];
  alignas(64) float sums_[kSumRegisters][kTileRows * kLanes];
  alignas(64) float totals_[kSumRegisters][kTileRows * kLanes];
};

void MatMulByTiles(const MatrixView& w, int row_begin, int row_end, const Rows& x, int num_tokens,
                   float* const* out) {
  const int tile = row_begin / kLanes;
  const int end = (row_end + kLanes - 1) / kLanes;
  const Batch batch = MakeBatch(x, num_tokens);
  ConfigureTiles(batch.group_rows);
  switch (w.format) {
    case WeightFormat::kBf16:
      switch (batch.num_groups) {
        case 1:
          return MatMulBf16<1, 4>(w, tile, end, batch, out);
        case 2:
          return MatMulBf16<2, 2>(w, tile, end, batch, out);
        case 3:
          return MatMulBf16<3, 1>(w, tile, end, batch, out);
        default:
          return MatMulBf16<4, 1>(w, tile, end, batch, out);
      }
    case WeightFormat::kFp8Block128:
      return DecodedProduct<Fp8Product>(w, tile, end, batch, out).Run();
    case WeightFormat::kMxfp4:
      if (!w.exact_in_bf16) return MatMulByVectors(w, row_begin, row_end, x, num_tokens, out);
      return DecodedProduct<Mxfp4Product>(w, tile, end, batch, out).Run();
  }
}
