// Attention of one layer of one rank: 16 query heads share one key head. The caches' copies are
// whole caches of other layers; every call reads one.
//
// Bytes: the keys and values that some row sees, once, and the rows' q and output. Operations: the
// two products over what each row sees; that the second is done in two bf16 terms is not counted.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <vector>

#include "kernels/bench/cuda_bench.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/synthetic.h"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kQHeads = 16, kKvHeads = 1, kDim = 192, kValueDim = 128, kPageTokens = 64;
constexpr int kWindow = 128, kRowsMax = 2048;
constexpr int kRingPages = (kWindow + kRowsMax) / kPageTokens + 2;

// The last `rows` positions of `context` tokens.
struct Case {
  KvFormat format;
  int window;  // 0 = full
  int context;
  int rows;
};

void Fill(const Buffer& buffer, KvFormat format, size_t bytes, uint64_t seed, cudaStream_t stream) {
  if (format == KvFormat::kFp8) {
    FillE4m3(buffer.as<uint8_t>(), bytes, seed, stream);
  } else {
    FillUniformBf16(buffer.as<bf16>(), bytes / sizeof(bf16), 0.0f, 1.0f, seed, stream);
  }
}

void Measure(const Bench& bench, const Case& c) {
  const bool full = c.window == 0;
  const int num_pages = full ? (c.context + kPageTokens - 1) / kPageTokens : kRingPages;
  const size_t k_bytes = KvCacheBytes(c.format, num_pages, kPageTokens, kKvHeads, kDim);
  const size_t v_bytes = KvCacheBytes(c.format, num_pages, kPageTokens, kKvHeads, kValueDim);
  const int copies = static_cast<int>(std::max<size_t>(2, kCopiesBytes / (k_bytes + v_bytes)));
  const Buffer k = bench.Allocate(copies * k_bytes), v = bench.Allocate(copies * v_bytes);
  Fill(k, c.format, copies * k_bytes, 1, bench.stream());
  Fill(v, c.format, copies * v_bytes, 2, bench.stream());

  const size_t q_values = size_t{kQHeads} * kDim * c.rows;
  const size_t out_values = size_t{kQHeads} * kValueDim * c.rows;
  const Buffer q = bench.Allocate(q_values * sizeof(bf16)),
               out = bench.Allocate(out_values * sizeof(bf16)),
               sinks = bench.Allocate(kQHeads * sizeof(float)),
               workspace =
                   bench.Allocate(AttentionWorkspaceBytes(c.rows, kQHeads, kValueDim, c.context));
  FillUniformBf16(q.as<bf16>(), q_values, 0.0f, 1.0f, 3, bench.stream());
  FillUniform(sinks.as<float>(), kQHeads, 0.0f, 1.0f, 4, bench.stream());

  std::vector<int32_t> pages(static_cast<size_t>(num_pages));
  std::iota(pages.begin(), pages.end(), 0);
  const int64_t position = c.context - c.rows;
  const int32_t first_row_slot = 0, num_rows = c.rows;
  const Buffer d_pages = bench.Allocate(pages.size() * sizeof(int32_t)),
               d_position = bench.Allocate(sizeof(position)),
               d_zero = bench.Allocate(sizeof(first_row_slot)),
               d_num_rows = bench.Allocate(sizeof(num_rows));
  bench.Upload(d_pages, pages.data(), pages.size() * sizeof(int32_t));
  bench.Upload(d_position, &position, sizeof(position));
  bench.Upload(d_zero, &first_row_slot, sizeof(first_row_slot));
  bench.Upload(d_num_rows, &num_rows, sizeof(num_rows));

  const double seconds = bench.SecondsOf(std::max(copies, kCallsMin), [&](int i) {
    const size_t copy = static_cast<size_t>(i % copies);
    Attention({.q = q.as<bf16>(),
               .cache = {.k = k.as<uint8_t>() + copy * k_bytes,
                         .v = v.as<uint8_t>() + copy * v_bytes,
                         .format = c.format,
                         .page_tokens = kPageTokens,
                         .num_kv_heads = kKvHeads,
                         .qk_head_dim = kDim,
                         .v_head_dim = kValueDim},
               .place = full ? KvPlace::kPaged : KvPlace::kRing,
               .ring_pages = kRingPages,
               .window = c.window,
               .sinks = full ? nullptr : sinks.as<float>(),
               .block_k = nullptr,
               .block_v = nullptr,
               .sequences = {.num_sequences = 1,
                             .rows_max = c.rows,
                             .position_end_max = c.context,
                             .first_row = d_zero.as<int32_t>(),
                             .num_rows = d_num_rows.as<int32_t>(),
                             .position = d_position.as<int64_t>(),
                             .full_pages = d_pages.as<int32_t>(),
                             .full_pages_stride = num_pages,
                             .slot = d_zero.as<int32_t>()},
               .num_q_heads = kQHeads,
               .score_scale = 1.0f / std::sqrt(static_cast<float>(kDim)),
               .out = out.as<bf16>(),
               .workspace = workspace.as<void>()},
              bench.stream());
  });

  double seen = 0;  // keys, summed over rows
  for (int row = 0; row < c.rows; ++row) {
    const int keys = static_cast<int>(position) + row + 1;
    seen += full ? keys : std::min(keys, c.window);
  }
  const int keys_read = full ? c.context : std::min(c.context, c.window - 1 + c.rows);
  const double value_bytes = c.format == KvFormat::kFp8 ? 1 : 2;
  char name[64];
  if (full) {
    std::snprintf(name, sizeof(name), "attention %s full %d", value_bytes == 1 ? "fp8" : "bf16",
                  c.context);
  } else {
    std::snprintf(name, sizeof(name), "attention %s window %d", value_bytes == 1 ? "fp8" : "bf16",
                  c.window);
  }
  bench.Report(name, c.rows, seconds,
               keys_read * value_bytes * kKvHeads * (kDim + kValueDim) +
                   static_cast<double>((q_values + out_values) * sizeof(bf16)),
               2.0 * seen * kQHeads * (kDim + kValueDim));
}

}  // namespace

void MeasureAttention(const Bench& bench) {
  for (KvFormat format : {KvFormat::kBf16, KvFormat::kFp8}) {
    for (int rows : {1, 8}) {
      Measure(bench, {format, kWindow, 4096, rows});
      for (int context : {4096, 32768, 131072}) Measure(bench, {format, 0, context, rows});
    }
    for (int rows : {512, 2048}) {  // of a prompt
      Measure(bench, {format, kWindow, 4096, rows});
      for (int context : {4096, 32768}) Measure(bench, {format, 0, context, rows});
    }
  }
}

}  // namespace ultraspeed::kernels::cuda
