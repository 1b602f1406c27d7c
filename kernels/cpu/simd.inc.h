// Sixteen fp32 lanes on every instruction set, in GCC vector extensions; intrinsics only where the
// extensions have no word for it.
//
// Included by the *_kernels.inc.h files inside namespace ULTRASPEED_ISA. Bits are equal everywhere:
// elementwise operations are IEEE, -ffp-contract=off keeps the compiler from fusing, and sums
// across lanes follow one tree (i with i+8, i+4, i+2, i+1).

#define INLINE static inline __attribute__((always_inline))

constexpr int kLanes = 16;

using HalfW = uint16_t __attribute__((vector_size(32)));  // 16 bf16
using UnalignedHalfW = uint16_t __attribute__((vector_size(32), aligned(1), may_alias));

#if defined(__AVX2__) && !defined(__AVX512F__)

// A vector of 64 bytes is two registers here, and the compiler would keep it in memory: a pair of
// vectors with the same operators.
template <typename V>
struct Pair {
  using Element = __typeof__(V{}[0]);
  V low, high;
  __attribute__((always_inline)) Element operator[](int i) const {
    constexpr int kHalf = sizeof(V) / sizeof(Element);
    return i < kHalf ? low[i] : high[i - kHalf];
  }
};
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
// Of numbers below 2^16.
INLINE HalfW Narrow(U x) {
  const __m256i words =
      _mm256_packus_epi32(reinterpret_cast<__m256i>(x.low), reinterpret_cast<__m256i>(x.high));
  return reinterpret_cast<HalfW>(_mm256_permute4x64_epi64(words, 0xd8));
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

#else

using F = float __attribute__((vector_size(64)));
using I = int32_t __attribute__((vector_size(64)));
using U = uint32_t __attribute__((vector_size(64)));
using W = uint16_t __attribute__((vector_size(64)));  // 32 bf16
using UnalignedF = float __attribute__((vector_size(64), aligned(4), may_alias));
using UnalignedW = uint16_t __attribute__((vector_size(64), aligned(1), may_alias));

template <typename V>
INLINE V Select(I mask, V a, V b) {
  return mask ? a : b;
}
// The same bits as another kind of vector.
template <typename V>
INLINE F AsF(V x) {
  return reinterpret_cast<F>(x);
}
template <typename V>
INLINE U AsU(V x) {
  return reinterpret_cast<U>(x);
}
template <typename V>
INLINE I AsI(V x) {
  return reinterpret_cast<I>(x);
}
INLINE F ToFloat(I x) { return __builtin_convertvector(x, F); }
INLINE U Widen(HalfW words) { return __builtin_convertvector(words, U); }
// Of numbers below 2^16.
INLINE HalfW Narrow(U x) { return __builtin_convertvector(x, HalfW); }
INLINE U Lanes() { return U{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

INLINE F Load(const float* p) { return *reinterpret_cast<const UnalignedF*>(p); }
INLINE void Store(float* p, F x) { *reinterpret_cast<UnalignedF*>(p) = x; }
INLINE W LoadW(const void* p) { return *static_cast<const UnalignedW*>(p); }

INLINE F Fma(F a, F b, F c) {
#if defined(__AVX512F__)
  return reinterpret_cast<F>(_mm512_fmadd_ps(
      reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#else
  for (int i = 0; i < kLanes; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#endif
}
INLINE F Sqrt(F x) {
#if defined(__AVX512F__)
  return reinterpret_cast<F>(_mm512_sqrt_ps(reinterpret_cast<__m512>(x)));
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

#endif

INLINE F Splat(float x) { return F{} + x; }
INLINE float FmaScalar(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// Every other number.
INLINE F OddBf16(W words) { return AsF(AsU(words) & 0xffff0000u); }
INLINE F EvenBf16(W words) { return AsF(AsU(words) << 16); }

// acc[i] + w[2i+1] x[2i+1], then + w[2i] x[2i], each fused: what vdpbf16ps computes.
INLINE F Dot(F acc, W w, W x) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<F>(_mm512_dpbf16_ps(
      reinterpret_cast<__m512>(acc), reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x)));
#else
  acc = Fma(OddBf16(w), OddBf16(x), acc);
  return Fma(EvenBf16(w), EvenBf16(x), acc);
#endif
}

INLINE F Max(F a, F b) { return Select(a > b, a, b); }

// ---- Sums across lanes
// -------------------------------------------------------------------------------------------------

#if defined(__AVX2__) && !defined(__AVX512F__)
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
#else
INLINE F Fold8(F a, F b) {
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30,
                                 31);
}
INLINE F Fold4(F a, F b) {
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
         __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
INLINE F Fold2(F a, F b) {
  return __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
         __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
INLINE F Fold1(F a, F b) {
  return __builtin_shufflevector(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
         __builtin_shufflevector(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
}
#endif

INLINE float Sum(F x) {
  x = Fold8(x, x);
  x = Fold4(x, x);
  x = Fold2(x, x);
  x = Fold1(x, x);
  return x[0];
}

// Lane i = Sum(v[i]), the same additions.
INLINE F Sum16(const F* v) {
  // Folding keeps operand a in the low part, so the order in which operands meet decides the lane:
  // 4 L + j comes from 4 j + L.
  F quad[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    quad[j] = Fold4(Fold8(v[j], v[4 + j]), Fold8(v[8 + j], v[12 + j]));
  }
  return Fold1(Fold2(quad[0], quad[1]), Fold2(quad[2], quad[3]));
}

INLINE float MaxLane(F x) {
  float result = x[0];
  for (int i = 1; i < kLanes; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

// ---- Parts of vectors and bf16
// -------------------------------------------------------------------------------------------------

INLINE F LoadPart(const float* p, int count, float fill) {
  if (count >= kLanes) return Load(p);
  float buffer[kLanes];
  for (int i = 0; i < kLanes; ++i) buffer[i] = i < count ? p[i] : fill;
  return Load(buffer);
}
INLINE void StorePart(float* p, F x, int count) {
  if (count >= kLanes) return Store(p, x);
  float buffer[kLanes];
  Store(buffer, x);
  for (int i = 0; i < count; ++i) p[i] = buffer[i];
}

INLINE F LoadBf16(const bf16* p) {
  const HalfW half = *reinterpret_cast<const UnalignedHalfW*>(p);
  return AsF(Widen(half) << 16);
}
// Round to nearest even; NaN stays NaN.
INLINE HalfW RoundToBf16(F x) {
  const U bits = AsU(x);
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return Narrow(Select(x != x, (bits >> 16) | 0x40u, rounded));
}
INLINE void StoreBf16Part(bf16* p, F x, int count) {
  const HalfW half = RoundToBf16(x);
  if (count >= kLanes) {
    *reinterpret_cast<UnalignedHalfW*>(p) = half;
    return;
  }
  for (int i = 0; i < count; ++i) p[i] = half[i];
}

// ---- Functions
// -------------------------------------------------------------------------------------------------

// exp (coefficients of Cephes expf): 0 below -87, exp(88) above 88.
INLINE F Exp(F x) {
  const F clamped = Select(x > 88.0f, Splat(88.0f), x);
  const F shifted = Fma(clamped, Splat(1.44269504088896341f), Splat(12582912.0f));
  const F n = shifted - 12582912.0f;
  F r = Fma(n, Splat(-0.693359375f), clamped);
  r = Fma(n, Splat(2.12194440e-4f), r);
  F p = Splat(1.9875691500e-4f);
  p = Fma(p, r, Splat(1.3981999507e-3f));
  p = Fma(p, r, Splat(8.3334519073e-3f));
  p = Fma(p, r, Splat(4.1665795894e-2f));
  p = Fma(p, r, Splat(1.6666665459e-1f));
  p = Fma(p, r, Splat(5.0000001201e-1f));
  const F y = Fma(p, r * r, r) + 1.0f;
  const F scaled = AsF(AsU(y) + (AsU(shifted) << 23));
  const F flushed = Select(x < -87.0f, F{}, scaled);
  return Select(x != x, x, flushed);
}

INLINE F Sigmoid(F x) { return 1.0f / (1.0f + Exp(-x)); }

// PortableLog of kernels/gumbel.h, step for step.
INLINE F Log(F x) {
  const I bits = AsI(x);
  const I exponent = (bits - 0x3f3504f3) >> 23;
  const F e = ToFloat(exponent);
  const F f = AsF(bits - (exponent << 23)) - 1.0f;
  const F z = f * f;
  F p = Splat(7.0376836292e-2f);
  p = Fma(p, f, Splat(-1.1514610310e-1f));
  p = Fma(p, f, Splat(1.1676998740e-1f));
  p = Fma(p, f, Splat(-1.2420140846e-1f));
  p = Fma(p, f, Splat(1.4249322787e-1f));
  p = Fma(p, f, Splat(-1.6668057665e-1f));
  p = Fma(p, f, Splat(2.0000714765e-1f));
  p = Fma(p, f, Splat(-2.4999993993e-1f));
  p = Fma(p, f, Splat(3.3333331174e-1f));
  F y = (p * f) * z;
  y = Fma(e, Splat(-2.12194440e-4f), y);
  y = Fma(Splat(-0.5f), z, y);
  return Fma(e, Splat(0.693359375f), f + y);
}
