// Vectors of 64 bytes as the compiler has them. Included by simd.inc.h; the same functions as
// simd_pairs.inc.h.

constexpr int kRegistersOfVector = 1;
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
INLINE U Widen(Bytes bytes) {
#if defined(__AVX512F__)  // GCC 12 would convert the bytes one by one
  return reinterpret_cast<U>(_mm512_cvtepu8_epi32(reinterpret_cast<__m128i>(bytes)));
#else
  return __builtin_convertvector(bytes, U);
#endif
}
// Of numbers below 2^16.
INLINE HalfW Narrow(U x) { return __builtin_convertvector(x, HalfW); }
INLINE F Splat(float x) { return F{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
INLINE W SplatPair(uint32_t pair) { return reinterpret_cast<W>(U{} + pair); }
INLINE U Lanes() { return U{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

INLINE F Load(const float* p) { return *reinterpret_cast<const UnalignedF*>(p); }
INLINE void Store(float* p, F x) { *reinterpret_cast<UnalignedF*>(p) = x; }
INLINE W LoadW(const void* p) { return *static_cast<const UnalignedW*>(p); }
INLINE void StoreW(void* p, W x) { *static_cast<UnalignedW*>(p) = x; }

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

// ---- Steps of sums across lanes

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
