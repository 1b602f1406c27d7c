#include "worker/cuda/resident_schedule.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "kernels/cuda/weight_layout.h"

namespace ultraspeed::worker::cuda {
namespace {

namespace ops = kernels::cuda;
namespace resident = kernels::cuda::resident;
using kernels::bf16;
using resident::AttentionTask;
using resident::InputKind;
using resident::kBandRows;
using resident::kBandsMax;
using resident::OutputKind;
using resident::Phase;
using resident::PhaseKind;
using resident::TileOrder;

}  // namespace

const char* Name(PhaseLabel label) {
  static constexpr const char* kNames[] = {"embed",         "qkv",          "attention",
                                           "combine",       "o_proj",       "dense up",
                                           "dense down",    "moe up",       "moe down",
                                           "head",          "draft qkv",    "draft attention",
                                           "draft combine", "draft o_proj", "draft up",
                                           "draft down",    "draft head",   "draft chain",
                                           "choice",        "commit",       "draft context"};
  static_assert(std::size(kNames) == static_cast<size_t>(PhaseLabel::kCount));
  return kNames[static_cast<size_t>(label)];
}

namespace {

AttentionTask TargetAttention(const ResidentModel& model, size_t layer) {
  const ModelConfig& config = model.config;
  const bool full = config.attention[layer] == AttentionKind::kFull;
  return {.qkv = model.buffers.qkv,
          .row_width = model.target.layers[layer].qkv.num_rows,
          .group_stride = QkvGroupRows(config),
          .num_q_heads = config.num_q_heads,
          .num_kv_heads = config.num_kv_heads,
          .qk_head_dim = config.qk_head_dim,
          .rotary_dims = config.rotary_dims,
          .rope = model.target_caches.rope(layer),
          .q_norm = nullptr,
          .k_norm = nullptr,
          .epsilon = config.norm_epsilon,
          .value_scale = config.value_scale,
          .cache = model.target_caches.cache(layer),
          .place = full ? ops::KvPlace::kPaged : ops::KvPlace::kRing,
          .ring_pages = model.target_caches.ring_pages(),
          .window = full ? 0 : config.window,
          .sinks = model.target.layers[layer].sinks,
          .score_scale = 1.0f / std::sqrt(static_cast<float>(config.qk_head_dim)),
          .drafter = false,
          .has_parts = resident::HasParts(full ? 0 : config.window, /*drafter=*/false),
          .partials = model.buffers.partials,
          .partials_stride = model.buffers.partials_stride,
          .out = model.buffers.attended};
}

AttentionTask DrafterAttention(const ResidentModel& model, size_t layer) {
  const DrafterConfig& config = model.config.drafter;
  const DrafterLayer& weights = model.drafter.layers[layer];
  return {.qkv = model.buffers.qkv,
          .row_width = weights.qkv.num_rows,
          .group_stride = 0,
          .num_q_heads = config.num_q_heads,
          .num_kv_heads = config.num_kv_heads,
          .qk_head_dim = config.head_dim,
          .rotary_dims = config.rotary_dims,
          .rope = model.drafter_caches->rope(),
          .q_norm = weights.q_norm,
          .k_norm = weights.k_norm,
          .epsilon = config.norm_epsilon,
          .value_scale = config.value_scale,
          .cache = model.drafter_caches->cache(layer),
          .place = ops::KvPlace::kRing,
          .ring_pages = model.drafter_caches->ring_pages(),
          .window = config.window,
          .sinks = weights.sinks,
          .score_scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim)),
          .drafter = true,
          .has_parts = resident::HasParts(config.window, /*drafter=*/true),
          .partials = model.buffers.partials,
          .partials_stride = model.buffers.partials_stride,
          .out = model.buffers.attended};
}

// Adds phases in order and knows who waits for whom.
class ScheduleBuilder {
 public:
  explicit ScheduleBuilder(const ResidentModel& model)
      : model_(model), config_(model.config), buffers_(model.buffers) {}

