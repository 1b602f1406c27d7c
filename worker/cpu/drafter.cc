#include "worker/cpu/drafter.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "kernels/check.h"
#include "worker/cpu/prefetch.h"
#include "worker/model_executor.h"

namespace ultraspeed::worker {
namespace {

using kernels::bf16;

constexpr int kContextRowsAtOnce = 128;  // of a catch-up after prefill

size_t Size(int64_t a, int64_t b, int64_t c = 1, int64_t d = 1) {
  return static_cast<size_t>(a * b * c * d);
}

void Scale(float* x, int count, float factor) {
  for (int i = 0; i < count; ++i) x[i] *= factor;
}

float Widen(bf16 value) { return std::bit_cast<float>(uint32_t{value} << 16); }

}  // namespace

void RoundToFp8(DrafterWeights& drafter) {
  const auto round = [](kernels::PackedMatrix& matrix) {
    if (matrix.num_rows() > 0) matrix = kernels::PackedMatrix::RoundToFp8(matrix);
  };
  round(drafter.features);
  round(drafter.context_kv);
  round(drafter.markov.next);
  round(drafter.markov.gate);
  round(drafter.markov.gate_previous);
  for (DrafterLayer& layer : drafter.layers) {
    round(layer.qkv);
    round(layer.output);
    round(layer.mlp.gate);
    round(layer.mlp.up);
    round(layer.mlp.down);
  }
}

DrafterForward::DrafterForward(const ModelConfig& config, const DrafterWeights& weights,
                               const std::vector<bf16>& embedding,
                               const kernels::PackedMatrix& head, const CacheShape& shape,
                               kernels::ThreadPool& pool, ForwardStatistics& statistics,
                               const RankLink& link)
    : config_(config.drafter),
      weights_(weights),
      embedding_(embedding),
      head_(head),
      vocabulary_(config.vocabulary),
      link_(link),
      shape_(shape),
      ring_tokens_(static_cast<int>(RingTokens(config.drafter.window, shape.max_rows))),
      tap_width_(config.drafter.target_layer_ids.size() * static_cast<size_t>(config.hidden)),
      max_rows_(std::max(shape.max_sequences * config.drafter.block_size, kContextRowsAtOnce)),
      pool_(pool),
      statistics_(statistics),
      slots_(static_cast<size_t>(shape.max_sequences)),
      snapshot_context_end_(static_cast<size_t>(shape.num_snapshots)) {
  const int64_t max_positions = int64_t{shape.num_pages} * shape.page_tokens;
  rope_ = kernels::BuildRopeTable(config_.rope_theta, config_.rotary_dims,
                                  static_cast<int>(max_positions + config_.block_size));
  const int64_t rows_kept =
      int64_t{shape.max_sequences} * ring_tokens_ + int64_t{shape.num_snapshots} * config_.window;
  pending_taps_ = ZeroedArray<bf16>(static_cast<size_t>(rows_kept) * tap_width_);
  for (int l = 0; l < config_.num_layers; ++l) {
    keys_.emplace_back(Size(rows_kept, config_.num_kv_heads, config_.head_dim));
    values_.emplace_back(Size(rows_kept, config_.num_kv_heads, config_.head_dim));
  }
  const int rows = max_rows_, d = config_.head_dim;
  taps_ = ZeroedArray<bf16>(static_cast<size_t>(kContextRowsAtOnce) * tap_width_);
  context_kv_ = ZeroedArray<float>(Size(kContextRowsAtOnce, weights.context_kv.num_rows()));
  residual_ = ZeroedArray<float>(Size(rows, config_.hidden));
  normed_ = ZeroedArray<bf16>(Size(rows, config_.hidden));
  qkv_ = ZeroedArray<float>(Size(rows, config_.num_q_heads + 2 * config_.num_kv_heads, d));
  q_ = ZeroedArray<bf16>(Size(rows, config_.num_q_heads, d));
  block_k_ = ZeroedArray<bf16>(Size(rows, config_.num_kv_heads, d));
  block_v_ = ZeroedArray<bf16>(Size(rows, config_.num_kv_heads, d));
  attended_ = ZeroedArray<bf16>(Size(rows, config_.num_q_heads, d));
  delta_ = ZeroedArray<float>(Size(rows, config_.hidden));
  workspace_ = ZeroedArray<uint64_t>(
      kernels::MlpWorkspaceBytes(rows, config_.ffn_width, config_.hidden) / sizeof(uint64_t) + 1);
  attention_rows_.resize(static_cast<size_t>(rows));
}

kernels::KvView DrafterForward::CacheOf(const int& slot, size_t layer_idx) {
  return {.k = keys_[layer_idx].data(),
          .v = values_[layer_idx].data(),
          .pages = &slot,
          .num_pages = 1,
          .page_tokens = ring_tokens_};
}

void DrafterForward::ResetSlot(int slot) { slots_[static_cast<size_t>(slot)] = Slot(); }

size_t DrafterForward::RingRow(int slot, int64_t position) const {
  return static_cast<size_t>(int64_t{slot} * ring_tokens_ + position % ring_tokens_);
}

void DrafterForward::SaveSnapshot(int snapshot, int slot, int64_t position) {
  const Slot& state = slots_[static_cast<size_t>(slot)];
  KERNELS_CHECK(position, <=, state.taps_end);
  KERNELS_CHECK(state.taps_end - position, <=, int64_t{ring_tokens_} - config_.window);
  CopySnapshot(SnapshotCopy::kSave, snapshot, slot, position);
  snapshot_context_end_[static_cast<size_t>(snapshot)] = std::min(position, state.context_end);
}

void DrafterForward::LoadSnapshot(int snapshot, int slot, int64_t position) {
  CopySnapshot(SnapshotCopy::kLoad, snapshot, slot, position);
  slots_[static_cast<size_t>(slot)] = {
      .taps_end = position, .context_end = snapshot_context_end_[static_cast<size_t>(snapshot)]};
}

void DrafterForward::CopySnapshot(SnapshotCopy direction, int snapshot, int slot,
                                  int64_t position) {
  const RingSnapshot rows(shape_.max_sequences, ring_tokens_, config_.window, snapshot, slot,
                          position);
  rows.Copy(direction, pending_taps_, 1, tap_width_);
  for (size_t l = 0; l < keys_.size(); ++l) {
    rows.Copy(direction, keys_[l], config_.num_kv_heads, Size(config_.head_dim, 1));
    rows.Copy(direction, values_[l], config_.num_kv_heads, Size(config_.head_dim, 1));
  }
}

void DrafterForward::AddTaps(int slot, int64_t position, const bf16* taps, int count) {
  Slot& state = slots_[static_cast<size_t>(slot)];
  KERNELS_CHECK(position, ==, state.taps_end);
  for (int i = std::max(0, count - ring_tokens_); i < count; ++i) {
    std::copy_n(taps + static_cast<size_t>(i) * tap_width_, tap_width_,
                &pending_taps_[RingRow(slot, position + i) * tap_width_]);
  }
  state.taps_end += count;
}

void DrafterForward::Draft(absl::Span<const DraftAnchor> anchors, float* logits, float* gates) {
  const int num_rows = static_cast<int>(anchors.size()) * config_.block_size,
            hidden = config_.hidden;
  KERNELS_CHECK(num_rows, <=, max_rows_);
  CatchUp(anchors);
  EmbedBlocks(anchors);
  for (size_t l = 0; l < weights_.layers.size(); ++l) {
    const DrafterLayer& layer = weights_.layers[l];
    kernels::RmsNorm(pool_, residual_.data(), layer.input_norm.data(), config_.norm_epsilon,
                     num_rows, hidden, normed_.data());
    kernels::MatMul(pool_, layer.qkv, normed_.data(), num_rows, hidden, qkv_.data(),
                    layer.qkv.num_rows());
    ProjectBlock(layer, anchors);
    Attend(l, anchors);
    kernels::MatMul(pool_, layer.output, attended_.data(), num_rows, layer.output.num_cols(),
                    delta_.data(), hidden);
    link_.Sum(delta_.data(), Size(num_rows, hidden));
    AddToResidual(num_rows);
    kernels::RmsNorm(pool_, residual_.data(), layer.post_attention_norm.data(),
                     config_.norm_epsilon, num_rows, hidden, normed_.data());
    kernels::Mlp(pool_, layer.mlp, normed_.data(), num_rows, delta_.data(), workspace_.data());
    link_.Sum(delta_.data(), Size(num_rows, hidden));
    AddToResidual(num_rows);
    statistics_.drafter_bytes +=
        static_cast<int64_t>(layer.qkv.bytes() + layer.output.bytes() + layer.mlp.gate.bytes() +
                             layer.mlp.up.bytes() + layer.mlp.down.bytes());
  }
  HeadLogits(anchors, logits, gates);
  statistics_.drafter_passes += 1;
}

// Turns the stored taps of all anchors into context keys and values, in passes of bounded size.
void DrafterForward::CatchUp(absl::Span<const DraftAnchor> anchors) {
  context_rows_.clear();
  const auto flush = [&] {
    if (!context_rows_.empty()) AppendContext(context_rows_);
    context_rows_.clear();
  };
  for (const DraftAnchor& anchor : anchors) {
    Slot& state = slots_[static_cast<size_t>(anchor.slot)];
    KERNELS_CHECK(anchor.position, ==, state.taps_end);
    for (int64_t p = std::max(state.context_end, state.taps_end - config_.window);
         p < state.taps_end; ++p) {
      context_rows_.push_back({anchor.slot, p});
      if (context_rows_.size() == kContextRowsAtOnce) flush();
    }
    state.context_end = state.taps_end;
  }
  flush();
}

void DrafterForward::AppendContext(absl::Span<const ContextRow> rows) {
  const int num_rows = static_cast<int>(rows.size()), hidden = config_.hidden, d = config_.head_dim;
  for (size_t t = 0; t < rows.size(); ++t) {
    std::copy_n(&pending_taps_[RingRow(rows[t].slot, rows[t].position) * tap_width_], tap_width_,
                &taps_[t * tap_width_]);
  }
  kernels::MatMul(pool_, weights_.features, taps_.data(), num_rows, static_cast<int>(tap_width_),
                  delta_.data(), hidden);
  kernels::RmsNorm(pool_, delta_.data(), weights_.features_norm.data(), config_.norm_epsilon,
                   num_rows, hidden, normed_.data());
  const int stride = weights_.context_kv.num_rows(), kv_width = config_.num_kv_heads * d;
  kernels::MatMul(pool_, weights_.context_kv, normed_.data(), num_rows, hidden, context_kv_.data(),
                  stride);
  pool_.ParallelFor(num_rows, [&](int t) {
    const ContextRow& row = rows[static_cast<size_t>(t)];
    const auto key_and_value = [&](size_t l, int head) {
      const kernels::KvView view = CacheOf(row.slot, l);
      const size_t place = kernels::KvRow(view, config_.num_kv_heads, head, row.position);
      return std::pair(view.k + place * Size(d, 1), view.v + place * Size(d, 1));
    };
    for (size_t l = 0; l < weights_.layers.size(); ++l) {
      for (int head = 0; head < config_.num_kv_heads; ++head) {
        const auto [key, value] = key_and_value(l, head);
        PrefetchToWrite(key, d);
        PrefetchToWrite(value, d);
      }
    }
    for (size_t l = 0; l < weights_.layers.size(); ++l) {
      float* k = &context_kv_[Size(t, stride) + l * 2 * static_cast<size_t>(kv_width)];
      float* v = k + kv_width;
      kernels::HeadRmsNorm(k, config_.num_kv_heads, d, d, weights_.layers[l].k_norm.data(),
                           config_.norm_epsilon);
      kernels::Rope(rope_, static_cast<int>(row.position), k, config_.num_kv_heads, d);
      Scale(v, kv_width, config_.value_scale);
      for (int head = 0; head < config_.num_kv_heads; ++head) {
        const auto [key, value] = key_and_value(l, head);
        kernels::ToBf16(k + head * d, d, key);
        kernels::ToBf16(v + head * d, d, value);
      }
    }
  });
  statistics_.drafter_bytes +=
      static_cast<int64_t>(weights_.features.bytes() + weights_.context_kv.bytes());
}

// An anchor's row lies with the rank that has its token, the masks' count as rank 0's; the others
// add nothing.
void DrafterForward::EmbedBlocks(absl::Span<const DraftAnchor> anchors) {
  const auto hidden = static_cast<size_t>(config_.hidden);
  const size_t num_rows = anchors.size() * static_cast<size_t>(config_.block_size);
  std::fill_n(residual_.data(), num_rows * hidden, 0.0f);
  float* out = residual_.data();
  for (const DraftAnchor& anchor : anchors) {
    const int local = anchor.token - link_.rank.index * vocabulary_;
    for (int j = 0; j < config_.block_size; ++j, out += hidden) {
      const bf16* embedding = nullptr;
      if (j > 0 && link_.rank.index == 0) embedding = weights_.mask_embedding.data();
      if (j == 0 && local >= 0 && local < vocabulary_)
        embedding = &embedding_[static_cast<size_t>(local) * hidden];
      for (size_t i = 0; embedding != nullptr && i < hidden; ++i) out[i] = Widen(embedding[i]);
    }
  }
  link_.Sum(residual_.data(), num_rows * hidden);
}

void DrafterForward::ProjectBlock(const DrafterLayer& layer,
                                  absl::Span<const DraftAnchor> anchors) {
  const int d = config_.head_dim, q_heads = config_.num_q_heads, kv_heads = config_.num_kv_heads;
  pool_.ParallelFor(static_cast<int>(anchors.size()) * config_.block_size, [&](int t) {
    const int64_t position =
        anchors[static_cast<size_t>(t / config_.block_size)].position + t % config_.block_size;
    float* q = &qkv_[Size(t, q_heads + 2 * kv_heads, d)];
    float* k = q + q_heads * d;
    float* v = k + kv_heads * d;
    kernels::HeadRmsNorm(q, q_heads, d, d, layer.q_norm.data(), config_.norm_epsilon);
    kernels::HeadRmsNorm(k, kv_heads, d, d, layer.k_norm.data(), config_.norm_epsilon);
    kernels::Rope(rope_, static_cast<int>(position), q, q_heads + kv_heads, d);
    Scale(v, kv_heads * d, config_.value_scale);
    kernels::ToBf16(q, q_heads * d, &q_[Size(t, q_heads, d)]);
    const int block = config_.block_size, anchor = t / block;
    for (int head = 0; head < kv_heads; ++head) {
      const size_t row = Size(int64_t{anchor} * kv_heads + head, block, d) + Size(t % block, d);
      kernels::ToBf16(k + head * d, d, &block_k_[row]);
      kernels::ToBf16(v + head * d, d, &block_v_[row]);
    }
  });
}

void DrafterForward::Attend(size_t layer_idx, absl::Span<const DraftAnchor> anchors) {
  const int block = config_.block_size, kv_width = config_.num_kv_heads * config_.head_dim;
  views_.clear();
  for (const DraftAnchor& anchor : anchors) views_.push_back(CacheOf(anchor.slot, layer_idx));
  for (size_t a = 0; a < anchors.size(); ++a) {
    const int anchor_position = static_cast<int>(anchors[a].position);
    for (int j = 0; j < block; ++j) {
      // A context key is visible iff key + window > query; every row of the block sees the whole
      // block.
      attention_rows_[a * static_cast<size_t>(block) + static_cast<size_t>(j)] = {
          .kv = &views_[a],
          .first_key =
              std::min(anchor_position, std::max(0, anchor_position + j - config_.window + 1)),
          .last_key = anchor_position - 1,
          .block_k = &block_k_[Size(static_cast<int64_t>(a), block, kv_width)],
          .block_v = &block_v_[Size(static_cast<int64_t>(a), block, kv_width)],
          .block_rows = block};
    }
  }
  const std::vector<float>& sinks = weights_.layers[layer_idx].sinks;
  kernels::Attention(pool_, {.q = q_.data(),
                             .rows = attention_rows_.data(),
                             .sinks = sinks.empty() ? nullptr : sinks.data(),
                             .num_tokens = static_cast<int>(anchors.size()) * block,
                             .num_q_heads = config_.num_q_heads,
                             .num_kv_heads = config_.num_kv_heads,
                             .qk_head_dim = config_.head_dim,
                             .v_head_dim = config_.head_dim,
                             .score_scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim)),
                             .out = attended_.data()});
}

