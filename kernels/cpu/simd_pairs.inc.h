// A vector of 64 bytes where registers have 32: a pair of vectors with the same operators. The
// compiler would keep one of 64 bytes in memory. Included by simd.inc.h; the same functions as
// simd_vectors.inc.h.

template <typename V>
struct Pair {
  using Element = __typeof__(V{}[0]);
  V low, high;
  __attribute__((always_inline)) Element operator[](int i) const {
    constexpr int kHalf = sizeof(V) / sizeof(Element);
    return i < kHalf ? low[i] : high[i - kHalf];
  }
};
constexpr int kRegistersOfVector = 2;
using Floats = float __attribute__((vector_size(32)));
using Ints = int32_t __attribute__((vector_size(32)));
using Unsigneds = uint32_t __attribute__((vector_size(32)));
using F = Pair<Floats>;
using I = Pair<Ints>;
using U = Pair<Unsigneds>;
using W = Pair<HalfW>;  // 32 bf16

#define ULTRASPEED_PAIR_OPERATOR(op)                                                            \
  template <typename V>                                                                         \
  INLINE auto operator op(Pair<V> a, Pair<V> b)->Pair<decltype(a.low op b.low)> {               \
    return {a.low op b.low, a.high op b.high};                                                  \
  }                                                                                             \
  template <typename V>                                                                         \
  INLINE auto operator op(Pair<V> a, typename Pair<V>::Element b)->Pair<decltype(a.low op b)> { \
    return {a.low op b, a.high op b};                                                           \
  }                                                                                             \
  template <typename V>                                                                         \
  INLINE auto operator op(typename Pair<V>::Element a, Pair<V> b)->Pair<decltype(a op b.low)> { \
    return {a op b.low, a op b.high};                                                           \
  }
ULTRASPEED_PAIR_OPERATOR(+)
ULTRASPEED_PAIR_OPERATOR(-)
ULTRASPEED_PAIR_OPERATOR(*)
ULTRASPEED_PAIR_OPERATOR(/)
ULTRASPEED_PAIR_OPERATOR(&)
ULTRASPEED_PAIR_OPERATOR(|)
ULTRASPEED_PAIR_OPERATOR(^)
ULTRASPEED_PAIR_OPERATOR(<)
ULTRASPEED_PAIR_OPERATOR(>)
ULTRASPEED_PAIR_OPERATOR(>=)
ULTRASPEED_PAIR_OPERATOR(!=)
#undef ULTRASPEED_PAIR_OPERATOR
template <typename V>
INLINE Pair<V> operator-(Pair<V> x) {
  return {-x.low, -x.high};
}
template <typename V>
INLINE Pair<V> operator<<(Pair<V> x, int bits) {
  return {x.low << bits, x.high << bits};
}
template <typename V>
INLINE Pair<V> operator>>(Pair<V> x, int bits) {
  return {x.low >> bits, x.high >> bits};
}
template <typename V, typename Other>
INLINE void operator+=(Pair<V>& x, Other y) {
  x = x + y;
}

template <typename V>
INLINE Pair<V> Select(I mask, Pair<V> a, Pair<V> b) {
  return {mask.low ? a.low : b.low, mask.high ? a.high : b.high};
}
// The same bits as another kind of vector.
template <typename V>
INLINE F AsF(Pair<V> x) {
  return {reinterpret_cast<Floats>(x.low), reinterpret_cast<Floats>(x.high)};
}
template <typename V>
INLINE U AsU(Pair<V> x) {
  return {reinterpret_cast<Unsigneds>(x.low), reinterpret_cast<Unsigneds>(x.high)};
}
template <typename V>
INLINE I AsI(Pair<V> x) {
  return {reinterpret_cast<Ints>(x.low), reinterpret_cast<Ints>(x.high)};
}
INLINE F ToFloat(I x) {
  return {__builtin_convertvector(x.low, Floats), __builtin_convertvector(x.high, Floats)};
}
INLINE U Widen(HalfW words) {
  const __m256i x = reinterpret_cast<__m256i>(words);
  return {reinterpret_cast<Unsigneds>(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x))),
          reinterpret_cast<Unsigneds>(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1)))};
}
INLINE U Widen(Bytes bytes) {
  return Widen(reinterpret_cast<HalfW>(_mm256_cvtepu8_epi16(reinterpret_cast<__m128i>(bytes))));
}
// Of numbers below 2^16.
INLINE HalfW Narrow(U x) {
  const __m256i words =
      _mm256_packus_epi32(reinterpret_cast<__m256i>(x.low), reinterpret_cast<__m256i>(x.high));
  return reinterpret_cast<HalfW>(_mm256_permute4x64_epi64(words, 0xd8));
}
INLINE F Splat(float x) {
  const auto half = reinterpret_cast<Floats>(_mm256_set1_ps(x));
  return {half, half};
}
INLINE W SplatPair(uint32_t pair) {
  const auto half = reinterpret_cast<HalfW>(_mm256_set1_epi32(static_cast<int>(pair)));
  return {half, half};
}
INLINE U Lanes() {
  return {Unsigneds{0, 1, 2, 3, 4, 5, 6, 7}, Unsigneds{8, 9, 10, 11, 12, 13, 14, 15}};
}

INLINE F Load(const float* p) {
  return {reinterpret_cast<Floats>(_mm256_loadu_ps(p)),
          reinterpret_cast<Floats>(_mm256_loadu_ps(p + 8))};
}
INLINE void Store(float* p, F x) {
  _mm256_storeu_ps(p, reinterpret_cast<__m256>(x.low));
  _mm256_storeu_ps(p + 8, reinterpret_cast<__m256>(x.high));
}
INLINE W LoadW(const void* p) {
  const auto* const halves = static_cast<const UnalignedHalfW*>(p);
  return {halves[0], halves[1]};
}
INLINE F Fma(F a, F b, F c) {
  const auto fma = [](Floats x, Floats y, Floats z) {
    return reinterpret_cast<Floats>(_mm256_fmadd_ps(
        reinterpret_cast<__m256>(x), reinterpret_cast<__m256>(y), reinterpret_cast<__m256>(z)));
  };
  return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)};
}
INLINE F Sqrt(F x) {
  return {reinterpret_cast<Floats>(_mm256_sqrt_ps(reinterpret_cast<__m256>(x.low))),
          reinterpret_cast<Floats>(_mm256_sqrt_ps(reinterpret_cast<__m256>(x.high)))};
}

// ---- Steps of sums across lanes

INLINE F Fold8(F a, F b) { return {a.low + a.high, b.low + b.high}; }
INLINE F Fold4(F a, F b) {
  const auto fold = [](F x) {
    return __builtin_shufflevector(x.low, x.high, 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(x.low, x.high, 4, 5, 6, 7, 12, 13, 14, 15);
  };
  return {fold(a), fold(b)};
}
INLINE F Fold2(F a, F b) {
  const auto fold = [](Floats x, Floats y) {
    return __builtin_shufflevector(x, y, 0, 1, 8, 9, 4, 5, 12, 13) +
           __builtin_shufflevector(x, y, 2, 3, 10, 11, 6, 7, 14, 15);
  };
  return {fold(a.low, b.low), fold(a.high, b.high)};
}
INLINE F Fold1(F a, F b) {
  const auto fold = [](Floats x, Floats y) {
    return __builtin_shufflevector(x, y, 0, 2, 8, 10, 4, 6, 12, 14) +
           __builtin_shufflevector(x, y, 1, 3, 9, 11, 5, 7, 13, 15);
  };
  return {fold(a.low, b.low), fold(a.high, b.high)};
}
