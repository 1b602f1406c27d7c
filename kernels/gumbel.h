// Gumbel noise as a pure function of (seed, position, token), in arithmetic that is the same bits
// on CPU and GPU.
//
// Philox4x32-10 (Salmon et al. 2011), then g = -log(-log(u)) with a polynomial logarithm whose
// every step is one correctly rounded multiplication, addition or fused multiply-add. Included by
// kernels/cpu and by CUDA code; kernels/cpu/sampling_kernels.inc.h is the same sequence on 16
// lanes. u has 23 bits, so that (n + 0.5) * 2^-23 is exact in fp32 and lies strictly inside (0, 1).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define ULTRASPEED_HOST_DEVICE __host__ __device__
#else
#define ULTRASPEED_HOST_DEVICE
#endif

namespace ultraspeed::kernels {

struct Philox4x32 {
  uint32_t x[4];
};

ULTRASPEED_HOST_DEVICE inline Philox4x32 Philox(Philox4x32 counter, uint32_t key0, uint32_t key1) {
  uint32_t* x = counter.x;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * x[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * x[2];
    const uint32_t y0 = static_cast<uint32_t>(p1 >> 32) ^ x[1] ^ key0;
    const uint32_t y2 = static_cast<uint32_t>(p0 >> 32) ^ x[3] ^ key1;
    x[0] = y0;
    x[1] = static_cast<uint32_t>(p1);
    x[2] = y2;
    x[3] = static_cast<uint32_t>(p0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// No compiler may fuse these two into something else: nvcc contracts plain a * b + c by default.
ULTRASPEED_HOST_DEVICE inline float RoundedMultiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
ULTRASPEED_HOST_DEVICE inline float RoundedAdd(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

// Natural logarithm (coefficients of Cephes logf). REQUIRES: x is positive, finite and normal.
ULTRASPEED_HOST_DEVICE inline float PortableLog(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, 4);
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;  // mantissa in [sqrt(1/2), sqrt(2))
  bits -= static_cast<int32_t>(static_cast<uint32_t>(exponent) << 23);
  float mantissa;
  std::memcpy(&mantissa, &bits, 4);
  const float e = static_cast<float>(exponent);
  const float f = RoundedAdd(mantissa, -1.0f);
  const float z = RoundedMultiply(f, f);
  float p = 7.0376836292e-2f;
  p = fmaf(p, f, -1.1514610310e-1f);
  p = fmaf(p, f, 1.1676998740e-1f);
  p = fmaf(p, f, -1.2420140846e-1f);
  p = fmaf(p, f, 1.4249322787e-1f);
  p = fmaf(p, f, -1.6668057665e-1f);
  p = fmaf(p, f, 2.0000714765e-1f);
  p = fmaf(p, f, -2.4999993993e-1f);
  p = fmaf(p, f, 3.3333331174e-1f);
  float y = RoundedMultiply(RoundedMultiply(p, f), z);
  y = fmaf(e, -2.12194440e-4f, y);
  y = fmaf(-0.5f, z, y);
  return fmaf(e, 0.693359375f, RoundedAdd(f, y));
}

ULTRASPEED_HOST_DEVICE inline float GumbelFromBits(uint32_t bits) {
  const float u = RoundedMultiply(RoundedAdd(static_cast<float>(bits >> 9), 0.5f), 0x1p-23f);
  return -PortableLog(-PortableLog(u));
}

ULTRASPEED_HOST_DEVICE inline float PortableGumbelNoise(uint64_t seed, int64_t position,
                                                        int32_t token) {
  const uint64_t place = static_cast<uint64_t>(position);
  const Philox4x32 counter = {{static_cast<uint32_t>(token) / 4, static_cast<uint32_t>(place),
                               static_cast<uint32_t>(place >> 32), 0}};
  const Philox4x32 random =
      Philox(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return GumbelFromBits(random.x[token % 4]);
}

}  // namespace ultraspeed::kernels
