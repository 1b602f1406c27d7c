#include "worker/cuda/drafter.h"

#include <cmath>

#include "kernels/check.h"

namespace ultraspeed::worker::cuda {
namespace {

namespace ops = kernels::cuda;
using kernels::bf16;

size_t Size(int64_t a, int64_t b, int64_t c = 1) { return static_cast<size_t>(a * b * c); }

size_t Bytes(const ops::Matrix& m) { return ops::PackedBytes(m.format, m.num_rows, m.num_cols); }

}  // namespace

DrafterForward::DrafterForward(const ModelConfig& config, const DrafterWeights& weights,
                               const TargetWeights& target, const PassLimits& limits,
                               DeviceArena& arena, Workspace& workspace, const RankLink& link)
    : config_(config.drafter),
      weights_(weights),
      target_(target),
      vocabulary_(config.vocabulary),
      rings_(PlanRings(config.drafter.window, limits)),
      workspace_(workspace),
      link_(link) {
  const int d = config_.head_dim, q_heads = config_.num_q_heads, kv_heads = config_.num_kv_heads;
  rope_ = UploadRope(config_.rope_theta, config_.rotary_dims, limits.positions, arena);
  for (int l = 0; l < config_.num_layers; ++l) {
    caches_.push_back(TakeKvCache(MemoryKind::kDrafterRings, limits.kv_format, rings_.num_pages(),
                                  kv_heads, d, d, arena));
  }
  constexpr MemoryKind kKind = MemoryKind::kActivations;
  features_ = arena.Take<float>(kKind, Size(limits.max_rows, config_.hidden));
  normed_features_ = arena.Take<bf16>(kKind, Size(limits.max_rows, config_.hidden));
  context_kv_ = arena.Take<float>(kKind, Size(limits.max_rows, weights.context_kv.num_rows));
  const int rows = limits.max_sequences * config_.block_size;
  residual_ = arena.Take<float>(kKind, Size(rows, config_.hidden));
  normed_ = arena.Take<bf16>(kKind, Size(rows, config_.hidden));
  qkv_ = arena.Take<float>(kKind, Size(rows, q_heads + 2 * kv_heads, d));
  q_ = arena.Take<bf16>(kKind, Size(rows, q_heads, d));
  block_k_ = arena.Take<bf16>(kKind, Size(rows, kv_heads, d));
  block_v_ = arena.Take<bf16>(kKind, Size(rows, kv_heads, d));
  attended_ = arena.Take<bf16>(kKind, Size(rows, q_heads, d));
  delta_ = arena.Take<float>(kKind, Size(rows, config_.hidden));
  gate_up_ = arena.Take<float>(kKind, Size(rows, 2 * config_.ffn_width));
  product_ = arena.Take<bf16>(kKind, Size(rows, config_.ffn_width));
  part_logits_ =
      link.divided() ? arena.Take<float>(kKind, Size(limits.max_logits, vocabulary_)) : nullptr;
  gates_ = config_.has_markov_gate
               ? arena.Take<float>(kKind, Size(limits.max_logits, config_.markov_rank))
               : nullptr;

  for (const DrafterLayer& layer : weights.layers) {
    for (const ops::Matrix* matrix :
         {&layer.qkv, &layer.output, &layer.mlp.gate_up, &layer.mlp.down}) {
      workspace.Require(ops::LinearWorkspaceBytes(*matrix, rows));
    }
  }
  for (const ops::Matrix* matrix : {&weights.features, &weights.context_kv}) {
    workspace.Require(ops::LinearWorkspaceBytes(*matrix, limits.max_rows));
  }
  workspace.Require(ops::LinearWorkspaceBytes(target.head, limits.max_logits));
  if (config_.has_markov_gate)
    workspace.Require(ops::LinearWorkspaceBytes(weights.markov.gate, limits.max_logits));
  workspace.Require(ops::AttentionWorkspaceBytes(rows, q_heads, d, limits.positions));
  workspace.Require(link.SumWorkspaceBytes(Size(rows, config_.hidden)));
  workspace.Require(link.GatherWorkspaceBytes(limits.max_logits, vocabulary_));
}

void DrafterForward::Draft(const int32_t* anchors, const ops::Sequences& sequences,
                           const int32_t* logit_rows, int num_logits, float* logits,
                           cudaStream_t stream) {
  const int num_rows = sequences.num_sequences * config_.block_size, hidden = config_.hidden;
  const size_t count = Size(num_rows, hidden);
  // An anchor's row lies with the rank that has its token, the masks' count as rank 0's.
  ops::EmbedBlocks({.rows = target_.embedding,
                    .first_token = link_.FirstToken(vocabulary_),
                    .num_tokens = vocabulary_},
                   link_.rank.index == 0 ? weights_.mask_embedding : nullptr, anchors,
                   sequences.num_sequences, config_.block_size, hidden, residual_, stream);
  link_.Sum(residual_, count, workspace_.data(), stream);
  ops::AddNormParams add_norm{.residual = residual_,
                              .delta = nullptr,
                              .weight = weights_.layers[0].input_norm,
                              .epsilon = config_.norm_epsilon,
                              .num_tokens = num_rows,
                              .hidden = hidden,
                              .normed = normed_,
                              .tap = nullptr,
                              .tap_offset = 0,
                              .tap_stride = 0};
  ops::AddNorm(add_norm, stream);
  add_norm.delta = delta_;
  for (size_t l = 0; l < weights_.layers.size(); ++l) {
    const DrafterLayer& layer = weights_.layers[l];
    ops::Linear(layer.qkv, normed_, num_rows, qkv_, workspace_.data(), stream);
    Attend(l, sequences, num_rows, stream);
    ops::Linear(layer.output, attended_, num_rows, delta_, workspace_.data(), stream);
    link_.Sum(delta_, count, workspace_.data(), stream);
    add_norm.weight = layer.post_attention_norm;
    add_norm.normed = normed_;
    ops::AddNorm(add_norm, stream);

    ops::Linear(layer.mlp.gate_up, normed_, num_rows, gate_up_, workspace_.data(), stream);
    ops::SwiGlu(gate_up_, num_rows, config_.ffn_width, product_, stream);
    ops::Linear(layer.mlp.down, product_, num_rows, delta_, workspace_.data(), stream);
    link_.Sum(delta_, count, workspace_.data(), stream);
    const bool last = l + 1 == weights_.layers.size();
    add_norm.weight = last ? weights_.final_norm : weights_.layers[l + 1].input_norm;
    add_norm.normed = last ? nullptr : normed_;
    ops::AddNorm(add_norm, stream);
  }
  ops::GatherNorm(residual_, logit_rows, num_logits, weights_.final_norm, config_.norm_epsilon,
                  hidden, normed_, stream);
  HeadLogits(target_.head, normed_, num_logits, part_logits_, logits, workspace_.data(), link_,
             stream);
  if (config_.has_markov_gate)
    ops::Linear(weights_.markov.gate, normed_, num_logits, gates_, workspace_.data(), stream);
}

void DrafterForward::AddMarkovBias(const int32_t* previous_tokens, int first_row, int num_rows,
                                   float* logits, cudaStream_t stream) const {
  const MarkovHead& head = weights_.markov;
  const float* const gates =
      gates_ == nullptr ? nullptr : gates_ + static_cast<int64_t>(first_row) * config_.markov_rank;
  ops::AddMarkovBias({.rank = config_.markov_rank,
                      .previous = head.previous,
                      .next = head.next,
                      .gate_previous = head.gate_previous,
                      .gate_bias = head.gate_bias},
                     previous_tokens, gates, num_rows, logits, stream);
}

ops::ProjectParams DrafterForward::Projection(size_t layer_idx,
                                              const ops::Sequences& sequences) const {
  const DrafterLayer& layer = weights_.layers[layer_idx];
  return {.qkv = nullptr,
          .row_width = 0,
          .group_stride = 0,
          .num_q_heads = 0,
          .num_kv_heads = config_.num_kv_heads,
          .qk_head_dim = config_.head_dim,
          .v_head_dim = config_.head_dim,
          .rotary_dims = config_.rotary_dims,
          .rope = rope_,
          .value_scale = config_.value_scale,
          .q_norm = layer.q_norm,
          .k_norm = layer.k_norm,
          .epsilon = config_.norm_epsilon,
          .sequences = sequences,
          .num_rows_kept = nullptr,
          .q = nullptr,
          .cache = {},
          .place = ops::KvPlace::kRing,
          .ring_pages = ring_pages(),
          .block_k = nullptr,
          .block_v = nullptr};
}

// Each block sees its sequence's context and itself, both ways.
void DrafterForward::Attend(size_t layer_idx, const ops::Sequences& sequences, int num_rows,
                            cudaStream_t stream) {
  ops::ProjectParams project = Projection(layer_idx, sequences);
  project.qkv = qkv_;
  project.row_width = weights_.layers[layer_idx].qkv.num_rows;
  project.num_q_heads = config_.num_q_heads;
  project.q = q_;
  project.block_k = block_k_;
  project.block_v = block_v_;
  ops::ProjectQkv(project, num_rows, stream);
  ops::Attention({.q = q_,
                  .cache = caches_[layer_idx],
                  .place = ops::KvPlace::kRing,
                  .ring_pages = ring_pages(),
                  .window = config_.window,
                  .sinks = weights_.layers[layer_idx].sinks,
                  .block_k = block_k_,
                  .block_v = block_v_,
                  .sequences = sequences,
                  .num_q_heads = config_.num_q_heads,
                  .score_scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim)),
                  .out = attended_,
                  .workspace = workspace_.data()},
                 stream);
}

