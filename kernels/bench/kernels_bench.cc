// ultraspeed-kernels-bench [threads [instruction set]]: time of every operation at the bundled
// model's shapes, beside the bound measured in this process.
//
// The bound of a product is the larger of bytes / read rate (of a buffer as large as the matrix, so
// that a matrix that stays in a cache is held against that cache) and operations / peak
// multiply-add rate. Each figure is the best of several repetitions; on a machine that does other
// work the percentages are a lower limit.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "kernels/ops.h"
#include "kernels/thread_pool.h"

namespace ultraspeed::kernels {
namespace {

constexpr int kRepetitions = 15;
constexpr double kSecondsPerRepetition = 0.004;

double SecondsOf(const std::function<void()>& work) {
  const auto timed = [&](int count) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < count; ++i) work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / count;
  };
  const double first = std::max(1e-8, std::min(timed(1), timed(1)));
  const int count = std::clamp(static_cast<int>(kSecondsPerRepetition / first), 1, 1000000);
  double best = timed(count);
  for (int i = 1; i < kRepetitions; ++i) best = std::min(best, timed(count));
  return best;
}

// Keeps the compiler from dropping a result.
volatile float sink;

// ---- Ceilings
// -------------------------------------------------------------------------------------------------

__attribute__((target("avx512f,avx512bf16"), noinline)) float DotsAvx512(int count) {
  __m512 acc[16];
  for (__m512& a : acc) a = _mm512_setzero_ps();
  const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(count));
  for (int i = 0; i < count; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) acc[j] = _mm512_dpbf16_ps(acc[j], x, x);
  }
  float sum = 0;
  for (const __m512& a : acc) sum += _mm512_cvtss_f32(a);
  return sum;
}

__attribute__((target("avx2,fma"), noinline)) float DotsAvx2(int count) {
  __m256 acc[12];
  for (__m256& a : acc) a = _mm256_setzero_ps();
  const __m256 x = _mm256_set1_ps(0.5f);
  for (int i = 0; i < count; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) acc[j] = _mm256_fmadd_ps(x, x, acc[j]);
  }
  float sum = 0;
  for (const __m256& a : acc) sum += _mm256_cvtss_f32(a);
  return sum;
}

// Products of tiles of zeros, 16 x 16 sums of 32 products each.
float TilesAmx(int count) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64};
    uint8_t rows[16] = {16, 16, 16};
  } const config;
  asm volatile("ldtilecfg %0" ::"m"(config));
  for (int i = 0; i < count; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) asm volatile("tdpbf16ps %%tmm2, %%tmm1, %%tmm0" ::);
  }
  asm volatile("tilerelease" ::);
  return 0;
}

struct Multiplications {
  float (*run)(int count);
  double flops;  // of a count
};
Multiplications MultiplicationsOf(InstructionSet set) {
  switch (set) {
    case InstructionSet::kAmxBf16:
      return {TilesAmx, 4 * 2.0 * 16 * 16 * 32};
    case InstructionSet::kAvx512Bf16:
      return {DotsAvx512, 16 * 64.0};
    default:
      return {DotsAvx2, 12 * 16.0};
  }
}

double PeakFlops(ThreadPool& pool) {
  if (ActiveInstructionSet() == InstructionSet::kScalar) return INFINITY;
  constexpr int kCount = 20000;
  const Multiplications multiplications = MultiplicationsOf(ActiveInstructionSet());
  const double seconds = SecondsOf([&] {
    pool.ParallelFor(pool.num_threads(), [&](int) { sink = multiplications.run(kCount); });
  });
  return pool.num_threads() * multiplications.flops * kCount / seconds;
}

__attribute__((target("avx2"), noinline)) void ReadAll(const uint8_t* data, size_t bytes) {
  __m256i acc[8];
  for (__m256i& a : acc) a = _mm256_setzero_si256();
  for (size_t i = 0; i + 256 <= bytes; i += 256) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      acc[j] = _mm256_or_si256(
          acc[j], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + i + 32 * j)));
    }
  }
  for (int j = 1; j < 8; ++j) acc[0] = _mm256_or_si256(acc[0], acc[j]);
  sink = static_cast<float>(_mm256_extract_epi32(acc[0], 0));
}

