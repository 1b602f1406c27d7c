#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/ops.h"
#include "kernels/thread_pool.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/random_data.h"

namespace ultraspeed::kernels {
namespace {

struct Shape {
  int q_heads, kv_heads, dim, value_dim;
};

// A cache of pages in shuffled order plus one drafter-like block, and rows that look into it.
struct AttentionCase {
  Shape shape;
  std::vector<bf16> q, k, v, block_k, block_v;
  std::vector<float> sinks;
  std::vector<int32_t> pages;
  KvView kv;
  std::vector<AttentionRow> rows;

  AttentionCase(Shape s, int page_tokens, int num_pages, int num_rows, int block_rows,
                uint32_t seed)
      : shape(s) {
    RandomData random(seed);
    const size_t cache_rows = static_cast<size_t>(page_tokens) * num_pages;
    q = random.Bf16s(static_cast<size_t>(num_rows) * s.q_heads * s.dim);
    k = random.Bf16s(cache_rows * s.kv_heads * s.dim);
    v = random.Bf16s(cache_rows * s.kv_heads * s.value_dim);
    block_k = random.Bf16s(static_cast<size_t>(block_rows) * s.kv_heads * s.dim);
    block_v = random.Bf16s(static_cast<size_t>(block_rows) * s.kv_heads * s.value_dim);
    sinks = random.Floats(s.q_heads, 2.0f);
    for (int p = 0; p < num_pages; ++p) pages.push_back((p * 5 + 3) % num_pages);
    kv = {k.data(), v.data(), pages.data(), num_pages, page_tokens};
  }
  void Add(int first, int last, int block_rows) {
    rows.push_back({&kv, first, last, block_rows > 0 ? block_k.data() : nullptr,
                    block_rows > 0 ? block_v.data() : nullptr, block_rows});
  }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape.dim)); }
  std::vector<bf16> Run(ThreadPool& pool, int first, int count, bool with_sinks) const {
    std::vector<bf16> out(static_cast<size_t>(count) * shape.q_heads * shape.value_dim);
    Attention(pool, {.q = q.data() + static_cast<size_t>(first) * shape.q_heads * shape.dim,
                     .rows = rows.data() + first,
                     .sinks = with_sinks ? sinks.data() : nullptr,
                     .num_tokens = count,
                     .num_q_heads = shape.q_heads,
                     .num_kv_heads = shape.kv_heads,
                     .qk_head_dim = shape.dim,
                     .v_head_dim = shape.value_dim,
                     .score_scale = scale(),
                     .out = out.data()});
    return out;
  }
  // Softmax in double precision over everything the row sees.
  std::vector<double> Oracle(int t, int head, bool with_sinks) const {
    const AttentionRow& row = rows[t];
    const int kv_head = head / (shape.q_heads / shape.kv_heads);
    std::vector<double> out(shape.value_dim);
    double sum = with_sinks ? std::exp(double{sinks[head]}) : 0;
    const auto add = [&](const bf16* keys, const bf16* values, size_t index) {
      double dot = 0;
      for (int d = 0; d < shape.dim; ++d) {
        dot +=
            double{FromBf16(q[(static_cast<size_t>(t) * shape.q_heads + head) * shape.dim + d])} *
            FromBf16(keys[index * shape.dim + d]);
      }
      const double weight = std::exp(dot * scale());
      sum += weight;
      for (int d = 0; d < shape.value_dim; ++d) {
        out[d] += weight * FromBf16(values[index * shape.value_dim + d]);
      }
    };
    for (int p = row.first_key; p <= row.last_key; ++p) {
      const size_t page = kv.pages[(p / kv.page_tokens) % kv.num_pages];
      add(kv.k, kv.v, (page * shape.kv_heads + kv_head) * kv.page_tokens + p % kv.page_tokens);
    }
    for (int i = 0; i < row.block_rows; ++i) {
      add(row.block_k, row.block_v, static_cast<size_t>(kv_head) * row.block_rows + i);
    }
    for (double& value : out) value = sum == 0 ? 0 : value / sum;
    return out;
  }
  void ExpectAgrees(ThreadPool& pool, bool with_sinks) const {
    const int count = static_cast<int>(rows.size());
    const std::vector<bf16> got = Run(pool, 0, count, with_sinks);
    for (int t = 0; t < count; ++t) {
      for (int h = 0; h < shape.q_heads; ++h) {
        const std::vector<double> want = Oracle(t, h, with_sinks);
        for (int d = 0; d < shape.value_dim; ++d) {
          const size_t i = (static_cast<size_t>(t) * shape.q_heads + h) * shape.value_dim + d;
          ASSERT_NEAR(FromBf16(got[i]), want[d], std::fabs(want[d]) / 200 + 1e-4)
              << "row " << t << " head " << h << " dim " << d;
        }
      }
    }
  }
};

TEST(Attention, PagedCacheAgreesWithDoublePrecision) {
  ThreadPool pool(2);
  for (Shape shape : {Shape{4, 1, 64, 64}, {7, 1, 32, 16}, {8, 4, 96, 80}, {16, 4, 192, 128}}) {
    AttentionCase attention(shape, 16, 20, 9, 0, 1);
    for (int last : {0, 1, 15, 16, 62, 63, 64, 200, 319}) attention.Add(0, last, 0);
    attention.ExpectAgrees(pool, false);
    attention.ExpectAgrees(pool, true);
  }
}

