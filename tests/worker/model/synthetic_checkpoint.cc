#include "tests/worker/model/synthetic_checkpoint.h"

#include <filesystem>
#include <fstream>
#include <random>

#include "absl/strings/str_cat.h"

namespace ultraspeed::worker {
namespace {

namespace json = boost::json;

std::map<std::string, SyntheticTensor> Fill(const std::vector<TensorSpec>& tensors,
                                            RandomContents& contents) {
  std::map<std::string, SyntheticTensor> out;
  for (const TensorSpec& tensor : tensors)
    out[tensor.name] = {tensor.dtype, tensor.shape, contents.Bytes(tensor)};
  return out;
}

}  // namespace

ModelConfig ConfigOf(const SyntheticShape& shape) {
  ModelConfig config;
  config.num_layers = shape.num_layers;
  config.hidden = shape.hidden;
  config.num_q_heads = shape.num_q_heads;
  config.num_kv_heads = shape.num_kv_heads;
  config.qk_head_dim = shape.qk_head_dim;
  config.v_head_dim = shape.v_head_dim;
  config.rotary_dims = shape.qk_head_dim / 2;
  config.window = shape.window;
  config.dense_ffn_width = shape.dense_ffn_width;
  config.expert_ffn_width = shape.expert_ffn_width;
  config.num_experts = shape.num_experts;
  config.experts_per_token = shape.experts_per_token;
  config.vocabulary = shape.vocabulary;
  config.context_tokens = shape.context_tokens;
  config.rope_theta_full = 1e7;
  config.rope_theta_sliding = 1e4;
  config.norm_epsilon = 1e-5f;
  config.value_scale = 0.612f;
  config.sinks_on_sliding = true;
  config.eos_token_ids = {1, 2};
  for (int l = 0; l < shape.num_layers; ++l) {
    const bool full = l == 0 || l == shape.num_layers - 1;
    config.attention.push_back(full ? AttentionKind::kFull : AttentionKind::kSliding);
    config.is_moe.push_back(l > 0);
  }
  if (shape.drafter_layers == 0) return config;
  DrafterConfig& drafter = config.drafter;
  drafter.num_layers = shape.drafter_layers;
  drafter.hidden = shape.hidden;
  drafter.num_q_heads = shape.drafter_q_heads;
  drafter.num_kv_heads = shape.drafter_kv_heads;
  drafter.head_dim = shape.drafter_head_dim;
  drafter.rotary_dims = shape.drafter_head_dim / 2;
  drafter.ffn_width = shape.drafter_ffn_width;
  drafter.block_size = shape.block_size;
  drafter.window = shape.drafter_window;
  drafter.mask_token_id = shape.vocabulary_used - 1;
  drafter.target_layer_ids = {0, shape.num_layers - 1};
  drafter.rope_theta = 1e4;
  drafter.norm_epsilon = 1e-5f;
  drafter.value_scale = 0.612f;
  drafter.has_sinks = true;
  drafter.markov_rank = shape.markov_rank;
  drafter.has_markov_gate = shape.has_markov_gate;
  drafter.vocabulary = shape.vocabulary;
  return config;
}

SyntheticCheckpoint MakeSyntheticCheckpoint(const SyntheticShape& shape) {
  const ModelConfig config = ConfigOf(shape);
  RandomContents contents(shape.seed);
  SyntheticCheckpoint out;
  out.config = TargetConfigJson(config);
  out.generation = GenerationJson(config);
  out.tokenizer = TokenizerJson(shape.vocabulary_used);
  out.target = Fill(TargetTensors(config), contents);
  if (shape.drafter_layers == 0) return out;
  out.drafter_config = DrafterConfigJson(config);
  out.drafter = Fill(DrafterTensors(config.drafter), contents);
  out.mask_pickle = MaskPickle(config.drafter.mask_token_id, config.hidden);
  out.mask_storage = contents.Bytes({.name = "mask_embed_tokens.weight",
                                     .dtype = "BF16",
                                     .shape = {config.hidden},
                                     .num_values = config.hidden});
  return out;
}

void SyntheticCheckpoint::Write(const std::string& folder) const {
  WriteBytes(folder + "/config.json", json::serialize(config));
  WriteBytes(folder + "/generation_config.json", json::serialize(generation));
  WriteBytes(folder + "/tokenizer.json", json::serialize(tokenizer));
  if (write_index) {
    std::map<std::string, SyntheticTensor> halves[2];
    json::object weight_map;
    size_t i = 0;
    for (const auto& [name, tensor] : target) {
      const size_t half = i++ % 2;
      halves[half][name] = tensor;
      weight_map[name] = absl::StrCat("model-", half + 1, ".safetensors");
    }
    WriteBytes(folder + "/model-1.safetensors", SafetensorsBytes(halves[0]));
    WriteBytes(folder + "/model-2.safetensors", SafetensorsBytes(halves[1]));
    WriteBytes(folder + "/model.safetensors.index.json",
               json::serialize(json::object{{"weight_map", weight_map}}));
  } else {
    WriteBytes(folder + "/model.safetensors", SafetensorsBytes(target));
  }
  if (drafter.empty()) return;
  std::filesystem::create_directory(folder + "/dflash");
  WriteBytes(folder + "/dflash/config.json", json::serialize(drafter_config));
  WriteBytes(folder + "/dflash/model.safetensors", SafetensorsBytes(drafter));
  WriteBytes(folder + "/dflash/mask_embedding.pt", MaskArchive(mask_pickle, mask_storage));
}

std::string SafetensorsBytes(const std::map<std::string, SyntheticTensor>& tensors) {
  json::object header;
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    json::array shape(tensor.shape.begin(), tensor.shape.end());
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", shape},
                    {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  const std::string text = json::serialize(header);
  const uint64_t text_bytes = text.size();
  std::string bytes(reinterpret_cast<const char*>(&text_bytes), sizeof(text_bytes));
  return bytes + text + data;
}

std::vector<int32_t> RandomPrompt(int count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> prompt;
  for (int i = 0; i < count; ++i) prompt.push_back(static_cast<int32_t>(random() % 119));
  return prompt;
}

void WriteBytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

}  // namespace ultraspeed::worker
