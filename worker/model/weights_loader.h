// Checkpoint folder -> ModelWeightsOf<Storage>, whole or one rank's part: which tensor becomes
// which field, written once for every kind of memory.
//
// A Reader hands out checked host tensors by name (TensorReader), or stands in for a checkpoint
// (worker/cuda/random_weights.h); a Packer turns each into its place in memory and is called in the
// order of the fields below. Callers: weights.cc for the CPU, worker/cuda/device_weights.cc.
// Thread: the loading thread.
#pragma once

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "worker/model/checkpoint.h"
#include "worker/model/load_options.h"
#include "worker/model/mask_embedding.h"
#include "worker/model/shared_reads.h"
#include "worker/model/tensor_list.h"
#include "worker/model/tensor_reader.h"
#include "worker/model/weights.h"

namespace ultraspeed::worker {

template <typename Reader, typename Packer>
TargetLayerOf<typename Packer::Storage> ReadTargetLayer(Reader& read, Packer& pack,
                                                        const ModelConfig& config, int layer_idx) {
  const auto l = static_cast<size_t>(layer_idx);
  const std::string prefix = absl::StrCat("model.layers.", layer_idx, ".");
  const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
  TargetLayerOf<typename Packer::Storage> layer;
  layer.input_norm =
      pack.Floats(read.Bf16AsFloat(prefix + "input_layernorm.weight", config.hidden));
  layer.post_attention_norm =
      pack.Floats(read.Bf16AsFloat(prefix + "post_attention_layernorm.weight", config.hidden));
  layer.qkv = pack.Matrix(read.GroupedFp8Matrix(attention + "qkv_proj.weight", config.num_kv_heads,
                                                config.qkv_shard_rows(), config.hidden));
  layer.output = pack.Matrix(read.Bf16Matrix(attention + "o_proj.weight", config.hidden,
                                             config.num_q_heads * config.v_head_dim));
  if (config.attention[l] == AttentionKind::kSliding && config.sinks_on_sliding) {
    layer.sinks =
        pack.Floats(read.Bf16AsFloat(attention + "attention_sink_bias", config.num_q_heads));
  }
  if (!config.is_moe[l]) {
    layer.mlp = pack.Mlp(
        read.Mlp(kernels::WeightFormat::kFp8Block128, mlp, config.dense_ffn_width, config.hidden));
    return layer;
  }
  layer.router = pack.Router(read.Router(mlp + "gate.weight", config.num_experts, config.hidden),
                             layer.post_attention_norm, config.num_experts);
  layer.router_bias =
      pack.Floats(read.F32(mlp + "gate.e_score_correction_bias", {config.num_experts}));
  layer.experts = pack.NewExperts(config);
  for (int expert = 0; expert < config.num_experts && read.status().ok(); ++expert) {
    pack.AddExpert(layer.experts, expert,
                   read.Expert(config, absl::StrCat(mlp, "experts.", expert, ".")));
  }
  return layer;
}

template <typename Reader, typename Packer>
TargetWeightsOf<typename Packer::Storage> ReadTarget(Reader& read, Packer& pack,
                                                     const ModelConfig& config,
                                                     const std::function<void(int)>& layer_done) {
  TargetWeightsOf<typename Packer::Storage> target;
  target.embedding =
      pack.Bf16s(read.Bf16("model.embed_tokens.weight", config.vocabulary, config.hidden));
  target.final_norm = pack.Floats(read.Bf16AsFloat("model.norm.weight", config.hidden));
  target.head = pack.Matrix(read.Bf16Matrix("lm_head.weight", config.vocabulary, config.hidden));
  for (int l = 0; l < config.num_layers && read.status().ok(); ++l) {
    target.layers.push_back(ReadTargetLayer(read, pack, config, l));
    layer_done(l + 1);
  }
  return target;
}

// Appends the layer's k and v rows to `context_kv`.
template <typename Reader, typename Packer, typename Source>
DrafterLayerOf<typename Packer::Storage> ReadDrafterLayer(Reader& read, Packer& pack,
                                                          const DrafterConfig& config,
                                                          int layer_idx, Source& context_kv) {
  const std::string prefix = absl::StrCat("layers.", layer_idx, ".");
  const std::string attention = prefix + "self_attn.";
  const int q_rows = config.num_q_heads * config.head_dim,
            kv_rows = config.num_kv_heads * config.head_dim;
  DrafterLayerOf<typename Packer::Storage> layer;
  layer.input_norm =
      pack.Floats(read.Bf16AsFloat(prefix + "input_layernorm.weight", config.hidden));
  layer.post_attention_norm =
      pack.Floats(read.Bf16AsFloat(prefix + "post_attention_layernorm.weight", config.hidden));
  Source qkv = read.Bf16Matrix(attention + "q_proj.weight", q_rows, config.hidden);
  for (const char* name : {"k_proj.weight", "v_proj.weight"}) {
    const Source rows = read.Bf16Matrix(attention + name, kv_rows, config.hidden);
    qkv.AppendRows(rows);
    context_kv.AppendRows(rows);
  }
  layer.qkv = pack.Matrix(qkv);
  layer.q_norm = pack.Floats(read.Bf16AsFloat(attention + "q_norm.weight", config.head_dim));
  layer.k_norm = pack.Floats(read.Bf16AsFloat(attention + "k_norm.weight", config.head_dim));
  if (config.has_sinks) {
    layer.sinks =
        pack.Floats(read.Bf16AsFloat(attention + "attention_sink_bias", config.num_q_heads));
  }
  layer.output = pack.Matrix(read.Bf16Matrix(attention + "o_proj.weight", config.hidden, q_rows));
  layer.mlp = pack.Mlp(
      read.Mlp(kernels::WeightFormat::kBf16, prefix + "mlp.", config.ffn_width, config.hidden));
  return layer;
}

template <typename Reader, typename Packer>
MarkovHeadOf<typename Packer::Storage> ReadMarkovHead(Reader& read, Packer& pack,
                                                      const DrafterConfig& config) {
  const std::string prefix = "markov_head.";
  const int rank = config.markov_rank;
  MarkovHeadOf<typename Packer::Storage> head;
  head.previous = pack.Bf16s(read.Bf16(prefix + "markov_w1.weight", config.vocabulary, rank));
  head.next = pack.Matrix(read.Bf16Matrix(prefix + "markov_w2.weight", config.vocabulary, rank));
  if (!config.has_markov_gate) return head;
  const auto [gate, gate_previous] =
      read.Bf16MatrixPair(prefix + "gate_proj.weight", rank, config.hidden, rank);
  head.gate = pack.Matrix(gate);
  head.gate_previous = pack.Matrix(gate_previous);
  head.gate_bias = pack.Floats(read.Bf16AsFloat(prefix + "gate_proj.bias", rank));
  return head;
}

// All but the mask embedding, which has a file of its own.
template <typename Reader, typename Packer>
DrafterWeightsOf<typename Packer::Storage> ReadDrafter(Reader& read, Packer& pack,
                                                       const DrafterConfig& config,
                                                       const std::function<void(int)>& layer_done) {
  DrafterWeightsOf<typename Packer::Storage> drafter;
  const int num_taps = static_cast<int>(config.target_layer_ids.size());
  drafter.features =
      pack.Matrix(read.Bf16Matrix("fc.weight", config.hidden, num_taps * config.hidden));
  drafter.features_norm = pack.Floats(read.Bf16AsFloat("hidden_norm.weight", config.hidden));
  drafter.final_norm = pack.Floats(read.Bf16AsFloat("norm.weight", config.hidden));
  decltype(read.Bf16Matrix("", 0, 0)) context_kv;
  for (int l = 0; l < config.num_layers && read.status().ok(); ++l) {
    drafter.layers.push_back(ReadDrafterLayer(read, pack, config, l, context_kv));
    layer_done(l + 1);
  }
  drafter.context_kv = pack.Matrix(context_kv);
  if (config.markov_rank > 0) drafter.markov = ReadMarkovHead(read, pack, config);
  return drafter;
}

// Puts the folder before an error. Another rank's error, or a file's, names its place already: in
// the model's folder, of which `folder` may be a part.
inline absl::Status InFolder(const std::string& model_folder, const std::string& folder,
                             const absl::Status& status) {
  const auto begins_with = [&](const char* next) {
    return absl::StartsWith(status.message(), absl::StrCat(model_folder, next));
  };
  if (status.ok() || begins_with(":") || begins_with("/")) return status;
  return absl::Status(status.code(), absl::StrCat(folder, ": ", status.message()));
}

// What the loading of one checkpoint folder's part has come to, for LoadOptions::progress.
struct LoadState {
  const LoadOptions& options;
  SharedReads* reads = nullptr;  // null: from mapped pages
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;

