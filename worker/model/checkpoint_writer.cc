#include "worker/model/checkpoint_writer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/ops.h"
#include "worker/model/stored_zip.h"

namespace ultraspeed::worker {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

constexpr size_t kPieceBytes = size_t{1} << 20;
constexpr size_t kTableSize = size_t{1} << 16;
constexpr float kGain = 0.8f;            // of a matrix: output over input
constexpr float kE2m1Deviation = 2.93f;  // of a random MXFP4 code
constexpr float kLogitDeviation = 2.4f;
constexpr int kExpertFilesPerLayer = 2;
constexpr int kDrafterFiles = 2;

template <typename T>
void Put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

template <typename Flags, typename Value>
json::array Pattern(const Flags& flags, Value one) {
  json::array pattern;
  for (const auto& flag : flags) pattern.push_back(flag == one ? 1 : 0);
  return pattern;
}

// A little above the exact fraction, as published (0.334), so that rounding down gives the number.
double RotaryFactor(int rotary_dims, int head_dim) {
  return rotary_dims * 2 == head_dim ? 0.5 : (rotary_dims + 0.1) / head_dim;
}

struct Distribution {
  float mean;
  float deviation;
};

Distribution DistributionOf(const TensorSpec& tensor) {
  const absl::string_view name = tensor.name;
  const float by_width = 1.0f / std::sqrt(static_cast<float>(tensor.shape.back()));
  if (absl::EndsWith(name, "norm.weight") || absl::EndsWith(name, "layernorm.weight"))
    return {1, 0.1f};
  if (absl::EndsWith(name, "attention_sink_bias")) return {0, 1};
  if (absl::EndsWith(name, "embed_tokens.weight")) return {0, 1};
  if (absl::EndsWith(name, "lm_head.weight")) return {0, kLogitDeviation * by_width};
  if (absl::EndsWith(name, "e_score_correction_bias")) return {0, 0.1f};
  if (absl::EndsWith(name, "_scale_inv")) {
    // Blocks of 128 columns: the matrix is about that much wider.
    const float width = static_cast<float>(tensor.shape.back()) * 128;
    return {kGain / std::sqrt(width), kGain * 0.1f / std::sqrt(width)};
  }
  return {0, kGain * by_width};
}

absl::Status WriteText(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat(path, ": cannot be written"));
  return absl::OkStatus();
}

struct WriteState {
  RandomContents contents;
  const LoadProgress& progress;
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;
};

absl::Status WriteTensors(const std::string& folder, const std::vector<TensorFile>& files,
                          WriteState& state) {
  for (const TensorFile& file : files) {
    const std::string path = absl::StrCat(folder, "/", file.name);
    std::ofstream out(path, std::ios::binary);
    out << SafetensorsHead(file.tensors);
    for (const TensorSpec& tensor : file.tensors) {
      state.contents.Write(tensor, [&](std::string_view piece) { out << piece; });
      state.bytes_done += tensor.bytes();
      if (!out) return absl::UnavailableError(absl::StrCat(path, ": cannot be written"));
    }
    out.close();
    if (!out) return absl::UnavailableError(absl::StrCat(path, ": cannot be written"));
    if (state.progress) state.progress(state.bytes_done, state.bytes_total);
  }
  return WriteText(folder + "/model.safetensors.index.json", json::serialize(IndexJson(files)));
}

int64_t Bytes(const std::vector<TensorFile>& files) {
  int64_t bytes = 0;
  for (const TensorFile& file : files) {
    for (const TensorSpec& tensor : file.tensors) bytes += tensor.bytes();
  }
  return bytes;
}

// 12 of "model.layers.12.mlp...", -1 of a tensor outside the layers.
int LayerOf(const std::string& name) {
  constexpr std::string_view kPrefix = "model.layers.";
  return name.rfind(kPrefix, 0) == 0 ? std::atoi(name.c_str() + kPrefix.size()) : -1;
}

// 3 of "...mlp.experts.3.up_proj...", -1 of another tensor.
int ExpertOf(const std::string& name) {
  constexpr std::string_view kPart = ".experts.";
  const size_t at = name.find(kPart);
  return at == std::string::npos ? -1 : std::atoi(name.c_str() + at + kPart.size());
}

}  // namespace

