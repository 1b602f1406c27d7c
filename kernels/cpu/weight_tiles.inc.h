// How 64 bytes of a tile of 16 rows (layout: MatrixView) become column pairs of bf16, and what a
// block of its columns is scaled by; one struct a weight format. Included once per instruction set
// inside namespace ULTRASPEED_ISA.

struct Bf16Tile {
  static constexpr WeightFormat kFormat = WeightFormat::kBf16;
  static constexpr int kPairs = 1;
  INLINE void Decode(const uint8_t* unit, W* pairs) { pairs[0] = LoadW(unit); }
};

#if defined(__AVX2__) && !defined(__AVX512F__)
// The bf16 of e4m3fn codes, low and high bytes apart. The fields lie side by side in both formats:
// the exponent's lowest bit and the mantissa become the low byte's upper half, the sign and the
// exponent's other bits give the high byte. A subnormal's bytes come from tables, by its mantissa.
struct E4m3Bytes {
  __m256i low, high;
};
INLINE E4m3Bytes E4m3ToBytes(__m256i codes) {
  const auto table = [](__m128i bytes) { return _mm256_broadcastsi128_si256(bytes); };
  const __m256i high_of =
      table(_mm_setr_epi8(60, 61, 62, 63, 64, 65, 66, 67, -68, -67, -66, -65, -64, -63, -62, -61));
  const __m256i subnormal_low =
      table(_mm_setr_epi8(0, 0, -128, -64, 0, 32, 64, 96, 0, 0, 0, 0, 0, 0, 0, 0));
  const __m256i subnormal_high =
      table(_mm_setr_epi8(0, 59, 59, 59, 60, 60, 60, 60, 0, 0, 0, 0, 0, 0, 0, 0));
  const __m256i nibble = _mm256_set1_epi8(15), sign = _mm256_set1_epi8(-128);
  const __m256i upper = _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble);
  const __m256i lower = _mm256_and_si256(codes, nibble);
  const __m256i magnitude = _mm256_andnot_si256(sign, codes);
  const __m256i is_subnormal = _mm256_cmpgt_epi8(_mm256_set1_epi8(8), magnitude);
  E4m3Bytes bytes = {_mm256_slli_epi16(lower, 4), _mm256_shuffle_epi8(high_of, upper)};
  bytes.low =
      _mm256_blendv_epi8(bytes.low, _mm256_shuffle_epi8(subnormal_low, lower), is_subnormal);
  bytes.high = _mm256_blendv_epi8(
      bytes.high,
      _mm256_or_si256(_mm256_shuffle_epi8(subnormal_high, lower), _mm256_and_si256(codes, sign)),
      is_subnormal);
  const __m256i is_nan = _mm256_cmpeq_epi8(magnitude, _mm256_set1_epi8(0x7f));
  if (__builtin_expect(_mm256_movemask_epi8(is_nan) != 0, 0)) {
    bytes.low = _mm256_blendv_epi8(bytes.low, _mm256_set1_epi8(-64), is_nan);
    bytes.high = _mm256_blendv_epi8(
        bytes.high, _mm256_or_si256(_mm256_and_si256(codes, sign), _mm256_set1_epi8(0x7f)), is_nan);
  }
  return bytes;
}
#elif !defined(__AVX512VBMI__)
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
#endif

struct Fp8Tile {
  static constexpr WeightFormat kFormat = WeightFormat::kFp8Block128;
  static constexpr int kPairs = 2;
  static constexpr int kBlockColumns = 128;
  INLINE void Decode(const uint8_t* unit, W* pairs) {
#if defined(__AVX512VBMI__)
    const __m512i codes = _mm512_loadu_si512(unit);
    const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(kE4m3Table.low), codes,
                                                 _mm512_load_si512(kE4m3Table.low + 64));
    __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(kE4m3Table.high), codes,
                                            _mm512_load_si512(kE4m3Table.high + 64));
    // high | (codes & 0x80)
    high = _mm512_ternarylogic_epi32(high, codes, _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);
    pairs[0] = reinterpret_cast<W>(_mm512_unpacklo_epi8(low, high));
    pairs[1] = reinterpret_cast<W>(_mm512_unpackhi_epi8(low, high));
