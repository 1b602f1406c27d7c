// Projection, cache and attention on the GPU: against double precision, and bit for bit against
// themselves under every way of cutting the same rows into calls.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>

#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/random_data.h"

namespace ultraspeed::kernels::cuda {
namespace {

constexpr int kPage = 64;

struct Shape {
  int q_heads, kv_heads, dim;
  static constexpr int kValueDim = 128;
  int group_stride() const { return (q_heads / kv_heads + 1) * dim + kValueDim; }
  int row_width() const { return kv_heads * group_stride(); }
};

// One sequence: projected rows of all its positions, so that any run of rows can be attended again.
struct Story {
  int num_positions;
  std::vector<float> qkv;  // [positions, row_width]
};

// A part of a story in one call.
struct Slice {
  int story;
  int position;
  int num_rows;
};

// Several sequences with caches, full or windowed.
class World {
 public:
  World(Shape shape, KvFormat format, int window, std::vector<int> lengths, uint32_t seed)
      : shape_(shape), window_(window), format_(format) {
    RandomData random(seed);
    const int num_stories = static_cast<int>(lengths.size());
    int longest = 0;
    for (int length : lengths) {
      stories_.push_back({length, random.Floats(static_cast<size_t>(length) * shape.row_width())});
      longest = std::max(longest, length);
    }
    pages_per_story_ = (longest + kPage - 1) / kPage + 1;
    // Room for the window, a chunk of 600 rows and the partial pages at both ends.
    ring_pages_ = (window + 600) / kPage + 2;
    num_pages_ = num_stories * (window == 0 ? pages_per_story_ : ring_pages_);
    k_ = std::make_unique<DeviceArray<uint8_t>>(
        KvCacheBytes(format, num_pages_, kPage, shape.kv_heads, shape.dim));
    v_ = std::make_unique<DeviceArray<uint8_t>>(
        KvCacheBytes(format, num_pages_, kPage, shape.kv_heads, Shape::kValueDim));
    pages_.resize(static_cast<size_t>(num_stories) * pages_per_story_);
    std::iota(pages_.begin(), pages_.end(), 0);
    std::shuffle(pages_.begin(), pages_.end(), std::mt19937(seed));
    rope_ = BuildRopeTable(1e4, 64, longest + 1).cos_sin;
    sinks_ = random.Floats(shape.q_heads, 2.0f);
  }

  // Output of each slice's rows, in one pass: projection into the cache, then attention.
  std::vector<std::vector<bf16>> Run(const std::vector<Slice>& slices, bool with_sinks = true,
                                     int64_t position_end_max = 0) {
    int num_tokens = 0, rows_max = 0;
    int64_t end = position_end_max;
    std::vector<int32_t> first_row, num_rows, tables, slots;
    std::vector<int64_t> positions;
    std::vector<float> qkv;
    for (const Slice& slice : slices) {
      first_row.push_back(num_tokens);
      num_rows.push_back(slice.num_rows);
      positions.push_back(slice.position);
      slots.push_back(slice.story);
      const auto* pages = &pages_[static_cast<size_t>(slice.story) * pages_per_story_];
      tables.insert(tables.end(), pages, pages + pages_per_story_);
      const auto begin = stories_[slice.story].qkv.begin() +
                         static_cast<int64_t>(slice.position) * shape_.row_width();
      qkv.insert(qkv.end(), begin,
                 begin + static_cast<int64_t>(slice.num_rows) * shape_.row_width());
      num_tokens += slice.num_rows;
      rows_max = std::max(rows_max, slice.num_rows);
      end = std::max<int64_t>(end, slice.position + slice.num_rows);
    }
    const DeviceArray<int32_t> d_first(first_row), d_num(num_rows), d_tables(tables),
        d_slots(slots);
    const DeviceArray<int64_t> d_positions(positions);
    const DeviceArray<float> d_qkv(qkv), d_rope(rope_), d_sinks(sinks_);
    const DeviceArray<bf16> d_q(static_cast<size_t>(num_tokens) * shape_.q_heads * shape_.dim);
    const DeviceArray<bf16> d_out(static_cast<size_t>(num_tokens) * shape_.q_heads *
                                  Shape::kValueDim);
    const DeviceArray<uint8_t> workspace(
        AttentionWorkspaceBytes(num_tokens, shape_.q_heads, Shape::kValueDim, end));
    const Sequences sequences = {.num_sequences = static_cast<int>(slices.size()),
                                 .rows_max = rows_max,
                                 .position_end_max = end,
                                 .first_row = d_first.get(),
                                 .num_rows = d_num.get(),
                                 .position = d_positions.get(),
                                 .full_pages = d_tables.get(),
                                 .full_pages_stride = pages_per_story_,
                                 .slot = d_slots.get()};
    const KvCache cache = {k_->get(),       v_->get(),  format_,         kPage,
                           shape_.kv_heads, shape_.dim, Shape::kValueDim};
    const KvPlace place = window_ == 0 ? KvPlace::kPaged : KvPlace::kRing;
    ProjectQkv({.qkv = d_qkv.get(),
                .row_width = shape_.row_width(),
                .group_stride = shape_.group_stride(),
                .num_q_heads = shape_.q_heads,
                .num_kv_heads = shape_.kv_heads,
                .qk_head_dim = shape_.dim,
                .v_head_dim = Shape::kValueDim,
                .rotary_dims = 64,
                .rope = d_rope.get(),
                .value_scale = kValueScale,
                .q_norm = nullptr,
                .k_norm = nullptr,
                .epsilon = 1e-6f,
                .sequences = sequences,
                .num_rows_kept = nullptr,
                .q = d_q.get(),
                .cache = cache,
                .place = place,
                .ring_pages = ring_pages_,
                .block_k = nullptr,
                .block_v = nullptr},
               num_tokens, nullptr);
    Attention({.q = d_q.get(),
               .cache = cache,
               .place = place,
               .ring_pages = ring_pages_,
               .window = window_,
               .sinks = with_sinks ? d_sinks.get() : nullptr,
               .block_k = nullptr,
               .block_v = nullptr,
               .sequences = sequences,
               .num_q_heads = shape_.q_heads,
               .score_scale = scale(),
               .out = d_out.get(),
               .workspace = workspace.get()},
              nullptr);
    const std::vector<bf16> all = d_out.ToHost();
    std::vector<std::vector<bf16>> out;
    for (size_t i = 0; i < slices.size(); ++i) {
      const auto begin = all.begin() + static_cast<int64_t>(first_row[i]) * out_row();
      out.emplace_back(begin, begin + static_cast<int64_t>(num_rows[i]) * out_row());
    }
    return out;
  }

