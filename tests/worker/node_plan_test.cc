// The node's plan against arithmetic done by hand, and what it refuses.
#include "worker/node_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "worker/model/served_shape.h"

namespace ultraspeed::worker {
namespace {

using testing::HasSubstr;

NodePlan ServedPlan(const NodePlanOptions& options = {}) {
  absl::StatusOr<NodePlan> plan = PlanNode(MimoV25ProShape(), options);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *std::move(plan);
}

TEST(NodePlanTest, MemoryOfOneGpuOfEight) {
  const NodePlan plan = ServedPlan();
  // 5 layers' k and v rows of the drafter lie there twice: for the block and for the context.
  EXPECT_EQ(plan.gpu_weight_bytes,
            plan.sharding.total().gpu_bytes + int64_t{5} * 2 * 128 * 6144 * 2);
  EXPECT_EQ(plan.gpu_weight_bytes + plan.gpu_working_bytes + plan.gpu_kv_bytes, 141'000'000'000);
  EXPECT_EQ(plan.gpu_kv_bytes_per_token, 10 * (192 + 128) * 2);
}

TEST(NodePlanTest, CapacityForEveryContextLength) {
  const NodePlan plan = ServedPlan();
  ASSERT_FALSE(plan.contexts.empty());
  EXPECT_EQ(plan.contexts.front().context_tokens, 4096);
  EXPECT_EQ(plan.contexts.back().context_tokens, 1'048'576);
  for (const ContextPlan& context : plan.contexts) {
    // Rings: 128 + 512 + 16 rows in pages of 64 are 704 tokens, 1024 + 512 + 16 are 1600.
    const int64_t sequence =
        context.context_tokens * 6400 + int64_t{60} * 704 * 640 + int64_t{5} * 1600 * 2 * 128 * 2;
    EXPECT_EQ(context.gpu_bytes_per_sequence, sequence);
    EXPECT_LE(context.num_sequences * sequence, plan.gpu_kv_bytes);
    EXPECT_GT((context.num_sequences + 1) * sequence, plan.gpu_kv_bytes);
    EXPECT_EQ(
        context.gpu_kv_bytes_per_round,
        context.context_tokens * 6400 + int64_t{60} * 128 * 640 + int64_t{5} * 1024 * 2 * 128 * 2);
  }
}

TEST(NodePlanTest, Fp8HalvesTheTargetsKeysAndValues) {
  const NodePlan bf16 = ServedPlan(), fp8 = ServedPlan({.kv_precision = KvPrecision::kFp8});
  EXPECT_EQ(2 * fp8.gpu_kv_bytes_per_token, bf16.gpu_kv_bytes_per_token);
  EXPECT_GT(fp8.contexts.back().num_sequences, bf16.contexts.back().num_sequences);
  EXPECT_EQ(fp8.gpu_weight_bytes, bf16.gpu_weight_bytes);
}

TEST(NodePlanTest, BytesOfARoundAndTheirFloor) {
  const NodePlan plan = ServedPlan();
  EXPECT_EQ(plan.round_rows, 8);
  EXPECT_NEAR(plan.distinct_experts, 59.52, 0.01);  // 384 (1 - (1 - 8/384)^8)
  int64_t sum = 0;
  for (const RoundPart& part : plan.round) sum += part.gpu_bytes;
  EXPECT_EQ(sum, plan.gpu_round_bytes());
  EXPECT_EQ(plan.round[0].name, "experts");
  // An expert's eighth is 2.5068 MB, in 69 layers.
  EXPECT_NEAR(static_cast<double>(plan.round[0].gpu_bytes) / 1e9, 69 * 59.523 * 2.506752e-3, 0.001);
  EXPECT_NEAR(static_cast<double>(sum) / 1e9, 15.71, 0.01);
  EXPECT_NEAR(plan.FloorMs(sum), 15.714 / 4.68, 0.001);
  EXPECT_DOUBLE_EQ(ServedPlan({.read_tb_per_second = 2.34}).FloorMs(sum), 2 * plan.FloorMs(sum));
}

TEST(NodePlanTest, AModelWithoutADrafterReadsOneRowsExperts) {
  ModelConfig config = MimoV25ProShape();
  config.drafter = {};
  const absl::StatusOr<NodePlan> plan = PlanNode(config, {});
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->round_rows, 1);
  EXPECT_NEAR(plan->distinct_experts, 8, 1e-9);
  for (const RoundPart& part : plan->round) EXPECT_NE(part.name.substr(0, 5), "draft");
}

TEST(NodePlanTest, WeightsThatDoNotFitAreRefusedWithTheNumbers) {
  const absl::Status status = PlanNode(MimoV25ProShape(), {.num_gpus = 4}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("gpu-memory-gb: is 141.0; on 4 GPUs each holds 142.64 GB of weights"));
  EXPECT_TRUE(PlanNode(MimoV25ProShape(), {.num_gpus = 4, .gpu_memory_gb = 180}).ok());
  EXPECT_EQ(PlanNode(MimoV25ProShape(), {.num_gpus = 3}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(NodePlanTest, TableAndJsonSayTheSame) {
  const NodePlan plan = ServedPlan();
  const std::string table = ToTable(plan);
  for (const char* part :
       {"71.84 weights", "6400 bytes a token", "59.5 of 384 in each of 69 layers", "15.714",
        "at 4.68 TB/s", "1048576"}) {
    EXPECT_THAT(table, HasSubstr(part));
  }
  const boost::json::object json = ToJson(plan);
  EXPECT_EQ(json.at("gpu_weight_bytes").as_int64(), plan.gpu_weight_bytes);
  EXPECT_EQ(json.at("gpu_bytes_per_round").as_int64(), plan.gpu_round_bytes());
  EXPECT_EQ(json.at("kinds").at("qkv").at("gpu_bytes").as_int64(),
            plan.sharding[TensorKind::kQkv].gpu_bytes);
  EXPECT_EQ(json.at("contexts").as_array().size(), plan.contexts.size());
}

TEST(NodePlanTest, ModelsAreFoldersOrAShapeByName) {
  EXPECT_EQ(ConfigForPlan("shape:mimo-v2.5-pro")->num_layers, 70);
  EXPECT_EQ(ConfigForPlan("models/tiny-mimo")->name, "tiny-mimo");
  EXPECT_THAT(std::string(ConfigForPlan("shape:other").status().message()),
              HasSubstr("model: is shape:other; the only known shape is shape:mimo-v2.5-pro"));
  EXPECT_EQ(ConfigForPlan("no/such/folder").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace ultraspeed::worker
