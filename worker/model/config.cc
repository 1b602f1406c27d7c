#include "worker/model/config.h"

#include <algorithm>
#include <filesystem>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "worker/batch.h"
#include "worker/model/json_file.h"

namespace ultraspeed::worker {
namespace {

// Bounds that keep every product of two of these within an int and every buffer within reason; the
// largest published model is far inside them.
constexpr int64_t kLayersMax = 1024;
constexpr int64_t kWidthMax = 1 << 17;
constexpr int64_t kHeadsMax = 512;
constexpr int kMarkovRankMax = 1024;
constexpr int64_t kHeadDimMax = 512;
constexpr int64_t kExpertsMax = 1024;
constexpr int64_t kExpertsPerTokenMax = 64;
constexpr int64_t kVocabularyMax = 1 << 21;
constexpr int64_t kContextMax = 1 << 24;
constexpr int kMatrixColumnsMultiple = 32;  // what one MXFP4 scale covers
constexpr int kHeadDimMultiple = 32;        // what the attention kernels take: qk dimensions,
constexpr int kValueDimMultiple = 16;       // v dimensions,
constexpr int64_t kValueDimMax = 256;       // and their number

void RequireMultiple(JsonFields& fields, const char* key, int64_t value, int64_t multiple) {
  if (value % multiple != 0) {
    fields.Fail(key, absl::StrCat("gives ", value, "; must be a multiple of ", multiple));
  }
}

int RotaryDims(JsonFields& fields, int head_dim) {
  const double factor = fields.Number("partial_rotary_factor", 1e-3, 1.0);
  const int dims = static_cast<int>(head_dim * factor);
  if (dims < 2 || dims % 2 != 0) {
    fields.Fail("partial_rotary_factor",
                absl::StrCat("gives ", dims, " rotary dimensions; must be even and at least 2"));
  }
  return dims;
}

void ReadAttention(JsonFields& fields, ModelConfig& config) {
  config.num_q_heads = static_cast<int>(fields.Int("num_attention_heads", 1, kHeadsMax));
  config.num_kv_heads = static_cast<int>(fields.Int("num_key_value_heads", 1, config.num_q_heads));
  if (config.num_q_heads % config.num_kv_heads != 0) {
    fields.Fail("num_key_value_heads",
                absl::StrCat("is ", config.num_kv_heads,
                             "; must divide num_attention_heads = ", config.num_q_heads));
  }
  config.qk_head_dim = static_cast<int>(fields.Int("head_dim", kHeadDimMultiple, kHeadDimMax));
  RequireMultiple(fields, "head_dim", config.qk_head_dim, kHeadDimMultiple);
  config.v_head_dim = static_cast<int>(fields.Int("v_head_dim", kValueDimMultiple, kValueDimMax));
  RequireMultiple(fields, "v_head_dim", config.v_head_dim, kValueDimMultiple);
  if (config.num_q_heads * config.v_head_dim % kMatrixColumnsMultiple != 0) {
    fields.Fail("v_head_dim", absl::StrCat("times num_attention_heads is ",
                                           config.num_q_heads * config.v_head_dim,
                                           "; must be a multiple of ", kMatrixColumnsMultiple));
  }
  config.rotary_dims = RotaryDims(fields, config.qk_head_dim);
  config.window = static_cast<int>(fields.Int("sliding_window", 1, 1 << 16));
  config.rope_theta_full = fields.Number("rope_theta", 1, 1e12);
  config.rope_theta_sliding = fields.Number("swa_rope_theta", 1, 1e12);
  config.value_scale = static_cast<float>(fields.NumberOr("attention_value_scale", 1e-6, 1e6, 1));
  config.sinks_on_sliding = fields.BoolOr("add_swa_attention_sink_bias", false);

  fields.ExpectInt("sliding_window_size", config.window);
  fields.ExpectInt("swa_num_attention_heads", config.num_q_heads);
  fields.ExpectInt("swa_num_key_value_heads", config.num_kv_heads);
  fields.ExpectInt("swa_head_dim", config.qk_head_dim);
  fields.ExpectInt("swa_v_head_dim", config.v_head_dim);
  fields.ExpectBool("add_full_attention_sink_bias", false);
  fields.ExpectBool("attention_bias", false);
  fields.ExpectString("attention_projection_layout", "fused_qkv");
  if (fields.Has("rope_scaling")) fields.Fail("rope_scaling", "is not supported; must be null");

  const auto layers = static_cast<size_t>(config.num_layers);
  for (int64_t kind : fields.IntArray("hybrid_layer_pattern", layers, layers, 0, 1)) {
    config.attention.push_back(kind == 1 ? AttentionKind::kSliding : AttentionKind::kFull);
  }
}

void ReadFeedForward(JsonFields& fields, ModelConfig& config) {
  config.dense_ffn_width = static_cast<int>(fields.Int("intermediate_size", 32, kWidthMax));
  RequireMultiple(fields, "intermediate_size", config.dense_ffn_width, kMatrixColumnsMultiple);
  config.expert_ffn_width = static_cast<int>(fields.Int("moe_intermediate_size", 32, kWidthMax));
  RequireMultiple(fields, "moe_intermediate_size", config.expert_ffn_width, kMatrixColumnsMultiple);
  config.num_experts = static_cast<int>(fields.Int("n_routed_experts", 1, kExpertsMax));
  config.experts_per_token = static_cast<int>(fields.Int(
      "num_experts_per_tok", 1, std::min<int64_t>(kExpertsPerTokenMax, config.num_experts)));
  const auto layers = static_cast<size_t>(config.num_layers);
  for (int64_t moe : fields.IntArray("moe_layer_freq", layers, layers, 0, 1)) {
    config.is_moe.push_back(moe == 1);
  }
  fields.ExpectString("hidden_act", "silu");
  fields.ExpectString("scoring_func", "sigmoid");
  fields.ExpectString("topk_method", "noaux_tc");
  fields.ExpectBool("norm_topk_prob", true);
  fields.ExpectInt("n_group", 1);
  fields.ExpectInt("topk_group", 1);
  fields.ExpectInt("n_shared_experts", 0);
  fields.ExpectNumber("routed_scaling_factor", 1.0);
}

void ReadQuantization(JsonFields& fields, ModelConfig& config) {
  JsonFields quantization = fields.Object("quantization_config");
  if (quantization.String("quant_method") != "fp8") {
    quantization.Fail("quant_method", "only \"fp8\" is supported");
  }
  quantization.ExpectString("fmt", "e4m3");
  const std::vector<int64_t> block = quantization.IntArray("weight_block_size", 2, 2, 1, 1 << 20);
  if (!block.empty() && (block[0] != 128 || block[1] != 128)) {
    quantization.Fail("weight_block_size", absl::StrCat("is [", block[0], ", ", block[1],
                                                        "]; only [128, 128] is supported"));
  }
  quantization.ExpectString("store_dtype", "mxfp4");
  quantization.ExpectInt("mxfp4_block_size", 32);
  config.expert_format = quantization.Has("store_dtype") ? kernels::WeightFormat::kMxfp4
                                                         : kernels::WeightFormat::kFp8Block128;
  fields.Absorb(quantization);
}

absl::Status ReadTarget(const std::string& path, ModelConfig& config) {
  absl::StatusOr<boost::json::object> object = ReadJsonObject(path);
  if (!object.ok()) return object.status();
  JsonFields fields(path, *object);
  fields.ExpectString("model_type", "mimo_v2");
  config.num_layers = static_cast<int>(fields.Int("num_hidden_layers", 1, kLayersMax));
  config.hidden = static_cast<int>(fields.Int("hidden_size", 32, kWidthMax));
  RequireMultiple(fields, "hidden_size", config.hidden, kMatrixColumnsMultiple);
  config.vocabulary = static_cast<int>(fields.Int("vocab_size", 2, kVocabularyMax));
  config.context_tokens = fields.Int("max_position_embeddings", 16, kContextMax);
  config.norm_epsilon = static_cast<float>(fields.Number("layernorm_epsilon", 1e-12, 1e-2));
  fields.ExpectBool("tie_word_embeddings", false);
  if (!fields.status().ok()) return fields.status();  // the array lengths below depend on these
  ReadAttention(fields, config);
  ReadFeedForward(fields, config);
  ReadQuantization(fields, config);
  return fields.status();
}

absl::Status ReadGeneration(const std::string& path, ModelConfig& config) {
  absl::StatusOr<boost::json::object> object = ReadJsonObject(path);
  if (!object.ok()) return object.status();
  JsonFields fields(path, *object);
  const boost::json::value* eos = object->if_contains("eos_token_id");
  if (eos != nullptr && eos->is_array()) {
    for (int64_t id : fields.IntArray("eos_token_id", 1, 16, 0, config.vocabulary - 1)) {
      config.eos_token_ids.push_back(static_cast<int32_t>(id));
    }
  } else {
    config.eos_token_ids = {
        static_cast<int32_t>(fields.Int("eos_token_id", 0, config.vocabulary - 1))};
  }
  config.default_temperature = static_cast<float>(fields.NumberOr("temperature", 0, 2, 1));
  config.default_top_p = static_cast<float>(fields.NumberOr("top_p", 1e-6, 1, 1));
  config.enable_thinking_default = fields.BoolOr("enable_thinking", true);
  return fields.status();
}

absl::Status ReadDrafter(const std::string& path, const ModelConfig& target,
                         DrafterConfig& config) {
  absl::StatusOr<boost::json::object> object = ReadJsonObject(path);
  if (!object.ok()) return object.status();
  JsonFields fields(path, *object);
  config.num_layers = static_cast<int>(fields.Int("num_hidden_layers", 1, 64));
  config.hidden = static_cast<int>(fields.Int("hidden_size", target.hidden, target.hidden));
  config.num_q_heads = static_cast<int>(fields.Int("num_attention_heads", 1, kHeadsMax));
  config.num_kv_heads = static_cast<int>(fields.Int("num_key_value_heads", 1, config.num_q_heads));
  if (config.num_q_heads % config.num_kv_heads != 0) {
    fields.Fail("num_key_value_heads",
                absl::StrCat("is ", config.num_kv_heads,
                             "; must divide num_attention_heads = ", config.num_q_heads));
  }
  config.head_dim = static_cast<int>(fields.Int("head_dim", kHeadDimMultiple, kValueDimMax));
  RequireMultiple(fields, "head_dim", config.head_dim, kHeadDimMultiple);
  fields.ExpectInt("v_head_dim", config.head_dim);
  config.rotary_dims = RotaryDims(fields, config.head_dim);
  config.ffn_width = static_cast<int>(fields.Int("intermediate_size", 32, kWidthMax));
  RequireMultiple(fields, "intermediate_size", config.ffn_width, kMatrixColumnsMultiple);
  config.block_size = static_cast<int>(fields.Int("block_size", 2, kDraftBlockMax));
  config.rope_theta = fields.Number("rope_theta", 1, 1e12);
  config.norm_epsilon = static_cast<float>(fields.Number("rms_norm_eps", 1e-12, 1e-2));
  fields.ExpectInt("num_target_layers", target.num_layers);
  fields.ExpectString("hidden_act", "silu");
  fields.ExpectBool("attention_bias", false);

  JsonFields dflash = fields.Object("dflash_config");
  dflash.ExpectInt("block_size", config.block_size);
  dflash.ExpectBool("use_swa", true);
  config.window = static_cast<int>(dflash.Int("swa_window_size", 1, 1 << 16));
  fields.ExpectInt("sliding_window", config.window);
  config.mask_token_id =
      static_cast<int32_t>(dflash.Int("mask_token_id", 0, target.vocabulary - 1));
  config.value_scale = static_cast<float>(dflash.NumberOr("attention_value_scale", 1e-6, 1e6, 1));
  config.has_sinks = dflash.BoolOr("attention_sink_bias", false);
  for (int64_t layer : dflash.IntArray("target_layer_ids", 1, 16, 0, target.num_layers - 1)) {
    if (!config.target_layer_ids.empty() && layer <= config.target_layer_ids.back()) {
      dflash.Fail("target_layer_ids",
                  absl::StrCat("holds ", layer, " after ", config.target_layer_ids.back(),
                               "; must ascend"));
    }
    config.target_layer_ids.push_back(static_cast<int>(layer));
  }
  config.vocabulary = target.vocabulary;
  config.markov_rank = static_cast<int>(fields.IntOr("markov_rank", 0, kMarkovRankMax, 0));
  if (config.markov_rank > 0) {
    RequireMultiple(fields, "markov_rank", config.markov_rank, kMatrixColumnsMultiple);
    const std::string type = fields.String("markov_head_type");
    config.has_markov_gate = type == "gated";
    if (type != "vanilla" && type != "gated") {
      fields.Fail("markov_head_type",
                  absl::StrCat("is \"", type, "\"; must be \"vanilla\" or \"gated\""));
    }
  }
  fields.Absorb(dflash);
  return fields.status();
}

}  // namespace

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& folder, ExpertPrecision experts) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    return absl::NotFoundError(absl::StrCat(folder, ": no such folder"));
  }
  ModelConfig config;
  fs::path path = fs::absolute(folder).lexically_normal();
  config.name = (path.has_filename() ? path : path.parent_path()).filename().string();
  if (absl::Status s = ReadTarget(folder + "/config.json", config); !s.ok()) return s;
  if (absl::Status s = ReadGeneration(folder + "/generation_config.json", config); !s.ok())
    return s;
  if (fs::is_directory(folder + "/dflash", error)) {
    if (absl::Status s = ReadDrafter(folder + "/dflash/config.json", config, config.drafter);
        !s.ok()) {
      return s;
    }
  }
  if (experts == ExpertPrecision::kMxfp4 && config.expert_format != kernels::WeightFormat::kMxfp4) {
    config.requantize_experts = true;
    config.expert_format = kernels::WeightFormat::kMxfp4;
  }
  return config;
}

}  // namespace ultraspeed::worker
