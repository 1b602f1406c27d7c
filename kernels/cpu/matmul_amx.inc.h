// Matrix product by Intel AMX of tiles of 16 rows with up to kTokenBlock tokens, of which up to 16
// are a tile of inputs, a group.
//
// 16 units of BF16 weights are what a tile register wants, so they go from memory to registers; FP8
// and MXFP4 are decoded to memory, 128 columns ahead of their product, once for all tokens. The
// order of an output's sum, whatever the number of tokens: groups of 32 columns ascending, each as
// in amx_tiles.inc.h. FP8 sums each block of 128 columns from zero and fuses scale * block onto the
// total; an MXFP4 weight enters with its scale. The oracle is tests/kernels/amx_test.cc.
//
// Measured on a Xeon with AMX, one thread, 16 rows by 32 columns: FP8 takes 11 ns from a cache near
// by and 18.5, the time to read it, from L3 (decoding alone 8, the product alone 6); MXFP4 12 and
// 14 to 15 (9 and 6). Included once per instruction set inside namespace ULTRASPEED_ISA.

// Weights are asked for that many bytes ahead: nobody else does where a page ends. The decoded ones
// come more slowly and from smaller matrices, where 6 KiB ahead are often of another one.
constexpr size_t kBytesAhead = 6144;
constexpr size_t kDecodedBytesAhead = 2048;
INLINE void Prefetch(const uint8_t* line) { __builtin_prefetch(line); }

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

