// The plan against what is published: tensor names and shapes, the number of elements, and parts
// that add up to the whole.
#include "worker/model/sharding_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cctype>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "worker/model/served_shape.h"

namespace ultraspeed::worker {
namespace {

using testing::HasSubstr;

// Elements and tensors of the FP8 release of MiMoV2.5-Pro, as its publisher counts them: every
// number of the model and of three prediction heads, and every FP8 scale; the drafter apart.
constexpr int64_t kPublishedElements = 1'023'244'718'976;
constexpr int64_t kPublishedTensors = 159'581;
constexpr int64_t kPublishedDrafterElements = 2'768'316'288;

ModelConfig Fp8Release() {
  ModelConfig config = MimoV25ProShape();
  config.expert_format = kernels::WeightFormat::kFp8Block128;
  return config;
}

int64_t Values(const std::vector<TensorSpec>& tensors) {
  int64_t values = 0;
  for (const TensorSpec& tensor : tensors) values += tensor.num_values;
  return values;
}

// The published tables, one row a group of equal tensors; N and M stand for layer and expert.
struct PublishedGroup {
  const char* name;
  const char* dtype;
  std::vector<int64_t> shape;
  int count;
};

const std::vector<PublishedGroup>& PublishedTarget() {
  static const std::vector<PublishedGroup> groups = {
      {"model.embed_tokens.weight", "BF16", {152576, 6144}, 1},
      {"lm_head.weight", "BF16", {152576, 6144}, 1},
      {"model.norm.weight", "BF16", {6144}, 1},
      {"model.layers.N.input_layernorm.weight", "BF16", {6144}, 70},
      {"model.layers.N.post_attention_layernorm.weight", "BF16", {6144}, 70},
      {"model.layers.N.self_attn.qkv_proj.weight", "F8_E4M3", {27136, 6144}, 70},
      {"model.layers.N.self_attn.qkv_proj.weight_scale_inv", "F32", {216, 48}, 70},
      {"model.layers.N.self_attn.o_proj.weight", "BF16", {6144, 16384}, 70},
      {"model.layers.N.self_attn.attention_sink_bias", "BF16", {128}, 60},
      {"model.layers.N.mlp.gate_proj.weight", "F8_E4M3", {16384, 6144}, 1},
      {"model.layers.N.mlp.gate_proj.weight_scale_inv", "F32", {128, 48}, 1},
      {"model.layers.N.mlp.up_proj.weight", "F8_E4M3", {16384, 6144}, 1},
      {"model.layers.N.mlp.up_proj.weight_scale_inv", "F32", {128, 48}, 1},
      {"model.layers.N.mlp.down_proj.weight", "F8_E4M3", {6144, 16384}, 1},
      {"model.layers.N.mlp.down_proj.weight_scale_inv", "F32", {48, 128}, 1},
      {"model.layers.N.mlp.gate.weight", "F32", {384, 6144}, 69},
      {"model.layers.N.mlp.gate.e_score_correction_bias", "F32", {384}, 69},
      {"model.layers.N.mlp.experts.M.gate_proj.weight", "U8", {2048, 3072}, 26496},
      {"model.layers.N.mlp.experts.M.gate_proj.weight_scale", "U8", {2048, 192}, 26496},
      {"model.layers.N.mlp.experts.M.up_proj.weight", "U8", {2048, 3072}, 26496},
      {"model.layers.N.mlp.experts.M.up_proj.weight_scale", "U8", {2048, 192}, 26496},
      {"model.layers.N.mlp.experts.M.down_proj.weight", "U8", {6144, 1024}, 26496},
      {"model.layers.N.mlp.experts.M.down_proj.weight_scale", "U8", {6144, 64}, 26496}};
  return groups;
}

const std::vector<PublishedGroup>& PublishedDrafter() {
  static const std::vector<PublishedGroup> groups = {
      {"fc.weight", "BF16", {6144, 30720}, 1},
      {"hidden_norm.weight", "BF16", {6144}, 1},
      {"norm.weight", "BF16", {6144}, 1},
      {"layers.N.input_layernorm.weight", "BF16", {6144}, 5},
      {"layers.N.post_attention_layernorm.weight", "BF16", {6144}, 5},
      {"layers.N.self_attn.q_proj.weight", "BF16", {16384, 6144}, 5},
      {"layers.N.self_attn.k_proj.weight", "BF16", {1024, 6144}, 5},
      {"layers.N.self_attn.v_proj.weight", "BF16", {1024, 6144}, 5},
      {"layers.N.self_attn.o_proj.weight", "BF16", {6144, 16384}, 5},
      {"layers.N.self_attn.q_norm.weight", "BF16", {128}, 5},
      {"layers.N.self_attn.k_norm.weight", "BF16", {128}, 5},
      {"layers.N.self_attn.attention_sink_bias", "BF16", {128}, 5},
      {"layers.N.mlp.gate_proj.weight", "BF16", {16384, 6144}, 5},
      {"layers.N.mlp.up_proj.weight", "BF16", {16384, 6144}, 5},
      {"layers.N.mlp.down_proj.weight", "BF16", {6144, 16384}, 5}};
  return groups;
}

// "model.layers.12.mlp.experts.3.x" -> "model.layers.N.mlp.experts.M.x"
std::string GroupOf(const std::string& name) {
  std::string group;
  for (size_t i = 0; i < name.size();) {
    if (i > 0 && name[i - 1] == '.' && std::isdigit(static_cast<unsigned char>(name[i])) != 0) {
      group += group.size() >= 8 && group.substr(group.size() - 8) == "experts." ? 'M' : 'N';
      while (i < name.size() && name[i] != '.') ++i;
    } else {
      group += name[i++];
    }
  }
  return group;
}

void ExpectPublished(const std::vector<TensorSpec>& tensors,
                     const std::vector<PublishedGroup>& published) {
  std::map<std::string, std::vector<const TensorSpec*>> groups;
  std::set<std::string> names;
  for (const TensorSpec& tensor : tensors) {
    EXPECT_TRUE(names.insert(tensor.name).second) << tensor.name << " twice";
    groups[GroupOf(tensor.name)].push_back(&tensor);
  }
  EXPECT_EQ(groups.size(), published.size());
  for (const PublishedGroup& group : published) {
    const auto& found = groups[group.name];
    EXPECT_EQ(found.size(), static_cast<size_t>(group.count)) << group.name;
    for (const TensorSpec* tensor : found) {
      ASSERT_EQ(tensor->dtype, group.dtype) << tensor->name;
      ASSERT_EQ(tensor->shape, group.shape) << tensor->name;
    }
  }
}

TEST(TensorListTest, IsThePublishedOne) {
  ExpectPublished(TargetTensors(MimoV25ProShape()), PublishedTarget());
  ExpectPublished(DrafterTensors(MimoV25ProShape().drafter), PublishedDrafter());
}

TEST(TensorListTest, AddsUpToThePublishedNumberOfElements) {
  const ModelConfig config = Fp8Release();
  const std::vector<TensorSpec> target = TargetTensors(config);
  const std::vector<TensorSpec> heads = PredictionHeadTensors(config, kPublishedPredictionHeads);
  EXPECT_EQ(Values(target) + Values(heads), kPublishedElements);
  EXPECT_EQ(static_cast<int64_t>(target.size() + heads.size()), kPublishedTensors);
  EXPECT_EQ(Values(DrafterTensors(config.drafter)), kPublishedDrafterElements);
}

// The FP4 release has the same weights; only the experts' scales differ: one for each 32 columns of
// a row instead of one for each 128 x 128 block.
TEST(TensorListTest, TheFp4ReleaseHoldsTheSameWeights) {
  const int64_t matrices = int64_t{69} * 384 * 3, weights = int64_t{2048} * 6144;
  EXPECT_EQ(Values(TargetTensors(MimoV25ProShape())) - matrices * weights / 32,
            Values(TargetTensors(Fp8Release())) - matrices * weights / (128 * 128));
}

TEST(ShardingPlanTest, PartsAddUpToThePublishedNumberOfElements) {
  const ModelConfig config = Fp8Release();
  const int64_t heads = Values(PredictionHeadTensors(config, kPublishedPredictionHeads));
  // What every GPU holds whole counts once, what is cut counts for each.
  const auto sum_of_parts = [](const std::vector<TensorSpec>& part, int gpus) {
    int64_t sum = 0;
    for (const TensorSpec& tensor : part)
      sum += tensor.num_values * (SplitOf(tensor.name) == Split::kWhole ? 1 : gpus);
    return sum;
  };
  for (const int gpus : {1, 2, 4, 8}) {
    const absl::StatusOr<ShardingPlan> plan = PlanSharding(config, gpus);
    ASSERT_TRUE(plan.ok()) << plan.status();
    const std::vector<TensorSpec> target = TargetTensors(plan->part);
    const std::vector<TensorSpec> drafter = DrafterTensors(plan->part.drafter);
    EXPECT_EQ(sum_of_parts(target, gpus) + heads, kPublishedElements) << gpus;
    EXPECT_EQ(sum_of_parts(drafter, gpus), kPublishedDrafterElements) << gpus;
    EXPECT_EQ(plan->total().values, kPublishedElements - heads + kPublishedDrafterElements);
    EXPECT_EQ(plan->total().gpu_values, Values(target) + Values(drafter)) << gpus;
  }
}

// Two ways to a part's shape, tensor by tensor: the tensors of a part's config, and the cut of the
// published ones.
void ExpectPartsAgree(const ModelConfig& config, int gpus) {
  const absl::StatusOr<ModelConfig> part = PartOf(config, gpus);
  ASSERT_TRUE(part.ok()) << part.status();
  const auto expect = [&](const std::vector<TensorSpec>& whole,
                          const std::vector<TensorSpec>& parts) {
    ASSERT_EQ(whole.size(), parts.size());
    for (size_t i = 0; i < whole.size(); ++i) {
      ASSERT_EQ(whole[i].name, parts[i].name);
      ASSERT_EQ(PartShape(whole[i], gpus), parts[i].shape) << whole[i].name;
      const int64_t times = SplitOf(whole[i].name) == Split::kWhole ? 1 : gpus;
      ASSERT_EQ(parts[i].num_values * times, whole[i].num_values) << whole[i].name;
    }
  };
  expect(TargetTensors(config), TargetTensors(*part));
  expect(DrafterTensors(config.drafter), DrafterTensors(part->drafter));
}

TEST(ShardingPlanTest, APartsConfigCallsForTheCutOfEveryTensor) {
  for (const int gpus : {1, 2, 4, 8}) {
    SCOPED_TRACE(gpus);
    ExpectPartsAgree(MimoV25ProShape(), gpus);
    ExpectPartsAgree(Fp8Release(), gpus);
  }
  const absl::StatusOr<ModelConfig> bundled = LoadModelConfig("models/tiny-mimo");
  ASSERT_TRUE(bundled.ok()) << bundled.status();
  for (const int gpus : {1, 2, 4}) ExpectPartsAgree(*bundled, gpus);
}

TEST(ShardingPlanTest, OneGpuOfEight) {
  const ShardingPlan plan = *PlanSharding(MimoV25ProShape(), 8);
  EXPECT_EQ(plan.part.num_kv_heads, 1);
  EXPECT_EQ(plan.part.num_q_heads, 16);
  EXPECT_EQ(plan.part.qkv_shard_rows(), 3392);
  EXPECT_EQ(plan.part.expert_ffn_width, 256);
  EXPECT_EQ(plan.part.dense_ffn_width, 2048);
  EXPECT_EQ(plan.part.vocabulary, 19072);
  EXPECT_EQ(plan.part.drafter.ffn_width, 2048);
  EXPECT_EQ(plan.part.drafter.mask_token_id, 151669);
  // 20,054,016 bytes an expert; a fused shard of 3392 rows has 27 rows of scales.
  EXPECT_EQ(plan[TensorKind::kExperts].gpu_bytes, int64_t{69} * 384 * 20'054'016 / 8);
  EXPECT_EQ(plan[TensorKind::kQkv].gpu_bytes, int64_t{70} * (3392 * 6144 + 27 * 48 * 4));
  EXPECT_EQ(plan[TensorKind::kOutput].gpu_bytes, int64_t{70} * 6144 * 2048 * 2);
  EXPECT_EQ(plan[TensorKind::kRouter].gpu_bytes, int64_t{69} * (384 * 6144 + 384) * 4);
  EXPECT_EQ(plan[TensorKind::kHead].gpu_bytes, int64_t{19072} * 6144 * 2);
  EXPECT_EQ(plan[TensorKind::kDrafterFeatures].gpu_bytes, int64_t{6144} * 30720 * 2);
  EXPECT_NEAR(static_cast<double>(plan.total().bytes) / 1e9, 567.3, 0.1);
  EXPECT_NEAR(static_cast<double>(plan.total().gpu_bytes) / 1e9, 71.8, 0.1);
}

TEST(ShardingPlanTest, OtherGpuCountsAreRefused) {
  for (const int gpus : {-1, 0, 3, 5, 6, 7, 9, 16}) {
    const absl::Status status = PlanSharding(MimoV25ProShape(), gpus).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), absl::StrCat("gpus: is ", gpus, "; must be 1, 2, 4 or 8"));
  }
}

