// The gated MLP and the mixture of experts: two phases over (expert, rows) tasks, then a sum per
// token in ascending expert id.
//
// The MLP is a mixture of one expert whose output needs no sum. Gate and up of the same rows are
// one task, so SwiGLU happens while they are in cache. A product takes rows at equal distances: one
// or two rows of an expert are where they are, more are copied side by side.
#include <algorithm>
#include <cstring>

#include "kernels/check.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/matmul.h"
#include "kernels/thread_pool.h"

namespace ultraspeed::kernels {
namespace {

constexpr int64_t kInlineWork = 96 * 1024;
constexpr int kRowsAtOnceMax = 64;  // of gate and up
constexpr int kProductsAtOnce =
    16 * kTokenBlock;  // likewise, rows x tokens: 4 KiB on the stack each
constexpr int kExpertsPerTokenMax = 64;

Rows From(const Rows& rows, int row) {
  return {rows.first + static_cast<size_t>(row) * rows.stride, rows.stride};
}

size_t Align(size_t bytes) { return (bytes + 63) / 64 * 64; }

// hidden[p][rows] = bf16(silu(gate x[p]) * up x[p]) for the pairs p in [0, num_pairs); hidden is
// [num_pairs, F].
void GateUp(const KernelTable& kernels, const MatrixView& gate, const MatrixView& up, int row_begin,
            int row_end, const Rows& x, int num_pairs, bf16* hidden) {
  float gate_out[kProductsAtOnce];
  float up_out[kProductsAtOnce];
  for (int p0 = 0; p0 < num_pairs; p0 += kTokenBlock) {
    const int tokens = std::min(kTokenBlock, num_pairs - p0);
    const int rows_at_once = std::min(kRowsAtOnceMax, kProductsAtOnce / tokens / 16 * 16);
    for (int row = row_begin; row < row_end; row += rows_at_once) {
      const int count = std::min(rows_at_once, row_end - row);
      float* gate_rows[kTokenBlock];
      float* up_rows[kTokenBlock];
      for (int t = 0; t < tokens; ++t) {
        gate_rows[t] = gate_out + t * rows_at_once - row;
        up_rows[t] = up_out + t * rows_at_once - row;
      }
      kernels.matmul(gate, row, row + count, From(x, p0), tokens, gate_rows);
      kernels.matmul(up, row, row + count, From(x, p0), tokens, up_rows);
      for (int t = 0; t < tokens; ++t) {
        kernels.swiglu(gate_out + t * rows_at_once, up_out + t * rows_at_once, count,
                       hidden + static_cast<size_t>(p0 + t) * gate.num_rows + row);
      }
    }
  }
  kernels.release_tiles();
}

void Down(const KernelTable& kernels, const MatrixView& down, int row_begin, int row_end,
          const Rows& hidden, int num_pairs, float* const* out) {
  for (int p0 = 0; p0 < num_pairs; p0 += kTokenBlock) {
    kernels.matmul(down, row_begin, row_end, From(hidden, p0),
                   std::min(kTokenBlock, num_pairs - p0), out + p0);
  }
  kernels.release_tiles();
}

void CheckShapes(const MlpWeights& w) {
  KERNELS_CHECK(w.up.num_rows(), ==, w.gate.num_rows());
  KERNELS_CHECK(w.up.num_cols(), ==, w.gate.num_cols());
  KERNELS_CHECK(w.down.num_rows(), ==, w.gate.num_cols());
  KERNELS_CHECK(w.down.num_cols(), ==, w.gate.num_rows());
}

// A cut of the workspace into arrays; P = pairs (token, expert), grouped by expert.
struct Workspace {
  bf16* hidden;         // [P, F]
  float* down;          // [P, H]
  bf16* gathered;       // [P, H] rows of x that do not lie at equal distances (ExpertRows)
  int32_t* token;       // [P]
  float** down_rows;    // [P]
  int32_t* place;       // [T, K] pair of (token, k)
  int32_t* first_pair;  // [E + 1]
  int32_t* active;      // [E] experts with at least one token
  Rows* inputs;         // [E] of the active ones
  size_t bytes;

