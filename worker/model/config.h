// The model's shape, read from config.json and dflash/config.json in the published layout and
// validated once.
//
// Everything that the worker knows about a checkpoint's geometry is here; nothing below
// worker/model reads JSON. Shape letters: T tokens, S sequences, H hidden, L layers, Hq/Hkv heads,
// D qk head dim, Dv v head dim, F ffn width, E experts, K experts per token, V vocabulary, P tokens
// per KV page, B draft block.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"

namespace ultraspeed::worker {

enum class AttentionKind : uint8_t { kFull, kSliding };

// One published `dflash/config.json`.
struct DrafterConfig {
  int num_layers = 0;
  int hidden = 0;  // H, equals the target's
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;     // D = Dv
  int rotary_dims = 0;  // head_dim * partial_rotary_factor, even
  int ffn_width = 0;
  int block_size = 0;  // B: anchor + B-1 masks
  int window = 0;      // context keys visible iff key + window > query
  int32_t mask_token_id = 0;
  std::vector<int>
      target_layer_ids;  // taps: the residual stream after these layers, concatenated in this order
  double rope_theta = 0;
  float norm_epsilon = 0;
  float value_scale = 1;
  bool has_sinks = false;
  // The Markov head (DSpark, arXiv 2607.05147), which adds to a draft's logits what the token
  // before it makes likelier; the release has none.
  int markov_rank = 0;  // R; 0: no such head
  bool has_markov_gate =
      false;           // the row's hidden state says how much of it, dimension by dimension
  int vocabulary = 0;  // V of the whole model, also in a rank's part
};

// What experts are computed with: as they are stored, which is exact, or MXFP4 also where they are
// stored in FP8, which halves their memory and rounds them (docs/MODEL.md).
enum class ExpertPrecision : uint8_t { kAsStored, kMxfp4 };

// One published `config.json` (MiMoV2ForCausalLM).
struct ModelConfig {
  int num_layers = 0;  // L
  int hidden = 0;      // H
  int num_q_heads = 0;
  int num_kv_heads = 0;  // also the number of fused qkv shards
  int qk_head_dim = 0;   // D
  int v_head_dim = 0;    // Dv
  int rotary_dims = 0;
  int window = 0;  // sliding layers see keys j > i - window
  int dense_ffn_width = 0;
  int expert_ffn_width = 0;
  int num_experts = 0;                                                  // E
  int experts_per_token = 0;                                            // K
  kernels::WeightFormat expert_format = kernels::WeightFormat::kMxfp4;  // or kFp8Block128
  // The folder's experts are in FP8 and become MXFP4, the expert_format, while they are loaded.
  bool requantize_experts = false;
  int vocabulary = 0;          // V: rows of embedding and head
  int64_t context_tokens = 0;  // max_position_embeddings
  double rope_theta_full = 0;
  double rope_theta_sliding = 0;
  float norm_epsilon = 0;
  float value_scale = 1;
  bool sinks_on_sliding = false;
  std::vector<AttentionKind> attention;  // [L]
  std::vector<bool> is_moe;              // [L]
  std::vector<int32_t> eos_token_ids;    // generation_config.json
  float default_temperature = 1;
  float default_top_p = 1;
  bool enable_thinking_default = true;
  std::string name;       // the folder's name
  DrafterConfig drafter;  // num_layers 0 when the folder has no dflash/

  // The longest block of a decoding sequence: the anchor and the drafts behind it.
  int draft_block() const { return drafter.num_layers > 0 ? drafter.block_size : 1; }

  kernels::WeightFormat stored_expert_format() const {
    return requantize_experts ? kernels::WeightFormat::kFp8Block128 : expert_format;
  }
  int qkv_shard_rows() const { return (num_q_heads / num_kv_heads + 1) * qk_head_dim + v_head_dim; }
};

// Reads and validates both configs of a checkpoint folder. INVALID_ARGUMENT names the file, the
// key, its value and what is allowed.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& folder,
                                            ExpertPrecision experts = ExpertPrecision::kAsStored);

}  // namespace ultraspeed::worker
