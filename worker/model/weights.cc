#include "worker/model/weights.h"

#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"
#include "worker/model/checkpoint.h"
#include "worker/model/mask_embedding.h"
#include "worker/model/tensor_reader.h"

namespace ultraspeed::worker {
namespace {

using kernels::WeightFormat;

constexpr int kFp8BlockRows = 128;

TargetLayer ReadTargetLayer(TensorReader& read, const ModelConfig& config, int layer_idx) {
  const auto l = static_cast<size_t>(layer_idx);
  const std::string prefix = absl::StrCat("model.layers.", layer_idx, ".");
  const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
  TargetLayer layer;
  layer.input_norm = read.Bf16AsFloat(prefix + "input_layernorm.weight", config.hidden);
  layer.post_attention_norm =
      read.Bf16AsFloat(prefix + "post_attention_layernorm.weight", config.hidden);
  layer.qkv = read.GroupedFp8Matrix(attention + "qkv_proj.weight", config.num_kv_heads,
                                    config.qkv_shard_rows(), config.hidden);
  layer.output = read.Bf16Matrix(attention + "o_proj.weight", config.hidden,
                                 config.num_q_heads * config.v_head_dim);
  if (config.attention[l] == AttentionKind::kSliding && config.sinks_on_sliding) {
    layer.sinks = read.Bf16AsFloat(attention + "attention_sink_bias", config.num_q_heads);
  }
  if (!config.is_moe[l]) {
    layer.mlp = read.Mlp(WeightFormat::kFp8Block128, mlp, config.dense_ffn_width, config.hidden);
    return layer;
  }
  layer.router = read.Router(mlp + "gate.weight", config.num_experts, config.hidden);
  layer.router_bias = read.F32(mlp + "gate.e_score_correction_bias", {config.num_experts});
  for (int expert = 0; expert < config.num_experts && read.status().ok(); ++expert) {
    layer.experts.push_back(read.Mlp(config.expert_format,
                                     absl::StrCat(mlp, "experts.", expert, "."),
                                     config.expert_ffn_width, config.hidden));
  }
  return layer;
}

kernels::PackedMatrix PackRows(const std::vector<std::vector<kernels::bf16>>& parts, int cols) {
  std::vector<kernels::bf16> rows;
  for (const std::vector<kernels::bf16>& part : parts)
    rows.insert(rows.end(), part.begin(), part.end());
  return kernels::PackedMatrix::Pack({.format = WeightFormat::kBf16,
                                      .num_rows = static_cast<int>(rows.size()) / cols,
                                      .num_cols = cols,
                                      .codes = rows.data(),
                                      .scales_f32 = nullptr,
                                      .scales_e8m0 = nullptr});
}

// Appends the layer's k and v rows to `context_kv`.
DrafterLayer ReadDrafterLayer(TensorReader& read, const DrafterConfig& config, int layer_idx,
                              std::vector<std::vector<kernels::bf16>>& context_kv) {
  const std::string prefix = absl::StrCat("layers.", layer_idx, ".");
  const std::string attention = prefix + "self_attn.";
  const int q_rows = config.num_q_heads * config.head_dim,
            kv_rows = config.num_kv_heads * config.head_dim;
  DrafterLayer layer;
  layer.input_norm = read.Bf16AsFloat(prefix + "input_layernorm.weight", config.hidden);
  layer.post_attention_norm =
      read.Bf16AsFloat(prefix + "post_attention_layernorm.weight", config.hidden);
  const std::vector<kernels::bf16> q =
      read.Bf16(attention + "q_proj.weight", q_rows, config.hidden);
  const std::vector<kernels::bf16> k =
      read.Bf16(attention + "k_proj.weight", kv_rows, config.hidden);
  const std::vector<kernels::bf16> v =
      read.Bf16(attention + "v_proj.weight", kv_rows, config.hidden);
  if (read.status().ok()) layer.qkv = PackRows({q, k, v}, config.hidden);
  context_kv.push_back(k);
  context_kv.push_back(v);
  layer.q_norm = read.Bf16AsFloat(attention + "q_norm.weight", config.head_dim);
  layer.k_norm = read.Bf16AsFloat(attention + "k_norm.weight", config.head_dim);
  if (config.has_sinks)
    layer.sinks = read.Bf16AsFloat(attention + "attention_sink_bias", config.num_q_heads);
  layer.output = read.Bf16Matrix(attention + "o_proj.weight", config.hidden, q_rows);
  layer.mlp = read.Mlp(WeightFormat::kBf16, prefix + "mlp.", config.ffn_width, config.hidden);
  return layer;
}

absl::Status LoadTarget(const std::string& folder, const ModelConfig& config,
                        const std::function<void(int)>& layer_done, TargetWeights& target) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(
      folder,
      {.single_files = {"model.safetensors"}, .optional_prefix = "", .skip_prefix = "model.mtp."});
  if (!checkpoint.ok()) return checkpoint.status();
  TensorReader read(**checkpoint);
  target.embedding = read.Bf16("model.embed_tokens.weight", config.vocabulary, config.hidden);
  target.final_norm = read.Bf16AsFloat("model.norm.weight", config.hidden);
  target.head = read.Bf16Matrix("lm_head.weight", config.vocabulary, config.hidden);
  for (int l = 0; l < config.num_layers && read.status().ok(); ++l) {
    target.layers.push_back(ReadTargetLayer(read, config, l));
    layer_done(l + 1);
  }
  if (!read.status().ok()) {
    return absl::Status(read.status().code(), absl::StrCat(folder, ": ", read.status().message()));
  }
  return (*checkpoint)->ExpectAllTaken();
}

absl::Status LoadDrafter(const std::string& folder, const DrafterConfig& config,
                         const std::function<void(int)>& layer_done, DrafterWeights& drafter) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(
      folder, {.single_files = {"dflash_draft_model.safetensors", "model.safetensors"},
               .optional_prefix = "model.",
               .skip_prefix = ""});
  if (!checkpoint.ok()) return checkpoint.status();
  TensorReader read(**checkpoint);
  const int num_taps = static_cast<int>(config.target_layer_ids.size());
  drafter.features = read.Bf16Matrix("fc.weight", config.hidden, num_taps * config.hidden);
  drafter.features_norm = read.Bf16AsFloat("hidden_norm.weight", config.hidden);
  drafter.final_norm = read.Bf16AsFloat("norm.weight", config.hidden);
  std::vector<std::vector<kernels::bf16>> context_kv;
  for (int l = 0; l < config.num_layers && read.status().ok(); ++l) {
    drafter.layers.push_back(ReadDrafterLayer(read, config, l, context_kv));
    layer_done(l + 1);
  }
  if (!read.status().ok()) {
    return absl::Status(read.status().code(), absl::StrCat(folder, ": ", read.status().message()));
  }
  drafter.context_kv = PackRows(context_kv, config.hidden);
  if (absl::Status status = (*checkpoint)->ExpectAllTaken(); !status.ok()) return status;