double ReadRate(ThreadPool& pool, size_t bytes) {
  const std::vector<uint8_t> data(std::max<size_t>(bytes, 4096), 1);
  const int threads = pool.num_threads();
  const size_t part = data.size() / threads / 256 * 256;
  return static_cast<double>(part) * threads / SecondsOf([&] {
           pool.ParallelFor(threads, [&](int i) { ReadAll(data.data() + i * part, part); });
         });
}

// ---- Operations
// -------------------------------------------------------------------------------------------------

// The e4m3fn code of `value`, cut towards zero; what would be subnormal becomes zero.
uint8_t TruncateToE4m3(float value) {
  const float magnitude = std::min(std::fabs(value), 448.0f);
  const uint8_t sign = value < 0 ? 0x80 : 0;
  if (magnitude < 0x1p-6f) return sign;
  uint32_t bits;
  std::memcpy(&bits, &magnitude, sizeof bits);
  return static_cast<uint8_t>(sign | ((bits >> 20) - (120u << 3)));
}

class Inputs {
 public:
  std::vector<float> Floats(size_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) value = normal(engine_);
    return values;
  }
  std::vector<bf16> Bf16s(size_t count) {
    const std::vector<float> values = Floats(count);
    std::vector<bf16> out(count);
    ToBf16(values.data(), static_cast<int>(count), out.data());
    return out;
  }
  PackedMatrix Matrix(WeightFormat format, int rows, int cols) {
    const size_t count = static_cast<size_t>(rows) * cols;
    if (format == WeightFormat::kBf16) {
      const std::vector<bf16> codes = Bf16s(count);
      return PackedMatrix::Pack({format, rows, cols, codes.data(), nullptr, nullptr});
    }
    std::vector<uint8_t> codes(count);
    std::normal_distribution<float> of_448(0, 100);  // as a block quantized by its largest has them
    for (uint8_t& code : codes) {
      code = format == WeightFormat::kMxfp4 ? static_cast<uint8_t>(engine_())
                                            : TruncateToE4m3(of_448(engine_));
    }
    const std::vector<float> scales((rows + 127) / 128 * ((cols + 127) / 128), 0.01f);
    const std::vector<uint8_t> scales_e8m0(count / 32, 120);
    return PackedMatrix::Pack(
        {format, rows, cols, codes.data(), scales.data(), scales_e8m0.data()});
  }

 private:
  std::mt19937 engine_{1};
};

struct Shape {
  const char* name;
  WeightFormat format;
  int rows, cols;
};

constexpr Shape kShapes[] = {
    {"qkv shard fp8", WeightFormat::kFp8Block128, 704, 256},
    {"o_proj bf16", WeightFormat::kBf16, 256, 1024},
    {"head bf16", WeightFormat::kBf16, 4096, 256},
    {"expert mxfp4", WeightFormat::kMxfp4, 128, 256},
    {"large fp8", WeightFormat::kFp8Block128, 6144, 6144},
    {"large mxfp4", WeightFormat::kMxfp4, 6144, 6144},
};

void BenchMatMul(ThreadPool& pool, Inputs& inputs, double peak) {
  std::printf("%-14s %12s %4s %9s %8s %9s %9s %7s\n", "matmul", "N x K", "T", "us", "GB/s",
              "read GB/s", "GFLOP/s", "% bound");
  for (const Shape& shape : kShapes) {
    const PackedMatrix w = inputs.Matrix(shape.format, shape.rows, shape.cols);
    const double read = ReadRate(pool, w.bytes());
    const double plain_flops = 2.0 * shape.rows * shape.cols;
    for (int tokens : {1, 2, 4, 8, 64}) {
      const std::vector<bf16> x = inputs.Bf16s(static_cast<size_t>(tokens) * shape.cols);
      std::vector<float> out(static_cast<size_t>(tokens) * shape.rows);
      const double seconds =
          SecondsOf([&] { MatMul(pool, w, x.data(), tokens, shape.cols, out.data(), shape.rows); });
      const double flops = plain_flops * tokens;
      const double bound = std::max(static_cast<double>(w.bytes()) / read, flops / peak);
      std::printf("%-14s %6dx%-5d %4d %9.2f %8.1f %9.1f %9.1f %6.0f%%\n", shape.name, shape.rows,
                  shape.cols, tokens, seconds * 1e6, static_cast<double>(w.bytes()) / seconds / 1e9,
                  read / 1e9, flops / seconds / 1e9, 100 * bound / seconds);
    }
  }
}

