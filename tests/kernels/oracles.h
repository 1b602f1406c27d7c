// What the matrix operations must compute, in double precision: one set for the tests of CPU and
// GPU.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/ops.h"
#include "tests/kernels/random_data.h"

namespace ultraspeed::kernels {

struct Oracle {
  double value;
  double magnitude;  // sum of absolute products: what rounding errors are relative to
};

inline Oracle Dot(const TestMatrix& w, int row, const bf16* x) {
  Oracle sum = {0, 0};
  for (int c = 0; c < w.num_cols; ++c) {
    const double product = w.Value(row, c) * FromBf16(x[c]);
    sum.value += product;
    sum.magnitude += std::fabs(product);
  }
  return sum;
}

struct TestExpert {
  TestMatrix gate, up, down;

  TestExpert(RandomData& random, WeightFormat format, int ffn, int hidden)
      : gate(RandomMatrix(random, format, ffn, hidden)),
        up(RandomMatrix(random, format, ffn, hidden)),
        down(RandomMatrix(random, format, hidden, ffn)) {}
  // The exact output, except that the inner activation is rounded to bf16 as specified.
  std::vector<double> Apply(const bf16* x) const {
    std::vector<double> out(down.num_rows);
    for (int f = 0; f < gate.num_rows; ++f) {
      const double g = Dot(gate, f, x).value, u = Dot(up, f, x).value;
      const double inner = FromBf16(ToBf16(static_cast<float>(g / (1 + std::exp(-g)) * u)));
      for (int r = 0; r < down.num_rows; ++r) out[r] += down.Value(r, f) * inner;
    }
    return out;
  }
};

// 1 - 2<x,y> / (x^2 + y^2): one bf16 rounding that goes the other way must not fail a test.
inline double Difference(const std::vector<double>& want, const float* got) {
  double xy = 0, norms = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    xy += want[i] * got[i];
    norms += want[i] * want[i] + double{got[i]} * got[i];
  }
  return norms == 0 ? 0 : 1 - 2 * xy / norms;
}

}  // namespace ultraspeed::kernels