  // Rows of one story from position 0 on, `chunk` rows at a time.
  std::vector<bf16> RunChunks(int story, int chunk) {
    std::vector<bf16> out;
    for (int p = 0; p < stories_[story].num_positions; p += chunk) {
      const int rows = std::min(chunk, stories_[story].num_positions - p);
      const std::vector<bf16> part = Run({{story, p, rows}})[0];
      out.insert(out.end(), part.begin(), part.end());
    }
    return out;
  }

  // Largest error of one row against softmax in double precision over the same rounded inputs, in
  // units of what is allowed: 1e-4 and a 200th of the value (an ulp of bf16 is a 128th or less).
  double Error(const std::vector<bf16>& row, int story, int position, bool with_sinks) const {
    const int first = window_ == 0 ? 0 : std::max(0, position - window_ + 1);
    const int group = shape_.q_heads / shape_.kv_heads;
    double worst = 0;
    for (int h = 0; h < shape_.q_heads; ++h) {
      const int column = h / group * shape_.group_stride();
      const std::vector<double> q = Rotated(story, position, column + h % group * shape_.dim);
      std::vector<double> scores;
      for (int p = first; p <= position; ++p) {
        const std::vector<double> k = Rotated(story, p, column + group * shape_.dim);
        double dot = 0;
        for (int d = 0; d < shape_.dim; ++d) dot += q[d] * k[d];
        scores.push_back(dot * scale());
      }
      double max = with_sinks ? sinks_[h] : -1e300;
      for (double score : scores) max = std::max(max, score);
      double sum = with_sinks ? std::exp(sinks_[h] - max) : 0;
      std::vector<double> out(Shape::kValueDim);
      for (int p = first; p <= position; ++p) {
        const double weight = std::exp(scores[p - first] - max);
        sum += weight;
        const float* v = &stories_[story].qkv[static_cast<size_t>(p) * shape_.row_width() + column +
                                              (group + 1) * shape_.dim];
        for (int d = 0; d < Shape::kValueDim; ++d) {
          out[d] += weight * FromBf16(ToBf16(v[d] * kValueScale));
        }
      }
      for (int d = 0; d < Shape::kValueDim; ++d) {
        const double want = out[d] / sum;
        const double got = FromBf16(row[static_cast<size_t>(h) * Shape::kValueDim + d]);
        const double error = std::fabs(got - want) / (1e-4 + std::fabs(want) / 200);
        worst = std::max(worst, std::isnan(error) ? HUGE_VAL : error);
      }
    }
    return worst;
  }

  int out_row() const { return shape_.q_heads * Shape::kValueDim; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.dim)); }

