#include "bench/rank_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "common/grammar/token_mask.h"
#include "common/status_macros.h"
#include "worker/cuda/device.h"
#include "worker/model/served_shape.h"

namespace ultraspeed::bench {
namespace {

constexpr size_t kCeilingBytes = size_t{2} << 30;
constexpr int kWarmUpRounds = 4;  // the second one captures the graph
constexpr int kPrefillPasses = 3;
constexpr int kSequencesMax = 8;
constexpr int kBandRows = 8, kResidentRows = 16;  // of a round of the resident engine

constexpr const char* kAlone =
    "one GPU's share with random weights; graphs: kernels of single operations in a graph, no "
    "all-reduce, drafter features whole; resident: one kernel, all-reduces through inboxes of this "
    "GPU, a rank's share of the features; the router is whole on every rank; keys and values "
    "before the prefill chunk are zeros";
constexpr const char* kTogether =
    "each GPU's share with random weights, sums and choices over the GPUs; graphs: kernels of "
    "single operations in graphs; resident: a kernel on each GPU; the router and the drafter's "
    "features are whole on every rank; bytes and floors are of one GPU in resident, of all in "
    "graphs; keys and values before the prefill chunk are zeros";

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}
double MedianAfterWarmUp(const std::vector<double>& values) {
  return Median({values.begin() + kWarmUpRounds, values.end()});
}

// A layer's, of rows that choose independently and evenly.
int UniformExperts(const worker::ModelConfig& config, int rows) {
  const double missed = 1.0 - static_cast<double>(config.experts_per_token) / config.num_experts;
  return static_cast<int>(std::lround(config.num_experts * (1.0 - std::pow(missed, rows))));
}

// Lets every other token be chosen, whatever was drafted: a mask for each row, which is the most
// that a format can ask for.
class EveryOtherToken final : public worker::TokenConstraint {
 public:
  explicit EveryOtherToken(int vocabulary) {
    grammar::TokenMask mask(vocabulary);
    for (int32_t token = 0; token < vocabulary; token += 2) mask.Allow(token);
    mask_ = std::make_shared<const grammar::TokenMask>(std::move(mask));
  }
  Masks AllowedTokens(absl::Span<const int32_t> drafts) const override {
    return Masks(drafts.size() + 1, mask_);
  }

 private:
  std::shared_ptr<const grammar::TokenMask> mask_;
};

// Sequences at a fixed position, mostly one: every round runs at the same context.
class RankRounds {
 public:
  RankRounds(worker::RandomModel& model, const RankOptions& options)
      : executor_(*model.executor), bytes_(model.bytes), options_(options) {
    pages_.resize(static_cast<size_t>(executor_.num_pages()));
    std::iota(pages_.begin(), pages_.end(), 0);
    for (int i = 0; i < options.prefill_tokens; ++i)
      tokens_.push_back((i * 7919 + 13) % executor_.config().vocabulary);
  }

  // A chunk that ends where the timed rounds begin.
  double PrefillMs() {
    worker::SequenceStep step = Step(options_.context - options_.prefill_tokens);
    step.num_tokens = options_.prefill_tokens;
    step.sample = true;
    return MedianMs({.steps = {step}}, 1, kPrefillPasses);
  }

  // What it takes to keep a beginning as long as the context, and to go on from it instead of
  // computing it: plain rounds with the copies before them, less plain rounds.
  boost::json::object SharedBeginning() {
    worker::SequenceStep step = Step(options_.context);
    step.sample = true;
    const int64_t border = options_.context / worker::kPageTokens * worker::kPageTokens;
    worker::UseResidentEngine(executor_, false);
    const auto round_ms = [&](const std::function<void()>& before) {
      return MedianMs({.steps = {step}}, kWarmUpRounds, options_.rounds, before);
    };
    const double plain = round_ms([] {});
    const double saved = round_ms([&] { executor_.SaveSnapshot(0, 0, border); });
    const double loaded = round_ms([&] { executor_.LoadSnapshot(0, 0, border); });
    worker::UseResidentEngine(executor_, true);
    return {{"tokens", border}, {"save_ms", saved - plain}, {"load_ms", loaded - plain}};
  }