void DrafterForward::AppendContext(const bf16* taps, int num_rows, const ops::Sequences& sequences,
                                   const int32_t* num_rows_kept, cudaStream_t stream) {
  ops::Linear(weights_.features, taps, num_rows, features_, workspace_.data(), stream);
  ops::AddNorm({.residual = features_,
                .delta = nullptr,
                .weight = weights_.features_norm,
                .epsilon = config_.norm_epsilon,
                .num_tokens = num_rows,
                .hidden = config_.hidden,
                .normed = normed_features_,
                .tap = nullptr,
                .tap_offset = 0,
                .tap_stride = 0},
               stream);
  ops::Linear(weights_.context_kv, normed_features_, num_rows, context_kv_, workspace_.data(),
              stream);
  const size_t layer_width = Size(2, config_.num_kv_heads, config_.head_dim);  // k, then v
  for (size_t l = 0; l < weights_.layers.size(); ++l) {
    ops::ProjectParams project = Projection(l, sequences);
    project.qkv = context_kv_ + l * layer_width;
    project.row_width = weights_.context_kv.num_rows;
    project.cache = caches_[l];
    project.num_rows_kept = num_rows_kept;
    ops::ProjectQkv(project, num_rows, stream);
  }
}

void DrafterForward::AddSnapshotCopies(SnapshotCopy direction, int snapshot, int slot,
                                       int64_t position, std::vector<ops::Copy>& copies) const {
  for (const ops::KvCache& cache : caches_)
    cuda::AddSnapshotCopies(direction, cache, rings_, snapshot, slot, position, copies);
}

void DrafterForward::AddBytes(PassBytes& bytes) const {
  for (const DrafterLayer& layer : weights_.layers) {
    for (const ops::Matrix* matrix :
         {&layer.qkv, &layer.output, &layer.mlp.gate_up, &layer.mlp.down})
      bytes.draft_block += Bytes(*matrix);
  }
  for (const ops::Matrix* matrix : {&weights_.markov.gate, &weights_.markov.next})
    if (matrix->num_rows > 0) bytes.draft_block += Bytes(*matrix);
  bytes.draft_context += Bytes(weights_.features) + Bytes(weights_.context_kv);
}

}  // namespace ultraspeed::worker::cuda