 private:
  static constexpr float kValueScale = 0.7f;

  std::vector<double> Rotated(int story, int position, int column) const {
    const float* x =
        &stories_[story].qkv[static_cast<size_t>(position) * shape_.row_width() + column];
    std::vector<float> y(x, x + shape_.dim);
    for (int i = 0; i < 32; ++i) {
      const float c = rope_[static_cast<size_t>(position) * 64 + i];
      const float s = rope_[static_cast<size_t>(position) * 64 + 32 + i];
      y[i] = std::fma(x[i], c, -(x[i + 32] * s));
      y[i + 32] = std::fma(x[i + 32], c, x[i] * s);
    }
    std::vector<double> out;
    for (float value : y) out.push_back(FromBf16(ToBf16(value)));
    return out;
  }

  const Shape shape_;
  const int window_;
  const KvFormat format_;
  std::vector<Story> stories_;
  int pages_per_story_ = 0, ring_pages_ = 0, num_pages_ = 0;
  std::unique_ptr<DeviceArray<uint8_t>> k_, v_;
  std::vector<int32_t> pages_;
  std::vector<float> rope_, sinks_;
};

TEST(CudaAttention, AgreesWithDoublePrecision) {
  SKIP_WITHOUT_GPU();
  for (Shape shape : {Shape{16, 1, 192}, {5, 1, 192}, {8, 4, 192}, {1, 1, 128}, {12, 4, 128}}) {
    for (int window : {0, 1, 100, 128}) {
      World world(shape, KvFormat::kBf16, window, {1200}, 1);
      for (bool sinks : {false, true}) {
        for (int begin : {0, 512, 1111}) {
          const int rows = begin == 1111 ? 89 : begin == 512 ? 599 : 512;
          const std::vector<bf16> out = world.Run({{0, begin, rows}}, sinks)[0];
          for (int row = 0; row < rows; row += row < 3 || row > rows - 3 ? 1 : 83) {
            const auto at = out.begin() + static_cast<int64_t>(row) * world.out_row();
            const double error =
                world.Error(std::vector<bf16>(at, at + world.out_row()), 0, begin + row, sinks);
            EXPECT_LE(error, 1.0) << "heads " << shape.q_heads << "/" << shape.kv_heads
                                  << " window " << window << " position " << begin + row;
          }
        }
      }
    }
  }
}

// The whole prompt in chunks of different sizes, then verify blocks and single rows: same bits.
void ExpectSameBitsHoweverCut(Shape shape, KvFormat format, int window, int length) {
  World world(shape, format, window, {length}, 2);
  const std::vector<bf16> want = world.RunChunks(0, 512);
  for (int chunk : {8, 77, 600}) {
    EXPECT_TRUE(SameBits(world.RunChunks(0, chunk), want))
        << "heads " << shape.q_heads << "/" << shape.kv_heads << " dim " << shape.dim << " window "
        << window << " chunk " << chunk;
  }
  for (int position = std::max(0, length - 70); position < length; ++position) {
    const std::vector<bf16> row = world.Run({{0, position, 1}})[0];
    const auto at = want.begin() + static_cast<int64_t>(position) * world.out_row();
    ASSERT_TRUE(SameBits(row, std::vector<bf16>(at, at + world.out_row())))
        << "row " << position << " window " << window << " dim " << shape.dim;
  }
}

TEST(CudaAttention, SameBitsHoweverThePromptIsCut) {
  SKIP_WITHOUT_GPU();
  for (KvFormat format : {KvFormat::kBf16, KvFormat::kFp8}) {
    for (int window : {0, 128}) {
      ExpectSameBitsHoweverCut({16, 1, 192}, format, window, 1600);
      ExpectSameBitsHoweverCut({8, 4, 192}, format, window, 1100);
      ExpectSameBitsHoweverCut({7, 1, 128}, format, window, 700);
    }
  }
}

