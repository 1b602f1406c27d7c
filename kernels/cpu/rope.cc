// Rotary position embedding from a table computed once in double precision.
#include <cmath>

#include "kernels/check.h"
#include "kernels/cpu/kernel_table.h"

namespace ultraspeed::kernels {

RopeTable BuildRopeTable(double theta, int rotary_dims, int num_positions) {
  KERNELS_CHECK(rotary_dims % 2, ==, 0);
  KERNELS_CHECK(num_positions, >=, 0);
  RopeTable table;
  table.rotary_dims = rotary_dims;
  table.num_positions = num_positions;
  table.cos_sin.resize(static_cast<size_t>(rotary_dims) * num_positions);
  const int half = rotary_dims / 2;
  for (int i = 0; i < half; ++i) {
    const double frequency = std::pow(theta, -2.0 * i / rotary_dims);
    for (int p = 0; p < num_positions; ++p) {
      float* row = table.cos_sin.data() + static_cast<size_t>(p) * rotary_dims;
      row[i] = static_cast<float>(std::cos(p * frequency));
      row[half + i] = static_cast<float>(std::sin(p * frequency));
    }
  }
  return table;
}

void Rope(const RopeTable& table, int position, float* x, int num_heads, int head_stride) {
  KERNELS_CHECK(position, >=, 0);
  KERNELS_CHECK(position, <, table.num_positions);
  KERNELS_CHECK(head_stride, >=, table.rotary_dims);
  const FlushDenormals flush;
  const KernelTable& kernels = Active();
  const float* row = table.cos_sin.data() + static_cast<size_t>(position) * table.rotary_dims;
  for (int h = 0; h < num_heads; ++h) {
    kernels.rope(row, table.rotary_dims / 2, x + static_cast<size_t>(h) * head_stride);
  }
}

}  // namespace ultraspeed::kernels