  void Report(int64_t bytes) const {
    if (options.progress) options.progress(bytes_done + bytes, bytes_total);
  }
  absl::StatusOr<std::shared_ptr<PartStream>> Join(const std::string& folder,
                                                   const Checkpoint& checkpoint,
                                                   const std::vector<TensorSpec>& tensors) const {
    if (reads == nullptr) return std::shared_ptr<PartStream>();
    return reads->Join(folder, checkpoint, tensors);
  }
};

// `config`: of the whole model; `part`: of the rank.
template <typename Packer>
absl::Status LoadTarget(const std::string& folder, const ModelConfig& config,
                        const ModelConfig& part, Packer& pack, LoadState& state,
                        TargetWeightsOf<typename Packer::Storage>& target) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
      Checkpoint::Open(folder, {.single_files = {"model.safetensors"},
                                .optional_prefix = "",
                                .skip_prefix = kPredictionHeadPrefix});
  if (!checkpoint.ok()) return checkpoint.status();
  const absl::StatusOr<std::shared_ptr<PartStream>> stream =
      state.Join(folder, **checkpoint, TargetTensors(config));
  if (!stream.ok()) return stream.status();
  TensorReader read(**checkpoint, state.options.rank, stream->get());
  read.OnBytes([&](int64_t bytes) { state.Report(bytes); });
  target = ReadTarget(read, pack, part, [&](int /*layer*/) { state.Report(read.bytes_taken()); });
  if (!read.status().ok()) return InFolder(folder, folder, read.status());
  state.bytes_done += read.bytes_taken();
  if (config.requantize_experts && state.options.rank.index == 0 && state.options.notice) {
    const kernels::RoundingError& rounding = read.rounding_error();
    state.options.notice(
        absl::StrFormat("%s: FP8 experts were rounded to MXFP4: relative RMS error %.4f", folder,
                        rounding.signal > 0 ? std::sqrt(rounding.error / rounding.signal) : 0.0));
  }
  return (*checkpoint)->ExpectAllTaken();
}

