#include "worker/cpu/target.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/check.h"
#include "worker/batch.h"
#include "worker/cpu/prefetch.h"
#include "worker/model_executor.h"

namespace ultraspeed::worker {
namespace {

using kernels::bf16;

constexpr int kRowsOfTask = 16;

size_t Size(int64_t a, int64_t b, int64_t c = 1, int64_t d = 1) {
  return static_cast<size_t>(a * b * c * d);
}

size_t MlpBytes(const kernels::MlpWeights& mlp) {
  return mlp.gate.bytes() + mlp.up.bytes() + mlp.down.bytes();
}

float Widen(bf16 value) { return std::bit_cast<float>(uint32_t{value} << 16); }

}  // namespace

TargetForward::TargetForward(const ModelConfig& config, const TargetWeights& weights,
                             const CacheShape& shape, kernels::ThreadPool& pool,
                             ForwardStatistics& statistics, const RankLink& link)
    : config_(config),
      weights_(weights),
      shape_(shape),
      link_(link),
      pool_(pool),
      statistics_(statistics),
      group_rows_(QkvGroupRows(config)),
      ring_tokens_(static_cast<int>(RingTokens(config.window, shape.max_rows))),
      tap_width_(config.drafter.target_layer_ids.size() * static_cast<size_t>(config.hidden)) {
  const int64_t positions =
      std::min<int64_t>(config.context_tokens, int64_t{shape.num_pages} * shape.page_tokens) +
      kDraftBlockMax;
  rope_full_ = kernels::BuildRopeTable(config.rope_theta_full, config.rotary_dims,
                                       static_cast<int>(positions));
  rope_sliding_ = kernels::BuildRopeTable(config.rope_theta_sliding, config.rotary_dims,
                                          static_cast<int>(positions));
  for (const AttentionKind kind : config.attention) {
    const int64_t tokens = kind == AttentionKind::kFull
                               ? int64_t{shape.num_pages} * shape.page_tokens
                               : int64_t{shape.max_sequences} * ring_tokens_ +
                                     int64_t{shape.num_snapshots} * config.window;
    keys_.emplace_back(Size(tokens, config.num_kv_heads, config.qk_head_dim));
    values_.emplace_back(Size(tokens, config.num_kv_heads, config.v_head_dim));
  }
  const int rows = shape.max_rows;
  residual_ = ZeroedArray<float>(Size(rows, config.hidden));
  normed_ = ZeroedArray<bf16>(Size(rows, config.hidden));
  qkv_ = ZeroedArray<float>(Size(rows, config.num_kv_heads, group_rows_));
  q_ = ZeroedArray<bf16>(Size(rows, config.num_q_heads, config.qk_head_dim));
  attended_ = ZeroedArray<bf16>(Size(rows, config.num_q_heads, config.v_head_dim));
  delta_ = ZeroedArray<float>(Size(rows, config.hidden));
  taps_ = ZeroedArray<bf16>(static_cast<size_t>(rows) * tap_width_);
  expert_ids_.resize(Size(rows, config.experts_per_token));
  expert_weights_.resize(Size(rows, config.experts_per_token));
  const size_t workspace_bytes =
      std::max(kernels::MlpWorkspaceBytes(rows, config.dense_ffn_width, config.hidden),
               kernels::MoeWorkspaceBytes(rows, config.experts_per_token, config.num_experts,
                                          config.expert_ffn_width, config.hidden));
  workspace_ = ZeroedArray<uint64_t>(workspace_bytes / sizeof(uint64_t) + 1);
  attention_rows_.resize(static_cast<size_t>(rows));
  expert_seen_.resize(static_cast<size_t>(config.num_experts));
}

void TargetForward::Run(absl::Span<const TargetSequence> sequences,
                        absl::Span<const TargetRow> rows) {
  const int num_rows = static_cast<int>(rows.size()), hidden = config_.hidden;
  KERNELS_CHECK(num_rows, <=, shape_.max_rows);
  Embed(rows);
  for (size_t l = 0; l < weights_.layers.size(); ++l) {
    const TargetLayer& layer = weights_.layers[l];
    SetViews(l, sequences);
    kernels::RmsNorm(pool_, residual_.data(), layer.input_norm.data(), config_.norm_epsilon,
                     num_rows, hidden, normed_.data());
    kernels::MatMul(pool_, layer.qkv, normed_.data(), num_rows, hidden, qkv_.data(),
                    layer.qkv.num_rows());
    RotateAndCache(l, rows);
    Attend(l, rows);
    kernels::MatMul(pool_, layer.output, attended_.data(), num_rows, layer.output.num_cols(),
                    delta_.data(), hidden);
    link_.Sum(delta_.data(), Size(num_rows, hidden));
    AddToResidual(num_rows);
    kernels::RmsNorm(pool_, residual_.data(), layer.post_attention_norm.data(),
                     config_.norm_epsilon, num_rows, hidden, normed_.data());
    FeedForward(l, num_rows);
    link_.Sum(delta_.data(), Size(num_rows, hidden));
    AddToResidual(num_rows);
    CaptureTap(l, num_rows);
    CountBytes(l, num_rows);
  }
  statistics_.target_passes += 1;
  statistics_.target_rows += num_rows;
}

void TargetForward::CopySnapshot(SnapshotCopy direction, int snapshot, int slot, int64_t position) {
  const RingSnapshot rows(shape_.max_sequences, ring_tokens_, config_.window, snapshot, slot,
                          position);
  for (size_t l = 0; l < keys_.size(); ++l) {
    if (config_.attention[l] == AttentionKind::kFull) continue;
    rows.Copy(direction, keys_[l], config_.num_kv_heads, Size(config_.qk_head_dim, 1));
    rows.Copy(direction, values_[l], config_.num_kv_heads, Size(config_.v_head_dim, 1));
  }
}

void TargetForward::Logits(absl::Span<const int> row_indices, float* out) {
  const auto hidden = static_cast<size_t>(config_.hidden);
  const int count = static_cast<int>(row_indices.size());
  KERNELS_CHECK(count, <=, shape_.max_rows);
  if (count == 0) return;
  for (size_t i = 0; i < row_indices.size(); ++i) {
    std::copy_n(&residual_[static_cast<size_t>(row_indices[i]) * hidden], hidden,
                &delta_[i * hidden]);
  }
  kernels::RmsNorm(pool_, delta_.data(), weights_.final_norm.data(), config_.norm_epsilon, count,
                   config_.hidden, normed_.data());
  kernels::MatMul(pool_, weights_.head, normed_.data(), count, config_.hidden,
                  out + link_.rank.index * config_.vocabulary,
                  link_.rank.count * config_.vocabulary);
  statistics_.target_bytes += static_cast<int64_t>(weights_.head.bytes());
}

// A token's row lies with one rank; the others add nothing to it.
void TargetForward::Embed(absl::Span<const TargetRow> rows) {
  const int hidden = config_.hidden;
  const auto row_of = [&](const TargetRow& row) -> const bf16* {
    KERNELS_CHECK(row.token, >=, 0);
    KERNELS_CHECK(row.token, <, link_.rank.count * config_.vocabulary);
    const int local = row.token - link_.rank.index * config_.vocabulary;
    const bool is_here = local >= 0 && local < config_.vocabulary;
    return is_here ? &weights_.embedding[Size(local, hidden)] : nullptr;
  };
  for (const TargetRow& row : rows) {
    if (const bf16* const embedding = row_of(row)) Prefetch(embedding, hidden);
  }
  float* out = residual_.data();
  for (const TargetRow& row : rows) {
    const bf16* const embedding = row_of(row);
    for (int i = 0; i < hidden; ++i) *out++ = embedding == nullptr ? 0.0f : Widen(embedding[i]);
  }
  link_.Sum(residual_.data(), Size(static_cast<int64_t>(rows.size()), hidden));
}

void TargetForward::SetViews(size_t layer_idx, absl::Span<const TargetSequence> sequences) {
  const bool full = config_.attention[layer_idx] == AttentionKind::kFull;
  views_.clear();
  for (const TargetSequence& sequence : sequences) {
    views_.push_back({.k = keys_[layer_idx].data(),
                      .v = values_[layer_idx].data(),
                      .pages = full ? sequence.pages : &sequence.slot,
                      .num_pages = full ? sequence.num_pages : 1,
                      .page_tokens = full ? shape_.page_tokens : ring_tokens_});
  }
}

// A task is a head's part of a few rows: the head's attention may find it in the same core's cache.
void TargetForward::RotateAndCache(size_t layer_idx, absl::Span<const TargetRow> rows) {
  const kernels::RopeTable& rope =
      config_.attention[layer_idx] == AttentionKind::kFull ? rope_full_ : rope_sliding_;
  const int d = config_.qk_head_dim, dv = config_.v_head_dim, num_heads = config_.num_kv_heads;
  const int group_heads = config_.num_q_heads / num_heads;
  const int num_rows = static_cast<int>(rows.size());
  const int num_parts = (num_rows + kRowsOfTask - 1) / kRowsOfTask;
  pool_.ParallelFor(num_heads * num_parts, [&](int task) {
    const int head = task / num_parts, begin = task % num_parts * kRowsOfTask;
    const int end = std::min(begin + kRowsOfTask, num_rows);
    bf16 *keys[kRowsOfTask], *values[kRowsOfTask];
    for (int t = begin; t < end; ++t) {
      const TargetRow& row = rows[static_cast<size_t>(t)];
      const kernels::KvView& view = views_[static_cast<size_t>(row.sequence)];
      const size_t place = kernels::KvRow(view, num_heads, head, row.position);
      keys[t - begin] = view.k + place * Size(d, 1);
      values[t - begin] = view.v + place * Size(dv, 1);
      PrefetchToWrite(keys[t - begin], d);
      PrefetchToWrite(values[t - begin], dv);
    }
    for (int t = begin; t < end; ++t) {
      const int64_t group = int64_t{t} * num_heads + head;
      float* const q = &qkv_[Size(group, group_rows_)];  // [group_heads, D], then k [D], v [Dv]
      float* const k = q + group_heads * d;
      float* const v = k + d;
      kernels::Rope(rope, static_cast<int>(rows[static_cast<size_t>(t)].position), q,
                    group_heads + 1, d);
      for (int i = 0; i < dv; ++i) v[i] *= config_.value_scale;
      kernels::ToBf16(q, group_heads * d, &q_[Size(group, group_heads, d)]);
      kernels::ToBf16(k, d, keys[t - begin]);
      kernels::ToBf16(v, dv, values[t - begin]);
    }
  });
}

void TargetForward::Attend(size_t layer_idx, absl::Span<const TargetRow> rows) {
  const bool full = config_.attention[layer_idx] == AttentionKind::kFull;
  for (size_t t = 0; t < rows.size(); ++t) {
    const int position = static_cast<int>(rows[t].position);
    attention_rows_[t] = {.kv = &views_[static_cast<size_t>(rows[t].sequence)],
                          .first_key = full ? 0 : std::max(0, position - config_.window + 1),
                          .last_key = position,
                          .block_k = nullptr,
                          .block_v = nullptr,
                          .block_rows = 0};
  }
  const std::vector<float>& sinks = weights_.layers[layer_idx].sinks;
  kernels::Attention(pool_,
                     {.q = q_.data(),
                      .rows = attention_rows_.data(),
                      .sinks = sinks.empty() ? nullptr : sinks.data(),
                      .num_tokens = static_cast<int>(rows.size()),
                      .num_q_heads = config_.num_q_heads,
                      .num_kv_heads = config_.num_kv_heads,
                      .qk_head_dim = config_.qk_head_dim,
                      .v_head_dim = config_.v_head_dim,
                      .score_scale = 1.0f / std::sqrt(static_cast<float>(config_.qk_head_dim)),
                      .out = attended_.data()});
}

void TargetForward::FeedForward(size_t layer_idx, int num_rows) {
  const TargetLayer& layer = weights_.layers[layer_idx];
  if (!config_.is_moe[layer_idx]) {
    kernels::Mlp(pool_, layer.mlp, normed_.data(), num_rows, delta_.data(), workspace_.data());
    return;
  }
  kernels::RouteTopK(pool_, normed_.data(), layer.router.data(), layer.router_bias.data(), num_rows,
                     config_.hidden, config_.num_experts, config_.experts_per_token,
                     expert_ids_.data(), expert_weights_.data());
  kernels::MixtureOfExperts(pool_, {.experts = layer.experts.data(),
                                    .num_experts = config_.num_experts,
                                    .experts_per_token = config_.experts_per_token,
                                    .x = normed_.data(),
                                    .expert_ids = expert_ids_.data(),
                                    .expert_weights = expert_weights_.data(),
                                    .num_tokens = num_rows,
                                    .out = delta_.data(),
                                    .workspace = workspace_.data()});
}

void TargetForward::AddToResidual(int num_rows) {
  const size_t count = Size(num_rows, config_.hidden);
  for (size_t i = 0; i < count; ++i) residual_[i] += delta_[i];
}

void TargetForward::CaptureTap(size_t layer_idx, int num_rows) {
  const std::vector<int>& layers = config_.drafter.target_layer_ids;
  const auto found = std::find(layers.begin(), layers.end(), static_cast<int>(layer_idx));
  if (found == layers.end()) return;
  const auto hidden = static_cast<size_t>(config_.hidden);
  const size_t offset = static_cast<size_t>(found - layers.begin()) * hidden;
  for (size_t t = 0; t < static_cast<size_t>(num_rows); ++t) {
    kernels::ToBf16(&residual_[t * hidden], config_.hidden, &taps_[t * tap_width_ + offset]);
  }
}

void TargetForward::CountBytes(size_t layer_idx, int num_rows) {
  const TargetLayer& layer = weights_.layers[layer_idx];
  size_t bytes = layer.qkv.bytes() + layer.output.bytes() + layer.router.size() * sizeof(float);
  if (config_.is_moe[layer_idx]) {
    std::fill(expert_seen_.begin(), expert_seen_.end(), 0);
    const size_t pairs = Size(num_rows, config_.experts_per_token);
    for (size_t i = 0; i < pairs; ++i) {
      const auto expert = static_cast<size_t>(expert_ids_[i]);
      if (expert_seen_[expert]) continue;
      expert_seen_[expert] = 1;
      bytes += MlpBytes(layer.experts[expert]);
      statistics_.distinct_experts += 1;
    }
    statistics_.moe_layer_passes += 1;
  } else {
    bytes += MlpBytes(layer.mlp);
  }
  statistics_.target_bytes += static_cast<int64_t>(bytes);
}

}  // namespace ultraspeed::worker
