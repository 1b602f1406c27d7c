#include "worker/cuda/target.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"
#include "worker/batch.h"
#include "worker/model_executor.h"

namespace ultraspeed::worker::cuda {
namespace {

namespace ops = kernels::cuda;
using kernels::bf16;
using ops::KvPlace;

size_t Size(int64_t a, int64_t b, int64_t c = 1) { return static_cast<size_t>(a * b * c); }

size_t Bytes(const ops::Matrix& m) { return ops::PackedBytes(m.format, m.num_rows, m.num_cols); }

}  // namespace

RingPlan PlanRings(int window, const PassLimits& limits) {
  return {.num_slots = limits.max_sequences,
          .num_snapshots = limits.num_snapshots,
          .ring_pages = PagesOf(RingTokens(window, limits.max_rows)),
          .window_pages = PagesOf(window)};
}

const float* UploadRope(double theta, int rotary_dims, int64_t positions, DeviceArena& arena) {
  if (arena.counting())
    return arena.Take<float>(MemoryKind::kWeights, Size(positions, rotary_dims));
  const kernels::RopeTable table =
      kernels::BuildRopeTable(theta, rotary_dims, static_cast<int>(positions));
  return arena.Upload(MemoryKind::kWeights, table.cos_sin);
}

ops::KvCache TakeKvCache(MemoryKind kind, ops::KvFormat format, int64_t num_pages, int num_kv_heads,
                         int qk_head_dim, int v_head_dim, DeviceArena& arena) {
  const auto take = [&](int head_dim) {
    return arena.TakeBytes(
        kind, ops::KvCacheBytes(format, num_pages, kPageTokens, num_kv_heads, head_dim));
  };
  ops::KvCache cache{.format = format,
                     .page_tokens = kPageTokens,
                     .num_kv_heads = num_kv_heads,
                     .qk_head_dim = qk_head_dim,
                     .v_head_dim = v_head_dim};
  cache.k = take(qk_head_dim);
  cache.v = take(v_head_dim);
  return cache;
}

TargetForward::TargetForward(const ModelConfig& config, const TargetWeights& weights,
                             const PassLimits& limits, DeviceArena& arena, Workspace& workspace,
                             const RankLink& link)
    : config_(config),
      weights_(weights),
      rings_(PlanRings(config.window, limits)),
      tap_width_(static_cast<int>(config.drafter.target_layer_ids.size()) * config.hidden),
      workspace_(workspace),
      link_(link) {
  rope_full_ = UploadRope(config.rope_theta_full, config.rotary_dims, limits.positions, arena);
  rope_sliding_ =
      UploadRope(config.rope_theta_sliding, config.rotary_dims, limits.positions, arena);
  for (size_t l = 0; l < config.attention.size(); ++l) {
    caches_.push_back(TakeKvCache(full(l) ? MemoryKind::kKvPages : MemoryKind::kRings,
                                  limits.kv_format, full(l) ? limits.num_pages : rings_.num_pages(),
                                  config.num_kv_heads, config.qk_head_dim, config.v_head_dim,
                                  arena));
    num_moe_layers_ += config.is_moe[l] ? 1 : 0;
  }

  const int rows = limits.max_rows, k = config.experts_per_token;
  constexpr MemoryKind kKind = MemoryKind::kActivations;
  residual_ = arena.Take<float>(kKind, Size(rows, config.hidden));
  normed_ = arena.Take<bf16>(kKind, Size(std::max(rows, limits.max_logits), config.hidden));
  scales_ = arena.Take<float>(kKind, static_cast<size_t>(rows));
  qkv_ = arena.Take<float>(kKind, Size(rows, config.num_kv_heads, QkvGroupRows(config)));
  q_ = arena.Take<bf16>(kKind, Size(rows, config.num_q_heads, config.qk_head_dim));
  attended_ = arena.Take<bf16>(kKind, Size(rows, config.num_q_heads, config.v_head_dim));
  delta_ = arena.Take<float>(kKind, Size(rows, config.hidden));
  taps_ = tap_width_ > 0 ? arena.Take<bf16>(kKind, Size(rows, tap_width_)) : nullptr;
  gate_up_ = arena.Take<float>(kKind, Size(rows, 2 * config.dense_ffn_width));
  product_ = arena.Take<bf16>(kKind, Size(rows, config.dense_ffn_width));
  expert_ids_ = arena.Take<int32_t>(kKind, Size(num_moe_layers_, rows, k));
  expert_weights_ = arena.Take<float>(kKind, Size(rows, k));
  part_logits_ = link.divided()
                     ? arena.Take<float>(kKind, Size(limits.max_logits, config.vocabulary))
                     : nullptr;

  for (const TargetLayer& layer : weights.layers) {
    for (const ops::Matrix* matrix :
         {&layer.qkv, &layer.output, &layer.mlp.gate_up, &layer.mlp.down}) {
      if (matrix->num_rows > 0) workspace.Require(ops::LinearWorkspaceBytes(*matrix, rows));
    }
    if (layer.experts.num_experts > 0) {
      workspace.Require(ops::MoeWorkspaceBytes(layer.experts, k, rows));
      workspace.Require(ops::RouteWorkspaceBytes(rows, config.num_experts));
    }
  }
  workspace.Require(ops::LinearWorkspaceBytes(weights.head, limits.max_logits));
  workspace.Require(link.SumWorkspaceBytes(Size(rows, config.hidden)));
  workspace.Require(link.GatherWorkspaceBytes(limits.max_logits, config.vocabulary));
  workspace.Require(
      ops::AttentionWorkspaceBytes(rows, config.num_q_heads, config.v_head_dim, limits.positions));
}

void TargetForward::Run(const int32_t* tokens, int num_rows, const ops::Sequences& sequences,
                        cudaStream_t stream) {
  const size_t count = Size(num_rows, config_.hidden);
  // A token's row lies with one rank; the others add zeros.
  ops::Embed({.rows = weights_.embedding,
              .first_token = link_.FirstToken(config_.vocabulary),
              .num_tokens = config_.vocabulary},
             tokens, num_rows, config_.hidden, residual_, stream);
  link_.Sum(residual_, count, workspace_.data(), stream);
  ops::AddNormParams add_norm{.residual = residual_,
                              .delta = nullptr,
                              .weight = weights_.layers[0].input_norm,
                              .epsilon = config_.norm_epsilon,
                              .num_tokens = num_rows,
                              .hidden = config_.hidden,
                              .normed = normed_,
                              .tap = nullptr,
                              .tap_offset = 0,
                              .tap_stride = tap_width_,
                              .scales = scales_};
  ops::AddNorm(add_norm, stream);
  add_norm.delta = delta_;
  int moe_layer = 0;
  for (size_t l = 0; l < weights_.layers.size(); ++l) {
    const TargetLayer& layer = weights_.layers[l];
    ops::Linear(layer.qkv, normed_, num_rows, qkv_, workspace_.data(), stream);
    ProjectAndCache(l, num_rows, sequences, stream);
    Attend(l, sequences, stream);
    ops::Linear(layer.output, attended_, num_rows, delta_, workspace_.data(), stream);
    link_.Sum(delta_, count, workspace_.data(), stream);
    add_norm.weight = layer.post_attention_norm;
    add_norm.normed = normed_;
    add_norm.tap = nullptr;
    ops::AddNorm(add_norm, stream);

    FeedForward(l, num_rows, moe_layer, stream);
    link_.Sum(delta_, count, workspace_.data(), stream);
    moe_layer += config_.is_moe[l] ? 1 : 0;

    // The layer's output joins the residual; its tap and the next layer's input come along.
    const bool last = l + 1 == weights_.layers.size();
    add_norm.weight = last ? weights_.final_norm : weights_.layers[l + 1].input_norm;
    add_norm.normed = last ? nullptr : normed_;
    add_norm.tap_offset = std::max(0, TapOffset(l));
    add_norm.tap = TapOffset(l) < 0 ? nullptr : taps_;
    ops::AddNorm(add_norm, stream);
  }
}

void TargetForward::AddSnapshotCopies(SnapshotCopy direction, int snapshot, int slot,
                                      int64_t position, std::vector<ops::Copy>& copies) const {
  for (size_t l = 0; l < caches_.size(); ++l) {
    if (full(l)) continue;
    cuda::AddSnapshotCopies(direction, caches_[l], rings_, snapshot, slot, position, copies);
  }
}

void TargetForward::Logits(const int32_t* rows, int num_logits, float* out, cudaStream_t stream) {
  ops::GatherNorm(residual_, rows, num_logits, weights_.final_norm, config_.norm_epsilon,
                  config_.hidden, normed_, stream);
  HeadLogits(weights_.head, normed_, num_logits, part_logits_, out, workspace_.data(), link_,
             stream);
}

void HeadLogits(const ops::Matrix& head, const bf16* normed, int num_logits, float* part,
                float* out, void* workspace, const RankLink& link, cudaStream_t stream) {
  if (!link.divided()) {
    ops::Linear(head, normed, num_logits, out, workspace, stream);
    return;
  }
  ops::Linear(head, normed, num_logits, part, workspace, stream);
  link.Gather(part, num_logits, head.num_rows, out, workspace, stream);
}

void TargetForward::ProjectAndCache(size_t layer_idx, int num_rows, const ops::Sequences& sequences,
                                    cudaStream_t stream) {
  ops::ProjectQkv({.qkv = qkv_,
                   .row_width = weights_.layers[layer_idx].qkv.num_rows,
                   .group_stride = QkvGroupRows(config_),
                   .num_q_heads = config_.num_q_heads,
                   .num_kv_heads = config_.num_kv_heads,
                   .qk_head_dim = config_.qk_head_dim,
                   .v_head_dim = config_.v_head_dim,
                   .rotary_dims = config_.rotary_dims,
                   .rope = full(layer_idx) ? rope_full_ : rope_sliding_,
                   .value_scale = config_.value_scale,
                   .q_norm = nullptr,
                   .k_norm = nullptr,
                   .epsilon = config_.norm_epsilon,
                   .sequences = sequences,
                   .num_rows_kept = nullptr,
                   .q = q_,
                   .cache = caches_[layer_idx],
                   .place = full(layer_idx) ? KvPlace::kPaged : KvPlace::kRing,
                   .ring_pages = ring_pages(),
                   .block_k = nullptr,
                   .block_v = nullptr},
                  num_rows, stream);
}

void TargetForward::Attend(size_t layer_idx, const ops::Sequences& sequences, cudaStream_t stream) {
  ops::Attention({.q = q_,
                  .cache = caches_[layer_idx],
                  .place = full(layer_idx) ? KvPlace::kPaged : KvPlace::kRing,
                  .ring_pages = ring_pages(),
                  .window = full(layer_idx) ? 0 : config_.window,
                  .sinks = weights_.layers[layer_idx].sinks,
                  .block_k = nullptr,
                  .block_v = nullptr,
                  .sequences = sequences,
                  .num_q_heads = config_.num_q_heads,
                  .score_scale = 1.0f / std::sqrt(static_cast<float>(config_.qk_head_dim)),
                  .out = attended_,
                  .workspace = workspace_.data()},
                 stream);
}

void TargetForward::FeedForward(size_t layer_idx, int num_rows, int moe_layer,
                                cudaStream_t stream) {
  const TargetLayer& layer = weights_.layers[layer_idx];
  if (!config_.is_moe[layer_idx]) {
    ops::Linear(layer.mlp.gate_up, normed_, num_rows, gate_up_, workspace_.data(), stream);
    ops::SwiGlu(gate_up_, num_rows, config_.dense_ffn_width, product_, stream);
    ops::Linear(layer.mlp.down, product_, num_rows, delta_, workspace_.data(), stream);
    return;
  }
  int32_t* const ids = expert_ids_ + Size(moe_layer, num_rows, config_.experts_per_token);
  ops::RouteTopK({.residual = residual_,
                  .scales = scales_,
                  .packed = layer.router,
                  .bias = layer.router_bias,
                  .num_tokens = num_rows,
                  .hidden = config_.hidden,
                  .num_experts = config_.num_experts,
                  .experts_per_token = config_.experts_per_token,
                  .expert_ids = ids,
                  .expert_weights = expert_weights_,
                  .workspace = workspace_.data()},
                 stream);
  if (forced_distinct_experts_ > 0) {
    ops::ForceExperts(num_rows, config_.experts_per_token, config_.num_experts,
                      forced_distinct_experts_, /*shift=*/37 * moe_layer, ids, stream);
  }
  ops::MixtureOfExperts({.experts = layer.experts,
                         .experts_per_token = config_.experts_per_token,
                         .x = normed_,
                         .expert_ids = ids,
                         .expert_weights = expert_weights_,
                         .num_tokens = num_rows,
                         .out = delta_,
                         .workspace = workspace_.data()},
                        stream);
}

int TargetForward::TapOffset(size_t layer_idx) const {
  const std::vector<int>& layers = config_.drafter.target_layer_ids;
  const auto found = std::find(layers.begin(), layers.end(), static_cast<int>(layer_idx));
  return found == layers.end() ? -1 : static_cast<int>(found - layers.begin()) * config_.hidden;
}

void TargetForward::AddBytes(PassBytes& bytes) const {
  for (const TargetLayer& layer : weights_.layers) {
    bytes.qkv += Bytes(layer.qkv);
    bytes.output += Bytes(layer.output);
    if (layer.experts.num_experts > 0) {
      const ops::ExpertBytes expert = ops::PackedExpertBytes(
          layer.experts.format, layer.experts.ffn_width, layer.experts.hidden);
      bytes.expert = expert.gate_up + expert.down;
      bytes.router += Size(config_.num_experts, config_.hidden) * sizeof(float);
    } else {
      bytes.dense_mlp += Bytes(layer.mlp.gate_up) + Bytes(layer.mlp.down);
    }
  }
  bytes.head = Bytes(weights_.head);
}

}  // namespace ultraspeed::worker::cuda
