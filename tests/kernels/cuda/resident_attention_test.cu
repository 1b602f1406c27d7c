// Attention by the consumer warps of the resident engine: bit for bit what ProjectQkv and Attention
// give, in the output and in the cache, whatever lies in memory that no row may see.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <ostream>
#include <random>

#include "kernels/cuda/resident/attention.cuh"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/random_data.h"

namespace ultraspeed::kernels::cuda::resident {
namespace {

constexpr int kBlockThreads = kThreads;
constexpr float kValueScale = 0.7f;
constexpr int kPositionsMax = 131072;

struct Shape {
  const char* name;
  int q_heads, kv_heads, dim;
  int window;  // 0 = full
  bool has_sinks, is_drafter;

  int group() const { return q_heads / kv_heads; }
  int group_stride() const { return is_drafter ? 0 : (group() + 1) * dim + kValueDim; }
  int row_width() const { return q_heads * dim + kv_heads * (dim + kValueDim); }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(dim)); }
};
std::ostream& operator<<(std::ostream& out, const Shape& shape) { return out << shape.name; }

constexpr Shape kServedWindow = {"ServedWindow", 16, 1, 192, 128, true, false};
constexpr Shape kServedFull = {"ServedFull", 16, 1, 192, 0, true, false};
constexpr Shape kServedDrafter = {"ServedDrafter", 16, 1, 128, 1024, true, true};
constexpr Shape kTinyDrafter = {"TinyDrafter", 8, 4, 128, 1024, true, true};

// All units of a layer, dealt to this block and to the others; `wait` before the first.
template <int kDim, typename WaitFn>
__device__ void AttendUnits(const AttentionTask& task, const RoundView& round, uint8_t* scratch,
                            WaitFn wait) {
  if (task.has_parts) {
    const PartPlan plan =
        PartPlanOf(task, round.position, round.num_rows, static_cast<int>(gridDim.x));
    for (int unit = blockIdx.x; unit < plan.num_units; unit += gridDim.x) {
      AttendPart<kDim>(task, round, plan, unit, scratch, wait);
      AttentionBarrier();
    }
    return;
  }
  const int num_units = WindowUnits(task, round.num_rows);
  for (int unit = blockIdx.x; unit < num_units; unit += gridDim.x) {
    AttendWindow<kDim>(task, round, unit, scratch, wait);
    AttentionBarrier();
  }
}

template <int kDim>
__global__ void __launch_bounds__(kBlockThreads, 1)
    AttendKernel(const __grid_constant__ AttentionTask task,
                 const __grid_constant__ RoundView round) {
  extern __shared__ __align__(128) uint8_t scratch[];
  for (int i = threadIdx.x; i < kAttentionScratchBytes / 4; i += kBlockThreads) {
    reinterpret_cast<uint32_t*>(scratch)[i] = 0xffffffffu;  // NaNs
  }
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  if (warp == kProducerWarp) return;
  const PartPlan plan =
      PartPlanOf(task, round.position, round.num_rows, static_cast<int>(gridDim.x));
  if (task.has_parts && plan.part_chunks > 1) {
    const auto plan_of = [&](const RoundView&) { return plan; };
    const SegmentWork<decltype(plan_of)> work = {&round, 1, plan_of};
    const UnitShare share = ShareOfUnits(work, blockIdx.x, gridDim.x);
    if (share.begin == share.end) return;
    if (warp >= kFirstFinisherWarp) {
      LoadSegments<kDim>(task, work, share, scratch, [] {});
    } else {
      AttendSegments<kDim>(task, work, share, scratch, [] {});
    }
  } else if (warp < kConsumerWarps) {
    AttendUnits<kDim>(task, round, scratch, [] {});
  }
}

__global__ void __launch_bounds__(kBlockThreads, 1)
    CombineKernel(const __grid_constant__ AttentionTask task,
                  const __grid_constant__ RoundView round) {
  extern __shared__ __align__(128) uint8_t scratch[];
  if (threadIdx.x >= kConsumerThreads) return;
  const PartPlan plan =
      PartPlanOf(task, round.position, round.num_rows, static_cast<int>(gridDim.x));
  for (int pair = blockIdx.x; pair < round.num_rows * task.num_q_heads; pair += gridDim.x) {
    CombinePair(task, plan, pair, scratch);
    AttentionBarrier();
  }
}