  // Rounds of the resident engine that weigh their drafts, as served, and verify `verified_rows`
  // whatever they are.
  absl::StatusOr<boost::json::object> Resident(int block, int verified_rows, double ceiling,
                                               const std::string& trace_file) {
    worker::SequenceStep step = Step(options_.context);
    step.sample = true;
    step.block = block;
    step.reach_min = std::numeric_limits<float>::min();
    ASSIGN_OR_RETURN(const worker::ResidentRoundTimes times,
                     worker::MeasureResidentRounds(executor_, {.steps = {step}},
                                                   {.num_rounds = options_.rounds,
                                                    .verified_rows = verified_rows,
                                                    .trace_file = trace_file}));
    const double ms = MedianAfterWarmUp(times.round_ms);
    const double floor_ms = 1e3 * times.bytes / ceiling;
    boost::json::object report = {
        {"ms_per_round", ms},
        {"ms_per_round_min", *std::min_element(times.round_ms.begin(), times.round_ms.end())},
        {"rows", block},
        {"verified_rows", verified_rows},
        {"thread_blocks", times.num_blocks},
        {"distinct_experts_per_layer", times.expert_reads},
        {"weight_gb_per_round", times.bytes / 1e9},
        {"tb_per_second", times.bytes / (1e-3 * ms) / 1e12},
        {"floor_ms", floor_ms},
        {"of_floor", floor_ms / ms}};
    if (block > 1 && verified_rows == block) {
      report["tokens_per_round_assumed"] = options_.tokens_per_round;
      report["tokens_per_second_at_that"] = 1e3 * options_.tokens_per_round / ms;
    }
    report["phases"] = Phases(times, ceiling);
    return report;
  }

  // Rounds whose choices are held to something.
  absl::StatusOr<boost::json::object> Held(int block) {
    const EveryOtherToken constraint(executor_.vocabulary_used());
    worker::SequenceStep step = Step(options_.context);
    step.sample = true;
    step.block = block;
    step.constraint = &constraint;
    const worker::Round round{.steps = {step}};
    ASSIGN_OR_RETURN(const worker::ResidentRoundTimes times,
                     worker::MeasureResidentRounds(
                         executor_, round,
                         {.num_rounds = options_.rounds, .verified_rows = 0, .trace_file = ""}));
    worker::UseResidentEngine(executor_, false);
    const double graphs = MedianMs(round, kWarmUpRounds, options_.rounds);
    worker::UseResidentEngine(executor_, true);
    return boost::json::object{{"rows", block},
                               {"graphs_ms_per_round", graphs},
                               {"resident_ms_per_round", MedianAfterWarmUp(times.round_ms)}};
  }

  // Rounds whose drafts the step brings along, by the host's clock: on the resident engine each is
  // a launch of its own.
  boost::json::object LookedUp(int block) {
    const std::vector<int32_t> drafts(static_cast<size_t>(block - 1), tokens_[0]);
    worker::SequenceStep step = Step(options_.context);
    step.sample = true;
    step.block = block;
    step.drafts = drafts.data();
    step.num_drafts = block - 1;
    const worker::Round round{.steps = {step}};
    const double resident = MedianMs(round, kWarmUpRounds, options_.rounds);
    worker::UseResidentEngine(executor_, false);
    const double graphs = MedianMs(round, kWarmUpRounds, options_.rounds);
    worker::UseResidentEngine(executor_, true);
    return {{"rows", block}, {"graphs_ms_per_round", graphs}, {"resident_ms_per_round", resident}};
  }

