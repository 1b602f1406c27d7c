// The attention phases of the resident engine, alone on the device: a block a multiprocessor walks
// from layer to layer as the engine's consumers do.
//
// A round of the kernel stands for a layer: every block takes `kProjectionCycles`, in which cached
// keys and values may come, then arrives as a projection would; attention waits for all of them,
// and the next layer for attention. A second run does the same without attention: the difference is
// what attention costs, in the engine as here. Bytes and operations as in cuda_attention_bench.cu,
// and every layer has caches of its own, larger than the L2 together.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <type_traits>
#include <vector>

#include "kernels/bench/cuda_bench.h"
#include "kernels/cuda/resident/attention.cuh"
#include "kernels/cuda/synthetic.h"

namespace ultraspeed::kernels::cuda {
namespace {

using resident::AttentionTask;
using resident::kConsumerThreads;
using resident::kRowsMax;
using resident::RoundView;

constexpr int kBlockThreads = 512;
constexpr int64_t kProjectionCycles = 5000;
constexpr int kRounds = 600;
constexpr int kWordsPerCounter = 32;
constexpr int kSlot = 0;
constexpr int kSharedBytes = resident::kAttentionScratchBytes + 2 * sizeof(AttentionTask);

struct Case {
  const char* name;
  int window;  // 0 = full
  int context;
  int rows;
  bool drafter;
  int dim() const { return drafter ? 128 : 192; }
};
constexpr int kQHeads = 16, kKvHeads = 1;

__device__ void Arrive(uint32_t* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
__device__ void WaitFor(const uint32_t* counter, uint32_t target) {
  uint32_t value;
  do {
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  } while (static_cast<int32_t>(value - target) < 0);
}

// The units of a layer in segments that are this block's.
class SegmentLayer {
 public:
  __device__ SegmentLayer(const AttentionTask& task, const RoundView& round, int num_blocks)
      : work_{&round, 1, {resident::PartPlanOf(task, round.position, round.num_rows, num_blocks)}},
        share_(resident::ShareOfUnits(work_, static_cast<int>(blockIdx.x), num_blocks)) {}
  __device__ bool HasUnits() const { return share_.begin < share_.end; }
  struct Plan {
    resident::PartPlan plan;
    __device__ const resident::PartPlan& operator()(const RoundView&) const { return plan; }
  };
  __device__ const resident::SegmentWork<Plan>& work() const { return work_; }
  __device__ resident::UnitShare share() const { return share_; }

 private:
  const resident::SegmentWork<Plan> work_;
  const resident::UnitShare share_;
};

// The finishers' part of all layers in segments.
template <int kDim>
__device__ void LoadLayers(const AttentionTask* tasks, int num_tasks, const RoundView& round,
                           const uint32_t* counters, uint8_t* scratch) {
  if (threadIdx.x < resident::kFirstFinisherWarp * kWarpLanes) return;
  const int num_blocks = static_cast<int>(gridDim.x);
  for (int r = 0; r < kRounds; ++r) {
    const AttentionTask& task = tasks[r % num_tasks];
    if (!task.has_parts || resident::PartChunks(task, round.position, round.num_rows) == 1) return;
    const SegmentLayer layer(task, round, num_blocks);
    if (!layer.HasUnits()) return;
    const auto wait = [&] {
      if (threadIdx.x % kWarpLanes == 0) WaitFor(counters, (r + 1) * gridDim.x);
    };
    resident::LoadSegments<kDim>(task, layer.work(), layer.share(), scratch, wait);
  }
}

// counters: [3], of projections, attention and combine, from zero.
template <int kDim, bool kAttends>
__global__ void __launch_bounds__(kBlockThreads, 1)
    LayersKernel(const AttentionTask* tasks, int num_tasks, const __grid_constant__ RoundView round,
                 uint32_t* counters) {
  extern __shared__ __align__(128) uint8_t scratch[];
  auto* const descriptors =
      reinterpret_cast<AttentionTask*>(scratch + resident::kAttentionScratchBytes);  // [2]
  if (threadIdx.x >= kConsumerThreads) {
    if (kAttends) LoadLayers<kDim>(tasks, num_tasks, round, counters, scratch);
    return;
  }
  const auto fetch = [&](int r) {
    constexpr int kWords = sizeof(AttentionTask) / sizeof(uint32_t);
    if (threadIdx.x < kWords) {
      reinterpret_cast<uint32_t*>(&descriptors[r % 2])[threadIdx.x] =
          reinterpret_cast<const uint32_t*>(tasks + r % num_tasks)[threadIdx.x];
    }
  };
  const int num_blocks = static_cast<int>(gridDim.x);
  uint32_t target = 0;
  fetch(0);
  resident::AttentionBarrier();
  for (int r = 0; r < kRounds; ++r) {
    const AttentionTask& task = descriptors[r % 2];
    target += gridDim.x;
    const int64_t begin = clock64();
    bool waited = false;
    const auto wait = [&] {
      if (waited || threadIdx.x % kWarpLanes != 0) return;
      while (clock64() - begin < kProjectionCycles) {
      }
      Arrive(counters);
      WaitFor(counters, target);
    };
    const resident::PartPlan plan =
        resident::PartPlanOf(task, round.position, round.num_rows, num_blocks);
    const bool in_segments = task.has_parts && plan.part_chunks > 1;
    if (kAttends && in_segments) {
      const SegmentLayer layer(task, round, num_blocks);
      if (layer.HasUnits()) {
        resident::AttendSegments<kDim>(task, layer.work(), layer.share(), scratch, wait);
        waited = true;
      }
    }
    const int num_units = !kAttends || in_segments ? 0
                          : task.has_parts         ? plan.num_units
                                                   : resident::WindowUnits(task, round.num_rows);
    for (int unit = blockIdx.x; unit < num_units; unit += num_blocks) {
      if (!task.has_parts) {
        resident::AttendWindow<kDim>(task, round, unit, scratch, wait);
      } else {
        resident::AttendPart<kDim>(task, round, plan, unit, scratch, wait);
      }
      waited = true;
      resident::AttentionBarrier();
    }
    if (!waited && threadIdx.x < kWarpLanes) wait();
    fetch(r + 1);
    const auto meet = [&](uint32_t* counter) {
      resident::AttentionBarrier();
      if (threadIdx.x == 0) {
        Arrive(counter);
        WaitFor(counter, target);
      }
      resident::AttentionBarrier();
    };
    meet(counters + kWordsPerCounter);
    if (!task.has_parts) continue;
    if (kAttends) {
      for (int pair = blockIdx.x; pair < round.num_rows * task.num_q_heads; pair += num_blocks) {
        resident::CombinePair(task, plan, pair, scratch);
        resident::AttentionBarrier();
      }
    }
    meet(counters + 2 * kWordsPerCounter);
  }
}

template <int kDim, bool kAttends>
double SecondsOfLayer(const Bench& bench, const AttentionTask* tasks, int num_tasks,
                      const RoundView& round, uint32_t* counters) {
  const auto kernel = LayersKernel<kDim, kAttends>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  int num_blocks = 0;
  cudaDeviceGetAttribute(&num_blocks, cudaDevAttrMultiProcessorCount, 0);
  return bench.SecondsOf(1, [&](int) {
    cudaMemsetAsync(counters, 0, 3 * kWordsPerCounter * sizeof(uint32_t), bench.stream());
    kernel<<<num_blocks, kBlockThreads, kSharedBytes, bench.stream()>>>(tasks, num_tasks, round,
                                                                        counters);
  }) / kRounds;
}

void Measure(const Bench& bench, const Case& c) {
  constexpr int kValueDim = 128;
  const bool full = c.window == 0;
  const int ring_pages = full ? 0 : (c.window + kRowsMax) / kPageTokens + 2;
  const int num_pages = full ? (c.context + kPageTokens) / kPageTokens + 1 : ring_pages;
  const size_t k_bytes = KvCacheBytes(KvFormat::kBf16, num_pages, kPageTokens, kKvHeads, c.dim());
  const size_t v_bytes = KvCacheBytes(KvFormat::kBf16, num_pages, kPageTokens, kKvHeads, kValueDim);
  const int copies =
      static_cast<int>(std::clamp<size_t>(kCopiesBytes / (k_bytes + v_bytes), 2, kRounds));
  const Buffer k = bench.Allocate(copies * k_bytes), v = bench.Allocate(copies * v_bytes);
  FillUniformBf16(k.as<bf16>(), copies * k_bytes / sizeof(bf16), 0.0f, 1.0f, 1, bench.stream());
  FillUniformBf16(v.as<bf16>(), copies * v_bytes / sizeof(bf16), 0.0f, 1.0f, 2, bench.stream());
  const int row_width = kQHeads * c.dim() + kKvHeads * (c.dim() + kValueDim);
  const int64_t position = c.context - c.rows;
  const int parts = resident::AttentionPartsMax(c.window, c.drafter, c.context);
  const Buffer qkv = bench.Allocate(sizeof(float) * kRowsMax * row_width),
               rope = bench.Allocate(sizeof(float) * resident::kRotaryDims *
                                     static_cast<size_t>(c.context)),
               norm = bench.Allocate(sizeof(float) * c.dim()),
               sinks = bench.Allocate(sizeof(float) * kQHeads),
               partials =
                   bench.Allocate(sizeof(AttentionPartial) *
                                  static_cast<size_t>(kRowsMax * kQHeads) * std::max(1, parts)),
               out = bench.Allocate(sizeof(bf16) * kRowsMax * kQHeads * kValueDim),
               counters = bench.Allocate(3 * kWordsPerCounter * sizeof(uint32_t)),
               d_pages = bench.Allocate(static_cast<size_t>(num_pages) * sizeof(int32_t)),
               d_tasks = bench.Allocate(static_cast<size_t>(copies) * sizeof(AttentionTask));
  FillUniform(qkv.as<float>(), static_cast<size_t>(kRowsMax) * row_width, 0.0f, 1.0f, 3,
              bench.stream());
  FillUniform(rope.as<float>(), resident::kRotaryDims * static_cast<size_t>(c.context), 0.0f, 1.0f,
              4, bench.stream());
  FillUniform(norm.as<float>(), static_cast<size_t>(c.dim()), 1.0f, 0.1f, 5, bench.stream());
  FillUniform(sinks.as<float>(), kQHeads, 0.0f, 1.0f, 6, bench.stream());
  std::vector<int32_t> pages(static_cast<size_t>(num_pages));
  std::iota(pages.begin(), pages.end(), 0);
  bench.Upload(d_pages, pages.data(), pages.size() * sizeof(int32_t));
  std::vector<AttentionTask> tasks;
  for (int i = 0; i < copies; ++i) {
    tasks.push_back({.qkv = qkv.as<float>(),
                     .row_width = row_width,
                     .group_stride = 0,
                     .num_q_heads = kQHeads,
                     .num_kv_heads = kKvHeads,
                     .qk_head_dim = c.dim(),
                     .rotary_dims = resident::kRotaryDims,
                     .rope = rope.as<float>(),
                     .q_norm = c.drafter ? norm.as<float>() : nullptr,
                     .k_norm = c.drafter ? norm.as<float>() : nullptr,
                     .epsilon = 1e-6f,
                     .value_scale = 0.7f,
                     .cache = {.k = k.as<uint8_t>() + i * k_bytes,
                               .v = v.as<uint8_t>() + i * v_bytes,
                               .format = KvFormat::kBf16,
                               .page_tokens = kPageTokens,
                               .num_kv_heads = kKvHeads,
                               .qk_head_dim = c.dim(),
                               .v_head_dim = kValueDim},
                     .place = full ? KvPlace::kPaged : KvPlace::kRing,
                     .ring_pages = ring_pages,
                     .window = c.window,
                     .sinks = full ? nullptr : sinks.as<float>(),
                     .score_scale = 1.0f / std::sqrt(static_cast<float>(c.dim())),
                     .drafter = c.drafter,
                     .has_parts = resident::HasParts(c.window, c.drafter),
                     .partials = partials.as<void>(),
                     .partials_stride = std::max(1, parts),
                     .out = out.as<bf16>()});
  }
  bench.Upload(d_tasks, tasks.data(), tasks.size() * sizeof(AttentionTask));
  const RoundView round = {.position = position,
                           .pages = d_pages.as<int32_t>(),
                           .num_rows = c.rows,
                           .first_row = 0,
                           .slot = kSlot};
  const auto seconds = [&](auto attends) {
    constexpr bool kAttends = decltype(attends)::value;
    return c.dim() == 192 ? SecondsOfLayer<192, kAttends>(bench, d_tasks.as<AttentionTask>(),
                                                          copies, round, counters.as<uint32_t>())
                          : SecondsOfLayer<128, kAttends>(bench, d_tasks.as<AttentionTask>(),
                                                          copies, round, counters.as<uint32_t>());
  };
  const double with = seconds(std::true_type{}), without = seconds(std::false_type{});
  double seen = 0;  // keys, summed over rows
  for (int row = 0; row < c.rows; ++row) {
    const int keys = static_cast<int>(position) + row + 1;
    seen += full ? keys : std::min(keys, c.window);
  }
  const int keys_read = full ? c.context : std::min(c.context, c.window - 1 + c.rows);
  char name[64];
  std::snprintf(name, sizeof(name), "resident attention %s %d", c.name,
                full ? c.context : c.window);
  bench.Report(name, c.rows, with - without,
               keys_read * 2.0 * kKvHeads * (c.dim() + kValueDim) +
                   sizeof(float) * static_cast<double>(c.rows) * row_width +
                   sizeof(bf16) * static_cast<double>(c.rows) * kQHeads * kValueDim,
               2.0 * seen * kQHeads * (c.dim() + kValueDim));
  std::printf("  of a layer of %.2f us, which takes %.2f us without attention\n", with * 1e6,
              without * 1e6);
}

}  // namespace

void MeasureResidentAttention(const Bench& bench) {
  for (int rows : {1, resident::kBandRows}) {
    Measure(bench, {"window", 128, 4096, rows, false});
    for (int context : {512, 4096, 8192, 16384, 32768, 131072}) {
      Measure(bench, {"full", 0, context, rows, false});
    }
    Measure(bench, {"drafter", 1024, 4096, rows, true});
  }
}

}  // namespace ultraspeed::kernels::cuda
