// How 64 bytes of a tile of 16 rows (layout: MatrixView) become column pairs of bf16, and what a
// block of its columns is scaled by; one struct a weight format. Included once per instruction set
// inside namespace ULTRASPEED_ISA.

struct Bf16Tile {
  static constexpr WeightFormat kFormat = WeightFormat::kBf16;
  static constexpr int kPairs = 1;
  INLINE void Decode(const uint8_t* unit, W* pairs) { pairs[0] = LoadW(unit); }
};

#if defined(__AVX2__)
#include "kernels/cpu/weight_codes.inc.h"
#else
// One e4m3fn code per lane (bits 0..7) to fp32, by moving the fields; a subnormal is 2^-6 (1 + m/8)
// - 2^-6.
INLINE F E4m3ToFloat(U code) {
  const U magnitude = code & 0x7fu;
  const F normal = reinterpret_cast<F>((magnitude << 20) + (120u << 23));
  const F subnormal = reinterpret_cast<F>((magnitude << 20) + (121u << 23)) - 0x1p-6f;
  U bits = reinterpret_cast<U>(magnitude < 8u ? subnormal : normal);
  bits = magnitude == 0x7fu ? U{} + 0x7fc00000u : bits;
  return reinterpret_cast<F>(bits | ((code & 0x80u) << 24));
}
// One code per 16-bit word.
INLINE W E4m3ToBf16(W codes) {
  const U pairs = reinterpret_cast<U>(codes);
  const U even = reinterpret_cast<U>(E4m3ToFloat(pairs & 0xffu)) >> 16;
  const U odd = reinterpret_cast<U>(E4m3ToFloat(pairs >> 16));
  return reinterpret_cast<W>(even | odd);
}
// One code of PackedE2m1 per word, in bits 0..3; bits above them do not matter.
INLINE W E2m1ToBf16(W codes) {
  const W order = (codes & 1) << 2 | (codes >> 2 & 3);  // of magnitudes, but 0 and 0.5 are swapped
  const W bits = 0x3f00 + (order << 6);
  return (order == 1 ? W{} : bits) | (codes & 2) << 14;
}
// Byte 16 g + 8 s + j of a unit, as word 8 g + j of vector s.
INLINE void WidenUnit(const uint8_t* unit, W* words) {
  using Half = uint8_t __attribute__((vector_size(32)));
  using UnalignedBytes = uint8_t __attribute__((vector_size(64), aligned(1), may_alias));
  const UnalignedBytes codes = *reinterpret_cast<const UnalignedBytes*>(unit);
  const Half first =
      __builtin_shufflevector(codes, codes, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23,
                              32, 33, 34, 35, 36, 37, 38, 39, 48, 49, 50, 51, 52, 53, 54, 55);
  const Half second = __builtin_shufflevector(codes, codes, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25,
                                              26, 27, 28, 29, 30, 31, 40, 41, 42, 43, 44, 45, 46,
                                              47, 56, 57, 58, 59, 60, 61, 62, 63);
  words[0] = __builtin_convertvector(first, W);
  words[1] = __builtin_convertvector(second, W);
}
#endif

struct Fp8Tile {
  static constexpr WeightFormat kFormat = WeightFormat::kFp8Block128;
  static constexpr int kPairs = 2;
  static constexpr int kBlockColumns = 128;
  INLINE void Decode(const uint8_t* unit, W* pairs) {
#if defined(__AVX2__)
#pragma GCC unroll 2
    for (int i = 0; i < kCodesOfUnit; ++i) {
      Interleave(E4m3ToBytes(LoadCodes(unit, i)), i, pairs[0], pairs[1]);
    }
#else
    W codes[2];
    WidenUnit(unit, codes);
    for (int s = 0; s < 2; ++s) pairs[s] = E4m3ToBf16(codes[s]);
#endif
  }
  INLINE F Scale(const MatrixView& w, int tile, int block, int num_blocks) {
    return Splat(w.scales_f32[static_cast<size_t>(tile / 8) * num_blocks + block]);
  }
};

struct Mxfp4Tile {
  static constexpr WeightFormat kFormat = WeightFormat::kMxfp4;
  static constexpr int kPairs = 4;
  static constexpr int kBlockColumns = 32;
  INLINE void Decode(const uint8_t* unit, W* pairs) {
#if defined(__AVX2__)
#pragma GCC unroll 2
    for (int i = 0; i < kCodesOfUnit; ++i) {
      const Bf16BytesOfNibbles bytes = E2m1ToBytes(LoadCodes(unit, i));
      Interleave(bytes.low, i, pairs[0], pairs[1]);
      Interleave(bytes.high, i, pairs[2], pairs[3]);
    }
#else
    W codes[2];
    WidenUnit(unit, codes);
    for (int s = 0; s < 4; ++s) pairs[s] = E2m1ToBf16(codes[s % 2] >> (s / 2 * 4));
#endif
  }
  INLINE F Scale(const MatrixView& w, int tile, int block, int num_blocks) {
    const Bytes scale = *reinterpret_cast<const Bytes*>(
        w.scales_e8m0 + (static_cast<size_t>(tile) * num_blocks + block) * kLanes);
    return AsF(Widen(scale) << 23);
  }
};