  // Rounds of `num_sequences` sequences of `block` rows: with all of them in the passes of a graph,
  // and on the resident engine, in one round of it or in turns. Each reads the experts that uniform
  // routing would choose for its rows, unless all is as routed.
  absl::StatusOr<boost::json::object> Several(int num_sequences, int block, double ceiling) {
    worker::Round round;
    for (int s = 0; s < num_sequences; ++s) {
      worker::SequenceStep step = Step(options_.context);
      step.sample = true;
      step.block = block;
      step.slot = s;
      step.tokens = &tokens_[static_cast<size_t>(s)];
      step.num_pages = static_cast<int>(pages_.size()) / options_.sequences;
      step.pages = &pages_[static_cast<size_t>(s * step.num_pages)];
      round.steps.push_back(step);
    }
    const auto force = [&](int rows) {
      worker::ForceDistinctExperts(
          executor_, options_.distinct_experts > 0 ? UniformExperts(executor_.config(), rows) : 0);
    };
    worker::UseResidentEngine(executor_, false);
    force(num_sequences * block);
    const worker::ForwardStatistics before = executor_.statistics();
    const double graphs = MedianMs(round, kWarmUpRounds, options_.rounds);
    const worker::ForwardStatistics after = executor_.statistics();
    worker::UseResidentEngine(executor_, true);
    boost::json::object report = {
        {"sequences", num_sequences},
        {"rows_of_each", block},
        {"graphs_ms_per_round", graphs},
        {"graphs_distinct_experts_per_layer",
         static_cast<double>(after.distinct_experts - before.distinct_experts) /
             static_cast<double>(after.moe_layer_passes - before.moe_layer_passes)}};
    if (num_sequences * block <= kResidentRows) {
      force(std::min(num_sequences * block, kBandRows));  // each band's
      ASSIGN_OR_RETURN(const worker::ResidentRoundTimes times,
                       worker::MeasureResidentRounds(
                           executor_, round,
                           {.num_rounds = options_.rounds, .verified_rows = 0, .trace_file = ""}));
      report["shared_ms_per_round"] = MedianAfterWarmUp(times.round_ms);
      report["shared_expert_reads_per_layer"] = times.expert_reads;
      report["shared_floor_ms"] = 1e3 * times.bytes / ceiling;
      report["shared_phases"] = Phases(times, ceiling);
      return report;
    }
    force(block);
    const double served = MedianMs(round, kWarmUpRounds, options_.rounds);
    const bool in_turns = executor_.statistics().target_passes - after.target_passes >
                          int64_t{kWarmUpRounds} + options_.rounds;
    if (in_turns) report["turns_ms_per_round"] = served;
    return report;
  }

  // "ms", the bytes of one round by what they are for, and the rate at which they were read.
  boost::json::object Decode(int block, double ceiling) {
    worker::SequenceStep step = Step(options_.context);
    step.sample = true;
    step.block = block;
    worker::UseResidentEngine(executor_, false);
    const worker::ForwardStatistics before = executor_.statistics();
    const double ms = MedianMs({.steps = {step}}, kWarmUpRounds, options_.rounds);
    const worker::ForwardStatistics& after = executor_.statistics();
    const double rounds = static_cast<double>(after.target_passes - before.target_passes);
    const double experts = static_cast<double>(after.distinct_experts - before.distinct_experts);
    const double weight_bytes = static_cast<double>(after.target_bytes - before.target_bytes +
                                                    after.drafter_bytes - before.drafter_bytes) /
                                rounds;
    const double bytes_per_second = weight_bytes / (1e-3 * ms);
    ceiling *= options_.num_gpus;
    const int heads_read = block > 1 ? 2 : 1;
    return {{"ms_per_round", ms},
            {"rows", block},
            {"distinct_experts_per_layer",
             experts / static_cast<double>(after.moe_layer_passes - before.moe_layer_passes)},
            {"weight_gb_per_round", weight_bytes / 1e9},
            {"gb_per_round_by_kind",
             {{"experts",
               options_.num_gpus * experts / rounds * static_cast<double>(bytes_.expert) / 1e9},
              {"qkv", Gigabytes(bytes_.qkv)},
              {"o_proj", Gigabytes(bytes_.output)},
              {"router", Gigabytes(bytes_.router)},
              {"dense_mlp", Gigabytes(bytes_.dense_mlp)},
              {"head", heads_read * Gigabytes(bytes_.head)},
              {"draft_context", Gigabytes(bytes_.draft_context)},
              {"draft_block", block > 1 ? Gigabytes(bytes_.draft_block) : 0.0}}},
            {"tb_per_second", bytes_per_second / 1e12},
            {"floor_ms", 1e3 * weight_bytes / ceiling},
            {"of_ceiling", bytes_per_second / ceiling}};
  }

