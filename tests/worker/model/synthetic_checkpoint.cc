#include "tests/worker/model/synthetic_checkpoint.h"

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "absl/strings/str_cat.h"
#include "kernels/ops.h"
#include "worker/model/stored_zip.h"

namespace ultraspeed::worker {
namespace {

namespace json = boost::json;

class Writer {
 public:
  explicit Writer(uint64_t seed) : random_(seed) {}

  SyntheticTensor Bf16(std::vector<int64_t> shape, float mean, float deviation) {
    std::normal_distribution<float> normal(mean, deviation);
    SyntheticTensor tensor{"BF16", shape, {}};
    for (int64_t i = Count(shape); i > 0; --i)
      Append(tensor.bytes, kernels::ToBf16(normal(random_)));
    return tensor;
  }
  SyntheticTensor F32(std::vector<int64_t> shape, float mean, float deviation) {
    std::normal_distribution<float> normal(mean, deviation);
    SyntheticTensor tensor{"F32", shape, {}};
    for (int64_t i = Count(shape); i > 0; --i) Append(tensor.bytes, normal(random_));
    return tensor;
  }
  // Codes of either sign with magnitudes from 1/4 to 3.75.
  SyntheticTensor Fp8(int64_t rows, int64_t cols) {
    SyntheticTensor tensor{"F8_E4M3", {rows, cols}, {}};
    for (int64_t i = rows * cols; i > 0; --i) {
      Append(tensor.bytes,
             static_cast<uint8_t>((random_() & 0x80) | ((5 + random_() % 4) << 3) | random_() % 8));
    }
    return tensor;
  }
  SyntheticTensor Bytes(int64_t rows, int64_t cols, int low, int high) {
    SyntheticTensor tensor{"U8", {rows, cols}, {}};
    for (int64_t i = rows * cols; i > 0; --i) {
      Append(tensor.bytes,
             static_cast<uint8_t>(
                 low + static_cast<int>(random_() % static_cast<uint64_t>(high - low + 1))));
    }
    return tensor;
  }

 private:
  static int64_t Count(const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (const int64_t dimension : shape) count *= dimension;
    return count;
  }
  template <typename T>
  static void Append(std::string& bytes, T value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }

