#include "worker/model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/worker/model/load_checkpoint.h"

namespace ultraspeed::worker {
namespace {

namespace json = boost::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

const SyntheticCheckpoint& Good() {
  static const SyntheticCheckpoint checkpoint(SyntheticShape{}, 1);
  return checkpoint;
}

absl::StatusOr<ModelConfig> LoadConfig(const SyntheticCheckpoint& checkpoint) {
  const TemporaryFolder folder;
  checkpoint.Write(folder.path());
  return LoadModelConfig(folder.path());
}

// `key` may be "outer.inner".
json::object& Owner(json::object& object, std::string& key) {
  const size_t dot = key.find('.');
  if (dot == std::string::npos) return object;
  json::object& inner = object.at(key.substr(0, dot)).as_object();
  key = key.substr(dot + 1);
  return inner;
}

void ExpectRefused(json::object SyntheticCheckpoint::*file, const std::string& file_name,
                   const std::string& key, const json::value& value, bool erase = false) {
  SCOPED_TRACE(absl::StrCat(file_name, ": ", key, " = ", erase ? "(erased)" : json::serialize(value)));
  SyntheticCheckpoint checkpoint = Good();
  std::string last = key;
  json::object& owner = Owner(checkpoint.*file, last);
  if (erase) {
    owner.erase(last);
  } else {
    owner[last] = value;
  }
  const absl::Status status = LoadConfig(checkpoint).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(file_name), HasSubstr(last)));
}

TEST(ConfigTest, ReadsEveryField) {
  const absl::StatusOr<ModelConfig> config = LoadConfig(Good());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->num_layers, 3);
  EXPECT_EQ(config->hidden, 64);
  EXPECT_EQ(config->num_q_heads, 4);
  EXPECT_EQ(config->num_kv_heads, 2);
  EXPECT_EQ(config->qk_head_dim, 32);
  EXPECT_EQ(config->v_head_dim, 16);
  EXPECT_EQ(config->rotary_dims, 10);
  EXPECT_EQ(config->window, 16);
  EXPECT_EQ(config->dense_ffn_width, 96);
  EXPECT_EQ(config->expert_ffn_width, 32);
  EXPECT_EQ(config->num_experts, 5);
  EXPECT_EQ(config->experts_per_token, 2);
  EXPECT_EQ(config->expert_format, kernels::WeightFormat::kMxfp4);
  EXPECT_EQ(config->vocabulary, 160);
  EXPECT_EQ(config->context_tokens, 1024);
  EXPECT_EQ(config->rope_theta_full, 1e7);
  EXPECT_EQ(config->rope_theta_sliding, 1e4);
  EXPECT_FLOAT_EQ(config->norm_epsilon, 1e-5f);
  EXPECT_FLOAT_EQ(config->value_scale, 0.612f);
  EXPECT_TRUE(config->sinks_on_sliding);
  EXPECT_THAT(config->attention,
              ElementsAre(AttentionKind::kFull, AttentionKind::kSliding, AttentionKind::kFull));
  EXPECT_THAT(config->is_moe, ElementsAre(false, true, true));
  EXPECT_THAT(config->eos_token_ids, ElementsAre(0, 1));
  EXPECT_FLOAT_EQ(config->default_temperature, 1.0f);
  EXPECT_FLOAT_EQ(config->default_top_p, 0.95f);
  EXPECT_EQ(config->qkv_shard_rows(), 3 * 32 + 16);
  const DrafterConfig& drafter = config->drafter;
  EXPECT_EQ(drafter.num_layers, 2);
  EXPECT_EQ(drafter.hidden, 64);
  EXPECT_EQ(drafter.head_dim, 32);
  EXPECT_EQ(drafter.rotary_dims, 16);
  EXPECT_EQ(drafter.block_size, 6);
  EXPECT_EQ(drafter.window, 24);
  EXPECT_EQ(drafter.mask_token_id, 149);
  EXPECT_THAT(drafter.target_layer_ids, ElementsAre(0, 2));
  EXPECT_FLOAT_EQ(drafter.value_scale, 0.612f);
  EXPECT_TRUE(drafter.has_sinks);
}

TEST(ConfigTest, ReadsTheBundledModel) {
  for (const char* folder : {"models/tiny-mimo", "models/tiny-mimo/"}) {
    const absl::StatusOr<ModelConfig> config = LoadModelConfig(folder);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->name, "tiny-mimo");
    EXPECT_EQ(config->rotary_dims, 64);
    EXPECT_EQ(config->window, 128);
    EXPECT_EQ(config->drafter.block_size, 8);
    EXPECT_EQ(config->drafter.window, 1024);
    EXPECT_FALSE(config->enable_thinking_default);
  }
}