 private:
  static boost::json::array Phases(const worker::ResidentRoundTimes& times, double ceiling) {
    boost::json::array phases;
    for (const worker::ResidentPhaseTimes& phase : times.phases) {
      phases.push_back({{"phase", phase.name},
                        {"count", phase.count},
                        {"ms", phase.ms},
                        {"wait_ms", phase.wait_ms},
                        {"gb", phase.bytes / 1e9},
                        {"floor_ms", 1e3 * phase.bytes / ceiling},
                        {"of_ceiling", phase.ms > 0 ? 1e3 * phase.bytes / ceiling / phase.ms : 0}});
    }
    return phases;
  }

  // Of all GPUs.
  double Gigabytes(size_t bytes) const {
    return options_.num_gpus * static_cast<double>(bytes) / 1e9;
  }

  worker::SequenceStep Step(int64_t computed) const {
    worker::SequenceStep step;
    step.computed = computed;
    step.tokens = tokens_.data();
    step.num_tokens = 1;
    step.pages = pages_.data();
    step.num_pages = static_cast<int>(pages_.size());
    step.sampling = options_.sampling;
    return step;
  }

  double MedianMs(
      const worker::Round& round, int warm_up, int repeats,
      const std::function<void()>& before = [] {}) {
    std::vector<double> ms;
    for (int i = 0; i < warm_up + repeats; ++i) {
      const auto start = std::chrono::steady_clock::now();
      before();
      executor_.Run(round);
      const std::chrono::duration<double, std::milli> elapsed =
          std::chrono::steady_clock::now() - start;
      if (i >= warm_up) ms.push_back(elapsed.count());
    }
    return Median(ms);
  }

  worker::ModelExecutor& executor_;
  const worker::PassBytes bytes_;
  const RankOptions options_;
  std::vector<int32_t> pages_;
  std::vector<int32_t> tokens_;
};

}  // namespace

