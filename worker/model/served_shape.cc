#include "worker/model/served_shape.h"

#include <algorithm>

#include "worker/model/sharding_plan.h"

namespace ultraspeed::worker {

ModelConfig MimoV25ProShape() {
  ModelConfig config;
  config.name = "mimo-v2.5-pro";
  config.num_layers = 70;
  config.hidden = 6144;
  config.num_q_heads = 128;
  config.num_kv_heads = 8;
  config.qk_head_dim = 192;
  config.v_head_dim = 128;
  config.rotary_dims = 64;
  config.window = 128;
  config.dense_ffn_width = 16384;
  config.expert_ffn_width = 2048;
  config.num_experts = 384;
  config.experts_per_token = 8;
  config.expert_format = kernels::WeightFormat::kMxfp4;
  config.vocabulary = 152576;
  config.context_tokens = 1048576;
  config.rope_theta_full = 1e7;
  config.rope_theta_sliding = 1e4;
  config.norm_epsilon = 1e-5f;
  config.value_scale = 0.612f;
  config.sinks_on_sliding = true;
  config.eos_token_ids = {151643, 151645};
  config.attention.assign(70, AttentionKind::kSliding);
  for (const size_t full : {0, 7, 15, 23, 31, 39, 47, 55, 62, 69})
    config.attention[full] = AttentionKind::kFull;
  config.is_moe.assign(70, true);
  config.is_moe[0] = false;

  DrafterConfig& drafter = config.drafter;
  drafter.num_layers = 5;
  drafter.hidden = config.hidden;
  drafter.num_q_heads = 128;
  drafter.num_kv_heads = 8;
  drafter.head_dim = 128;
  drafter.rotary_dims = 64;
  drafter.ffn_width = 16384;
  drafter.block_size = 8;
  drafter.window = 1024;
  drafter.mask_token_id = 151669;
  drafter.target_layer_ids = {0, 15, 31, 47, 69};
  drafter.rope_theta = 1e4;
  drafter.norm_epsilon = 1e-5f;
  drafter.value_scale = 0.612f;
  drafter.has_sinks = true;
  drafter.vocabulary = config.vocabulary;
  return config;
}

absl::StatusOr<ModelConfig> RankOf(ModelConfig config, int num_ranks) {
  absl::StatusOr<ModelConfig> part = PartOf(config, num_ranks);
  if (!part.ok()) return part.status();
  part->drafter.mask_token_id = std::min(part->drafter.mask_token_id, part->vocabulary - 1);
  return part;
}

}  // namespace ultraspeed::worker