TEST(ConfigTest, AFolderWithoutDrafterHasNone) {
  SyntheticShape shape;
  shape.drafter_layers = 0;
  const absl::StatusOr<ModelConfig> config = LoadConfig(SyntheticCheckpoint(shape, 1));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->drafter.num_layers, 0);
}

TEST(ConfigTest, MissingFilesAreNotFoundByName) {
  EXPECT_EQ(LoadModelConfig("/nonexistent/folder").status().code(), absl::StatusCode::kNotFound);
  for (const char* file : {"/config.json", "/generation_config.json", "/dflash/config.json"}) {
    const TemporaryFolder folder;
    Good().Write(folder.path());
    std::remove((folder.path() + file).c_str());
    const absl::Status status = LoadModelConfig(folder.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(file));
  }
}

TEST(ConfigTest, ADocumentThatIsNoJsonObjectIsRefused) {
  for (const char* text : {"", "{", "[]", "null", "{\"a\":1,}"}) {
    const TemporaryFolder folder;
    Good().Write(folder.path());
    WriteBytes(folder.path() + "/config.json", text);
    const absl::Status status = LoadModelConfig(folder.path()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("config.json"));
  }
}

TEST(ConfigTest, RequiredKeysAreNamedWhenMissing) {
  for (const char* key :
       {"num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings", "layernorm_epsilon",
        "num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim", "partial_rotary_factor",
        "sliding_window", "rope_theta", "swa_rope_theta", "hybrid_layer_pattern", "intermediate_size",
        "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok", "moe_layer_freq",
        "quantization_config", "quantization_config.quant_method",
        "quantization_config.weight_block_size"}) {
    ExpectRefused(&SyntheticCheckpoint::config, "config.json", key, nullptr, true);
  }
  ExpectRefused(&SyntheticCheckpoint::generation_config, "generation_config.json", "eos_token_id", nullptr,
                true);
  for (const char* key :
       {"num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
        "intermediate_size", "block_size", "rope_theta", "rms_norm_eps", "dflash_config",
        "dflash_config.swa_window_size", "dflash_config.mask_token_id", "dflash_config.target_layer_ids"}) {
    ExpectRefused(&SyntheticCheckpoint::drafter_config, "dflash/config.json", key, nullptr, true);
  }
}

TEST(ConfigTest, TargetValuesOutOfRangeAreRefusedByKey) {
  const json::array two_layers = {0, 1};
  const std::pair<const char*, json::value> kCases[] = {
      {"model_type", "llama"},
      {"num_hidden_layers", 0},
      {"num_hidden_layers", -3},
      {"num_hidden_layers", 100000},
      {"num_hidden_layers", 1e300},
      {"num_hidden_layers", 18446744073709551615u},
      {"num_hidden_layers", "3"},
      {"num_hidden_layers", 2.5},
      {"hidden_size", 65},
      {"hidden_size", 0},
      {"hidden_size", 1 << 30},
      {"vocab_size", 1},
      {"vocab_size", int64_t{1} << 40},
      {"max_position_embeddings", 0},
      {"max_position_embeddings", int64_t{1} << 40},
      {"layernorm_epsilon", 0},
      {"layernorm_epsilon", -1e-5},
      {"layernorm_epsilon", "1e-5"},
      {"tie_word_embeddings", true},
      {"num_attention_heads", 0},
      {"num_attention_heads", 100000},
      {"num_key_value_heads", 3},
      {"num_key_value_heads", 8},
      {"head_dim", 0},
      {"head_dim", 100000},
      {"v_head_dim", 0},
      {"v_head_dim", 100000},
      {"v_head_dim", 7},
      {"partial_rotary_factor", 0},
      {"partial_rotary_factor", 1.5},
      {"partial_rotary_factor", 0.03},
      {"sliding_window", 0},
      {"sliding_window", 1 << 20},
      {"sliding_window_size", 15},
      {"rope_theta", 0},
      {"swa_rope_theta", -1},
      {"attention_value_scale", 0},
      {"add_swa_attention_sink_bias", 1},
      {"add_full_attention_sink_bias", true},
      {"swa_num_attention_heads", 8},
      {"swa_num_key_value_heads", 4},
      {"swa_head_dim", 64},
      {"swa_v_head_dim", 32},
      {"attention_bias", true},
      {"attention_projection_layout", "split"},
      {"rope_scaling", json::object{{"type", "yarn"}}},
      {"hybrid_layer_pattern", two_layers},
      {"hybrid_layer_pattern", json::array{0, 1, 2}},
      {"hybrid_layer_pattern", 1},
      {"intermediate_size", 97},
      {"moe_intermediate_size", 33},
      {"moe_intermediate_size", 0},
      {"n_routed_experts", 0},
      {"n_routed_experts", 1 << 20},
      {"num_experts_per_tok", 0},
      {"num_experts_per_tok", 6},
      {"moe_layer_freq", two_layers},
      {"moe_layer_freq", json::array{0, 1, "1"}},
      {"hidden_act", "gelu"},
      {"scoring_func", "softmax"},
      {"topk_method", "greedy"},
      {"norm_topk_prob", false},
      {"n_group", 2},
      {"topk_group", 2},
      {"n_shared_experts", 1},
      {"routed_scaling_factor", 2.5},
      {"quantization_config", 7},
      {"quantization_config.quant_method", "awq"},
      {"quantization_config.fmt", "e5m2"},
      {"quantization_config.weight_block_size", json::array{64, 64}},
      {"quantization_config.weight_block_size", json::array{128}},
      {"quantization_config.store_dtype", "nvfp4"},
      {"quantization_config.mxfp4_block_size", 16}};
  for (const auto& [key, value] : kCases) {
    ExpectRefused(&SyntheticCheckpoint::config, "config.json", key, value);
  }
}