TEST(CudaAttention, SameBitsAcrossSpansAndNeighbours) {
  SKIP_WITHOUT_GPU();
  constexpr int kLong = 17000;  // three spans
  World world({16, 1, 192}, KvFormat::kBf16, 0, {kLong, 900, 8500}, 3);
  for (int p = 0; p < kLong - 8; p += 2048) {
    world.Run({{0, p, std::min(2048, kLong - 8 - p)}});  // one block per span
  }
  world.Run({{1, 0, 890}, {2, 0, 1000}});
  for (int p = 1000; p < 8490; p += 1500) world.Run({{2, p, std::min(1500, 8490 - p)}});
  const std::vector<bf16> block = world.Run({{0, kLong - 8, 8}})[0];  // one per segment
  const std::vector<bf16> neighbour = world.Run({{1, 892, 8}})[0];
  // The same rows inside prefill-sized calls, beside others, and under a larger bound.
  const std::vector<bf16> chunk = world.Run({{0, kLong - 520, 520}})[0];
  const std::vector<bf16> tail(chunk.end() - static_cast<int64_t>(block.size()), chunk.end());
  EXPECT_TRUE(SameBits(tail, block));
  const auto batch = world.Run({{1, 892, 8}, {0, kLong - 8, 8}, {2, 8490, 8}}, true, 40000);
  EXPECT_TRUE(SameBits(batch[1], block));
  EXPECT_TRUE(SameBits(batch[0], neighbour));
  for (int row : {0, 3, 7}) {
    const std::vector<bf16> alone = world.Run({{0, kLong - 8 + row, 1}})[0];
    EXPECT_TRUE(SameBits(alone, std::vector<bf16>(block.begin() + row * world.out_row(),
                                                  block.begin() + (row + 1) * world.out_row())));
  }
  const std::vector<bf16> last(block.begin() + 7 * world.out_row(), block.end());
  EXPECT_LE(world.Error(last, 0, kLong - 1, true), 1.0);
  EXPECT_TRUE(SameBits(world.Run({{0, kLong - 8, 8}})[0], block)) << "run twice";
}

TEST(CudaAttention, Fp8CacheErrorIsSmall) {
  SKIP_WITHOUT_GPU();
  World exact({16, 1, 192}, KvFormat::kBf16, 0, {1000}, 4);
  World rounded({16, 1, 192}, KvFormat::kFp8, 0, {1000}, 4);
  const std::vector<bf16> want = exact.Run({{0, 0, 1000}})[0];
  const std::vector<bf16> got = rounded.Run({{0, 0, 1000}})[0];
  double squares = 0, error = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double w = FromBf16(want[i]), g = FromBf16(got[i]);
    ASSERT_TRUE(std::isfinite(g)) << i;
    squares += w * w;
    error += (g - w) * (g - w);
  }
  const double relative = std::sqrt(error / squares);
  std::printf("fp8 cache: relative RMS error of the output %.4f\n", relative);
  EXPECT_LT(relative, 0.06);
  EXPECT_GT(relative, 0.002) << "the fp8 path was not taken";
}

