// Both config.json files: what is accepted, and that each wrong value is refused with file, key and
// what is allowed.
#include "worker/model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/temporary_folder.h"
#include "tests/worker/model/synthetic_checkpoint.h"
#include "worker/model/vocabulary.h"

namespace ultraspeed::worker {
namespace {

using testing::HasSubstr;

// The message with which a checkpoint is refused after `damage`.
std::string Refusal(const std::function<void(SyntheticCheckpoint&)>& damage) {
  TemporaryFolder folder;
  SyntheticCheckpoint checkpoint = MakeSyntheticCheckpoint({});
  damage(checkpoint);
  checkpoint.Write(folder.path());
  const absl::StatusOr<ModelConfig> config = LoadModelConfig(folder.path());
  return config.ok() ? "accepted" : std::string(config.status().message());
}

TEST(ModelConfigTest, ReadsEveryField) {
  TemporaryFolder folder;
  MakeSyntheticCheckpoint({}).Write(folder.path());
  const ModelConfig config = *LoadModelConfig(folder.path());
  EXPECT_EQ(config.num_layers, 4);
  EXPECT_EQ(config.hidden, 64);
  EXPECT_EQ(config.num_q_heads, 4);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.qk_head_dim, 64);
  EXPECT_EQ(config.v_head_dim, 32);
  EXPECT_EQ(config.rotary_dims, 32);
  EXPECT_EQ(config.window, 16);
  EXPECT_EQ(config.num_experts, 8);
  EXPECT_EQ(config.experts_per_token, 3);
  EXPECT_EQ(config.qkv_shard_rows(), 3 * 64 + 32);
  EXPECT_EQ(config.expert_format, kernels::WeightFormat::kMxfp4);
  EXPECT_EQ(config.attention,
            (std::vector<AttentionKind>{AttentionKind::kFull, AttentionKind::kSliding,
                                        AttentionKind::kSliding, AttentionKind::kFull}));
  EXPECT_EQ(config.is_moe, (std::vector<bool>{false, true, true, true}));
  EXPECT_EQ(config.eos_token_ids, (std::vector<int32_t>{1, 2}));
  EXPECT_FLOAT_EQ(config.default_top_p, 0.95f);
  EXPECT_TRUE(config.enable_thinking_default);
  EXPECT_EQ(config.drafter.block_size, 8);
  EXPECT_EQ(config.drafter.window, 48);
  EXPECT_EQ(config.drafter.target_layer_ids, (std::vector<int>{0, 3}));
  EXPECT_EQ(config.drafter.mask_token_id, 119);
  EXPECT_EQ(*CountUsedTokens(folder.path(), config.vocabulary), 120);
}

struct WrongValue {
  const char* key;
  boost::json::value value;
  const char* message;
};

TEST(ModelConfigTest, EachWrongValueIsRefusedByName) {
  const WrongValue cases[] = {
      {"hidden_size", 65, "hidden_size: gives 65; must be a multiple of 32"},
      {"hidden_size", -64, "hidden_size: is -64; must be an integer from 32 to 131072"},
      {"hidden_size", "64", "hidden_size: is \"64\"; must be an integer"},
      {"hidden_size", 1e300, "hidden_size: is 1E300; must be an integer"},
      {"num_hidden_layers", 1000000,
       "num_hidden_layers: is 1000000; must be an integer from 1 to 1024"},
      {"num_attention_heads", 0, "num_attention_heads: is 0"},
      {"num_key_value_heads", 3, "num_key_value_heads: is 3; must divide num_attention_heads = 4"},
      {"num_key_value_heads", 8, "num_key_value_heads: is 8; must be an integer from 1 to 4"},
      {"head_dim", 48, "head_dim: gives 48; must be a multiple of 32"},
      {"v_head_dim", 512, "v_head_dim: is 512; must be an integer from 16 to 256"},
      {"partial_rotary_factor", 0.01, "partial_rotary_factor: gives 0 rotary dimensions"},
      {"partial_rotary_factor", 1.5,
       "partial_rotary_factor: is 1.5E0; must be a number from 0.001 to 1"},
      {"rope_theta", 0, "rope_theta: is 0; must be a number from 1"},
      {"rope_scaling", boost::json::object{{"type", "yarn"}}, "rope_scaling: is not supported"},
      {"sliding_window", 0, "sliding_window: is 0"},
      {"sliding_window_size", 17, "sliding_window_size: is 17; only 16 is supported"},
      {"swa_head_dim", 32, "swa_head_dim: is 32; only 64 is supported"},
      {"hybrid_layer_pattern", boost::json::array{0, 1, 1},
       "hybrid_layer_pattern: is [0,1,1]; must be an array of 4 to 4 integers"},
      {"moe_layer_freq", boost::json::array{0, 1, 2, 1},
       "moe_layer_freq: holds 2; each must be an integer from 0 to 1"},
      {"num_experts_per_tok", 9, "num_experts_per_tok: is 9; must be an integer from 1 to 8"},
      {"n_routed_experts", 100000,
       "n_routed_experts: is 100000; must be an integer from 1 to 1024"},
      {"n_shared_experts", 1, "n_shared_experts: is 1; only 0 is supported"},
      {"n_group", 2, "n_group: is 2; only 1 is supported"},
      {"scoring_func", "softmax", "scoring_func: is \"softmax\"; only \"sigmoid\" is supported"},
      {"hidden_act", "gelu", "hidden_act: is \"gelu\""},
      {"norm_topk_prob", false, "norm_topk_prob: is false; only true is supported"},
      {"routed_scaling_factor", 2.5, "routed_scaling_factor: is 2.5E0; only 1 is supported"},
      {"tie_word_embeddings", true, "tie_word_embeddings: is true; only false is supported"},
      {"attention_bias", true, "attention_bias"},
      {"attention_projection_layout", "separate", "attention_projection_layout"},
      {"add_full_attention_sink_bias", true, "add_full_attention_sink_bias"},
      {"vocab_size", 1LL << 40,
       "vocab_size: is 1099511627776; must be an integer from 2 to 2097152"},
      {"max_position_embeddings", 1LL << 60, "max_position_embeddings"},
      {"layernorm_epsilon", 0, "layernorm_epsilon"},
      {"model_type", "llama", "model_type: is \"llama\"; only \"mimo_v2\" is supported"},
      {"quantization_config", 7, "quantization_config: is 7; must be an object"},
  };
  for (const WrongValue& wrong : cases) {
    const std::string message =
        Refusal([&](SyntheticCheckpoint& c) { c.config[wrong.key] = wrong.value; });
    EXPECT_THAT(message, HasSubstr(wrong.message));
    EXPECT_THAT(message, HasSubstr("/config.json: "));
  }
}

TEST(ModelConfigTest, EachMissingKeyIsRefusedByName) {
  for (const char* key : {"hidden_size",
                          "num_hidden_layers",
                          "num_attention_heads",
                          "num_key_value_heads",
                          "head_dim",
                          "v_head_dim",
                          "partial_rotary_factor",
                          "rope_theta",
                          "swa_rope_theta",
                          "sliding_window",
                          "hybrid_layer_pattern",
                          "moe_layer_freq",
                          "intermediate_size",
                          "moe_intermediate_size",
                          "n_routed_experts",
                          "num_experts_per_tok",
                          "vocab_size",
                          "max_position_embeddings",
                          "layernorm_epsilon",
                          "quantization_config"}) {
    EXPECT_THAT(Refusal([&](SyntheticCheckpoint& c) { c.config.erase(key); }),
                HasSubstr(std::string(key) + ": is missing"));
  }
  EXPECT_THAT(Refusal([](SyntheticCheckpoint& c) { c.generation.erase("eos_token_id"); }),
              HasSubstr("generation_config.json: eos_token_id: is missing"));
}

TEST(ModelConfigTest, WrongDrafterValuesAreRefusedByName) {
  const auto top = [](const char* key, boost::json::value value) {
    return Refusal([&](SyntheticCheckpoint& c) { c.drafter_config[key] = value; });
  };
  const auto nested = [](const char* key, boost::json::value value) {
    return Refusal([&](SyntheticCheckpoint& c) {
      c.drafter_config["dflash_config"].as_object()[key] = value;
    });
  };
  EXPECT_THAT(
      top("hidden_size", 128),
      HasSubstr("dflash/config.json: hidden_size: is 128; must be an integer from 64 to 64"));
  EXPECT_THAT(top("block_size", 17),
              HasSubstr("block_size: is 17; must be an integer from 2 to 16"));
  EXPECT_THAT(top("v_head_dim", 64), HasSubstr("v_head_dim: is 64; only 32 is supported"));
  EXPECT_THAT(top("num_target_layers", 5),
              HasSubstr("num_target_layers: is 5; only 4 is supported"));
  EXPECT_THAT(top("dflash_config", nullptr),
              HasSubstr("dflash_config: is null; must be an object"));
  EXPECT_THAT(nested("block_size", 4),
              HasSubstr("dflash_config: block_size: is 4; only 8 is supported"));
  EXPECT_THAT(nested("mask_token_id", 128),
              HasSubstr("mask_token_id: is 128; must be an integer from 0 to 127"));
  EXPECT_THAT(nested("target_layer_ids", boost::json::array{0, 4}),
              HasSubstr("target_layer_ids: holds 4"));
  EXPECT_THAT(nested("target_layer_ids", boost::json::array{3, 0}),
              HasSubstr("target_layer_ids: holds 0 after 3; must ascend"));
  EXPECT_THAT(nested("swa_window_size", 0), HasSubstr("swa_window_size: is 0"));
}

TEST(ModelConfigTest, MarkovHeadsAreVanillaOrGated) {
  const auto with = [](boost::json::value rank, boost::json::value type) {
    return Refusal([&](SyntheticCheckpoint& c) {
      c.drafter_config["markov_rank"] = rank;
      c.drafter_config["markov_head_type"] = type;
    });
  };
  EXPECT_EQ(with(64, "vanilla"), "accepted");
  EXPECT_EQ(with(64, "gated"), "accepted");
  EXPECT_EQ(with(0, "rnn"), "accepted");  // of no rank, there is none
  EXPECT_THAT(with(64, "rnn"), HasSubstr("dflash/config.json: markov_head_type: is \"rnn\"; must "
                                         "be \"vanilla\" or \"gated\""));
  EXPECT_THAT(with(64, nullptr), HasSubstr("markov_head_type"));
  EXPECT_THAT(with(40, "gated"), HasSubstr("markov_rank: gives 40; must be a multiple of 32"));
  EXPECT_THAT(with(2048, "gated"),
              HasSubstr("markov_rank: is 2048; must be an integer from 0 to 1024"));

  TemporaryFolder folder;
  MakeSyntheticCheckpoint({.markov_rank = 32, .has_markov_gate = true}).Write(folder.path());
  const ModelConfig config = *LoadModelConfig(folder.path());
  EXPECT_EQ(config.drafter.markov_rank, 32);
  EXPECT_TRUE(config.drafter.has_markov_gate);
  EXPECT_EQ(config.drafter.vocabulary, config.vocabulary);
}

TEST(ModelConfigTest, GenerationAndQuantizationAreChecked) {
  EXPECT_THAT(Refusal([](SyntheticCheckpoint& c) { c.generation["eos_token_id"] = 128; }),
              HasSubstr("eos_token_id: is 128; must be an integer from 0 to 127"));
  EXPECT_THAT(Refusal([](SyntheticCheckpoint& c) { c.generation["top_p"] = 1.2; }),
              HasSubstr("top_p"));
  const auto quantization = [](const char* key, boost::json::value value) {
    return Refusal(
        [&](SyntheticCheckpoint& c) { c.config["quantization_config"].as_object()[key] = value; });
  };
  EXPECT_THAT(quantization("quant_method", "awq"),
              HasSubstr("quantization_config: quant_method: only \"fp8\" is supported"));
  EXPECT_THAT(quantization("fmt", "e5m2"), HasSubstr("fmt: is \"e5m2\""));
  EXPECT_THAT(quantization("weight_block_size", boost::json::array{64, 128}),
              HasSubstr("weight_block_size: is [64, 128]"));
  EXPECT_THAT(quantization("store_dtype", "nvfp4"), HasSubstr("store_dtype"));
  EXPECT_THAT(quantization("mxfp4_block_size", 16),
              HasSubstr("mxfp4_block_size: is 16; only 32 is supported"));
}

TEST(ModelConfigTest, BrokenFilesAreRefusedByName) {
  TemporaryFolder folder;
  EXPECT_THAT(std::string(LoadModelConfig(folder.path()).status().message()),
              HasSubstr("/config.json: no such file"));
  WriteBytes(folder.path() + "/config.json", "{\"hidden_size\": ");
  EXPECT_THAT(std::string(LoadModelConfig(folder.path()).status().message()),
              HasSubstr("/config.json: not JSON"));
  WriteBytes(folder.path() + "/config.json", "[]");
  EXPECT_THAT(std::string(LoadModelConfig(folder.path()).status().message()),
              HasSubstr("must be a JSON object"));
  WriteBytes(folder.path() + "/config.json", std::string(100000, '['));
  EXPECT_THAT(std::string(LoadModelConfig(folder.path()).status().message()),
              HasSubstr("not JSON"));
}

TEST(VocabularyTest, IdsOutsideTheEmbeddingAreRefused) {
  const auto refusal = [](const std::function<void(SyntheticCheckpoint&)>& damage) {
    TemporaryFolder folder;
    SyntheticCheckpoint checkpoint = MakeSyntheticCheckpoint({});
    damage(checkpoint);
    checkpoint.Write(folder.path());
    return std::string(CountUsedTokens(folder.path(), 128).status().message());
  };
  EXPECT_THAT(refusal([](SyntheticCheckpoint& c) {
                c.tokenizer["added_tokens"] = {boost::json::object{{"id", 128}}};
              }),
              HasSubstr("has id 128; must be an integer from 0 to 127"));
  EXPECT_THAT(refusal([](SyntheticCheckpoint& c) {
                c.tokenizer["added_tokens"] = {boost::json::object{{"content", "x"}}};
              }),
              HasSubstr("an id is missing"));
  EXPECT_THAT(refusal([](SyntheticCheckpoint& c) {
                c.tokenizer["model"].as_object()["vocab"].as_object()["t3"] = -1;
              }),
              HasSubstr("token \"t3\" has id -1"));
  EXPECT_THAT(refusal([](SyntheticCheckpoint& c) { c.tokenizer.erase("model"); }),
              HasSubstr("model.vocab"));
}

}  // namespace
}  // namespace ultraspeed::worker