// Keys and values of positions [begin, end), anything between -1.7 and 1.7.
__global__ void FillCache(const __grid_constant__ AttentionTask task,
                          const __grid_constant__ RoundView round, int begin, int end) {
  const int64_t dims = task.cache.qk_head_dim + kValueDim;
  const int64_t count = (end - begin) * dims * task.num_kv_heads;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t bits = static_cast<uint32_t>(i) * 2654435761u + 12345u;
    bits = (bits ^ bits >> 15) * 2246822519u;
    bits = (bits ^ bits >> 13) * 3266489917u;
    const float value = static_cast<float>(static_cast<int32_t>(bits ^ bits >> 16)) * 8e-10f;
    const int position = begin + static_cast<int>(i / dims / task.num_kv_heads);
    const int head = static_cast<int>(i / dims % task.num_kv_heads);
    const int d = static_cast<int>(i % dims);
    const bool is_key = d < task.cache.qk_head_dim;
    const int dim = is_key ? task.cache.qk_head_dim : kValueDim;
    const int64_t page =
        task.place == KvPlace::kPaged
            ? round.pages[position / kPageTokens]
            : round.slot * int64_t{task.ring_pages} + position / kPageTokens % task.ring_pages;
    static_cast<bf16*>(is_key
                           ? task.cache.k
                           : task.cache.v)[TileOffset(page, head, task.num_kv_heads, dim) +
                                           TileElement(position % kPageTokens,
                                                       is_key ? d : d - task.cache.qk_head_dim)] =
        RoundToBf16(value);
  }
}

const DeviceArray<float>& RopeOnDevice() {
  static const DeviceArray<float> rope(BuildRopeTable(1e4, kRotaryDims, kPositionsMax).cos_sin);
  return rope;
}

// One round of one sequence, with a cache of its own.
class Round {
 public:
  Round(const Shape& shape, int position, int num_rows)
      : shape_(shape),
        position_(position),
        num_rows_(num_rows),
        ring_pages_((shape.window + kRowsMax) / kPageTokens + 2),
        num_pages_(shape.window == 0 ? (position + num_rows) / kPageTokens + 3 : 3 * ring_pages_),
        num_parts_(AttentionPartsMax(shape.window, shape.is_drafter, position + num_rows)),
        qkv_(RandomRows()),
        q_norm_(RandomData(7).Floats(shape.dim)),
        k_norm_(RandomData(8).Floats(shape.dim)),
        sinks_(RandomData(9).Floats(shape.q_heads, 2.0f)),
        pages_(ShuffledPages()),
        slot_(std::vector<int32_t>{1}),
        first_row_(std::vector<int32_t>{0}),
        rows_(std::vector<int32_t>{num_rows}),
        positions_(std::vector<int64_t>{position}),
        k_(static_cast<size_t>(num_pages_) * kPageTokens * shape.kv_heads * shape.dim),
        v_(static_cast<size_t>(num_pages_) * kPageTokens * shape.kv_heads * kValueDim),
        partials_(std::max<size_t>(1, static_cast<size_t>(kRowsMax) * shape.q_heads * num_parts_ *
                                          sizeof(AttentionPartial))),
        out_(static_cast<size_t>(kRowsMax) * shape.q_heads * kValueDim) {
    const int begin = shape.window == 0 ? 0 : std::max(0, position - shape.window + 1);
    if (begin < position) FillCache<<<512, 256>>>(Task(), View(), begin, position);
    Synchronize();
  }

  AttentionTask Task() const {
    const bool normed = shape_.is_drafter;
    return {.qkv = qkv_.get(),
            .row_width = shape_.row_width(),
            .group_stride = shape_.group_stride(),
            .num_q_heads = shape_.q_heads,
            .num_kv_heads = shape_.kv_heads,
            .qk_head_dim = shape_.dim,
            .rotary_dims = kRotaryDims,
            .rope = RopeOnDevice().get(),
            .q_norm = normed ? q_norm_.get() : nullptr,
            .k_norm = normed ? k_norm_.get() : nullptr,
            .epsilon = 1e-6f,
            .value_scale = kValueScale,
            .cache = {k_.get(), v_.get(), KvFormat::kBf16, kPageTokens, shape_.kv_heads, shape_.dim,
                      kValueDim},
            .place = shape_.window == 0 ? KvPlace::kPaged : KvPlace::kRing,
            .ring_pages = ring_pages_,
            .window = shape_.window,
            .sinks = shape_.has_sinks ? sinks_.get() : nullptr,
            .score_scale = shape_.scale(),
            .drafter = shape_.is_drafter,
            .has_parts = HasParts(shape_.window, shape_.is_drafter),
            .partials = partials_.get(),
            .partials_stride = num_parts_,
            .out = out_.get()};
  }
  RoundView View() const {
    return {.position = position_,
            .pages = pages_.get(),
            .num_rows = num_rows_,
            .first_row = 0,
            .slot = 1};
  }

