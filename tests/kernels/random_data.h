// Seeded random inputs that the kernel tests share.
#pragma once

#include <cstring>
#include <random>
#include <vector>

#include "kernels/ops.h"

namespace ultraspeed::kernels {

class RandomData {
 public:
  explicit RandomData(uint32_t seed) : engine_(seed) {}

  int Integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
  std::vector<float> Floats(size_t count, float deviation = 1.0f) {
    std::normal_distribution<float> normal(0.0f, deviation);
    std::vector<float> values(count);
    for (float& value : values) value = normal(engine_);
    return values;
  }
  std::vector<bf16> Bf16s(size_t count, float deviation = 1.0f) {
    std::vector<bf16> values;
    for (float value : Floats(count, deviation)) values.push_back(ToBf16(value));
    return values;
  }

 private:
  std::mt19937 engine_;
};

// A checkpoint matrix with the bytes it points to, and its exact values.
struct TestMatrix {
  WeightFormat format;
  int num_rows, num_cols;
  std::vector<uint8_t> codes;
  std::vector<float> scales_f32;
  std::vector<uint8_t> scales_e8m0;

  CheckpointMatrix Checkpoint() const {
    return {format, num_rows, num_cols, codes.data(), scales_f32.data(), scales_e8m0.data()};
  }
  double Value(int row, int col) const {
    const size_t i = static_cast<size_t>(row) * num_cols + col;
    switch (format) {
      case WeightFormat::kBf16: {
        bf16 value;
        std::memcpy(&value, codes.data() + 2 * i, 2);
        return FromBf16(value);
      }
      case WeightFormat::kFp8Block128:
        return double{FromE4m3(codes[i])} *
               scales_f32[static_cast<size_t>(row / 128) * ((num_cols + 127) / 128) + col / 128];
      case WeightFormat::kMxfp4:
        return double{FromE2m1(codes[i / 2] >> (col % 2 * 4) & 15)} * FromE8m0(scales_e8m0[i / 32]);
    }
    return 0;
  }
};

inline TestMatrix RandomMatrix(RandomData& random, WeightFormat format, int rows, int cols) {
  TestMatrix m = {format, rows, cols, {}, {}, {}};
  const size_t count = static_cast<size_t>(rows) * cols;
  if (format == WeightFormat::kBf16) {
    const std::vector<bf16> values = random.Bf16s(count, 0.1f);
    m.codes.resize(count * 2);
    std::memcpy(m.codes.data(), values.data(), count * 2);
    return m;
  }
  m.codes.resize(format == WeightFormat::kMxfp4 ? count / 2 : count);
  for (uint8_t& code : m.codes) {
    code = static_cast<uint8_t>(random.Integer(0, 255));
    if (format == WeightFormat::kFp8Block128 && (code & 0x7f) == 0x7f) code ^= 1;  // not NaN
  }
  for (int i = 0; i < (rows + 127) / 128 * ((cols + 127) / 128); ++i) {
    m.scales_f32.push_back(random.Floats(1)[0] * 0.01f);
  }
  for (size_t i = 0; i < count / 32; ++i) {
    m.scales_e8m0.push_back(static_cast<uint8_t>(random.Integer(118, 128)));
  }
  return m;
}

// Neither zero, subnormal nor NaN.
inline bool IsNormalE4m3(uint8_t code) { return (code & 0x78) != 0 && (code & 0x7f) != 0x7f; }

// Replaces the codes of an FP8 matrix that are not normal.
inline void MakeNormal(TestMatrix& w) {
  for (uint8_t& code : w.codes) {
    if (!IsNormalE4m3(code)) code ^= 0x40;
  }
}

inline constexpr WeightFormat kFormats[] = {WeightFormat::kBf16, WeightFormat::kFp8Block128,
                                            WeightFormat::kMxfp4};

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

}  // namespace ultraspeed::kernels
