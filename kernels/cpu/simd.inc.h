// Sixteen fp32 lanes on every instruction set, in GCC vector extensions; intrinsics only where the
// extensions have no word for it.
//
// Included by the *_kernels.inc.h files inside namespace ULTRASPEED_ISA. Bits are equal everywhere:
// elementwise operations are IEEE, -ffp-contract=off keeps the compiler from fusing, and sums
// across lanes follow one tree (i with i+8, i+4, i+2, i+1).

#define INLINE static ALWAYS_INLINE
#define ALWAYS_INLINE inline __attribute__((always_inline))

constexpr int kLanes = 16;

using HalfW = uint16_t __attribute__((vector_size(32)));  // 16 bf16
using UnalignedHalfW = uint16_t __attribute__((vector_size(32), aligned(1), may_alias));
using Bytes = uint8_t __attribute__((vector_size(16), aligned(1), may_alias));

#if defined(__AVX2__) && !defined(__AVX512F__)
#include "kernels/cpu/simd_pairs.inc.h"
#else
#include "kernels/cpu/simd_vectors.inc.h"
#endif

INLINE float FmaScalar(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// Every other number.
INLINE F OddBf16(W words) { return AsF(AsU(words) & 0xffff0000u); }
INLINE F EvenBf16(W words) { return AsF(AsU(words) << 16); }

// acc[i] + w[2i+1] x[2i+1], then + w[2i] x[2i], each fused: what vdpbf16ps computes. A factor is
// what of that can be done once for many products.
#if defined(__AVX512BF16__)
using Factor = W;
INLINE Factor ToFactor(W x) { return x; }
INLINE F Dot(F acc, Factor w, Factor x) {
  return reinterpret_cast<F>(_mm512_dpbf16_ps(
      reinterpret_cast<__m512>(acc), reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x)));
}
#else
struct Factor {
  F odd, even;
};
INLINE Factor ToFactor(W x) { return {OddBf16(x), EvenBf16(x)}; }
INLINE F Dot(F acc, Factor w, Factor x) { return Fma(w.even, x.even, Fma(w.odd, x.odd, acc)); }
INLINE F Dot(F acc, W w, W x) { return Dot(acc, ToFactor(w), ToFactor(x)); }
#endif

// Sums that a loop keeps in registers beside its operands: of 16 registers, where a sum takes two;
// of 32 else.
constexpr int kSumsInRegisters = kRegistersOfVector == 2 ? 4 : 16;

INLINE F Max(F a, F b) { return Select(a > b, a, b); }

// ---- Sums across lanes
// -------------------------------------------------------------------------------------------------

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
