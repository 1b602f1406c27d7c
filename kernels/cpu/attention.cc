// Attention: checks and the split into (row, key-value head) tasks.
#include "kernels/check.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/thread_pool.h"

namespace ultraspeed::kernels {
namespace {
constexpr int64_t kInlineWork = 64 * 1024;  // multiply-adds
constexpr int kHeadDimMax = 512;            // kHeadDimsMax of attention_kernels.inc.h
}  // namespace

void Attention(ThreadPool& pool, const AttentionParams& params) {
  KERNELS_CHECK(params.num_kv_heads, >, 0);
  KERNELS_CHECK(params.num_q_heads % params.num_kv_heads, ==, 0);
  KERNELS_CHECK(params.qk_head_dim % 32, ==, 0);
  KERNELS_CHECK(params.v_head_dim % 16, ==, 0);
  KERNELS_CHECK(params.qk_head_dim, <=, kHeadDimMax);
  KERNELS_CHECK(params.v_head_dim, <=, kHeadDimMax);
  const FlushDenormals flush;
  const KernelTable& kernels = Active();
  int64_t keys = 0;
  for (int t = 0; t < params.num_tokens; ++t) {
    const AttentionRow& row = params.rows[t];
    KERNELS_CHECK(row.first_key, >=, 0);
    if (row.last_key >= row.first_key) KERNELS_CHECK(row.kv != nullptr, ==, true);
    keys += row.last_key - row.first_key + 1 + (row.block_k != nullptr ? row.block_rows : 0);
  }
  const int num_tasks = params.num_tokens * params.num_kv_heads;
  const auto run = [&](int task) {
    kernels.attention({&params, task / params.num_kv_heads, task % params.num_kv_heads});
  };
  const int64_t work = keys * params.num_q_heads * (params.qk_head_dim + params.v_head_dim);
  if (work <= kInlineWork) {
    for (int task = 0; task < num_tasks; ++task) run(task);
    return;
  }
  pool.ParallelFor(num_tasks, run);
}

}  // namespace ultraspeed::kernels