json::object TargetConfigJson(const ModelConfig& c) {
  json::object out = {{"architectures", {"MiMoV2ForCausalLM"}},
                      {"model_type", "mimo_v2"},
                      {"hidden_size", c.hidden},
                      {"num_hidden_layers", c.num_layers},
                      {"num_attention_heads", c.num_q_heads},
                      {"num_key_value_heads", c.num_kv_heads},
                      {"head_dim", c.qk_head_dim},
                      {"v_head_dim", c.v_head_dim},
                      {"partial_rotary_factor", RotaryFactor(c.rotary_dims, c.qk_head_dim)},
                      {"rope_theta", c.rope_theta_full},
                      {"swa_rope_theta", c.rope_theta_sliding},
                      {"sliding_window", c.window},
                      {"attention_value_scale", c.value_scale},
                      {"add_swa_attention_sink_bias", c.sinks_on_sliding},
                      {"add_full_attention_sink_bias", false},
                      {"attention_bias", false},
                      {"attention_projection_layout", "fused_qkv"},
                      {"intermediate_size", c.dense_ffn_width},
                      {"moe_intermediate_size", c.expert_ffn_width},
                      {"n_routed_experts", c.num_experts},
                      {"num_experts_per_tok", c.experts_per_token},
                      {"n_shared_experts", nullptr},
                      {"n_group", 1},
                      {"topk_group", 1},
                      {"norm_topk_prob", true},
                      {"scoring_func", "sigmoid"},
                      {"topk_method", "noaux_tc"},
                      {"routed_scaling_factor", nullptr},
                      {"hidden_act", "silu"},
                      {"vocab_size", c.vocabulary},
                      {"max_position_embeddings", c.context_tokens},
                      {"layernorm_epsilon", c.norm_epsilon},
                      {"tie_word_embeddings", false}};
  out["hybrid_layer_pattern"] = Pattern(c.attention, AttentionKind::kSliding);
  out["moe_layer_freq"] = Pattern(c.is_moe, true);
  json::object quantization = {
      {"quant_method", "fp8"}, {"fmt", "e4m3"}, {"weight_block_size", {128, 128}}};
  if (c.stored_expert_format() == kernels::WeightFormat::kMxfp4) {
    quantization["store_dtype"] = "mxfp4";
    quantization["mxfp4_block_size"] = 32;
  }
  out["quantization_config"] = std::move(quantization);
  return out;
}

json::object DrafterConfigJson(const ModelConfig& config) {
  const DrafterConfig& c = config.drafter;
  json::object out = {{"architectures", {"DFlashDraftModel"}},
                      {"hidden_size", c.hidden},
                      {"num_hidden_layers", c.num_layers},
                      {"num_attention_heads", c.num_q_heads},
                      {"num_key_value_heads", c.num_kv_heads},
                      {"head_dim", c.head_dim},
                      {"v_head_dim", c.head_dim},
                      {"partial_rotary_factor", RotaryFactor(c.rotary_dims, c.head_dim)},
                      {"intermediate_size", c.ffn_width},
                      {"block_size", c.block_size},
                      {"rope_theta", c.rope_theta},
                      {"rms_norm_eps", c.norm_epsilon},
                      {"num_target_layers", config.num_layers},
                      {"hidden_act", "silu"}};
  json::array taps(c.target_layer_ids.begin(), c.target_layer_ids.end());
  out["dflash_config"] = {
      {"target_layer_ids", std::move(taps)}, {"mask_token_id", c.mask_token_id},
      {"block_size", c.block_size},          {"use_swa", true},
      {"swa_window_size", c.window},         {"attention_value_scale", c.value_scale},
      {"attention_sink_bias", c.has_sinks}};
  if (c.markov_rank > 0) {
    out["markov_rank"] = c.markov_rank;
    out["markov_head_type"] = c.has_markov_gate ? "gated" : "vanilla";
  }
  return out;
}

json::object GenerationJson(const ModelConfig& config) {
  json::array eos(config.eos_token_ids.begin(), config.eos_token_ids.end());
  return {{"eos_token_id", std::move(eos)}, {"temperature", 1.0}, {"top_p", 0.95}};
}