#elif defined(__AVX2__) && !defined(__AVX512F__)
    const auto decode = [unit](int half, HalfW& first, HalfW& second) {
      const E4m3Bytes bytes =
          E4m3ToBytes(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(unit) + half));
      first = reinterpret_cast<HalfW>(_mm256_unpacklo_epi8(bytes.low, bytes.high));
      second = reinterpret_cast<HalfW>(_mm256_unpackhi_epi8(bytes.low, bytes.high));
    };
    decode(0, pairs[0].low, pairs[1].low);
    decode(1, pairs[0].high, pairs[1].high);
#else
    // Byte 16 g + 8 s + j is word 8 g + j of pair s.
    using Quads = uint8_t __attribute__((vector_size(32)));
    using UnalignedBytes = uint8_t __attribute__((vector_size(64), aligned(1), may_alias));
    const UnalignedBytes codes = *reinterpret_cast<const UnalignedBytes*>(unit);
    const Quads first =
        __builtin_shufflevector(codes, codes, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22,
                                23, 32, 33, 34, 35, 36, 37, 38, 39, 48, 49, 50, 51, 52, 53, 54, 55);
    const Quads second = __builtin_shufflevector(codes, codes, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25,
                                                 26, 27, 28, 29, 30, 31, 40, 41, 42, 43, 44, 45, 46,
                                                 47, 56, 57, 58, 59, 60, 61, 62, 63);
    pairs[0] = E4m3ToBf16(__builtin_convertvector(first, W));
    pairs[1] = E4m3ToBf16(__builtin_convertvector(second, W));
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
#if defined(__AVX512BW__)
    const W nibbles = LoadW(unit);
    // The table holds every entry twice, so the fifth bit, which belongs to the next nibble, does
    // not matter.
    const __m512i table = _mm512_load_si512(kE2m1Table.value);
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      pairs[s] = reinterpret_cast<W>(
          _mm512_permutexvar_epi16(reinterpret_cast<__m512i>(nibbles >> (4 * s)), table));
    }
#elif defined(__AVX2__)
    const __m256i low = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 0, -128, -64, 0, 64, -128, -64, 0, 0, -128, -64, 0, 64, -128, -64));
    const __m256i high = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 63, 63, 63, 64, 64, 64, 64, -128, -65, -65, -65, -64, -64, -64, -64));
    const auto decode = [=](__m256i codes) {
      const __m256i code = _mm256_and_si256(codes, _mm256_set1_epi16(15));
      return reinterpret_cast<HalfW>(_mm256_or_si256(
          _mm256_shuffle_epi8(low, code), _mm256_slli_epi16(_mm256_shuffle_epi8(high, code), 8)));
    };
    const auto* const halves = reinterpret_cast<const __m256i*>(unit);
    const __m256i first = _mm256_loadu_si256(halves), second = _mm256_loadu_si256(halves + 1);
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      pairs[s] = {decode(_mm256_srli_epi16(first, 4 * s)),
                  decode(_mm256_srli_epi16(second, 4 * s))};
    }
#else
    const W nibbles = LoadW(unit);
    for (int s = 0; s < 4; ++s) {
      const W code = nibbles >> (4 * s);
      const W magnitude = code & 7;
      // 0.5 is the only subnormal; the others are 126 << 7 plus the code in the exponent's and the
      // mantissa's place.
      W bits = 0x3f00 + (magnitude << 6);
      bits = magnitude == 1 ? W{} + 0x3f00 : bits;
      bits = magnitude == 0 ? W{} : bits;
      pairs[s] = bits | ((code & 8) << 12);
    }
#endif
  }
  INLINE F Scale(const MatrixView& w, int tile, int block, int num_blocks) {
    const Bytes scale = *reinterpret_cast<const Bytes*>(
        w.scales_e8m0 + (static_cast<size_t>(tile) * num_blocks + block) * kLanes);
    return AsF(Widen(scale) << 23);
  }
};
