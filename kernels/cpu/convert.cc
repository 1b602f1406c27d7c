// Number formats: bf16, e4m3fn, e2m1, e8m0, and the tables that the inner loops decode with.
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/cpu/kernel_table.h"
#include "kernels/ops.h"

namespace ultraspeed::kernels {
namespace {

constexpr uint16_t kE2m1Bits[8] = {0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0};

constexpr int PackE2m1(int code) {
  const int magnitude = code & 7;
  const int order = magnitude < 2 ? 1 - magnitude : magnitude;
  return (order & 3) << 2 | (code & 8) >> 2 | order >> 2;
}

constexpr E2m1Table MakeE2m1Table() {
  E2m1Table table = {};
  for (int i = 0; i < 64; ++i) {
    const int code = i & 15, place = (i & 48) | PackE2m1(code);
    const int bits = kE2m1Bits[code & 7] | (code & 8) << 12;
    table.high[place] = static_cast<uint8_t>(bits >> 8);
    table.low[place] = static_cast<uint8_t>(bits);
  }
  return table;
}

constexpr uint32_t E4m3FloatBits(uint8_t code) {
  const uint32_t sign = uint32_t{code & 0x80u} << 24;
  const uint32_t exponent = (code >> 3) & 15u;
  const uint32_t mantissa = code & 7u;
  if ((code & 0x7f) == 0x7f) return sign | 0x7fc00000u;
  if (exponent > 0) return sign | (exponent + 120) << 23 | mantissa << 20;
  if (mantissa == 0) return sign;
  const int lead = std::bit_width(mantissa) - 1;  // mantissa * 2^-9 = 1.x * 2^(lead-9)
  return sign | static_cast<uint32_t>(127 - 9 + lead) << 23 | (mantissa << (23 - lead) & 0x7fffffu);
}

constexpr E4m3Table MakeE4m3Table() {
  E4m3Table table = {};
  for (int code = 0; code < 128; ++code) {
    const uint32_t bits = E4m3FloatBits(static_cast<uint8_t>(code)) >> 16;
    table.high[code] = static_cast<uint8_t>(bits >> 8);
    table.low[code] = static_cast<uint8_t>(bits);
  }
  return table;
}

}  // namespace

constexpr E2m1Table kE2m1Table = MakeE2m1Table();
constexpr E4m3Table kE4m3Table = MakeE4m3Table();

uint8_t PackedE2m1(uint8_t code) { return static_cast<uint8_t>(PackE2m1(code)); }

bf16 ToBf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return static_cast<bf16>(bits >> 16 | 0x40);
  return static_cast<bf16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float FromBf16(bf16 x) { return std::bit_cast<float>(uint32_t{x} << 16); }

void ToBf16(const float* x, int count, bf16* out) { Active().to_bf16(x, count, out); }

float FromE4m3(uint8_t code) { return std::bit_cast<float>(E4m3FloatBits(code)); }

uint8_t ToE4m3(float x) {
  const auto sign = static_cast<uint8_t>(std::signbit(x) ? 0x80 : 0);
  if (x != x) return sign | 0x7f;
  const float magnitude = std::fmin(std::fabs(x), 448.0f);
  // Subnormals and the smallest normal are multiples of 2^-9; above, the fields lie side by side.
  if (magnitude < 0x1p-6f) {
    return sign | static_cast<uint8_t>(std::nearbyint(magnitude * 0x1p9f));
  }
  const uint32_t bits = std::bit_cast<uint32_t>(magnitude) - (120u << 23);
  return sign | static_cast<uint8_t>((bits + 0x7ffff + (bits >> 20 & 1)) >> 20);
}

float FromE2m1(uint8_t code) {
  const uint32_t sign = uint32_t{code & 8u} << 28;
  return std::bit_cast<float>(sign | uint32_t{kE2m1Bits[code & 7]} << 16);
}

float FromE8m0(uint8_t scale) {
  if (scale == 255) return std::numeric_limits<float>::quiet_NaN();
  return std::ldexp(1.0f, scale - 127);
}

}  // namespace ultraspeed::kernels