template <typename Packer>
absl::Status LoadDrafter(const std::string& model_folder, const DrafterConfig& config,
                         const DrafterConfig& part, Packer& pack, LoadState& state,
                         DrafterWeightsOf<typename Packer::Storage>& drafter) {
  const std::string folder = model_folder + "/dflash";
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(
      folder, {.single_files = {"dflash_draft_model.safetensors", "model.safetensors"},
               .optional_prefix = "model.",
               .skip_prefix = kConfidenceHeadPrefix});
  if (!checkpoint.ok()) return checkpoint.status();
  const absl::StatusOr<std::shared_ptr<PartStream>> stream =
      state.Join(folder, **checkpoint, DrafterTensors(config));
  if (!stream.ok()) return stream.status();
  TensorReader read(**checkpoint, state.options.rank, stream->get());
  read.OnBytes([&](int64_t bytes) { state.Report(bytes); });
  drafter = ReadDrafter(read, pack, part, [&](int /*layer*/) { state.Report(read.bytes_taken()); });
  if (!read.status().ok()) return InFolder(model_folder, folder, read.status());
  state.bytes_done += read.bytes_taken();
  if (absl::Status status = (*checkpoint)->ExpectAllTaken(); !status.ok()) return status;

  const std::string mask_path = folder + "/mask_embedding.pt";
  absl::StatusOr<MaskEmbedding> mask = ReadMaskEmbedding(mask_path, config.hidden);
  if (!mask.ok()) return mask.status();
  if (mask->mask_token_id != config.mask_token_id) {
    return absl::InvalidArgumentError(absl::StrCat(mask_path, ": mask_token_id: is ",
                                                   mask->mask_token_id, "; config.json says ",
                                                   config.mask_token_id));
  }
  drafter.mask_embedding = pack.Bf16s(std::move(mask->embedding));
  return absl::OkStatus();
}

inline int64_t PartBytes(const ModelConfig& part) {
  int64_t bytes = 0;
  for (const TensorSpec& tensor : TargetTensors(part)) bytes += tensor.bytes();
  for (const TensorSpec& tensor : DrafterTensors(part.drafter)) bytes += tensor.bytes();
  return bytes;
}

template <typename Packer>
absl::StatusOr<ModelWeightsOf<typename Packer::Storage>> LoadParts(Packer& pack,
                                                                   const std::string& folder,
                                                                   const ModelConfig& config,
                                                                   const LoadOptions& options,
                                                                   SharedReads* reads) {
  absl::StatusOr<ModelConfig> part = PartOf(config, options.rank.count);
  if (!part.ok()) return part.status();
  LoadState state{.options = options, .reads = reads, .bytes_total = PartBytes(*part)};
  ModelWeightsOf<typename Packer::Storage> weights;
  if (absl::Status s = LoadTarget(folder, config, *part, pack, state, weights.target); !s.ok())
    return s;
  if (config.drafter.num_layers > 0) {
    if (absl::Status s =
            LoadDrafter(folder, config.drafter, part->drafter, pack, state, weights.drafter);
        !s.ok()) {
      return s;
    }
  }
  state.bytes_done = state.bytes_total;  // a router that is stored in BF16 was planned as F32
  state.Report(0);
  return weights;
}

// As LoadModelWeights, with any packer. `config`: of the whole model, whatever the rank.
template <typename Packer>
absl::StatusOr<ModelWeightsOf<typename Packer::Storage>> LoadModelWeightsWith(
    Packer& pack, const std::string& folder, const ModelConfig& config,
    const LoadOptions& options) {
  std::unique_ptr<SharedReads> own;
  if (options.shared == nullptr) own = std::make_unique<SharedReads>(options.rank, options.reads);
  SharedReads& reads = options.shared != nullptr ? *options.shared : *own;
  auto weights =
      LoadParts(pack, folder, config, options, reads.options().threads > 0 ? &reads : nullptr);
  if (!weights.ok()) reads.Fail(weights.status());
  return weights;
}

}  // namespace ultraspeed::worker