// A tile of rows' outputs are asked for before its sums are complete: the lines of an operation's
// buffer are rarely still in a cache near by.
INLINE void PrefetchOutputs(const Batch& batch, float* const* out, int tile) {
  for (int g = 0; g < batch.num_groups; ++g) {
    float* const* const rows = out + FirstToken(batch, g);
    for (int t = 0; t < batch.group_rows; ++t) __builtin_prefetch(rows[t] + tile * kLanes, 1);
  }
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
  Repeat<kTiles>([&](auto i) { PrefetchOutputs(batch, out, tile + i.value); });
  Repeat<kGroups * kTiles>([&](auto i) { LoadTile<i.value>(kZeroTile, kTileRowBytes); });
  for (int column = 0; column < w.num_cols; column += kTileColumns) {
    const uint8_t* const units = codes + static_cast<size_t>(column) * (kTileRowBytes / 2);
    Repeat<kTiles>([&](auto i) {
      constexpr int kWeights = kFirstWeights + i.value % (kTileRegisters - kFirstWeights);
      for (int row = 0; row < kTileRows; ++row) {
        Prefetch(units + i.value * w.tile_bytes + row * kTileRowBytes + kBytesAhead);
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

// Tiles of weights that are decoded before their product: a tile register cannot load them while
// their stores wait.
constexpr size_t kTilesAhead = 4;
constexpr size_t kTilesInMemory = 2 * kTilesAhead;

// Columns [column, column + 32 num_tiles) of a tile of rows, which one sum goes over.
struct Block {
  int tile;
  int column;
  int num_tiles;
};

// Multiplies tiles of rows one after the other by kGroups groups. What tile instructions read and
// write lies apart (Memory): the compiler reads again, after each of them, all that they could
// reach, and the rest shall stay in its registers.
template <typename Product, int kGroups>
class DecodedProduct {
 public:
  struct Memory {
    alignas(64) uint8_t weights[kTilesInMemory][kTileBytes];
    alignas(64) float sums[kGroups][kTileRows * kLanes];
    alignas(64) float totals[kGroups][kTileRows * kLanes];
  };
  DecodedProduct(const MatrixView& w, const Batch& batch, float* const* out, Memory& memory)
      : w_(w),
        batch_(batch),
        out_(out),
        memory_(memory),
        tiles_of_row_(w.num_cols / kTileColumns) {}

  ALWAYS_INLINE void Run(int tile, int end_tile) {
    size_t i = static_cast<size_t>(tile) * tiles_of_row_;
    end_ = static_cast<size_t>(end_tile) * tiles_of_row_;
    for (size_t ahead = 0; ahead < kTilesAhead; ++ahead) Decode(i + ahead);
    Block last = {}, block = {tile, 0, TilesOfBlock(0)};
    bool is_odd = false;
    for (; i < end_; is_odd = !is_odd) {
      if (is_odd) {
        RunBlock<kSets - 1>(block, last, i);
      } else {
        RunBlock<0>(block, last, i);
      }
      i += static_cast<size_t>(block.num_tiles);
      last = block;
      block = Next(block);
    }
    if (is_odd) {
      Save<0>();
    } else {
      Save<kSets - 1>();
    }
    Finish(last);
  }

 private:
  using Tile = typename Product::Tile;
  // Of registers of sums. With two, a block's sums are saved after the next one's products were
  // begun: a save waits for the last product of its own, some 50 cycles.
  static constexpr int kSets = 2 * kGroups <= kSumRegisters ? 2 : 1;
  // Without sums of blocks, one goes over all columns.
  static constexpr int kTilesOfBlock =
      Product::kSumsBlocks ? Tile::kBlockColumns / kTileColumns : 1 << 30;

  ALWAYS_INLINE int TilesOfBlock(int column) const {
    const int left = tiles_of_row_ - column / kTileColumns;
    return left < kTilesOfBlock ? left : kTilesOfBlock;
  }
  ALWAYS_INLINE Block Next(const Block& block) const {
    const int column = block.column + block.num_tiles * kTileColumns;
    if (column == w_.num_cols) return {block.tile + 1, 0, TilesOfBlock(0)};
    return {block.tile, column, TilesOfBlock(column)};
  }

  // i counts tiles of weights as they lie: row by row of tiles.
  ALWAYS_INLINE void Decode(size_t i) const {
    if (i >= end_) return;
    constexpr int kCodes = kTileColumns / (2 * Tile::kPairs) * 64;
    const uint8_t* const codes = w_.codes + i * kCodes;
    for (int line = 0; line < kCodes; line += 64) Prefetch(codes + line + kDecodedBytesAhead);
    Product::Decode(w_, i, codes, memory_.weights[i % kTilesInMemory]);
  }

  // i: of the block's first tile of weights.
  template <int kSet>
  ALWAYS_INLINE void RunBlock(const Block& block, const Block& last, size_t i) const {
    if constexpr (kSets == 1) Save<0>();
    if (block.column == 0) PrefetchOutputs(batch_, out_, block.tile);
    Repeat<kGroups>([&](auto g) { LoadTile<kSet * kGroups + g.value>(kZeroTile, kTileRowBytes); });
    const int end = block.column + block.num_tiles * kTileColumns;
    for (int column = block.column; column < end; column += kTileColumns, ++i) {
      Decode(i + kTilesAhead);
      LoadTile<kWeightRegister>(memory_.weights[i % kTilesInMemory], kTileRowBytes);
      Repeat<kGroups>([&](auto g) {
        LoadInputs<kInputRegister>(batch_, g.value, column);
        MultiplyTiles<kSet * kGroups + g.value, kInputRegister, kWeightRegister>();
      });
    }
    if constexpr (kSets == 2) Save<1 - kSet>();
    Finish(last);
  }
  template <int kSet>
  ALWAYS_INLINE void Save() const {
    Repeat<kGroups>([&](auto g) { StoreTile<kSet * kGroups + g.value>(memory_.sums[g.value]); });
  }

  // Saved sums go to the totals, and those to the output.
  ALWAYS_INLINE void Finish(const Block& block) const {
    if (block.num_tiles == 0) return;  // before the first one
    if constexpr (Product::kSumsBlocks) AddToTotals(block);
    if (block.column + block.num_tiles * kTileColumns < w_.num_cols) return;
    const int row = block.tile * kLanes;
    const int num_rows = w_.num_rows - row;
    ForEachToken([&](int g, int t) {
      const auto& totals = Product::kSumsBlocks ? memory_.totals : memory_.sums;
      StorePart(out_[FirstToken(batch_, g) + t] + row, Load(totals[g] + t * kLanes), num_rows);
    });
  }
  ALWAYS_INLINE void AddToTotals(const Block& block) const {
    const int num_blocks = (w_.num_cols + Tile::kBlockColumns - 1) / Tile::kBlockColumns;
    const F scale = Tile::Scale(w_, block.tile, block.column / Tile::kBlockColumns, num_blocks);
    ForEachToken([&](int g, int t) {
      float* const total = memory_.totals[g] + t * kLanes;
      const F before = Load(block.column == 0 ? kZeroTile : total);
      Store(total, Fma(scale, Load(memory_.sums[g] + t * kLanes), before));
    });
  }
  template <typename Body>
  ALWAYS_INLINE void ForEachToken(const Body& body) const {
    for (int g = 0; g < kGroups; ++g) {
      for (int t = 0; t < batch_.group_rows; ++t) body(g, t);
    }
  }

  const MatrixView w_;
  const Batch batch_;
  float* const* const out_;
  Memory& memory_;
  const int tiles_of_row_;
  size_t end_ = 0;
};

template <typename Product, int kGroups>
void MatMulDecoded(const MatrixView& w, int tile, int end, const Batch& batch, float* const* out) {
  typename DecodedProduct<Product, kGroups>::Memory memory;
  DecodedProduct<Product, kGroups>(w, batch, out, memory).Run(tile, end);
}
template <typename Product>
void MatMulDecoded(const MatrixView& w, int tile, int end, const Batch& batch, float* const* out) {
  switch (batch.num_groups) {
    case 1:
      return MatMulDecoded<Product, 1>(w, tile, end, batch, out);
    case 2:
      return MatMulDecoded<Product, 2>(w, tile, end, batch, out);
    case 3:
      return MatMulDecoded<Product, 3>(w, tile, end, batch, out);
    default:
      return MatMulDecoded<Product, 4>(w, tile, end, batch, out);
  }
}

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
      return MatMulDecoded<Fp8Product>(w, tile, end, batch, out);
    case WeightFormat::kMxfp4:
      if (!w.exact_in_bf16) return MatMulByVectors(w, row_begin, row_end, x, num_tokens, out);
      return MatMulDecoded<Mxfp4Product>(w, tile, end, batch, out);
  }
}