  struct Result {
    std::vector<bf16> out, k, v;
  };
  Result RunResident(int num_blocks) {
    LaunchResident(num_blocks);
    return Results();
  }
  std::vector<bf16> OutputAgain(int num_blocks) {
    LaunchResident(num_blocks);
    return out_.ToHost();
  }

  Result RunOperations() {
    const size_t block = static_cast<size_t>(num_rows_) * shape_.kv_heads;
    const DeviceArray<bf16> q(static_cast<size_t>(num_rows_) * shape_.q_heads * shape_.dim);
    const DeviceArray<bf16> block_k(block * shape_.dim), block_v(block * kValueDim);
    const int64_t end = position_ + num_rows_;
    const DeviceArray<uint8_t> workspace(
        AttentionWorkspaceBytes(num_rows_, shape_.q_heads, kValueDim, end));
    const AttentionTask task = Task();
    const Sequences sequences = {.num_sequences = 1,
                                 .rows_max = num_rows_,
                                 .position_end_max = end,
                                 .first_row = first_row_.get(),
                                 .num_rows = rows_.get(),
                                 .position = positions_.get(),
                                 .full_pages = pages_.get(),
                                 .full_pages_stride = num_pages_,
                                 .slot = slot_.get()};
    KvCache projected = task.cache;
    if (task.drafter) projected.k = projected.v = nullptr;
    out_.Fill(0xff);
    ProjectQkv({.qkv = task.qkv,
                .row_width = task.row_width,
                .group_stride = task.group_stride,
                .num_q_heads = task.num_q_heads,
                .num_kv_heads = task.num_kv_heads,
                .qk_head_dim = task.qk_head_dim,
                .v_head_dim = kValueDim,
                .rotary_dims = task.rotary_dims,
                .rope = task.rope,
                .value_scale = task.value_scale,
                .q_norm = task.q_norm,
                .k_norm = task.k_norm,
                .epsilon = task.epsilon,
                .sequences = sequences,
                .num_rows_kept = nullptr,
                .q = q.get(),
                .cache = projected,
                .place = task.place,
                .ring_pages = task.ring_pages,
                .block_k = task.drafter ? block_k.get() : nullptr,
                .block_v = task.drafter ? block_v.get() : nullptr},
               num_rows_, nullptr);
    Attention({.q = q.get(),
               .cache = task.cache,
               .place = task.place,
               .ring_pages = task.ring_pages,
               .window = task.window,
               .sinks = task.sinks,
               .block_k = task.drafter ? block_k.get() : nullptr,
               .block_v = task.drafter ? block_v.get() : nullptr,
               .sequences = sequences,
               .num_q_heads = task.num_q_heads,
               .score_scale = task.score_scale,
               .out = task.out,
               .workspace = workspace.get()},
              nullptr);
    return Results();
  }

 private:
  std::vector<float> RandomRows() const {
    return RandomData(position_ * 10 + num_rows_)
        .Floats(static_cast<size_t>(num_rows_) * shape_.row_width());
  }
  std::vector<int32_t> ShuffledPages() const {
    std::vector<int32_t> pages(num_pages_);
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), std::mt19937(position_));
    return pages;
  }
  Result Results() const { return {out_.ToHost(), k_.ToHost(), v_.ToHost()}; }

  void LaunchResident(int num_blocks) {
    out_.Fill(0xff);
    partials_.Fill(0xff);
    shape_.dim == 192 ? LaunchAttend<192>(num_blocks) : LaunchAttend<128>(num_blocks);
    if (!Task().has_parts) return;
    Expect(cudaFuncSetAttribute(CombineKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                kAttentionScratchBytes));
    CombineKernel<<<num_blocks, kBlockThreads, kAttentionScratchBytes>>>(Task(), View());
  }
  template <int kDim>
  void LaunchAttend(int num_blocks) {
    Expect(cudaFuncSetAttribute(AttendKernel<kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                kAttentionScratchBytes));
    AttendKernel<kDim><<<num_blocks, kBlockThreads, kAttentionScratchBytes>>>(Task(), View());
  }

  const Shape shape_;
  const int position_, num_rows_, ring_pages_, num_pages_, num_parts_;
  const DeviceArray<float> qkv_, q_norm_, k_norm_, sinks_;
  const DeviceArray<int32_t> pages_, slot_, first_row_, rows_;
  const DeviceArray<int64_t> positions_;
  DeviceArray<bf16> k_, v_;
  DeviceArray<uint8_t> partials_;
  DeviceArray<bf16> out_;
};