  // Of sequence `s`, up to its drafts' logits; where they follow each other, to the drafts.
  void DraftPass(int s, const resident::ChainTask* chain_task) {
    draft_of_ = static_cast<int8_t>(s);
    num_bands_ = 1;
    Embed();
    for (size_t l = 0; l < model_.drafter.layers.size(); ++l) DrafterLayerPhases(l);
    const float* const norm = model_.drafter.final_norm;
    const float epsilon = config_.drafter.norm_epsilon;
    const bool chains = config_.drafter.markov_rank > 0;
    if (chains && config_.drafter.has_markov_gate) {
      AddBands(Normed(Product(model_.drafter.markov.gate, PhaseLabel::kDraftHead), norm, epsilon,
                      buffers_.gates),
               all());
    }
    Phase head =
        Normed(Product(model_.target.head, PhaseLabel::kDraftHead), norm, epsilon, buffers_.logits);
    head.output = chains ? OutputKind::kStore : OutputKind::kLogits;
    AddBands(head, all());
    if (!chains) return;
    Phase chain = NewPhase(PhaseKind::kChain, PhaseLabel::kDraftChain);
    chain.x = chain_task;
    chain.num_tiles = head.num_tiles;
    chain.out = head.out;
    chain.out_stride = head.out_stride;
    Add(chain, 0);
  }
  // What follows is about the target's rows.
  void EndDrafts(int num_bands) {
    draft_of_ = resident::kOfTarget;
    num_bands_ = num_bands;
  }

  // Of the pass that begins. The first phase of a round waits for nothing.
  void Embed() {
    Phase phase = NewPhase(PhaseKind::kEmbed, PhaseLabel::kEmbed);
    WriteResidual(phase, -1);
    Add(phase, all());
  }

  void TargetLayerPhases(size_t l) {
    const TargetLayer& layer = model_.target.layers[l];
    const float epsilon = config_.norm_epsilon;
    AddBands(Normed(Product(layer.qkv, PhaseLabel::kQkv), layer.input_norm, epsilon, buffers_.qkv),
             all());
    Attention(TargetAttention(model_, l), PhaseLabel::kAttention, PhaseLabel::kCombine);
    AttentionOutput(layer.output, PhaseLabel::kOutput);
    if (config_.is_moe[l]) {
      Moe(layer, TapOf(l));
    } else {
      DenseMlp(layer.mlp, layer.post_attention_norm, epsilon, TapOf(l), PhaseLabel::kDenseUp,
               PhaseLabel::kDenseDown);
    }
  }

  void TargetHead() { Head(model_.target.final_norm, config_.norm_epsilon, PhaseLabel::kHead); }
  // Of rows whose choice takes more than their best token.
  void ChooseFromWholeRows() {
    for (const PhaseKind kind : {PhaseKind::kTally, PhaseKind::kSift, PhaseKind::kDraw})
      Add(NewPhase(kind, PhaseLabel::kChoice), all());
  }

  void Commit() {
    Add(NewPhase(PhaseKind::kCommit, PhaseLabel::kCommit), 1);
    schedule_.decision_counter = previous_.counter;
    schedule_.decision_target = previous_.target;
  }

  void DrafterContext(const AttentionTask* append_tasks) {
    const DrafterWeights& drafter = model_.drafter;
    Phase features = Product(drafter.features, PhaseLabel::kContext);
    features.num_copies = model_.ranks.alone ? model_.ranks.num_ranks : 1;
    features.num_tiles /= features.num_copies;
    features.num_rows /= features.num_copies;
    features.input = InputKind::kBf16;
    features.x = buffers_.taps;
    features.x_stride = drafter.features.num_cols;
    features.output = OutputKind::kFeatures;
    // Taps are older than the choice that was waited for.
    AddBands(features, all(), /*waits=*/false);
    AddBands(Normed(Product(drafter.context_kv, PhaseLabel::kContext), drafter.features_norm,
                    config_.drafter.norm_epsilon, buffers_.context_kv),
             all());
    Phase append = NewPhase(PhaseKind::kAppend, PhaseLabel::kContext);
    append.append_tasks = append_tasks;
    append.num_append_tasks = static_cast<int>(drafter.layers.size());
    Add(append, 0);
  }

  ResidentSchedule Take() { return std::move(schedule_); }

 private:
  struct Arrival {
    int counter = -1;
    uint32_t target = 0;
  };

  void DrafterLayerPhases(size_t l) {
    const DrafterLayer& layer = model_.drafter.layers[l];
    const float epsilon = config_.drafter.norm_epsilon;
    AddBands(
        Normed(Product(layer.qkv, PhaseLabel::kDraftQkv), layer.input_norm, epsilon, buffers_.qkv),
        all());
    Attention(DrafterAttention(model_, l), PhaseLabel::kDraftAttention, PhaseLabel::kDraftCombine);
    AttentionOutput(layer.output, PhaseLabel::kDraftOutput);
    DenseMlp(layer.mlp, layer.post_attention_norm, epsilon, -1, PhaseLabel::kDraftUp,
             PhaseLabel::kDraftDown);
  }

