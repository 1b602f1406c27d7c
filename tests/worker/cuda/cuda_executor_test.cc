// The CUDA executor against the CPU's, and what only it has: graphs, sixteen slots, FP8 caches.
#include "worker/cuda/cuda_executor.h"

#include <cmath>
#include <cstdio>

#include "tests/worker/cuda/cpu_comparison.h"
#include "worker/cuda/device.h"

namespace ultraspeed::worker {
namespace {

class CudaExecutorTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const absl::Status usable = CudaUsable(); !usable.ok()) GTEST_SKIP() << usable.message();
    tokens_ = Reference().Values<int32_t>("tokens");
  }

  static std::unique_ptr<cuda::CudaExecutor> Load(const cuda::CudaOptions& options) {
    cuda::CudaOptions with_model = options;
    with_model.executor.model_folder = kBundledModel;
    absl::StatusOr<std::unique_ptr<cuda::CudaExecutor>> executor =
        cuda::CudaExecutor::Create(with_model);
    if (!executor.ok()) ADD_FAILURE() << executor.status();
    return executor.ok() ? *std::move(executor) : nullptr;
  }

  std::vector<int32_t> Prompt(size_t begin, size_t count) const {
    return {tokens_.begin() + static_cast<ptrdiff_t>(begin),
            tokens_.begin() + static_cast<ptrdiff_t>(begin + count)};
  }

  std::vector<int32_t> tokens_;
};

struct RowErrors {
  std::vector<float> max;  // ascending, one per row
  int num_swapped = 0;     // rows beyond kLogitBound

  float median() const { return max[max.size() / 2]; }
};

RowErrors Compare(const std::vector<float>& got, const std::vector<float>& want,
                  size_t vocabulary) {
  RowErrors errors;
  for (size_t row = 0; row < want.size() / vocabulary; ++row) {
    float max = 0;
    for (size_t i = row * vocabulary; i < (row + 1) * vocabulary; ++i)
      max = std::fmax(max, std::fabs(got[i] - want[i]));
    errors.max.push_back(max);
    errors.num_swapped += max > kLogitBound ? 1 : 0;
  }
  std::sort(errors.max.begin(), errors.max.end());
  return errors;
}

TEST_F(CudaExecutorTest, LogitsAreTheCpusWithinTheBound) {
  const std::unique_ptr<ModelExecutor> cpu = LoadOnCpu();
  const std::unique_ptr<cuda::CudaExecutor> gpu = Load({});
  ASSERT_NE(cpu, nullptr);
  ASSERT_NE(gpu, nullptr);
  const auto vocabulary = static_cast<size_t>(cpu->config().vocabulary);
  const RowErrors errors = Compare(AllLogits(*gpu, tokens_), AllLogits(*cpu, tokens_), vocabulary);
  std::printf(
      "%zu rows: largest difference of a row's logits: median %.4f, largest %.4f, %d past %.2f\n",
      errors.max.size(), errors.median(), errors.max.back(), errors.num_swapped, kLogitBound);
  EXPECT_LT(errors.median(), kNoiseFactor * Reference().Values<float>("noise")[0]);
  EXPECT_LE(errors.num_swapped, kSwappedShareMax * static_cast<double>(errors.max.size()));
}

TEST_F(CudaExecutorTest, LogitsOfAnyChunkingAreTheSameBits) {
  const std::unique_ptr<cuda::CudaExecutor> gpu = Load({});
  ASSERT_NE(gpu, nullptr);
  const std::vector<float> whole = AllLogits(*gpu, tokens_, 512);
  for (const size_t chunk : {1, 7, 8, 9, 64, 65, 129})
    EXPECT_EQ(AllLogits(*gpu, tokens_, chunk), whole) << "chunks of " << chunk;
}

