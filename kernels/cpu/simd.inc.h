// Sixteen fp32 lanes on every instruction set, in GCC vector extensions; intrinsics only where the
// extensions have no word for it.
//
// Included by the *_kernels.inc.h files inside namespace ULTRASPEED_ISA. Bits are equal everywhere:
// elementwise operations are IEEE, -ffp-contract=off keeps the compiler from fusing, and sums
// across lanes follow one tree (i with i+8, i+4, i+2, i+1).

using F = float __attribute__((vector_size(64)));
using I = int32_t __attribute__((vector_size(64)));
using U = uint32_t __attribute__((vector_size(64)));
using W = uint16_t __attribute__((vector_size(64)));      // 32 bf16
using HalfW = uint16_t __attribute__((vector_size(32)));  // 16 bf16
using UnalignedF = float __attribute__((vector_size(64), aligned(4), may_alias));
using UnalignedW = uint16_t __attribute__((vector_size(64), aligned(1), may_alias));
using UnalignedHalfW = uint16_t __attribute__((vector_size(32), aligned(1), may_alias));

#define INLINE static inline __attribute__((always_inline))

constexpr int kLanes = 16;

INLINE F Splat(float x) { return F{} + x; }
INLINE F Load(const float* p) { return *reinterpret_cast<const UnalignedF*>(p); }
INLINE void Store(float* p, F x) { *reinterpret_cast<UnalignedF*>(p) = x; }
INLINE W LoadW(const void* p) { return *static_cast<const UnalignedW*>(p); }

INLINE F Fma(F a, F b, F c) {
#if defined(__AVX512F__)
  return reinterpret_cast<F>(_mm512_fmadd_ps(
      reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__FMA__)
  union Halves {
    F whole;
    __m256 half[2];
  };
  Halves x, y, z;
  x.whole = a;
  y.whole = b;
  z.whole = c;
  z.half[0] = _mm256_fmadd_ps(x.half[0], y.half[0], z.half[0]);
  z.half[1] = _mm256_fmadd_ps(x.half[1], y.half[1], z.half[1]);
  return z.whole;
#else
  for (int i = 0; i < kLanes; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#endif
}

INLINE float FmaScalar(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// acc[i] + w[2i+1] x[2i+1], then + w[2i] x[2i], each fused: what vdpbf16ps computes.
INLINE F Dot(F acc, W w, W x) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<F>(_mm512_dpbf16_ps(
      reinterpret_cast<__m512>(acc), reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x)));
#else
  const U wu = reinterpret_cast<U>(w);
  const U xu = reinterpret_cast<U>(x);
  acc = Fma(reinterpret_cast<F>(wu & 0xffff0000u), reinterpret_cast<F>(xu & 0xffff0000u), acc);
  return Fma(reinterpret_cast<F>(wu << 16), reinterpret_cast<F>(xu << 16), acc);
#endif
}

INLINE F Select(I mask, F a, F b) { return mask ? a : b; }
INLINE F Max(F a, F b) { return a > b ? a : b; }

INLINE F Sqrt(F x) {
#if defined(__AVX512F__)
  return reinterpret_cast<F>(_mm512_sqrt_ps(reinterpret_cast<__m512>(x)));
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// ---- Sums across lanes
// -------------------------------------------------------------------------------------------------

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
  return reinterpret_cast<F>(__builtin_convertvector(half, U) << 16);
}
// Round to nearest even; NaN stays NaN.
INLINE HalfW RoundToBf16(F x) {
  const U bits = reinterpret_cast<U>(x);
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return __builtin_convertvector(x != x ? (bits >> 16) | 0x40u : rounded, HalfW);
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
  const F clamped = x > 88.0f ? Splat(88.0f) : x;
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
  const F scaled =
      reinterpret_cast<F>(reinterpret_cast<U>(y) + (reinterpret_cast<U>(shifted) << 23));
  const F flushed = x < -87.0f ? F{} : scaled;
  return x != x ? x : flushed;
}

INLINE F Sigmoid(F x) { return 1.0f / (1.0f + Exp(-x)); }

// PortableLog of kernels/gumbel.h, step for step.
INLINE F Log(F x) {
  I bits = reinterpret_cast<I>(x);
  const I exponent = (bits - 0x3f3504f3) >> 23;
  bits -= exponent << 23;
  const F e = __builtin_convertvector(exponent, F);
  const F f = reinterpret_cast<F>(bits) - 1.0f;
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