// 64 experts of width 128, K = 8 a token, uniformly routed.
void BenchMoe(ThreadPool& pool, Inputs& inputs) {
  constexpr int kHidden = 256, kFfn = 128, kExperts = 64, kPerToken = 8;
  std::vector<MlpWeights> experts;
  for (int e = 0; e < kExperts; ++e) {
    experts.push_back({inputs.Matrix(WeightFormat::kMxfp4, kFfn, kHidden),
                       inputs.Matrix(WeightFormat::kMxfp4, kFfn, kHidden),
                       inputs.Matrix(WeightFormat::kMxfp4, kHidden, kFfn)});
  }
  std::mt19937 engine(2);
  for (int tokens : {1, 2, 4, 8, 64, 512}) {
    const std::vector<bf16> x = inputs.Bf16s(static_cast<size_t>(tokens) * kHidden);
    std::vector<int32_t> ids;
    std::vector<bool> used(kExperts);
    for (int t = 0; t < tokens; ++t) {
      std::vector<int32_t> all(kExperts);
      for (int e = 0; e < kExperts; ++e) all[e] = e;
      std::shuffle(all.begin(), all.end(), engine);
      std::sort(all.begin(), all.begin() + kPerToken);
      for (int k = 0; k < kPerToken; ++k) {
        ids.push_back(all[k]);
        used[all[k]] = true;
      }
    }
    const std::vector<float> weights(ids.size(), 0.125f);
    std::vector<float> out(static_cast<size_t>(tokens) * kHidden);
    std::vector<double> workspace(
        MoeWorkspaceBytes(tokens, kPerToken, kExperts, kFfn, kHidden) / 8 + 8);
    const double seconds = SecondsOf([&] {
      MixtureOfExperts(pool, {experts.data(), kExperts, kPerToken, x.data(), ids.data(),
                              weights.data(), tokens, out.data(), workspace.data()});
    });
    const auto distinct = std::count(used.begin(), used.end(), true);
    const double bytes = static_cast<double>(distinct) *
                         static_cast<double>(experts[0].gate.bytes() * 2 + experts[0].down.bytes());
    std::printf("moe E=64 K=8   T %4d  %9.2f us  %3d experts  %6.1f GB/s  %7.1f GFLOP/s\n", tokens,
                seconds * 1e6, static_cast<int>(distinct), bytes / seconds / 1e9,
                6.0 * kHidden * kFfn * kPerToken * tokens / seconds / 1e9);
  }
}

void BenchAttention(ThreadPool& pool, Inputs& inputs) {
  constexpr int kQHeads = 16, kKvHeads = 4, kDim = 128, kValueDim = 64, kContext = 8192;
  std::vector<bf16> k = inputs.Bf16s(static_cast<size_t>(kContext) * kKvHeads * kDim);
  std::vector<bf16> v = inputs.Bf16s(static_cast<size_t>(kContext) * kKvHeads * kValueDim);
  const int32_t page = 0;
  const KvView kv = {k.data(), v.data(), &page, 1, kContext};
  for (int keys : {128, 1024, 8192}) {
    for (int tokens : {1, 8, 64}) {
      const std::vector<bf16> q = inputs.Bf16s(static_cast<size_t>(tokens) * kQHeads * kDim);
      std::vector<AttentionRow> rows;
      for (int t = 0; t < tokens; ++t) rows.push_back({&kv, 0, keys - 1, nullptr, nullptr, 0});
      std::vector<bf16> out(static_cast<size_t>(tokens) * kQHeads * kValueDim);
      const double seconds = SecondsOf([&] {
        Attention(pool, {q.data(), rows.data(), nullptr, tokens, kQHeads, kKvHeads, kDim, kValueDim,
                         0.088f, out.data()});
      });
      std::printf("attention      T %4d  %9.2f us  %5d keys  %7.1f GFLOP/s\n", tokens,
                  seconds * 1e6, keys,
                  2.0 * tokens * keys * kQHeads * (kDim + kValueDim) / seconds / 1e9);
    }
  }
}

