// RMS norms over rows and over heads.
#include "kernels/check.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/thread_pool.h"

namespace ultraspeed::kernels {
namespace {
constexpr int kInlineValues = 32 * 1024;  // a row of 256 takes some 20 ns
constexpr int kRowsPerTask = 16;
}  // namespace

void RmsNorm(ThreadPool& pool, const float* x, const float* weight, float eps, int num_tokens,
             int hidden, bf16* out) {
  KERNELS_CHECK(hidden, >, 0);
  const FlushDenormals flush;
  const KernelTable& kernels = Active();
  const auto rows = [&](int begin, int end) {
    for (int t = begin; t < end; ++t) {
      const size_t offset = static_cast<size_t>(t) * hidden;
      kernels.rms_norm(x + offset, weight, eps, hidden, out + offset, nullptr);
    }
  };
  if (static_cast<int64_t>(num_tokens) * hidden <= kInlineValues) return rows(0, num_tokens);
  pool.ParallelFor((num_tokens + kRowsPerTask - 1) / kRowsPerTask, [&](int task) {
    const int begin = task * kRowsPerTask;
    rows(begin, begin + kRowsPerTask < num_tokens ? begin + kRowsPerTask : num_tokens);
  });
}

void HeadRmsNorm(float* x, int num_heads, int head_dim, int head_stride, const float* weight,
                 float eps) {
  KERNELS_CHECK(head_stride, >=, head_dim);
  const FlushDenormals flush;
  const KernelTable& kernels = Active();
  for (int h = 0; h < num_heads; ++h) {
    float* head = x + static_cast<size_t>(h) * head_stride;
    kernels.rms_norm(head, weight, eps, head_dim, nullptr, head);
  }
}

}  // namespace ultraspeed::kernels