TEST_F(CudaExecutorTest, AReplayedGraphGivesTheBitsOfDirectLaunches) {
  const std::unique_ptr<cuda::CudaExecutor> replayed = Load({});
  const std::unique_ptr<cuda::CudaExecutor> direct = Load({.executor = {}, .use_graphs = false});
  ASSERT_NE(replayed, nullptr);
  ASSERT_NE(direct, nullptr);
  for (const float temperature : {0.0f, 1.0f}) {
    for (const int block : {1, 3, 8}) {
      const RunPlan plan{.prompt = Prompt(0, 100),
                         .num_new_tokens = 40,
                         .block = block,
                         .sampling = {.temperature = temperature, .top_p = 0.95f, .seed = 7}};
      EXPECT_EQ(Difference(Record(*replayed, plan), Record(*direct, plan)), "")
          << "block " << block << " temperature " << temperature;
    }
  }
}

TEST_F(CudaExecutorTest, OneToSixteenSequencesEqualEachAlone) {
  constexpr int kSequences = 16;
  const std::unique_ptr<cuda::CudaExecutor> gpu = Load(
      {.executor = {.max_sequences = kSequences, .max_batch_tokens = 512, .kv_tokens = 16384}});
  ASSERT_NE(gpu, nullptr);
  std::vector<RunPlan> plans;
  std::vector<RecordedRun> alone;
  for (int i = 0; i < kSequences; ++i) {
    const auto offset = static_cast<size_t>(i);
    plans.push_back(
        {.prompt = Prompt(offset * 5, 20 + offset * 12),
         .num_new_tokens = 24,
         .block = i % 5 == 4 ? 1 : 8,
         .chunk = 30,
         .sampling = {.temperature = i % 2 == 0 ? 0.0f : 1.0f, .top_p = 0.95f, .seed = offset},
         .slot = i});
    alone.push_back(Record(*gpu, plans.back()));
  }
  for (int count = 1; count <= kSequences; ++count) {
    const std::vector<RecordedRun> together =
        RecordTogether(*gpu, {plans.begin(), plans.begin() + count});
    for (int i = 0; i < count; ++i) {
      const auto s = static_cast<size_t>(i);
      EXPECT_EQ(Difference(together[s], alone[s]), "") << "sequence " << i << " of " << count;
    }
  }
}

// Rounds of a prefill chunk, a plain row and drafted blocks side by side. Short enough for
// compute-sanitizer (scripts/gpu_sanitize.sh).
TEST_F(CudaExecutorTest, MixedRoundsReplayTheSameBits) {
  const cuda::CudaOptions options = {
      .executor = {
          .max_sequences = 3, .max_batch_tokens = 64, .kv_tokens = 1024, .resident = false}};
  cuda::CudaOptions without_graphs = options;
  without_graphs.use_graphs = false;
  const std::unique_ptr<cuda::CudaExecutor> replayed = Load(options);
  const std::unique_ptr<cuda::CudaExecutor> direct = Load(without_graphs);
  ASSERT_NE(replayed, nullptr);
  ASSERT_NE(direct, nullptr);
  const std::vector<RunPlan> plans = {
      {.prompt = Prompt(0, 60), .num_new_tokens = 12, .block = 8, .chunk = 16},
      {.prompt = Prompt(60, 20), .num_new_tokens = 12, .slot = 1},
      {.prompt = Prompt(80, 9),
       .num_new_tokens = 12,
       .block = 3,
       .sampling = {.temperature = 1, .top_p = 0.95f, .seed = 5},
       .slot = 2}};
  const std::vector<RecordedRun> want = RecordTogether(*direct, plans);
  const std::vector<RecordedRun> got = RecordTogether(*replayed, plans);
  for (size_t i = 0; i < plans.size(); ++i) EXPECT_EQ(Difference(got[i], want[i]), "") << i;
}