TEST(Attention, RingWrapsAndWindowStartsAnywhere) {
  ThreadPool pool(2);
  AttentionCase attention({6, 2, 64, 64}, 136, 1, 6, 0, 2);  // a sliding layer's ring: one page
  for (int last : {127, 130, 135, 136, 500, 10007}) attention.Add(std::max(0, last - 127), last, 0);
  attention.ExpectAgrees(pool, true);
}

TEST(Attention, BlockKeysComeAfterTheCacheAndMayBeAlone) {
  ThreadPool pool(2);
  AttentionCase attention({4, 2, 64, 64}, 16, 10, 4, 8, 3);
  attention.Add(3, 100, 8);
  attention.Add(0, -1, 8);   // nothing cached
  attention.Add(40, 39, 3);  // an empty window
  attention.Add(10, 10, 1);
  attention.ExpectAgrees(pool, false);
  attention.ExpectAgrees(pool, true);
}

TEST(Attention, NoKeyAtAllGivesZero) {
  ThreadPool pool(1);
  AttentionCase attention({2, 1, 32, 16}, 16, 1, 1, 0, 4);
  attention.Add(0, -1, 0);
  for (bool sinks : {false, true}) {
    for (bf16 value : attention.Run(pool, 0, 1, sinks)) EXPECT_EQ(FromBf16(value), 0.0f);
  }
}

TEST(Attention, LargeScoresDoNotOverflow) {
  ThreadPool pool(1);
  AttentionCase attention({2, 1, 64, 32}, 16, 10, 2, 0, 5);
  for (bf16& value : attention.q) value = ToBf16(100 * FromBf16(value));
  attention.Add(0, 150, 0);
  attention.Add(20, 150, 0);
  attention.ExpectAgrees(pool, false);
}

TEST(Attention, SameBitsForEveryThreadCountBatchAndSetOfOneOrder) {
  ThreadPool one(1);
  ThreadPool two(2);
  AttentionCase attention({16, 4, 128, 64}, 16, 30, 8, 8, 6);
  for (int t = 0; t < 8; ++t) attention.Add(t * 11, 300 + t * 20, t % 2 * 8);
  const auto all = [&] { return attention.Run(one, 0, 8, true); };
  const size_t row = 16 * 64;
  ForEachOrder(all, [&](InstructionSet set, const std::vector<bf16>& want) {
    for (ThreadPool* pool : {&one, &two}) {
      EXPECT_TRUE(SameBits(attention.Run(*pool, 0, 8, true), want)) << Name(set);
      for (int t = 0; t < 8; ++t) {
        EXPECT_TRUE(
            SameBits(attention.Run(*pool, t, 1, true),
                     std::vector<bf16>(want.begin() + t * row, want.begin() + (t + 1) * row)))
            << Name(set) << " row " << t;
      }
    }
  });
}

// Rows side by side that see nearly the same keys, as in a prompt, a block of drafts or a drafter's
// block: each is what it is alone, and keys that nobody sees do not matter.
TEST(Attention, RowsThatShareKeysAreTheSameBitsAlone) {
  constexpr int kRows = 21, kLast = 175;
  ThreadPool one(1);
  ThreadPool two(2);
  const auto first_of = [](int window, int last) { return std::max(0, last + 1 - window); };
  for (Shape shape : {Shape{8, 4, 192, 128}, {6, 2, 64, 48}, {32, 1, 96, 80}}) {
    for (const auto& [page_tokens, num_pages] : {std::pair{64, 7}, {16, 21}, {100, 3}}) {
      for (int window : {1000, 37}) {
        for (int block_rows : {0, 8}) {
          AttentionCase attention(shape, page_tokens, num_pages, kRows, block_rows, 7);
          for (int t = 0; t < kRows; ++t) {
            const int last = kLast - (block_rows > 0 ? 0 : kRows - 1 - t);
            attention.Add(first_of(window, last), last, block_rows);
          }
          // What no row sees.
          for (int p = 0; p < page_tokens * num_pages; ++p) {
            if (p <= kLast && p >= attention.rows.front().first_key) continue;
            for (int head = 0; head < shape.kv_heads; ++head) {
              const size_t row = KvRow(attention.kv, shape.kv_heads, head, p);
              std::fill_n(&attention.k[row * shape.dim], shape.dim, bf16{0x7fc0});
              std::fill_n(&attention.v[row * shape.value_dim], shape.value_dim, bf16{0x7fc0});
            }
          }
          attention.ExpectAgrees(two, true);
          const auto all = [&] { return attention.Run(one, 0, kRows, true); };
          const size_t row = static_cast<size_t>(shape.q_heads) * shape.value_dim;
          ForEachOrder(all, [&](InstructionSet set, const std::vector<bf16>& want) {
            for (int rows : {1, 8, kRows}) {
              for (int t = 0; t + rows <= kRows; t += rows) {
                EXPECT_TRUE(SameBits(
                    attention.Run(two, t, rows, true),
                    std::vector<bf16>(want.begin() + t * row, want.begin() + (t + rows) * row)))
                    << Name(set) << " rows from " << t << ": " << rows << ", window " << window;
              }
            }
          });
        }
      }
    }
  }
}

}  // namespace
}  // namespace ultraspeed::kernels