  void Head(const float* norm, float epsilon, PhaseLabel label) {
    Phase phase = Normed(Product(model_.target.head, label), norm, epsilon, buffers_.logits);
    phase.output = OutputKind::kLogits;
    AddBands(phase, all());
  }

  uint32_t all() const { return static_cast<uint32_t>(model_.num_blocks); }

  int TapOf(size_t layer) const {
    const std::vector<int>& taps = config_.drafter.target_layer_ids;
    const auto found = std::find(taps.begin(), taps.end(), static_cast<int>(layer));
    return found == taps.end() ? -1 : static_cast<int>(found - taps.begin());
  }

  static Phase NewPhase(PhaseKind kind, PhaseLabel label) {
    Phase phase;
    phase.kind = kind;
    phase.label = static_cast<uint8_t>(label);
    return phase;
  }

  static Phase Product(const ops::Matrix& matrix, PhaseLabel label) {
    Phase phase = NewPhase(PhaseKind::kProduct, label);
    phase.format = matrix.format;
    phase.weights = static_cast<const uint8_t*>(matrix.data);
    phase.num_rows = matrix.num_rows;
    phase.num_tiles = ops::NumRowTiles(matrix.num_rows);
    phase.num_slabs = ops::NumSlabs(matrix.num_cols);
    phase.segment_blocks = ops::SegmentSlabs(matrix.num_cols) / ops::kBlockSlabs;
    return phase;
  }

  // Reads the residual stream through a norm and stores fp32 rows.
  Phase Normed(Phase phase, const float* norm, float epsilon, float* out) const {
    phase.input = InputKind::kNorm;
    phase.x_stride = config_.hidden;
    phase.norm_weight = norm;
    phase.epsilon = epsilon;
    phase.out = out;
    phase.out_stride = phase.num_rows;
    return phase;
  }

  void WriteResidual(Phase& phase, int tap) const {
    phase.output = OutputKind::kResidual;
    phase.order = TileOrder::kOwned;
    phase.residual = buffers_.residual;
    phase.tap =
        tap < 0 || buffers_.taps == nullptr ? nullptr : buffers_.taps + tap * config_.hidden;
    phase.tap_stride = static_cast<int>(config_.drafter.target_layer_ids.size()) * config_.hidden;
  }

  void Attention(const AttentionTask& task, PhaseLabel label, PhaseLabel combine_label) {
    Phase phase = NewPhase(PhaseKind::kAttend, label);
    phase.attention = task;
    phase.attention_units_max = task.has_parts
                                    ? model_.num_blocks  // as many parts as the context has
                                    : resident::WindowUnits(task, num_bands_ * kBandRows);
    Add(phase, static_cast<uint32_t>(std::min(phase.attention_units_max, model_.num_blocks)));
    if (!task.has_parts) return;
    Phase combine = NewPhase(PhaseKind::kCombine, combine_label);
    combine.attention = task;
    Add(combine, all());
  }

  void AttentionOutput(const ops::Matrix& matrix, PhaseLabel label) {
    Phase output = Product(matrix, label);
    output.input = InputKind::kBf16;
    output.x = buffers_.attended;
    output.x_stride = matrix.num_cols;
    WriteResidual(output, -1);
    AddTiles(output);
  }

  void DenseMlp(const DeviceMlp& mlp, const float* norm, float epsilon, int tap,
                PhaseLabel up_label, PhaseLabel down_label) {
    AddBands(Normed(Product(mlp.gate_up, up_label), norm, epsilon, buffers_.gate_up), all());
    Phase down = Product(mlp.down, down_label);
    down.input = InputKind::kSwiGlu;
    down.x = buffers_.gate_up;
    down.x_stride = mlp.gate_up.num_rows;
    WriteResidual(down, tap);
    AddTiles(down);
  }

