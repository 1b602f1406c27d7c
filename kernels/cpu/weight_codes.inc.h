// How a register of FP8 or packed MXFP4 codes becomes bf16: two registers, one of the low and one
// of the high bytes, which an unpack of bytes puts together. Included once per instruction set that
// has registers of bytes, inside namespace ULTRASPEED_ISA.
//
// The fields of e4m3fn lie side by side as in bf16: the exponent's lowest bit and the mantissa
// become the low byte's upper half, the sign and the exponent's other bits give the high byte. With
// shuffles of 16 bytes only, subnormals and NaN are apart.

#if defined(__AVX512BW__)
using Codes = __m512i;
INLINE Codes LoadCodes(const uint8_t* unit, int /*i*/) { return _mm512_loadu_si512(unit); }
#else
using Codes = __m256i;
INLINE Codes LoadCodes(const uint8_t* unit, int i) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(unit) + i);
}
#endif
constexpr int kCodesOfUnit = 64 / sizeof(Codes);

struct Bf16Bytes {
  Codes low, high;
};

// The unpack: registers of codes i of a unit give part i of two vectors.
INLINE void Interleave(const Bf16Bytes& bytes, int i, W& first, W& second) {
#if defined(__AVX512BW__)
  (void)i;
  first = reinterpret_cast<W>(_mm512_unpacklo_epi8(bytes.low, bytes.high));
  second = reinterpret_cast<W>(_mm512_unpackhi_epi8(bytes.low, bytes.high));
#else
  (i == 0 ? first.low : first.high) =
      reinterpret_cast<HalfW>(_mm256_unpacklo_epi8(bytes.low, bytes.high));
  (i == 0 ? second.low : second.high) =
      reinterpret_cast<HalfW>(_mm256_unpackhi_epi8(bytes.low, bytes.high));
#endif
}

// ---- FP8
// -------------------------------------------------------------------------------------------------

#if defined(__AVX512VBMI__)

INLINE Bf16Bytes E4m3ToBytes(Codes codes) {
  const auto entries = [codes](const uint8_t* table) {
    return _mm512_permutex2var_epi8(_mm512_load_si512(table), codes, _mm512_load_si512(table + 64));
  };
  // high | (codes & 0x80)
  const Codes high = _mm512_ternarylogic_epi32(entries(kE4m3Table.high), codes,
                                               _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);
  return {entries(kE4m3Table.low), high};
}

#else

// By a code's upper half, and by a subnormal's lower half; of the sign only the first knows.
alignas(16) constexpr uint8_t kHighOfUpper[16] = {60,  61,  62,  63,  64,  65,  66,  67,
                                                  188, 189, 190, 191, 192, 193, 194, 195};
alignas(16) constexpr uint8_t kSubnormalLow[16] = {0, 0, 128, 192, 0, 32, 64, 96,
                                                   0, 0, 128, 192, 0, 32, 64, 96};
alignas(16) constexpr uint8_t kSubnormalHigh[16] = {0, 59, 59, 59, 60, 60, 60, 60,
                                                    0, 59, 59, 59, 60, 60, 60, 60};

#if defined(__AVX512BW__)

INLINE Bf16Bytes E4m3ToBytes(Codes codes) {
  const auto table = [](const uint8_t* bytes) {
    return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
  };
  const Codes nibble = _mm512_set1_epi8(15), sign = _mm512_set1_epi8(-128);
  const Codes upper = _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble);
  const Codes lower = _mm512_and_si512(codes, nibble);
  const Codes code_sign = _mm512_and_si512(codes, sign);
  const __mmask64 is_subnormal = _mm512_testn_epi8_mask(codes, _mm512_set1_epi8(0x78));
  Bf16Bytes bytes = {_mm512_slli_epi16(lower, 4), _mm512_shuffle_epi8(table(kHighOfUpper), upper)};
  bytes.low = _mm512_mask_shuffle_epi8(bytes.low, is_subnormal, table(kSubnormalLow), lower);
  // The tables' entries are below 128, so that adding the sign is the same as or.
  bytes.high = _mm512_mask_add_epi8(bytes.high, is_subnormal,
                                    _mm512_shuffle_epi8(table(kSubnormalHigh), lower), code_sign);
  const __mmask64 is_nan =
      _mm512_cmpeq_epi8_mask(_mm512_or_si512(codes, sign), _mm512_set1_epi8(-1));
  if (__builtin_expect(is_nan != 0, 0)) {
    bytes.low = _mm512_mask_mov_epi8(bytes.low, is_nan, _mm512_set1_epi8(-64));
    bytes.high = _mm512_mask_add_epi8(bytes.high, is_nan, code_sign, _mm512_set1_epi8(0x7f));
  }
  return bytes;
}

