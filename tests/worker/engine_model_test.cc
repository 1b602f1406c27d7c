// The engine over the CPU executor and the bundled model: what speculation, batching and failover
// must never change.
#include <gtest/gtest.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "tests/worker/scripted_executor.h"
#include "worker/engine.h"
#include "worker/model/safetensors.h"

namespace ultraspeed::worker {
namespace {

constexpr char kModel[] = "models/tiny-mimo";

// The code of the golden logits: 300 token ids.
std::vector<int32_t> GoldenPrompt() {
  const auto file = SafetensorsFile::Open(absl::StrCat(kModel, "/golden/logits.safetensors"));
  std::vector<int32_t> tokens;
  if (!file.ok()) return tokens;
  for (const TensorView& tensor : (*file)->tensors()) {
    if (tensor.name != "tokens") continue;
    tokens.resize(tensor.bytes / sizeof(int32_t));
    std::memcpy(tokens.data(), tensor.data, tensor.bytes);
  }
  return tokens;
}

class EngineModelTest : public testing::Test {
 protected:
  void Create() {
    ExecutorOptions options;
    options.model_folder = kModel;
    options.max_sequences = 4;
    options.max_batch_tokens = 128;
    options.kv_tokens = 4096;
    options.num_threads = 2;
    absl::StatusOr<std::unique_ptr<Executor>> executor = CreateCpuExecutor(options);
    ASSERT_TRUE(executor.ok()) << executor.status();
    engine_ = std::make_unique<Engine>(*std::move(executor), EngineOptions{}, RealClock(), nullptr);
  }
  std::shared_ptr<RecordingSink> Submit(const RequestSpec& spec) {
    auto sink = std::make_shared<RecordingSink>();
    const absl::Status status = engine_->Submit(spec, sink);
    EXPECT_TRUE(status.ok()) << status;
    return sink;
  }
  void RunAll() {
    while (engine_->Step()) engine_->CheckIntegrity();
  }
  RequestSpec Spec(const std::string& id, float temperature, bool speculation) {
    RequestSpec spec;
    spec.id = id;
    spec.prompt = GoldenPrompt();
    spec.max_tokens = 96;
    spec.sampling = {.temperature = temperature, .top_k = 0, .top_p = 0.95f, .seed = 1234};
    spec.speculation = speculation;
    return spec;
  }

  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineModelTest, SpeculationBatchAndChunksDoNotChangeTheText) {
  for (const float temperature : {0.0f, 1.0f}) {
    SCOPED_TRACE(testing::Message() << "temperature " << temperature);
    Create();
    const auto plain = Submit(Spec("plain", temperature, false));
    RunAll();
    const auto fast = Submit(Spec("fast", temperature, true));
    RunAll();
    EXPECT_EQ(fast->tokens, plain->tokens);
    EXPECT_LE(fast->usage.draft_rounds, plain->usage.draft_rounds);
    // Beside a standard, an ultraspeed and a longer prompt, all sampled otherwise.
    RequestSpec noise = Spec("noise", 1.3f, true);
    noise.sampling.seed = 9;
    RequestSpec noise_fast = noise;
    noise_fast.id = "noise_fast";
    noise_fast.tier = Tier::kUltraspeed;
    RequestSpec lengthy = noise;
    lengthy.id = "long";
    for (int i = 0; i < 3; ++i)
      lengthy.prompt.insert(lengthy.prompt.end(), noise.prompt.begin(), noise.prompt.end());
    Submit(lengthy);
    const auto busy = Submit(Spec("busy", temperature, true));
    Submit(noise);
    Submit(noise_fast);
    RunAll();
    EXPECT_EQ(busy->tokens, plain->tokens);
  }
}

TEST_F(EngineModelTest, AnotherWorkerContinuesExactly) {
  Create();
  const auto whole = Submit(Spec("whole", 1.0f, true));
  RunAll();
  ASSERT_EQ(whole->tokens.size(), 96u);
  Create();
  RequestSpec rest = Spec("rest", 1.0f, true);
  rest.prompt.insert(rest.prompt.end(), whole->tokens.begin(), whole->tokens.begin() + 37);
  rest.max_tokens -= 37;
  rest.resumed_tokens = 37;
  const auto continued = Submit(rest);
  RunAll();
  EXPECT_EQ(continued->tokens,
            std::vector<int32_t>(whole->tokens.begin() + 37, whole->tokens.end()));
}

}  // namespace
}  // namespace ultraspeed::worker
