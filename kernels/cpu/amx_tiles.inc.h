// Intel AMX: eight registers that each hold a tile of up to 16 rows of 64 bytes, as functions.
//
// A product of bf16 tiles adds to each of 16 x 16 sums 32 products: with the columns c of a row of
// `inputs` and of an output of `weights`, even = 0, then fma(x[c], w[c], even) for c = 0, 2, .. 30;
// odd likewise for c = 1, 3, .. 31; sum += even + odd. Every step rounds to nearest even and takes
// denormals, its own too, as zero (Intel SDM, TDPBF16PS; tests/kernels/amx_test.cc compares bits).
//
// Assembly instead of the compiler's intrinsics: a register's number may depend on a template's
// parameter, and the compiler is told that memory is read. Measured on a Xeon with AMX: a product
// takes 16 cycles, also if it adds to the sum before it; 52 if TILEZERO cleared the sum, but 16 if
// zeros were loaded; some 45 if each row of its inputs straddles two cache lines. Included once per
// instruction set inside namespace ULTRASPEED_ISA.

constexpr int kTileRows = 16;
constexpr int kTileColumns = 32;      // of bf16
constexpr size_t kTileRowBytes = 64;  // likewise 16 sums
constexpr int kTileRegisters = 8;
constexpr int kSumRegisters = 4;  // 0..3
constexpr int kInputRegister = 4;
constexpr int kWeightRegister = 5;  // and 6, 7

alignas(64) constexpr float kZeroTile[kTileRows * kLanes] = {};

// What LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

thread_local int configured_rows = 0;  // 0: this thread's tile registers are released

// Registers of sums and inputs get num_rows rows, those of weights 16. Takes 50 ns, or nothing if
// they have them already.
INLINE void ConfigureTiles(int num_rows) {
  if (configured_rows == num_rows) return;
  TileConfig config = {};
  config.palette = 1;
  for (int i = 0; i < kTileRegisters; ++i) {
    config.row_bytes[i] = kTileRowBytes;
    config.rows[i] = static_cast<uint8_t>(i < kWeightRegister ? num_rows : kTileRows);
  }
  asm volatile("ldtilecfg %0" ::"m"(config));
  configured_rows = num_rows;
}

// A thread that sleeps with tiles in use costs the system 8 KiB to save.
void ReleaseTiles() {
  if (configured_rows == 0) return;
  asm volatile("tilerelease" ::);
  configured_rows = 0;
}

template <int kRegister>
INLINE void LoadTile(const void* rows, size_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride_bytes), "i"(kRegister)
               : "memory");
}
template <int kRegister>
INLINE void StoreTile(void* rows) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(kTileRowBytes), "i"(kRegister)
               : "memory");
}
template <int kSums, int kInputs, int kWeights>
INLINE void MultiplyTiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kInputs), "i"(kWeights));
}

// Calls body(Index<0>()), .. body(Index<kCount - 1>()): a loop whose variable can number registers.
template <int kValue>
struct Index {
  static constexpr int value = kValue;
};
template <int kCount, typename Body>
INLINE void Repeat(const Body& body) {
  if constexpr (kCount > 0) {
    Repeat<kCount - 1>(body);
    body(Index<kCount - 1>());
  }
}