// The kernels take heads of whole vectors and a bounded number of experts.
TEST(ConfigTest, ShapesThatTheKernelsCannotRunAreRefusedByKey) {
  for (const auto& [key, value] : {std::pair{"head_dim", 40}, {"v_head_dim", 24}, {"n_routed_experts", 1025}}) {
    SyntheticCheckpoint checkpoint = Good();
    checkpoint.config[key] = value;
    checkpoint.config[absl::StrCat("swa_", key)] = value;
    const absl::Status status = LoadConfig(checkpoint).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << key;
    EXPECT_THAT(std::string(status.message()), HasSubstr(key));
  }
  SyntheticCheckpoint checkpoint = Good();
  checkpoint.drafter_config["head_dim"] = 24;
  checkpoint.drafter_config["v_head_dim"] = 24;
  const absl::Status status = LoadConfig(checkpoint).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("head_dim"));
}

TEST(ConfigTest, GenerationValuesOutOfRangeAreRefusedByKey) {
  const std::pair<const char*, json::value> kCases[] = {
      {"eos_token_id", -1},           {"eos_token_id", 160},      {"eos_token_id", json::array()},
      {"eos_token_id", json::array{0, 160}}, {"eos_token_id", "0"}, {"temperature", -1},
      {"temperature", 3},             {"top_p", 0},               {"top_p", 1.5},
      {"enable_thinking", "yes"}};
  for (const auto& [key, value] : kCases) {
    ExpectRefused(&SyntheticCheckpoint::generation_config, "generation_config.json", key, value);
  }
}

TEST(ConfigTest, DrafterValuesOutOfRangeAreRefusedByKey) {
  const std::pair<const char*, json::value> kCases[] = {
      {"num_hidden_layers", 0},
      {"num_hidden_layers", 65},
      {"hidden_size", 128},
      {"num_key_value_heads", 3},
      {"head_dim", 0},
      {"v_head_dim", 16},
      {"partial_rotary_factor", 2},
      {"intermediate_size", 95},
      {"block_size", 1},
      {"block_size", 17},
      {"num_target_layers", 4},
      {"sliding_window", 25},
      {"rope_theta", 0},
      {"rms_norm_eps", 1},
      {"hidden_act", "relu"},
      {"attention_bias", true},
      {"dflash_config", json::array()},
      {"dflash_config.block_size", 7},
      {"dflash_config.use_swa", false},
      {"dflash_config.swa_window_size", 0},
      {"dflash_config.mask_token_id", 160},
      {"dflash_config.mask_token_id", -1},
      {"dflash_config.attention_value_scale", 0},
      {"dflash_config.attention_sink_bias", "true"},
      {"dflash_config.target_layer_ids", json::array()},
      {"dflash_config.target_layer_ids", json::array{0, 3}},
      {"dflash_config.target_layer_ids", json::array{2, 0}},
      {"dflash_config.target_layer_ids", json::array{0, 0}},
      {"dflash_config.target_layer_ids", json::array{-1}}};
  for (const auto& [key, value] : kCases) {
    ExpectRefused(&SyntheticCheckpoint::drafter_config, "dflash/config.json", key, value);
  }
}

}  // namespace
}  // namespace ultraspeed::worker