TEST(ShardingPlanTest, WhatDoesNotDivideIsNamedWithItsNumber) {
  const auto refusal = [](int gpus, void (*change)(ModelConfig&)) {
    ModelConfig config = MimoV25ProShape();
    change(config);
    return std::string(PartOf(config, gpus).status().message());
  };
  EXPECT_THAT(refusal(8, [](ModelConfig& c) { c.num_kv_heads = 4; }),
              HasSubstr("num_key_value_heads: is 4; 8 GPUs need a multiple of 8"));
  EXPECT_THAT(
      refusal(4, [](ModelConfig& c) { c.dense_ffn_width = 16384 + 128; }),
      HasSubstr("intermediate_size: is 16512; 4 GPUs need a multiple of 512 (4 times blocks "
                "of 128)"));
  EXPECT_THAT(refusal(8, [](ModelConfig& c) { c.expert_ffn_width = 2048 + 32; }),
              HasSubstr("moe_intermediate_size: is 2080; 8 GPUs need a multiple of 256 (8 times "
                        "blocks of 32)"));
  EXPECT_THAT(refusal(8,
                      [](ModelConfig& c) {
                        c.expert_format = kernels::WeightFormat::kFp8Block128;
                        c.expert_ffn_width = 2048 + 256;
                      }),
              HasSubstr("moe_intermediate_size: is 2304; 8 GPUs need a multiple of 1024"));
  EXPECT_THAT(refusal(2, [](ModelConfig& c) { c.vocabulary = 152577; }),
              HasSubstr("vocab_size: is 152577; 2 GPUs need a multiple of 2"));
  EXPECT_THAT(refusal(8, [](ModelConfig& c) { c.drafter.num_kv_heads = 2; }),
              HasSubstr("dflash num_key_value_heads: is 2; 8 GPUs need a multiple of 8"));
  EXPECT_THAT(refusal(8, [](ModelConfig& c) { c.drafter.ffn_width = 96; }),
              HasSubstr("dflash intermediate_size: is 96; 8 GPUs need a multiple of 256"));
  EXPECT_THAT(refusal(8,
                      [](ModelConfig& c) {
                        c.num_q_heads = 8;
                        c.v_head_dim = 16;
                      }),
              HasSubstr("num_attention_heads times v_head_dim: is 128; 8 GPUs need a multiple of "
                        "256"));
  // One GPU divides nothing, whatever the shape.
  EXPECT_EQ(refusal(1, [](ModelConfig& c) { c.vocabulary = 152577; }), "");
}

TEST(ShardingPlanTest, PrintsEveryKind) {
  const std::string text = PlanSharding(MimoV25ProShape(), 8)->ToString();
  EXPECT_THAT(text, HasSubstr("8 GPUs; each: 16 query heads on 1 key heads, expert width 256"));
  for (const char* kind : {"experts", "qkv", "o_proj", "router", "embedding", "head", "draft mlp"})
    EXPECT_THAT(text, HasSubstr(kind));
}

}  // namespace
}  // namespace ultraspeed::worker