  void Moe(const TargetLayer& layer, int tap) {
    const ops::Experts& experts = layer.experts;
    const ops::ExpertBytes bytes =
        ops::PackedExpertBytes(experts.format, experts.ffn_width, experts.hidden);
    Phase up = NewPhase(PhaseKind::kMoeUp, PhaseLabel::kMoeUp);
    up = Normed(up, layer.post_attention_norm, config_.norm_epsilon, nullptr);
    up.format = experts.format;
    up.weights = static_cast<const uint8_t*>(experts.gate_up);
    up.expert_bytes = bytes.gate_up;
    up.num_rows = 2 * experts.ffn_width;
    up.num_tiles = ops::NumRowTiles(up.num_rows);
    up.num_slabs = ops::NumSlabs(experts.hidden);
    up.router = layer.router;
    up.router_bias = layer.router_bias;
    up.num_experts = experts.num_experts;
    up.experts_per_token = config_.experts_per_token;
    up.ffn_width = experts.ffn_width;
    const Arrival inner = Take(all());
    up.inner_counter = inner.counter;
    up.inner_target = inner.target;
    Add(up, 0);
    up.inner_counter = -1;
    up.inner_target = 0;
    for (up.band = 1; up.band < num_bands_; ++up.band) Add(up, 0, /*waits=*/false);
    Phase down = NewPhase(PhaseKind::kMoeDown, PhaseLabel::kMoeDown);
    down.format = experts.format;
    down.weights = static_cast<const uint8_t*>(experts.down);
    down.expert_bytes = bytes.down;
    down.num_rows = experts.hidden;
    down.num_tiles = ops::NumRowTiles(experts.hidden);
    down.num_slabs = ops::NumSlabs(experts.ffn_width);
    down.num_experts = experts.num_experts;
    down.experts_per_token = config_.experts_per_token;
    down.ffn_width = experts.ffn_width;
    WriteResidual(down, tap);
    AddTiles(down, /*waits=*/false);  // what it reads of `up` is its own flag
    ++schedule_.of_round.moe_layers;
  }

  Arrival Take(uint32_t arrivals) {
    const int counter = next_counter_++ % resident::kNumCounters;
    schedule_.totals[counter] += arrivals;
    return {counter, schedule_.totals[counter]};
  }
  // A product that ends in the residual stream.
  void AddTiles(const Phase& phase, bool waits = true) {
    AddBands(phase, static_cast<uint32_t>(phase.num_tiles), waits);
  }
  // A product's phases, one for each band, which wait for the same: a block arrives at them in
  // order, so who waits for the last one's arrivals waits for all.
  void AddBands(Phase phase, uint32_t arrivals, bool waits = true) {
    const Arrival before = previous_;
    for (phase.band = 0; phase.band < num_bands_; ++phase.band) {
      previous_ = before;
      Add(OfBand(phase), arrivals, waits);
    }
  }
  // With the rows of its band to read and to write; the residual stream's are found by the device.
  Phase OfBand(Phase phase) const {
    const int first_row = phase.band * kBandRows;
    if (phase.kind != PhaseKind::kProduct) return phase;
    if (phase.input == InputKind::kBf16 && phase.x != nullptr) {
      phase.x =
          static_cast<const bf16*>(phase.x) + static_cast<int64_t>(first_row) * phase.x_stride;
    } else if (phase.input == InputKind::kSwiGlu && phase.x != nullptr) {
      phase.x =
          static_cast<const float*>(phase.x) + static_cast<int64_t>(first_row) * phase.x_stride;
    }
    if (phase.out != nullptr) phase.out += static_cast<int64_t>(first_row) * phase.out_stride;
    if (buffers_.carry != nullptr)
      phase.carry = buffers_.carry + phase.band * buffers_.band_carries;
    return phase;
  }
  // `arrivals` 0: nobody waits for this phase.
  void Add(Phase phase, uint32_t arrivals, bool waits = true) {
    if (waits) {
      phase.wait_counter = previous_.counter;
      phase.wait_target = previous_.target;
    }
    if (arrivals > 0) {
      previous_ = Take(arrivals);
      phase.arrive_counter = previous_.counter;
    }
    phase.draft_of = draft_of_;
    phase.index = static_cast<int>(schedule_.phases.size());
    phase.before = schedule_.of_round;
    Count(phase, schedule_.of_round);
    schedule_.phases.push_back(phase);
  }
  // Layers of experts are counted where their last band has been added.
  void Count(const Phase& phase, resident::Tally& tally) const {
    const bool is_product = phase.kind == PhaseKind::kProduct || phase.kind == PhaseKind::kMoeUp ||
                            phase.kind == PhaseKind::kMoeDown;
    tally.products += is_product;
    tally.sums += is_product && phase.output == OutputKind::kResidual;
    if (phase.output != OutputKind::kResidual && phase.output != OutputKind::kFeatures) return;
    const bool of_all = phase.kind == PhaseKind::kEmbed;
    for (int band = 0; band < num_bands_; ++band) tally.rows[band] += of_all || band == phase.band;
  }