#else

INLINE Bf16Bytes E4m3ToBytes(Codes codes) {
  const auto table = [](const uint8_t* bytes) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
  };
  const Codes nibble = _mm256_set1_epi8(15), sign = _mm256_set1_epi8(-128);
  const Codes upper = _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble);
  const Codes lower = _mm256_and_si256(codes, nibble);
  const Codes code_sign = _mm256_and_si256(codes, sign);
  const Codes magnitude = _mm256_andnot_si256(sign, codes);
  const Codes is_subnormal = _mm256_cmpgt_epi8(_mm256_set1_epi8(8), magnitude);
  Bf16Bytes bytes = {_mm256_slli_epi16(lower, 4), _mm256_shuffle_epi8(table(kHighOfUpper), upper)};
  bytes.low =
      _mm256_blendv_epi8(bytes.low, _mm256_shuffle_epi8(table(kSubnormalLow), lower), is_subnormal);
  bytes.high = _mm256_blendv_epi8(
      bytes.high, _mm256_or_si256(_mm256_shuffle_epi8(table(kSubnormalHigh), lower), code_sign),
      is_subnormal);
  const Codes is_nan = _mm256_cmpeq_epi8(magnitude, _mm256_set1_epi8(0x7f));
  if (__builtin_expect(_mm256_movemask_epi8(is_nan) != 0, 0)) {
    bytes.low = _mm256_blendv_epi8(bytes.low, _mm256_set1_epi8(-64), is_nan);
    bytes.high =
        _mm256_blendv_epi8(bytes.high, _mm256_or_si256(code_sign, _mm256_set1_epi8(0x7f)), is_nan);
  }
  return bytes;
}

#endif
#endif

// ---- MXFP4
// -------------------------------------------------------------------------------------------------

// Those of bits 0..3 of every byte, and those of bits 4..7.
struct Bf16BytesOfNibbles {
  Bf16Bytes low, high;
};
INLINE Bf16BytesOfNibbles E2m1ToBytes(Codes codes) {
#if defined(__AVX512VBMI__)  // an index of six bits: two that belong to the other code do no harm
  const auto entries = [](const uint8_t* table, Codes index) {
    return _mm512_permutexvar_epi8(index, _mm512_load_si512(table));
  };
  const Codes low = codes, high = _mm512_srli_epi16(codes, 4);
#elif defined(__AVX512BW__)
  const auto entries = [](const uint8_t* table, Codes index) {
    return _mm512_shuffle_epi8(_mm512_load_si512(table), index);
  };
  const Codes nibble = _mm512_set1_epi8(15);
  const Codes low = _mm512_and_si512(codes, nibble);
  const Codes high = _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble);
#else
  const auto entries = [](const uint8_t* table, Codes index) {
    return _mm256_shuffle_epi8(_mm256_load_si256(reinterpret_cast<const __m256i*>(table)), index);
  };
  const Codes nibble = _mm256_set1_epi8(15);
  const Codes low = _mm256_and_si256(codes, nibble);
  const Codes high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble);
#endif
  return {{entries(kE2m1Table.low, low), entries(kE2m1Table.high, low)},
          {entries(kE2m1Table.low, high), entries(kE2m1Table.high, high)}};
}