  std::mt19937_64 random_;
};

int64_t Blocks(int64_t count) { return (count + 127) / 128; }

json::array Pattern(int count, bool (*one)(int i, int count)) {
  json::array pattern;
  for (int i = 0; i < count; ++i) pattern.push_back(one(i, count) ? 1 : 0);
  return pattern;
}

void FillConfigs(const SyntheticShape& s, SyntheticCheckpoint& out) {
  out.config = {{"architectures", {"MiMoV2ForCausalLM"}},
                {"model_type", "mimo_v2"},
                {"hidden_size", s.hidden},
                {"num_hidden_layers", s.num_layers},
                {"num_attention_heads", s.num_q_heads},
                {"num_key_value_heads", s.num_kv_heads},
                {"head_dim", s.qk_head_dim},
                {"v_head_dim", s.v_head_dim},
                {"partial_rotary_factor", 0.5},
                {"rope_theta", 10000000},
                {"swa_rope_theta", 10000},
                {"sliding_window", s.window},
                {"attention_value_scale", 0.612},
                {"add_swa_attention_sink_bias", true},
                {"add_full_attention_sink_bias", false},
                {"attention_bias", false},
                {"attention_projection_layout", "fused_qkv"},
                {"intermediate_size", s.dense_ffn_width},
                {"moe_intermediate_size", s.expert_ffn_width},
                {"n_routed_experts", s.num_experts},
                {"num_experts_per_tok", s.experts_per_token},
                {"n_shared_experts", nullptr},
                {"n_group", 1},
                {"topk_group", 1},
                {"norm_topk_prob", true},
                {"scoring_func", "sigmoid"},
                {"topk_method", "noaux_tc"},
                {"routed_scaling_factor", nullptr},
                {"hidden_act", "silu"},
                {"vocab_size", s.vocabulary},
                {"max_position_embeddings", s.context_tokens},
                {"layernorm_epsilon", 1e-5},
                {"tie_word_embeddings", false}};
  out.config["hybrid_layer_pattern"] =
      Pattern(s.num_layers, [](int i, int n) { return i > 0 && i < n - 1; });
  out.config["moe_layer_freq"] = Pattern(s.num_layers, [](int i, int) { return i > 0; });
  out.config["quantization_config"] = {{"quant_method", "fp8"},
                                       {"fmt", "e4m3"},
                                       {"weight_block_size", {128, 128}},
                                       {"store_dtype", "mxfp4"},
                                       {"mxfp4_block_size", 32}};
  out.generation = {{"eos_token_id", {1, 2}}, {"temperature", 1.0}, {"top_p", 0.95}};
  json::object vocab;
  for (int i = 0; i < s.vocabulary_used - 1; ++i) vocab[absl::StrCat("t", i)] = i;
  out.tokenizer = {{"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}}};
  out.tokenizer["added_tokens"] = {
      json::object{{"id", s.vocabulary_used - 1}, {"content", "<|MASK|>"}}};

  out.drafter_config = {{"architectures", {"DFlashDraftModel"}},
                        {"hidden_size", s.hidden},
                        {"num_hidden_layers", s.drafter_layers},
                        {"num_attention_heads", 4},
                        {"num_key_value_heads", 2},
                        {"head_dim", 32},
                        {"v_head_dim", 32},
                        {"partial_rotary_factor", 0.5},
                        {"intermediate_size", 96},
                        {"block_size", s.block_size},
                        {"rope_theta", 10000},
                        {"rms_norm_eps", 1e-5},
                        {"num_target_layers", s.num_layers},
                        {"hidden_act", "silu"}};
  out.drafter_config["dflash_config"] = {{"target_layer_ids", {0, s.num_layers - 1}},
                                         {"mask_token_id", s.vocabulary_used - 1},
                                         {"block_size", s.block_size},
                                         {"use_swa", true},
                                         {"swa_window_size", s.drafter_window},
                                         {"attention_value_scale", 0.612},
                                         {"attention_sink_bias", true}};
}

void FillTarget(const SyntheticShape& s, Writer& write, SyntheticCheckpoint& out) {
  auto& t = out.target;
  const int h = s.hidden;
  const auto fp8 = [&](const std::string& name, int64_t rows, int64_t cols, int64_t scale_rows) {
    t[name] = write.Fp8(rows, cols);
    t[name + "_scale_inv"] = write.F32({scale_rows, Blocks(cols)}, 0.1f, 0.01f);
  };
  const auto mxfp4 = [&](const std::string& name, int64_t rows, int64_t cols) {
    t[name] = write.Bytes(rows, cols / 2, 0, 255);
    t[name + "_scale"] = write.Bytes(rows, cols / 32, 121, 123);
  };
  t["model.embed_tokens.weight"] = write.Bf16({s.vocabulary, h}, 0, 1);
  t["lm_head.weight"] = write.Bf16({s.vocabulary, h}, 0, 0.3f);
  t["model.norm.weight"] = write.Bf16({h}, 1, 0.1f);
  for (int l = 0; l < s.num_layers; ++l) {
    const std::string p = absl::StrCat("model.layers.", l, "."), a = p + "self_attn.",
                      m = p + "mlp.";
    const int shard_rows = (s.num_q_heads / s.num_kv_heads + 1) * s.qk_head_dim + s.v_head_dim;
    t[p + "input_layernorm.weight"] = write.Bf16({h}, 1, 0.1f);
    t[p + "post_attention_layernorm.weight"] = write.Bf16({h}, 1, 0.1f);
    fp8(a + "qkv_proj.weight", s.num_kv_heads * shard_rows, h, s.num_kv_heads * Blocks(shard_rows));
    t[a + "o_proj.weight"] = write.Bf16({h, s.num_q_heads * s.v_head_dim}, 0, 0.1f);
    if (l > 0 && l < s.num_layers - 1)
      t[a + "attention_sink_bias"] = write.Bf16({s.num_q_heads}, 0, 1);
    if (l == 0) {
      fp8(m + "gate_proj.weight", s.dense_ffn_width, h, Blocks(s.dense_ffn_width));
      fp8(m + "up_proj.weight", s.dense_ffn_width, h, Blocks(s.dense_ffn_width));
      fp8(m + "down_proj.weight", h, s.dense_ffn_width, Blocks(h));
      continue;
    }
    t[m + "gate.weight"] = write.F32({s.num_experts, h}, 0, 0.1f);
    t[m + "gate.e_score_correction_bias"] = write.F32({s.num_experts}, 0, 0.1f);
    for (int e = 0; e < s.num_experts; ++e) {
      const std::string x = absl::StrCat(m, "experts.", e, ".");
      mxfp4(x + "gate_proj.weight", s.expert_ffn_width, h);
      mxfp4(x + "up_proj.weight", s.expert_ffn_width, h);
      mxfp4(x + "down_proj.weight", h, s.expert_ffn_width);
    }
  }
}

void FillDrafter(const SyntheticShape& s, Writer& write, SyntheticCheckpoint& out) {
  auto& t = out.drafter;
  const int h = s.hidden, d = 32, q = 4 * d, kv = 2 * d, f = 96;
  t["fc.weight"] = write.Bf16({h, 2 * h}, 0, 0.1f);
  t["hidden_norm.weight"] = write.Bf16({h}, 1, 0.1f);
  t["norm.weight"] = write.Bf16({h}, 1, 0.1f);
  for (int l = 0; l < s.drafter_layers; ++l) {
    const std::string p = absl::StrCat("layers.", l, "."), a = p + "self_attn.";
    t[p + "input_layernorm.weight"] = write.Bf16({h}, 1, 0.1f);
    t[p + "post_attention_layernorm.weight"] = write.Bf16({h}, 1, 0.1f);
    t[a + "q_proj.weight"] = write.Bf16({q, h}, 0, 0.1f);
    t[a + "k_proj.weight"] = write.Bf16({kv, h}, 0, 0.1f);
    t[a + "v_proj.weight"] = write.Bf16({kv, h}, 0, 0.1f);
    t[a + "o_proj.weight"] = write.Bf16({h, q}, 0, 0.1f);
    t[a + "q_norm.weight"] = write.Bf16({d}, 1, 0.1f);
    t[a + "k_norm.weight"] = write.Bf16({d}, 1, 0.1f);
    t[a + "attention_sink_bias"] = write.Bf16({4}, 0, 1);
    t[p + "mlp.gate_proj.weight"] = write.Bf16({f, h}, 0, 0.1f);
    t[p + "mlp.up_proj.weight"] = write.Bf16({f, h}, 0, 0.1f);
    t[p + "mlp.down_proj.weight"] = write.Bf16({h, f}, 0, 0.1f);
  }
  out.mask_pickle = MaskPickle(s.vocabulary_used - 1, h);
  out.mask_storage = write.Bf16({h}, 0, 1).bytes;
}

template <typename T>
void Put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

}  // namespace

SyntheticCheckpoint MakeSyntheticCheckpoint(const SyntheticShape& shape) {
  SyntheticCheckpoint checkpoint;
  Writer write(shape.seed);
  FillConfigs(shape, checkpoint);
  FillTarget(shape, write, checkpoint);
  if (shape.drafter_layers > 0) FillDrafter(shape, write, checkpoint);
  return checkpoint;
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
  WriteBytes(folder + "/dflash/mask_embedding.pt", StoredZipBytes({{"mask/data.pkl", mask_pickle},
                                                                   {"mask/byteorder", "little"},
                                                                   {"mask/data/0", mask_storage}}));
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
  std::string bytes;
  Put<uint64_t>(bytes, text.size());
  return bytes + text + data;
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

void WriteBytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

TemporaryFolder::TemporaryFolder() {
  std::string path = (std::filesystem::temp_directory_path() / "ultraspeed-XXXXXX").string();
  if (mkdtemp(path.data()) == nullptr) std::abort();
  path_ = path;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace ultraspeed::worker