class ResidentAttention : public testing::TestWithParam<Shape> {};

TEST_P(ResidentAttention, EqualsTheOperationsBitForBit) {
  SKIP_WITHOUT_GPU();
  for (int position : {0,   1,    5,    63,   64,   120,  127,  128,  129,  200,   511,
                       512, 1000, 1020, 1023, 1030, 4095, 4100, 8190, 8250, 12287, 20000}) {
    for (int num_rows : {1, 3, 8}) {
      // Both start from equal caches: what they contain is a function of the position.
      const Round::Result got = Round(GetParam(), position, num_rows).RunResident(7);
      const Round::Result want = Round(GetParam(), position, num_rows).RunOperations();
      SCOPED_TRACE(testing::Message() << "position " << position << " rows " << num_rows);
      const int width = GetParam().q_heads * kValueDim;
      for (int i = 0; i < num_rows * width; ++i) {
        ASSERT_TRUE(std::isfinite(FromBf16(want.out[i]))) << i << ": the test's cache is wrong";
        ASSERT_EQ(got.out[i], want.out[i])
            << "row " << i / width << " head " << i % width / kValueDim << " dim " << i % kValueDim;
      }
      ASSERT_TRUE(SameBits(got.out, want.out)) << "rows past the last were written";
      ASSERT_TRUE(SameBits(got.k, want.k)) << "cached keys";
      ASSERT_TRUE(SameBits(got.v, want.v)) << "cached values";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, ResidentAttention,
                         testing::Values(kServedWindow, kServedFull, kServedDrafter,
                                         Shape{"TinyWindow", 8, 4, 192, 128, true, false},
                                         Shape{"TinyFull", 8, 4, 192, 0, false, false},
                                         kTinyDrafter,
                                         Shape{"OddGroup", 5, 1, 192, 100, true, false},
                                         Shape{"OddGroupFull", 12, 4, 128, 0, false, false},
                                         Shape{"WindowWithinTheRound", 6, 2, 192, 3, true, false},
                                         Shape{"ShortDrafter", 12, 2, 128, 5, true, true}),
                         [](const testing::TestParamInfo<Shape>& info) {
                           return std::string(info.param.name);
                         });

// Who runs a unit, and what ran before it in the same memory, leaves no trace.
TEST(ResidentAttentionUnits, MayBeDealtToAnyBlocks) {
  SKIP_WITHOUT_GPU();
  const auto compare = [](const Shape& shape, int position) {
    const Round::Result want = Round(shape, position, 8).RunResident(1);
    for (int num_blocks : {2, 5, 64, 132}) {
      const Round::Result got = Round(shape, position, 8).RunResident(num_blocks);
      EXPECT_TRUE(SameBits(got.out, want.out)) << shape << " " << num_blocks << " blocks";
      EXPECT_TRUE(SameBits(got.k, want.k) && SameBits(got.v, want.v)) << shape;
    }
  };
  for (const Shape& shape : {kServedWindow, kServedFull, kServedDrafter, kTinyDrafter}) {
    compare(shape, 1500);
  }
  compare(kServedFull, 16381);  // in segments
}

// Several segments for each block, handed on from warp to warp: the same bits every time.
TEST(ResidentAttentionUnits, OfManySegmentsEqualTheOperations) {
  SKIP_WITHOUT_GPU();
  for (int position : {32760, 131064}) {
    const Round::Result want = Round(kServedFull, position, 8).RunOperations();
    Round round(kServedFull, position, 8);
    const Round::Result got = round.RunResident(132);
    EXPECT_TRUE(SameBits(got.k, want.k) && SameBits(got.v, want.v)) << position;
    int num_wrong = SameBits(got.out, want.out) ? 0 : 1;
    for (int repeat = 0; repeat < 300; ++repeat) {
      num_wrong += SameBits(round.OutputAgain(132), want.out) ? 0 : 1;
    }
    EXPECT_EQ(num_wrong, 0) << position;
  }
}

}  // namespace
}  // namespace ultraspeed::kernels::cuda::resident