// The drafter: norm over heads, context rows in a ring, the block's own keys both ways.
TEST(CudaAttention, DrafterSeesItsContextAndItsBlock) {
  SKIP_WITHOUT_GPU();
  constexpr int kQ = 8, kKv = 4, kDim = 128, kBlock = 8, kWindow = 200;
  constexpr int kRing = (kWindow + 300) / kPage + 2, kWidth = (kQ + 2 * kKv) * kDim;
  const int positions[] = {0, 5, 230};  // of the three sequences' blocks
  RandomData random(5);
  const std::vector<float> q_norm = random.Floats(kDim), k_norm = random.Floats(kDim);
  const std::vector<float> sinks = random.Floats(kQ);
  const RopeTable rope = BuildRopeTable(1e4, 64, 400);
  const std::vector<float> block = random.Floats(static_cast<size_t>(3) * kBlock * kWidth);
  std::vector<float> context;
  std::vector<int32_t> first = {}, counts = {}, kept;
  std::vector<int64_t> zeros(3, 0), begins;
  int total = 0;
  for (int position : positions) {
    first.push_back(total);
    counts.push_back(position + 6);  // six rejected rows follow
    kept.push_back(position);
    begins.push_back(position);
    total += position + 6;
  }
  context = random.Floats(static_cast<size_t>(total) * kWidth);
  const DeviceArray<float> d_context(context), d_block(block), d_rope(rope.cos_sin), d_sinks(sinks),
      d_q_norm(q_norm), d_k_norm(k_norm);
  const DeviceArray<int32_t> d_first(first), d_counts(counts), d_kept(kept), d_slot({2, 0, 1}),
      d_block_first({0, kBlock, 2 * kBlock}), d_block_rows({kBlock, kBlock, kBlock});
  const DeviceArray<int64_t> d_zeros(zeros), d_begins(begins);
  const DeviceArray<uint8_t> k(KvCacheBytes(KvFormat::kBf16, 3 * kRing, kPage, kKv, kDim));
  const DeviceArray<uint8_t> v(KvCacheBytes(KvFormat::kBf16, 3 * kRing, kPage, kKv, kDim));
  const DeviceArray<bf16> q(static_cast<size_t>(3) * kBlock * kQ * kDim), out(q.ToHost().size());
  const DeviceArray<bf16> block_k(static_cast<size_t>(3) * kBlock * kKv * kDim),
      block_v(static_cast<size_t>(3) * kBlock * kKv * kDim);
  const KvCache cache = {k.get(), v.get(), KvFormat::kBf16, kPage, kKv, kDim, kDim};
  Sequences sequences = {3,       236, 236,         d_first.get(), d_counts.get(), d_zeros.get(),
                         nullptr, 0,   d_slot.get()};
  ProjectParams project = {.qkv = d_context.get() + kQ * kDim,
                           .row_width = kWidth,
                           .group_stride = 0,
                           .num_q_heads = 0,
                           .num_kv_heads = kKv,
                           .qk_head_dim = kDim,
                           .v_head_dim = kDim,
                           .rotary_dims = 64,
                           .rope = d_rope.get(),
                           .value_scale = 0.5f,
                           .q_norm = nullptr,
                           .k_norm = d_k_norm.get(),
                           .epsilon = 1e-6f,
                           .sequences = sequences,
                           .num_rows_kept = d_kept.get(),
                           .q = nullptr,
                           .cache = cache,
                           .place = KvPlace::kRing,
                           .ring_pages = kRing,
                           .block_k = nullptr,
                           .block_v = nullptr};
  ProjectQkv(project, total, nullptr);
  sequences = {
      3,       kBlock, 230 + kBlock, d_block_first.get(), d_block_rows.get(), d_begins.get(),
      nullptr, 0,      d_slot.get()};
  project.qkv = d_block.get();
  project.num_q_heads = kQ;
  project.q_norm = d_q_norm.get();
  project.sequences = sequences;
  project.num_rows_kept = nullptr;
  project.q = q.get();
  project.cache.k = nullptr;
  project.cache.v = nullptr;
  project.block_k = block_k.get();
  project.block_v = block_v.get();
  ProjectQkv(project, 3 * kBlock, nullptr);
  Attention({.q = q.get(),
             .cache = cache,
             .place = KvPlace::kRing,
             .ring_pages = kRing,
             .window = kWindow,
             .sinks = d_sinks.get(),
             .block_k = block_k.get(),
             .block_v = block_v.get(),
             .sequences = sequences,
             .num_q_heads = kQ,
             .score_scale = 1.0f / std::sqrt(128.0f),
             .out = out.get(),
             .workspace = nullptr},
            nullptr);
  const std::vector<bf16> got = out.ToHost();

  const auto head = [&](const float* x, const std::vector<float>& weight, int position) {
    std::vector<float> y(x, x + kDim);
    HeadRmsNorm(y.data(), 1, kDim, kDim, weight.data(), 1e-6f);
    Rope(rope, position, y.data(), 1, kDim);
    std::vector<double> result;
    for (float value : y) result.push_back(FromBf16(ToBf16(value)));
    return result;
  };
  for (int s = 0; s < 3; ++s) {
    for (int row = 0; row < kBlock; ++row) {
      const int position = positions[s] + row;
      for (int h = 0; h < kQ; ++h) {
        const float* own = &block[static_cast<size_t>(s * kBlock + row) * kWidth];
        const std::vector<double> query = head(own + h * kDim, q_norm, position);
        double sum = std::exp(double{sinks[h]});
        std::vector<double> want(kDim);
        const auto see = [&](const float* source, int p) {
          const std::vector<double> key = head(source + (kQ + h / 2) * kDim, k_norm, p);
          double dot = 0;
          for (int d = 0; d < kDim; ++d) dot += query[d] * key[d];
          const double weight = std::exp(dot / std::sqrt(128.0));
          sum += weight;
          for (int d = 0; d < kDim; ++d) {
            want[d] += weight * FromBf16(ToBf16(source[(kQ + kKv + h / 2) * kDim + d] * 0.5f));
          }
        };
        for (int p = std::max(0, position - kWindow + 1); p < positions[s]; ++p) {
          see(&context[static_cast<size_t>(first[s] + p) * kWidth], p);
        }
        for (int j = 0; j < kBlock; ++j) {
          see(&block[static_cast<size_t>(s * kBlock + j) * kWidth], positions[s] + j);
        }
        for (int d = 0; d < kDim; ++d) {
          const double value =
              FromBf16(got[(static_cast<size_t>(s * kBlock + row) * kQ + h) * kDim + d]);
          ASSERT_NEAR(value, want[d] / sum, std::fabs(want[d] / sum) / 150 + 2e-4)
              << "sequence " << s << " row " << row << " head " << h << " dim " << d;
        }
      }
    }
  }
}

}  // namespace
}  // namespace ultraspeed::kernels::cuda
