// How FP8 and MXFP4 codes become tiles of bf16 weights in memory, 16 rows by 32 columns at once.
// Included once per instruction set with AMX inside namespace ULTRASPEED_ISA.

constexpr size_t kTileBytes = kTileRows * kTileRowBytes;

// What vgf2p8affineqb multiplies a byte by, over GF(2): bit 7 - i of the result is the parity of
// the byte's bits that row[i] has.
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

  INLINE void Decode(const MatrixView& w, size_t i, const uint8_t* codes, uint8_t* weights) {
    if (__builtin_expect((w.all_normal[i / 8] >> (i % 8) & 1) != 0, 1)) {
      const __m512i low = _mm512_set1_epi64(kLowByte), high = _mm512_set1_epi64(kHighByte);
      DecodeUnits(codes, weights, [=](Codes unit) -> Bf16Bytes {
        return {_mm512_gf2p8affine_epi64_epi8(unit, low, 0),
                _mm512_gf2p8affine_epi64_epi8(unit, high, kHighOfZero)};
      });
    } else {
      DecodeAny(codes, weights);
    }
  }

 private:
  // One of eighteen, of weights that are normally distributed.
  static __attribute__((noinline)) void DecodeAny(const uint8_t* codes, uint8_t* weights) {
    DecodeUnits(codes, weights, E4m3ToBytes);
  }
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

  INLINE void Decode(const MatrixView& w, size_t i, const uint8_t* codes, uint8_t* weights) {
    static constexpr HighBytes kHighBytes = MakeHighBytes();
    const U exponent = 253u - Widen(*reinterpret_cast<const Bytes*>(w.scales_e8m0 + i * kLanes));
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