void BenchRows(ThreadPool& pool, Inputs& inputs) {
  constexpr int kVocabulary = 4096, kHidden = 256, kExperts = 64;
  const std::vector<float> logits = inputs.Floats(kVocabulary);
  std::vector<double> workspace(SampleWorkspaceBytes(kVocabulary) / 8);
  int64_t position = 0;
  const auto sample = [&](const char* name, const SamplingSpec& spec) {
    const double seconds = SecondsOf([&] {
      sink = SampleToken(logits.data(), kVocabulary, spec, ++position, false, workspace.data())
                 .logprob;
    });
    std::printf("%-24s %9.2f us\n", name, seconds * 1e6);
  };
  sample("sample greedy", {});
  sample("sample temperature 1", {.temperature = 1.0f, .seed = 1});
  sample("sample top_p 0.95", {.temperature = 0.6f, .top_p = 0.95f, .seed = 1});
  sample("sample top_k 40", {.temperature = 1.0f, .top_k = 40, .seed = 1});

  const std::vector<float> w = inputs.Floats(kExperts * kHidden);
  const std::vector<float> bias(kExperts);
  const std::vector<float> x = inputs.Floats(8 * kHidden);
  const std::vector<float> norm_weight(kHidden, 1.0f);
  const std::vector<bf16> xb = inputs.Bf16s(8 * kHidden);
  int32_t ids[64];
  float weights[64];
  std::vector<bf16> out(8 * kHidden);
  for (int tokens : {1, 8}) {
    std::printf("router E=64 T %-10d %9.2f us\n", tokens, 1e6 * SecondsOf([&] {
                                                            RouteTopK(pool, xb.data(), w.data(),
                                                                      bias.data(), tokens, kHidden,
                                                                      kExperts, 8, ids, weights);
                                                          }));
    std::printf("rms_norm T %-13d %9.2f us\n", tokens,
                1e6 * SecondsOf([&] {
                  RmsNorm(pool, x.data(), norm_weight.data(), 1e-5f, tokens, kHidden, out.data());
                }));
  }
  std::printf("fork and join            %9.2f us\n",
              1e6 * SecondsOf([&] { pool.ParallelFor(pool.num_threads(), [](int) {}); }));
}

bool ChooseInstructionSet(const char* name) {
  for (int i = 0; i <= static_cast<int>(DetectInstructionSet()); ++i) {
    const auto set = static_cast<InstructionSet>(i);
    if (std::strcmp(Name(set), name) != 0) continue;
    SetInstructionSet(set);
    return true;
  }
  return false;
}

int Main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  if (threads < 1 || threads > 1024) {
    std::fprintf(stderr, "usage: %s [threads 1..1024 [instruction set]]\n", argv[0]);
    return 1;
  }
  if (argc > 2 && !ChooseInstructionSet(argv[2])) {
    std::fprintf(stderr, "%s: this CPU does not have it\n", argv[2]);
    return 1;
  }
  ThreadPool pool(threads);
  Inputs inputs;
  const double peak = PeakFlops(pool);
  std::printf("%s, %d threads; ceilings: read %.1f GB/s (256 MiB), multiply-add %.0f GFLOP/s\n",
              Name(ActiveInstructionSet()), threads, ReadRate(pool, size_t{256} << 20) / 1e9,
              peak / 1e9);
  BenchMatMul(pool, inputs, peak);
  BenchMoe(pool, inputs);
  BenchAttention(pool, inputs);
  BenchRows(pool, inputs);
  return 0;
}

}  // namespace
}  // namespace ultraspeed::kernels

int main(int argc, char** argv) { return ultraspeed::kernels::Main(argc, argv); }