  const ResidentModel& model_;
  const ModelConfig& config_;
  const ResidentBuffers& buffers_;
  ResidentSchedule schedule_;
  Arrival previous_;
  int next_counter_ = 0;
  // Of the phases that are added:
  int8_t draft_of_ = resident::kOfTarget;
  int num_bands_ = 1;
};

}  // namespace

std::vector<RoundKind> RoundKinds(int draft_passes_max) {
  std::vector<RoundKind> kinds;
  for (int num_bands = 1; num_bands <= kBandsMax; ++num_bands) {
    const int passes_max = std::min(draft_passes_max, num_bands * kBandRows / 2);
    for (int passes = 0; passes <= passes_max; ++passes) {
      for (const bool whole_rows : {false, true})
        kinds.push_back({.draft_passes = passes, .num_bands = num_bands, .whole_rows = whole_rows});
    }
  }
  return kinds;
}

ResidentSchedule BuildSchedule(const ResidentModel& model, const RoundKind& kind,
                               const ResidentTasks& tasks) {
  ScheduleBuilder builder(model);
  const bool chains = model.config.drafter.markov_rank > 0;
  for (int s = 0; s < kind.draft_passes; ++s) {
    builder.DraftPass(s, tasks.chain);
    if (kind.whole_rows && !chains) builder.ChooseFromWholeRows();
  }
  builder.EndDrafts(kind.num_bands);
  builder.Embed();
  for (size_t l = 0; l < model.target.layers.size(); ++l) builder.TargetLayerPhases(l);
  builder.TargetHead();
  if (kind.whole_rows) builder.ChooseFromWholeRows();
  builder.Commit();
  if (!model.drafter.layers.empty()) builder.DrafterContext(tasks.append);
  return builder.Take();
}

std::vector<AttentionTask> AppendTasks(const ResidentModel& model) {
  std::vector<AttentionTask> tasks;
  const DrafterConfig& config = model.config.drafter;
  const int layer_width = 2 * config.num_kv_heads * config.head_dim;  // k, then v
  for (size_t l = 0; l < model.drafter.layers.size(); ++l) {
    AttentionTask task = DrafterAttention(model, l);
    task.qkv = model.buffers.context_kv == nullptr
                   ? nullptr
                   : model.buffers.context_kv + static_cast<int>(l) * layer_width;
    task.row_width = model.drafter.context_kv.num_rows;
    tasks.push_back(task);
  }
  return tasks;
}

resident::ChainTask ChainTaskOf(const ResidentModel& model) {
  const MarkovHead& head = model.drafter.markov;
  const auto tiles = [](const ops::Matrix& matrix) {
    return static_cast<const uint8_t*>(matrix.data);
  };
  return {.rank = model.config.drafter.markov_rank,
          .previous = head.previous,
          .next = tiles(head.next),
          .gate_previous = tiles(head.gate_previous),
          .gate_bias = head.gate_bias,
          .gates = model.buffers.gates,
          .words = model.buffers.chain_words};
}

std::string ResidentSchedule::ToString() const {
  std::string text;
  for (size_t i = 0; i < phases.size(); ++i) {
    const Phase& p = phases[i];
    absl::StrAppendFormat(&text, "%3d %-15s tiles %5d slabs %3d wait %2d/%-5d arrive %2d\n",
                          static_cast<int>(i), Name(static_cast<PhaseLabel>(p.label)), p.num_tiles,
                          p.num_slabs, p.wait_counter, p.wait_target, p.arrive_counter);
  }
  return text;
}

double PhaseBytes(const Phase& phase, double distinct_experts) {
  const double matrix =
      static_cast<double>(phase.num_tiles) * phase.num_slabs * ops::SlabBytes(phase.format);
  switch (phase.kind) {
    case PhaseKind::kProduct:
      return matrix;
    case PhaseKind::kMoeUp:
      return distinct_experts * matrix + (phase.band > 0 ? 0.0
                                                         : static_cast<double>(phase.num_experts) *
                                                               phase.x_stride * sizeof(float));
    case PhaseKind::kMoeDown:
      return distinct_experts * matrix;
    default:
      return 0;
  }
}

}  // namespace ultraspeed::worker::cuda
