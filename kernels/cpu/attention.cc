// Attention: checks and the split into tasks of a few rows and a key-value head.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/thread_pool.h"

namespace ultraspeed::kernels {
namespace {
constexpr int64_t kInlineWork = 64 * 1024;  // multiply-adds
constexpr int kHeadDimMax = 512;            // kHeadDimsMax of attention_kernels.inc.h
}  // namespace

size_t KvRow(const KvView& view, int num_kv_heads, int head, int64_t position) {
  const int64_t page = view.pages[(position / view.page_tokens) % view.num_pages];
  return static_cast<size_t>((page * num_kv_heads + head) * view.page_tokens +
                             position % view.page_tokens);
}

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
  const int group = params.num_q_heads / params.num_kv_heads;
  const int rows_at_once = std::max(1, kernels.attention_queries / group);
  const int num_row_groups = (params.num_tokens + rows_at_once - 1) / rows_at_once;
  const int num_tasks = num_row_groups * params.num_kv_heads;
  // One head after the other: its keys and values may stay in a core's cache for all rows.
  const auto run = [&](int task) {
    const int row = task % num_row_groups * rows_at_once;
    kernels.attention(
        {&params, row, std::min(rows_at_once, params.num_tokens - row), task / num_row_groups});
    kernels.release_tiles();
  };
  const int64_t work = keys * params.num_q_heads * (params.qk_head_dim + params.v_head_dim);
  if (work <= kInlineWork) {
    for (int task = 0; task < num_tasks; ++task) run(task);
    return;
  }
  pool.ParallelFor(num_tasks, run);
}

}  // namespace ultraspeed::kernels
