#include "worker/cuda/resident_buffers.h"

#include <algorithm>

#include "kernels/cuda/weight_layout.h"

namespace ultraspeed::worker::cuda {
namespace {

namespace ops = kernels::cuda;
namespace resident = kernels::cuda::resident;
using kernels::bf16;
using resident::kBandRows;
using resident::kBandsMax;
using resident::kRowsMax;

constexpr size_t kPartialBytes = 528;  // of one row, head and part, and its padding
constexpr int kBlocksMax = 256;
constexpr size_t kWordsPerCounter = 32;

size_t Size(int64_t a, int64_t b) { return static_cast<size_t>(a * b); }

}  // namespace

ResidentBuffers::ResidentBuffers(const ModelConfig& config, const TargetWeights& target,
                                 const DrafterWeights& drafter, int64_t positions,
                                 const ResidentRanks& ranks, DeviceArena& arena) {
  constexpr MemoryKind kKind = MemoryKind::kActivations;
  const DrafterConfig& draft = config.drafter;
  const auto floats = [&](int64_t rows, int64_t columns) {
    return arena.Take<float>(kKind, Size(rows, columns));
  };
  residual = floats(kRowsMax, config.hidden);
  rows.rows = arena.Take<uint32_t>(kKind, Size(2 * kRowsMax, config.hidden / 2));
  rows.squares = arena.Take<uint32_t>(kKind, Size(2 * kRowsMax, config.hidden / ops::kTileRows));
  qkv = floats(kRowsMax, std::max(config.num_kv_heads * QkvGroupRows(config),
                                  (draft.num_q_heads + 2 * draft.num_kv_heads) * draft.head_dim));
  attended = arena.Take<bf16>(kKind, Size(kRowsMax, std::max(config.num_q_heads * config.v_head_dim,
                                                             draft.num_q_heads * draft.head_dim)));
  gate_up = floats(kRowsMax, 2 * std::max(config.dense_ffn_width, draft.ffn_width));
  context_kv = floats(kRowsMax, drafter.context_kv.num_rows);
  taps = arena.Take<bf16>(
      kKind, Size(kRowsMax, static_cast<int64_t>(draft.target_layer_ids.size()) * config.hidden));
  constexpr size_t kMails = 2 * kBandsMax;
  moe.scores = arena.Take<uint32_t>(kKind, kMails * resident::kNumScores);
  moe.priorities = arena.Take<uint32_t>(kKind, kMails * resident::kNumScores);
  moe.num_activations = Size(kBandRows * config.experts_per_token, config.expert_ffn_width) / 2;
  moe.activations = arena.Take<uint32_t>(kKind, kMails * moe.num_activations);
  moe.num_partials = resident::NumRouterPartials(config.num_experts, config.hidden);
  moe.partials = arena.Take<uint32_t>(kKind, kMails * moe.num_partials);
  logits = floats(kRowsMax, config.vocabulary);
  gates = draft.has_markov_gate ? floats(kBandRows, draft.markov_rank) : nullptr;
  chain_words = draft.markov_rank > 0
                    ? arena.Take<uint2>(kKind, resident::NumChainWords(kBlocksMax))
                    : nullptr;
  whole_row.tallies = arena.Take<resident::RowTally>(kKind, kRowsMax);
  whole_row.undecided = arena.Take<uint64_t>(
      kKind, Size(kRowsMax, static_cast<int64_t>(ranks.num_ranks) * config.vocabulary));
  whole_row.slice_sums = arena.Take<ops::SliceSum>(kKind, Size(kRowsMax, ops::kSlices));
  whole_row.logprobs = floats(resident::kChoiceRows, 1);
  int64_t carried_tiles = 0;
  const auto carry_for = [&](const ops::Matrix& matrix) {
    if (ops::NumSlabs(matrix.num_cols) > resident::kPassSlabs)
      carried_tiles = std::max<int64_t>(carried_tiles, ops::NumRowTiles(matrix.num_rows));
  };
  for (const TargetLayer& layer : target.layers) {
    for (const ops::Matrix* matrix :
         {&layer.qkv, &layer.output, &layer.mlp.gate_up, &layer.mlp.down})
      carry_for(*matrix);
  }
  for (const DrafterLayer& layer : drafter.layers) {
    for (const ops::Matrix* matrix :
         {&layer.qkv, &layer.output, &layer.mlp.gate_up, &layer.mlp.down})
      carry_for(*matrix);
  }
  carry_for(drafter.features);
  band_carries = carried_tiles * 64;
  carry = arena.Take<float4>(kKind, Size(kBandsMax, band_carries));
  partials_stride =
      std::max({resident::AttentionPartsMax(/*window=*/0, /*drafter=*/false, positions),
                resident::AttentionPartsMax(config.window, /*drafter=*/false, positions),
                resident::AttentionPartsMax(draft.window, /*drafter=*/true, positions)});
  partials = arena.TakeBytes(
      kKind, Size(kRowsMax * std::max(config.num_q_heads, draft.num_q_heads), partials_stride) *
                 kPartialBytes);
  choices = arena.Take<resident::RowChoice>(kKind, Size(resident::kChoiceRows, kBlocksMax));
  masses = arena.Take<resident::RowMass>(
      kKind, Size(resident::kChoiceRows, kBlocksMax * resident::kMassesPerBlock));
  words = arena.Take<uint32_t>(kKind, kWordsPerCounter * (resident::kNumCounters + 2));
  inbox_rank_words = Size(config.hidden / ops::kTileRows, 32);
  inbox = ranks.num_ranks > 1
              ? arena.Take<uint2>(kKind,
                                  Size(3 * ranks.num_ranks, static_cast<int64_t>(inbox_rank_words)))
              : nullptr;
  mail = arena.Take<resident::RankMail>(kKind, static_cast<size_t>(ranks.num_ranks));
}

}  // namespace ultraspeed::worker::cuda