void DrafterForward::HeadLogits(absl::Span<const DraftAnchor> anchors, float* logits,
                                float* gates) {
  const auto hidden = static_cast<size_t>(config_.hidden);
  int count = 0;
  for (size_t a = 0; a < anchors.size(); ++a) {
    KERNELS_CHECK(anchors[a].num_drafts, <, config_.block_size);
    for (int j = 1; j <= anchors[a].num_drafts; ++j, ++count) {
      const size_t row = a * static_cast<size_t>(config_.block_size) + static_cast<size_t>(j);
      std::copy_n(&residual_[row * hidden], hidden, &delta_[static_cast<size_t>(count) * hidden]);
    }
  }
  kernels::RmsNorm(pool_, delta_.data(), weights_.final_norm.data(), config_.norm_epsilon, count,
                   config_.hidden, normed_.data());
  kernels::MatMul(pool_, head_, normed_.data(), count, config_.hidden,
                  logits + link_.rank.index * vocabulary_, link_.rank.count * vocabulary_);
  statistics_.drafter_bytes += static_cast<int64_t>(head_.bytes());
  if (config_.markov_rank == 0 || link_.rank.index != 0) return;
  // The head's matrix is read for every row, but once from memory.
  const MarkovHead& markov = weights_.markov;
  statistics_.drafter_bytes += static_cast<int64_t>(markov.gate.bytes() + markov.next.bytes());
  if (!config_.has_markov_gate) return;
  kernels::MatMul(pool_, markov.gate, normed_.data(), count, config_.hidden, gates,
                  config_.markov_rank);
}

void DrafterForward::AddToResidual(int num_rows) {
  const size_t count = Size(num_rows, config_.hidden);
  for (size_t i = 0; i < count; ++i) residual_[i] += delta_[i];
}

}  // namespace ultraspeed::worker
