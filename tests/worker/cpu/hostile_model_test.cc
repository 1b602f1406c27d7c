// Checkpoints that pass every check of the loader and are still absurd: a worker refuses them or
// runs them, it does not crash.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <random>

#include "tests/temporary_folder.h"
#include "tests/worker/cpu/recorded_run.h"
#include "tests/worker/model/synthetic_checkpoint.h"
#include "worker/executor.h"

namespace ultraspeed::worker {
namespace {

namespace json = boost::json;

absl::StatusOr<std::unique_ptr<Executor>> Create(const SyntheticCheckpoint& checkpoint) {
  const TemporaryFolder folder;
  checkpoint.Write(folder.path());
  return CreateCpuExecutor({.model_folder = folder.path(),
                            .max_sequences = 2,
                            .max_batch_tokens = 32,
                            .kv_tokens = 512,
                            .num_threads = 1});
}

// Weights so large that activations overflow: whatever is chosen is a token that exists.
TEST(HostileModelTest, OverflowingWeightsStillGiveTokensThatExist) {
  for (const char* part :
       {"_scale", "_scale_inv", "norm.weight", "lm_head.weight", "sink_bias", "correction_bias"}) {
    SCOPED_TRACE(part);
    SyntheticCheckpoint checkpoint = MakeSyntheticCheckpoint({});
    int num_changed = 0;
    for (auto* tensors : {&checkpoint.target, &checkpoint.drafter}) {
      for (auto& [name, tensor] : *tensors) {
        if (name.size() < std::strlen(part) || name.substr(name.size() - std::strlen(part)) != part)
          continue;
        ++num_changed;
        for (char& byte : tensor.bytes) byte = '\x7f';  // E8M0: 1; F32 and BF16: about 3e38
        if (tensor.dtype == "U8") tensor.bytes.assign(tensor.bytes.size(), '\xfe');
        if (tensor.dtype == "F32") {
          for (size_t i = 3; i < tensor.bytes.size(); i += 4)
            tensor.bytes[i] = i % 8 == 3 ? '\x7e' : '\xfe';
        }
        if (tensor.dtype == "BF16") {
          for (size_t i = 1; i < tensor.bytes.size(); i += 2)
            tensor.bytes[i] = i % 4 == 1 ? '\x7e' : '\xfe';
        }
      }
    }
    ASSERT_GT(num_changed, 0);
    const auto executor = Create(checkpoint);
    ASSERT_TRUE(executor.ok()) << executor.status();
    for (const float temperature : {0.0f, 1.0f}) {
      for (const int block : {1, 8}) {
        const RunPlan plan{
            .prompt = {3, 1, 4, 1, 5, 9, 2, 6},
            .num_new_tokens = 12,
            .block = block,
            .chunk = 5,
            .sampling = {.temperature = temperature, .top_k = 20, .top_p = 0.9f, .seed = 1}};
        for (const ChosenToken& chosen : Record(**executor, plan).chosen) {
          EXPECT_GE(chosen.token, 0);
          EXPECT_LT(chosen.token, (*executor)->vocabulary_used());
        }
      }
    }
  }
}

// Every number of both configs replaced by others that are in or near its range. The tensors do not
// fit most of them; what is refused is refused by status, and what loads also runs.
// --gtest_random_seed=N gives another series.
TEST(HostileModelTest, AnyConfigIsRefusedOrRuns) {
  const auto seed = static_cast<uint32_t>(testing::UnitTest::GetInstance()->random_seed());
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  const SyntheticCheckpoint good = MakeSyntheticCheckpoint({.num_layers = 3, .num_experts = 4});
  int num_ran = 0;
  for (int i = 0; i < 300; ++i) {
    SyntheticCheckpoint checkpoint = good;
    json::object* owner = random() % 3 == 0 ? &checkpoint.drafter_config : &checkpoint.config;
    if (owner == &checkpoint.drafter_config && random() % 2 == 0)
      owner = &(*owner)["dflash_config"].as_object();
    auto entry = owner->begin() + static_cast<ptrdiff_t>(random() % owner->size());
    if (!entry->value().is_number()) continue;
    const double old = entry->value().to_number<double>();
    const double kFactors[] = {0.5, 0.9, 1.001, 2, 3, 100, 1e4, 1e6};
    const double value = old * kFactors[random() % 8];
    if (entry->value().is_int64()) {
      entry->value() = static_cast<int64_t>(value) + static_cast<int64_t>(random() % 2);
    } else {
      entry->value() = value;
    }
    SCOPED_TRACE(std::string(entry->key()) + " = " + json::serialize(entry->value()));
    const auto executor = Create(checkpoint);
    if (!executor.ok()) {
      EXPECT_EQ(executor.status().code(), absl::StatusCode::kInvalidArgument) << executor.status();
      continue;
    }
    const ModelConfig& config = (*executor)->config();
    const RunPlan plan{.prompt = {3, 1, 4, 1, 5},
                       .num_new_tokens = 6,
                       .block = config.drafter.block_size,
                       .chunk = 4,
                       .sampling = {.temperature = 1, .seed = 2}};
    if (config.context_tokens >= 32) Record(**executor, plan);
    ++num_ran;
  }
  EXPECT_GT(num_ran, 5);
}

}  // namespace
}  // namespace ultraspeed::worker