  Workspace(void* memory, int num_tokens, int experts_per_token, int num_experts, int ffn_width,
            int width) {
    const size_t pairs = static_cast<size_t>(num_tokens) * experts_per_token;
    size_t offset = 0;
    const auto take = [&](auto*& array, size_t count) {
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(
          static_cast<uint8_t*>(memory) + offset);
      offset += Align(count * sizeof(*array));
    };
    take(hidden, pairs * ffn_width);
    take(down, pairs * width);
    take(gathered, pairs * width);
    take(token, pairs);
    take(down_rows, pairs);
    take(place, pairs);
    take(first_pair, static_cast<size_t>(num_experts) + 1);
    take(active, static_cast<size_t>(num_experts));
    take(inputs, static_cast<size_t>(num_experts));
    bytes = offset;
  }
};

// Groups the pairs by expert, tokens ascending within one. Returns the number of experts in use.
int GroupByExpert(const MoeParams& params, int width, Workspace& space) {
  const int num_pairs = params.num_tokens * params.experts_per_token;
  std::fill(space.first_pair, space.first_pair + params.num_experts + 1, 0);
  for (int i = 0; i < num_pairs; ++i) {
    const int32_t id = params.expert_ids[i];
    KERNELS_CHECK(id, >=, 0);
    KERNELS_CHECK(id, <, params.num_experts);
    if (i % params.experts_per_token != 0) KERNELS_CHECK(params.expert_ids[i - 1], <, id);
    ++space.first_pair[id + 1];
  }
  int num_active = 0;
  for (int e = 0; e < params.num_experts; ++e) {
    if (space.first_pair[e + 1] > 0) space.active[num_active++] = e;
    space.first_pair[e + 1] += space.first_pair[e];
  }
  // Filling moves first_pair[e] to the end of group e; shifting back restores it.
  for (int i = 0; i < num_pairs; ++i) {
    const int pair = space.first_pair[params.expert_ids[i]]++;
    const int token = i / params.experts_per_token;
    space.place[i] = pair;
    space.token[pair] = token;
    space.down_rows[pair] = space.down + static_cast<size_t>(pair) * width;
  }
  for (int e = params.num_experts; e > 0; --e) space.first_pair[e] = space.first_pair[e - 1];
  space.first_pair[0] = 0;
  return num_active;
}

// The inputs of an expert's pairs, copied side by side unless they lie at equal distances.
Rows ExpertRows(const MoeParams& params, int width, const Workspace& space, int expert) {
  const int32_t* const tokens = space.token + space.first_pair[expert];
  const int count = space.first_pair[expert + 1] - space.first_pair[expert];
  const auto elements = [width](int rows) { return static_cast<size_t>(rows) * width; };
  const int step = count > 1 ? tokens[1] - tokens[0] : 1;
  int p = 2;
  while (p < count && tokens[p] - tokens[p - 1] == step) ++p;
  if (p >= count) return {params.x + elements(tokens[0]), elements(step)};
  bf16* const copy = space.gathered + elements(space.first_pair[expert]);
  for (int i = 0; i < count; ++i) {
    std::memcpy(copy + elements(i), params.x + elements(tokens[i]), elements(1) * sizeof(bf16));
  }
  return {copy, elements(1)};
}

// How many tasks one expert's rows are cut into: enough for the threads to level out, at least 16
// rows each.
RowSplit SplitExpert(const ThreadPool& pool, int num_rows, int num_experts) {
  const int wanted = std::max(1, 4 * pool.num_threads() / std::max(1, num_experts));
  const int tiles = (num_rows + 15) / 16;
  const int rows = (tiles + std::min(wanted, tiles) - 1) / std::min(wanted, tiles) * 16;
  return {rows, (num_rows + rows - 1) / rows};
}

void SumExperts(const KernelTable& kernels, const MoeParams& params, int width,
                const Workspace& space, int token) {
  const float* rows[kExpertsPerTokenMax];
  for (int k = 0; k < params.experts_per_token; ++k) {
    const int pair = space.place[static_cast<size_t>(token) * params.experts_per_token + k];
    rows[k] = space.down + static_cast<size_t>(pair) * width;
  }
  kernels.weighted_sum(
      rows, params.expert_weights + static_cast<size_t>(token) * params.experts_per_token,
      params.experts_per_token, width, params.out + static_cast<size_t>(token) * width);
}

}  // namespace

size_t MlpWorkspaceBytes(int num_tokens, int ffn_width, int hidden) {
  return MoeWorkspaceBytes(num_tokens, 1, 1, ffn_width, hidden);
}

void Mlp(ThreadPool& pool, const MlpWeights& w, const bf16* x, int num_tokens, float* out,
         void* workspace) {
  CheckShapes(w);
  const FlushDenormals flush;
  const KernelTable& kernels = Active();
  const int width = w.gate.num_cols();
  const int ffn_width = w.gate.num_rows();
  Workspace space(workspace, num_tokens, 1, 1, ffn_width, width);
  for (int t = 0; t < num_tokens; ++t) {
    space.down_rows[t] = out + static_cast<size_t>(t) * width;
  }
  const MatrixView gate = View(w.gate);
  const MatrixView up = View(w.up);
  const MatrixView down = View(w.down);
  const int64_t work = int64_t{num_tokens} * width * ffn_width;
  const RowSplit first = SplitRows(pool, ffn_width, 2 * work);
  pool.ParallelFor(first.num_tasks, [&](int task) {
    const int begin = task * first.rows_per_task;
    GateUp(kernels, gate, up, begin, std::min(begin + first.rows_per_task, ffn_width),
           {x, static_cast<size_t>(width)}, num_tokens, space.hidden);
  });
  const RowSplit second = SplitRows(pool, width, work);
  pool.ParallelFor(second.num_tasks, [&](int task) {
    const int begin = task * second.rows_per_task;
    Down(kernels, down, begin, std::min(begin + second.rows_per_task, width),
         {space.hidden, static_cast<size_t>(ffn_width)}, num_tokens, space.down_rows);
  });
}

size_t MoeWorkspaceBytes(int num_tokens, int experts_per_token, int num_experts, int ffn_width,
                         int hidden) {
  return Workspace(nullptr, num_tokens, experts_per_token, num_experts, ffn_width, hidden).bytes;
}

void MixtureOfExperts(ThreadPool& pool, const MoeParams& params) {
  KERNELS_CHECK(params.num_experts, >, 0);
  KERNELS_CHECK(params.experts_per_token, >, 0);
  KERNELS_CHECK(params.experts_per_token, <=, kExpertsPerTokenMax);
  if (params.num_tokens == 0) return;
  const FlushDenormals flush;
  const KernelTable& kernels = Active();
  const int width = params.experts[0].gate.num_cols();
  const int ffn_width = params.experts[0].gate.num_rows();
  Workspace space(params.workspace, params.num_tokens, params.experts_per_token, params.num_experts,
                  ffn_width, width);
  const int num_active = GroupByExpert(params, width, space);
  for (int i = 0; i < num_active; ++i) {
    const MlpWeights& expert = params.experts[space.active[i]];
    CheckShapes(expert);
    KERNELS_CHECK(expert.gate.num_rows(), ==, ffn_width);
    KERNELS_CHECK(expert.gate.num_cols(), ==, width);
  }
  const auto pairs_of = [&](int expert) {
    return space.first_pair[expert + 1] - space.first_pair[expert];
  };
  const auto gather = [&](int i) {
    space.inputs[space.active[i]] = ExpertRows(params, width, space, space.active[i]);
  };
  if (int64_t{params.num_tokens} * params.experts_per_token * width <= kInlineWork) {
    for (int i = 0; i < num_active; ++i) gather(i);
  } else {
    pool.ParallelFor(num_active, gather);
  }

  const RowSplit first = SplitExpert(pool, ffn_width, num_active);
  pool.ParallelFor(num_active * first.num_tasks, [&](int task) {
    const int expert = space.active[task / first.num_tasks];
    const int begin = task % first.num_tasks * first.rows_per_task;
    const int pair = space.first_pair[expert];
    GateUp(kernels, View(params.experts[expert].gate), View(params.experts[expert].up), begin,
           std::min(begin + first.rows_per_task, ffn_width), space.inputs[expert], pairs_of(expert),
           space.hidden + static_cast<size_t>(pair) * ffn_width);
  });
  const RowSplit second = SplitExpert(pool, width, num_active);
  pool.ParallelFor(num_active * second.num_tasks, [&](int task) {
    const int expert = space.active[task / second.num_tasks];
    const int begin = task % second.num_tasks * second.rows_per_task;
    const int pair = space.first_pair[expert];
    Down(kernels, View(params.experts[expert].down), begin,
         std::min(begin + second.rows_per_task, width),
         {space.hidden + static_cast<size_t>(pair) * ffn_width, static_cast<size_t>(ffn_width)},
         pairs_of(expert), space.down_rows + pair);
  });
  const int64_t sum_work = int64_t{params.num_tokens} * params.experts_per_token * width;
  if (sum_work <= kInlineWork) {
    for (int t = 0; t < params.num_tokens; ++t) SumExperts(kernels, params, width, space, t);
  } else {
    pool.ParallelFor(params.num_tokens,
                     [&](int t) { SumExperts(kernels, params, width, space, t); });
  }
}

}  // namespace ultraspeed::kernels