json::object TokenizerJson(int vocabulary_used) {
  json::object vocabulary;
  for (int i = 0; i < vocabulary_used - 1; ++i) vocabulary[absl::StrCat("t", i)] = i;
  json::object out = {
      {"model", {{"type", "BPE"}, {"vocab", std::move(vocabulary)}, {"merges", json::array()}}}};
  out["added_tokens"] = {json::object{{"id", vocabulary_used - 1}, {"content", "<|MASK|>"}}};
  return out;
}

uint64_t RandomContents::Next() {
  uint64_t z = (state_ += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

const std::vector<float>& RandomContents::Normal() {
  if (!normal_.empty()) return normal_;
  std::mt19937_64 random(Next());
  std::normal_distribution<float> normal;
  normal_.resize(kTableSize);
  for (float& value : normal_) value = normal(random);
  return normal_;
}

void RandomContents::Write(const TensorSpec& tensor,
                           const std::function<void(std::string_view)>& write) {
  // A random word becomes up to four elements; `bytes_of` turns 16 bits of it into one.
  const auto fill = [&](auto element_of) {
    using Element = decltype(element_of(uint16_t{0}));
    std::string piece;
    auto left = static_cast<size_t>(tensor.bytes()) / sizeof(Element);
    while (left > 0) {
      const size_t count = std::min(left, kPieceBytes / sizeof(Element));
      piece.resize(count * sizeof(Element));
      uint64_t word = 0;
      for (size_t i = 0; i < count; ++i) {
        word = i % 4 == 0 ? Next() : word >> 16;
        const Element element = element_of(static_cast<uint16_t>(word));
        std::memcpy(piece.data() + i * sizeof(Element), &element, sizeof(Element));
      }
      write(piece);
      left -= count;
    }
  };
  const Distribution by_name = DistributionOf(tensor);
  if (tensor.dtype == "BF16") {
    std::vector<kernels::bf16> table(kTableSize);
    for (size_t i = 0; i < kTableSize; ++i)
      table[i] = kernels::ToBf16(by_name.mean + by_name.deviation * Normal()[i]);
    fill([&](uint16_t bits) { return table[bits]; });
  } else if (tensor.dtype == "F32") {
    const std::vector<float>& normal = Normal();
    fill([&](uint16_t bits) { return by_name.mean + by_name.deviation * normal[bits]; });
  } else if (tensor.dtype == "F8_E4M3") {
    // Codes of either sign with magnitudes from 1/4 to 3.75.
    fill([](uint16_t bits) {
      return static_cast<uint8_t>((bits & 0x80) | ((5 + (bits >> 8) % 4) << 3) | (bits & 7));
    });
  } else if (absl::EndsWith(tensor.name, "_scale")) {
    const float width = static_cast<float>(tensor.shape.back()) * 32;
    const int middle =
        127 + static_cast<int>(std::lround(std::log2(kGain / std::sqrt(width) / kE2m1Deviation)));
    fill([&](uint16_t bits) { return static_cast<uint8_t>(middle - 1 + bits % 3); });
  } else {
    fill([](uint16_t bits) { return static_cast<uint8_t>(bits); });
  }
}

std::string RandomContents::Bytes(const TensorSpec& tensor) {
  std::string bytes;
  Write(tensor, [&](std::string_view piece) { bytes += piece; });
  return bytes;
}

std::string SafetensorsHead(const std::vector<TensorSpec>& tensors) {
  json::object header;
  int64_t offset = 0;
  for (const TensorSpec& tensor : tensors) {
    json::array shape(tensor.shape.begin(), tensor.shape.end());
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", std::move(shape)},
                           {"data_offsets", {offset, offset + tensor.bytes()}}};
    offset += tensor.bytes();
  }
  std::string text = json::serialize(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');  // data aligned, as published files have it
  std::string bytes;
  Put<uint64_t>(bytes, text.size());
  return bytes + text;
}

json::object IndexJson(const std::vector<TensorFile>& files) {
  json::object weight_map;
  int64_t bytes = 0;
  for (const TensorFile& file : files) {
    for (const TensorSpec& tensor : file.tensors) {
      weight_map[tensor.name] = file.name;
      bytes += tensor.bytes();
    }
  }
  return {{"metadata", {{"total_size", bytes}}}, {"weight_map", std::move(weight_map)}};
}

std::string StoredZipBytes(const std::vector<std::pair<std::string, std::string>>& entries) {
  std::string out, central;
  const auto common = [](std::string& to, const std::string& name, const std::string& content) {
    Put<uint16_t>(to, 0);  // version, then flags, method, time, date
    Put<uint64_t>(to, 0);
    Put<uint32_t>(to, Crc32(content));
    Put<uint32_t>(to, static_cast<uint32_t>(content.size()));
    Put<uint32_t>(to, static_cast<uint32_t>(content.size()));
    Put<uint16_t>(to, static_cast<uint16_t>(name.size()));
    Put<uint16_t>(to, 0);  // extra
  };
  for (const auto& [name, content] : entries) {
    const auto offset = static_cast<uint32_t>(out.size());
    Put<uint32_t>(out, 0x04034b50);
    common(out, name, content);
    out += name + content;
    Put<uint32_t>(central, 0x02014b50);
    Put<uint16_t>(central, 0);  // made by
    common(central, name, content);
    Put<uint16_t>(central, 0);  // comment
    Put<uint16_t>(central, 0);  // disk
    Put<uint16_t>(central, 0);  // attributes
    Put<uint32_t>(central, 0);
    Put<uint32_t>(central, offset);
    central += name;
  }
  const auto central_offset = static_cast<uint32_t>(out.size());
  out += central;
  Put<uint32_t>(out, 0x06054b50);
  Put<uint32_t>(out, 0);
  Put<uint16_t>(out, static_cast<uint16_t>(entries.size()));
  Put<uint16_t>(out, static_cast<uint16_t>(entries.size()));
  Put<uint32_t>(out, static_cast<uint32_t>(central.size()));
  Put<uint32_t>(out, central_offset);
  Put<uint16_t>(out, 0);
  return out;
}

std::string MaskPickle(int64_t mask_token_id, int hidden) {
  std::string out("\x80\x02}q", 4);
  const auto text = [&](const std::string& value) {
    out += 'X';
    Put<uint32_t>(out, static_cast<uint32_t>(value.size()));
    out += value;
  };
  const auto number = [&](int64_t value) {
    out += 'J';
    Put<int32_t>(out, static_cast<int32_t>(value));
  };
  out += '\0';
  out += '(';
  text("mask_token_id");
  number(mask_token_id);
  text("embedding");
  out += "ctorch._utils\n_rebuild_tensor_v2\n((";
  text("storage");
  out += "ctorch\nBFloat16Storage\n";
  text("0");
  text("cpu");
  number(hidden);
  out += "tQ";
  number(0);
  number(hidden);
  out += "\x85";
  number(1);
  out += "\x85\x89";
  out += "ccollections\nOrderedDict\n)R";
  out += "tRu.";
  return out;
}

std::string MaskArchive(const std::string& pickle, const std::string& storage) {
  return StoredZipBytes(
      {{"mask/data.pkl", pickle}, {"mask/byteorder", "little"}, {"mask/data/0", storage}});
}

std::vector<TensorFile> TargetFiles(const ModelConfig& config, int num_prediction_heads) {
  std::map<std::pair<int, int>, TensorFile> files;  // of layer and half; embedding and head first
  const int half = (config.num_experts + kExpertFilesPerLayer - 1) / kExpertFilesPerLayer;
  for (TensorSpec& tensor : TargetTensors(config)) {
    const int layer = LayerOf(tensor.name), expert = ExpertOf(tensor.name);
    const int part = expert < 0 ? 0 : expert / half;
    TensorFile& file = files[{std::max(layer, 0), part}];
    file.name = absl::StrCat("model_pp", std::max(layer, 0), "_ep", part, "_shard0.safetensors");
    file.tensors.push_back(std::move(tensor));
  }
  std::vector<TensorFile> out;
  for (auto& [place, file] : files) out.push_back(std::move(file));
  if (num_prediction_heads > 0) {
    out.push_back({"model_mtp.safetensors", PredictionHeadTensors(config, num_prediction_heads)});
  }
  return out;
}

std::vector<TensorFile> DrafterFiles(const DrafterConfig& config) {
  const std::vector<TensorSpec> tensors = DrafterTensors(config);
  std::vector<TensorFile> files(kDrafterFiles);
  for (size_t i = 0; i < tensors.size(); ++i)
    files[i * kDrafterFiles / tensors.size()].tensors.push_back(tensors[i]);
  for (size_t i = 0; i < files.size(); ++i) {
    files[i].name =
        absl::StrFormat("dflash_draft_model-%05d-of-%05d.safetensors", i + 1, files.size());
  }
  return files;
}

absl::StatusOr<ModelConfig> Shortened(ModelConfig config, int num_layers, int num_experts) {
  if (num_layers < 1 || num_layers > config.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("layers: is ", num_layers, "; must be from 1 to ", config.num_layers));
  }
  if (num_experts < config.experts_per_token || num_experts > config.num_experts) {
    return absl::InvalidArgumentError(absl::StrCat("experts: is ", num_experts, "; must be from ",
                                                   config.experts_per_token, " to ",
                                                   config.num_experts));
  }
  config.num_layers = num_layers;
  config.num_experts = num_experts;
  config.attention.resize(static_cast<size_t>(num_layers));
  config.is_moe.resize(static_cast<size_t>(num_layers));
  std::vector<int>& taps = config.drafter.target_layer_ids;
  if (taps.empty() || taps.back() < num_layers) return config;
  const int num_taps = std::min(static_cast<int>(taps.size()), num_layers);
  taps.clear();
  for (int i = 0; i < num_taps; ++i)
    taps.push_back(num_taps == 1 ? num_layers - 1 : i * (num_layers - 1) / (num_taps - 1));
  return config;
}

absl::Status WriteSyntheticFolder(const ModelConfig& config, const SyntheticOptions& options) {
  std::error_code error;
  fs::create_directories(options.folder, error);
  if (error || !fs::is_empty(options.folder, error) || error) {
    return absl::InvalidArgumentError(
        absl::StrCat("folder: ", options.folder, ": must be a new or an empty folder"));
  }
  const bool has_drafter = config.drafter.num_layers > 0;
  const std::vector<TensorFile> target = TargetFiles(config, options.num_prediction_heads);
  const std::vector<TensorFile> drafter =
      has_drafter ? DrafterFiles(config.drafter) : std::vector<TensorFile>();
  WriteState state{RandomContents(options.seed), options.progress, 0,
                   Bytes(target) + Bytes(drafter)};
  const fs::space_info space = fs::space(options.folder, error);
  if (!error && space.available < static_cast<uintmax_t>(state.bytes_total)) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "folder: %s: has %.2f GB free; the checkpoint takes %.2f GB", options.folder,
        static_cast<double>(space.available) / 1e9, static_cast<double>(state.bytes_total) / 1e9));
  }
  const std::pair<const char*, json::object> texts[] = {
      {"/config.json", TargetConfigJson(config)},
      {"/generation_config.json", GenerationJson(config)},
      {"/tokenizer.json", TokenizerJson(config.vocabulary)}};
  for (const auto& [name, object] : texts) {
    if (absl::Status s = WriteText(options.folder + name, json::serialize(object)); !s.ok())
      return s;
  }
  if (absl::Status s = WriteTensors(options.folder, target, state); !s.ok()) return s;
  if (!has_drafter) return absl::OkStatus();

  const std::string folder = options.folder + "/dflash";
  fs::create_directory(folder, error);
  if (absl::Status s =
          WriteText(folder + "/config.json", json::serialize(DrafterConfigJson(config)));
      !s.ok()) {
    return s;
  }
  const TensorSpec mask{.name = "mask_embed_tokens.weight",
                        .dtype = "BF16",
                        .shape = {config.hidden},
                        .num_values = config.hidden};
  if (absl::Status s =
          WriteText(folder + "/mask_embedding.pt",
                    MaskArchive(MaskPickle(config.drafter.mask_token_id, config.hidden),
                                state.contents.Bytes(mask)));
      !s.ok()) {
    return s;
  }
  return WriteTensors(folder, drafter, state);
}

}  // namespace ultraspeed::worker