TEST_F(CudaExecutorTest, CountsDistinctExpertsWhereItIsAskedTo) {
  constexpr int kRows = 6;
  for (const bool count : {false, true}) {
    const std::unique_ptr<cuda::CudaExecutor> gpu = Load({.executor = {.count_experts = count}});
    ASSERT_NE(gpu, nullptr);
    const ModelConfig& config = gpu->config();
    const int64_t moe_layers = std::count(config.is_moe.begin(), config.is_moe.end(), true);
    AllLogits(*gpu, Prompt(0, kRows), 1);
    const ForwardStatistics alone = gpu->statistics();
    EXPECT_EQ(alone.target_passes, kRows);
    EXPECT_EQ(alone.moe_layer_passes, kRows * moe_layers);
    EXPECT_EQ(alone.distinct_experts, count ? kRows * moe_layers * config.experts_per_token : 0);
    const PassBytes& bytes = gpu->bytes();
    EXPECT_EQ(
        alone.target_bytes,
        static_cast<int64_t>(kRows * (bytes.qkv + bytes.output + bytes.router + bytes.dense_mlp) +
                             static_cast<size_t>(alone.distinct_experts) * bytes.expert));

    // Rows of one pass share experts: each counts once.
    AllLogits(*gpu, Prompt(0, 240), 240);
    const int64_t together = gpu->statistics().distinct_experts - alone.distinct_experts;
    EXPECT_EQ(gpu->statistics().target_passes, kRows + 1);
    EXPECT_GE(together, count ? moe_layers * config.experts_per_token + 1 : 0);
    EXPECT_LE(together, count ? moe_layers * config.num_experts : 0);
  }
}

// FP8 keys and values: another model, lossless within itself, and not far from BF16.
TEST_F(CudaExecutorTest, Fp8CachesAreLosslessAndNear) {
  const std::unique_ptr<cuda::CudaExecutor> bf16 = Load({});
  const std::unique_ptr<cuda::CudaExecutor> fp8 =
      Load({.executor = {.kv_precision = KvPrecision::kFp8}});
  ASSERT_NE(bf16, nullptr);
  ASSERT_NE(fp8, nullptr);
  RunPlan plan{.prompt = Prompt(0, 150), .num_new_tokens = 40};
  const RecordedRun plain = Record(*fp8, plan);
  plan.block = 8;
  EXPECT_EQ(Difference(Record(*fp8, plan), plain), "");

  const auto vocabulary = static_cast<size_t>(bf16->config().vocabulary);
  const RowErrors errors = Compare(AllLogits(*fp8, tokens_), AllLogits(*bf16, tokens_), vocabulary);
  std::printf("fp8 against bf16 caches: median %.4f, largest %.4f of a logit\n", errors.median(),
              errors.max.back());
  EXPECT_GT(errors.median(), 0);
  EXPECT_LT(errors.median(), 1.0f);
}

TEST_F(CudaExecutorTest, TheMemoryTakenIsTheMemoryPlanned) {
  const std::unique_ptr<cuda::CudaExecutor> gpu = Load({});
  ASSERT_NE(gpu, nullptr);
  EXPECT_EQ(gpu->memory().bytes, cuda::PlanMemory(gpu->config(), {}).bytes);
}

TEST_F(CudaExecutorTest, RefusesMoreThanTheGpuHas) {
  const absl::StatusOr<std::unique_ptr<ModelExecutor>> executor =
      CreateCudaExecutor({.model_folder = kBundledModel,
                          .max_sequences = 1024,
                          .max_batch_tokens = 16384,
                          .kv_tokens = int64_t{1} << 26});
  ASSERT_FALSE(executor.ok());
  EXPECT_EQ(executor.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(executor.status().message().find("short"), absl::string_view::npos)
      << executor.status();
}

// Random weights at a small shape: what bench rank does at a large one.
TEST_F(CudaExecutorTest, RandomWeightsAreRepeatable) {
  ModelConfig config = *LoadModelConfig(kBundledModel);
  config.num_layers = 2;
  config.attention.resize(2);
  config.is_moe = std::vector<bool>{config.is_moe[0], config.is_moe[1]};
  config.drafter.target_layer_ids = {0, 1};
  std::vector<std::vector<float>> logits;
  for (int i = 0; i < 2; ++i) {
    absl::StatusOr<std::unique_ptr<cuda::CudaExecutor>> executor =
        cuda::CudaExecutor::CreateRandom(config, {});
    ASSERT_TRUE(executor.ok()) << executor.status();
    logits.push_back(AllLogits(**executor, Prompt(0, 20)));
  }
  EXPECT_EQ(logits[0], logits[1]);
  const auto [min, max] = std::minmax_element(logits[0].begin(), logits[0].end());
  EXPECT_GT(*max - *min, 0.1f);
  EXPECT_LT(std::fabs(*max), 1e3f);
}

}  // namespace
}  // namespace ultraspeed::worker