  const std::string mask_path = folder + "/mask_embedding.pt";
  absl::StatusOr<MaskEmbedding> mask = ReadMaskEmbedding(mask_path, config.hidden);
  if (!mask.ok()) return mask.status();
  if (mask->mask_token_id != config.mask_token_id) {
    return absl::InvalidArgumentError(absl::StrCat(mask_path, ": mask_token_id: is ",
                                                   mask->mask_token_id, "; config.json says ",
                                                   config.mask_token_id));
  }
  drafter.mask_embedding = std::move(mask->embedding);
  return absl::OkStatus();
}

}  // namespace

int QkvGroupRows(const ModelConfig& config) {
  if (config.num_kv_heads == 1) return config.qkv_shard_rows();
  return (config.qkv_shard_rows() + kFp8BlockRows - 1) / kFp8BlockRows * kFp8BlockRows;
}

absl::StatusOr<ModelWeights> LoadModelWeights(const std::string& folder, const ModelConfig& config,
                                              const std::function<void(int, int)>& progress) {
  const int total = config.num_layers + config.drafter.num_layers;
  const auto report = [&](int done) {
    if (progress) progress(done, total);
  };
  ModelWeights weights;
  if (absl::Status s = LoadTarget(folder, config, report, weights.target); !s.ok()) return s;
  if (config.drafter.num_layers > 0) {
    const auto report_drafter = [&](int done) { report(config.num_layers + done); };
    if (absl::Status s =
            LoadDrafter(folder + "/dflash", config.drafter, report_drafter, weights.drafter);
        !s.ok()) {
      return s;
    }
  }
  return weights;
}

}  // namespace ultraspeed::worker