absl::StatusOr<boost::json::object> MeasureRank(const RankOptions& options) {
  if (options.shape != "mimo-v2.5-pro") {
    return absl::InvalidArgumentError(
        absl::StrCat("--shape: is ", options.shape, "; only mimo-v2.5-pro is known"));
  }
  constexpr int kRoundsMax = 64;  // of one resident measurement
  if (options.rounds <= kWarmUpRounds + 1 || options.rounds > kRoundsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--rounds: is ", options.rounds, "; must be from ", kWarmUpRounds + 2, " to ", kRoundsMax));
  }
  if (options.num_gpus < 1 || options.num_ranks % options.num_gpus != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--gpus: is ", options.num_gpus, "; must divide --rank_of, which is ", options.num_ranks));
  }
  constexpr int kMarkovRankMax = 256;  // of the resident engine
  if (options.markov_rank < 0 || options.markov_rank > kMarkovRankMax ||
      options.markov_rank % 32 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("--markov_rank: is ", options.markov_rank,
                                                   "; must be a multiple of 32 from 0 to ",
                                                   kMarkovRankMax));
  }
  worker::ModelConfig shape = worker::MimoV25ProShape();
  shape.drafter.markov_rank = options.markov_rank;
  shape.drafter.has_markov_gate = options.markov_rank > 0;
  // The parts of the GPUs that are there, as if they were a model.
  const bool alone = options.num_gpus == 1;
  ASSIGN_OR_RETURN(const worker::ModelConfig config,
                   worker::RankOf(shape, options.num_ranks / options.num_gpus));
  if (options.sequences < 1 || options.sequences > kSequencesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("--sequences: is ", options.sequences, "; must be from 1 to ", kSequencesMax));
  }
  if (options.context < options.prefill_tokens || options.context >= config.context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("--context: is ", options.context,
                                                   "; must be from ", options.prefill_tokens,
                                                   " to ", config.context_tokens - 1));
  }
  worker::ExecutorOptions executor_options;
  executor_options.max_sequences = options.sequences;
  executor_options.max_batch_tokens = options.prefill_tokens;
  executor_options.num_snapshots = 1;
  executor_options.kv_tokens = options.sequences * (options.context + worker::kPageTokens);
  executor_options.count_experts = true;
  executor_options.kv_precision =
      options.kv_fp8 ? worker::KvPrecision::kFp8 : worker::KvPrecision::kBf16;
  executor_options.num_ranks = options.num_gpus;
  ASSIGN_OR_RETURN(
      worker::RandomModel model,
      worker::CreateRandomCudaModel(config, executor_options, alone ? options.num_ranks : 1));
  const double ceiling = worker::MeasureDeviceReadBandwidth(kCeilingBytes);
  RankRounds rounds(model, options);
  const double prefill_ms = rounds.PrefillMs();
  boost::json::object shared_beginning = rounds.SharedBeginning();
  const int block = config.drafter.block_size;
  boost::json::object graphs, resident;
  // By both engines; `distinct_experts` a layer, 0 = as routed.
  const auto measure = [&](const char* name, int rows, int distinct_experts,
                           const std::string& trace_file) -> absl::Status {
    worker::ForceDistinctExperts(*model.executor, distinct_experts);
    graphs[name] = rounds.Decode(rows, ceiling);
    ASSIGN_OR_RETURN(resident[name], rounds.Resident(rows, rows, ceiling, trace_file));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(measure("plain_as_routed", 1, 0, ""));
  RETURN_IF_ERROR(measure("as_routed", block, 0, ""));
  if (options.distinct_experts > 0) {
    RETURN_IF_ERROR(measure("speculative", block, options.distinct_experts, options.trace_file));
  }
  // Each reads the experts that uniform routing would choose for its rows, unless all is as routed.
  boost::json::array fewer_verified;
  for (int rows = 1; rows < block; ++rows) {
    worker::ForceDistinctExperts(*model.executor,
                                 options.distinct_experts > 0 ? UniformExperts(config, rows) : 0);
    ASSIGN_OR_RETURN(boost::json::object report, rounds.Resident(block, rows, ceiling, ""));
    fewer_verified.push_back(std::move(report));
  }
  worker::ForceDistinctExperts(*model.executor, options.distinct_experts);
  ASSIGN_OR_RETURN(boost::json::object held, rounds.Held(block));
  boost::json::object looked_up = rounds.LookedUp(block);
  boost::json::array several;
  for (int sequences = 2; sequences <= options.sequences; ++sequences) {
    const int band_share = std::max(1, kBandRows / sequences);
    for (const int rows : std::set<int>{1, band_share, std::min(block, 2 * band_share), block}) {
      ASSIGN_OR_RETURN(boost::json::object report, rounds.Several(sequences, rows, ceiling));
      several.push_back(std::move(report));
    }
  }
  return boost::json::object{
      {"device", model.executor->device()},
      {"shape",
       absl::StrCat(options.shape, ", ", options.num_gpus, " of ", options.num_ranks, " ranks")},
      {"what", alone ? kAlone : kTogether},
      {"markov_rank", options.markov_rank},
      {"gpus", options.num_gpus},
      {"context", options.context},
      {"kv", options.kv_fp8 ? "fp8" : "bf16"},
      {"temperature", options.sampling.temperature},
      {"top_k", options.sampling.top_k},
      {"top_p", options.sampling.top_p},
      {"memory", model.memory},
      {"read_tb_per_second_ceiling", ceiling / 1e12},
      {"prefill_rows", options.prefill_tokens},
      {"prefill_ms", prefill_ms},
      {"prefill_tokens_per_second", 1e3 * options.prefill_tokens / prefill_ms},
      {"shared_beginning", std::move(shared_beginning)},
      {"graphs", std::move(graphs)},
      {"resident", std::move(resident)},
      {"fewer_verified", std::move(fewer_verified)},
      {"held_to_a_format", std::move(held)},
      {"drafts_looked_up", std::move(looked_up)},
      {"several_sequences", std::move(several)}};
}

}  // namespace ultraspeed::bench
