#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/usable_cores.h"
#include "worker/cpu/cpu_executor.h"
#include "worker/model/progress_sum.h"
#include "worker/model/shared_reads.h"
#include "worker/model/vocabulary.h"

namespace ultraspeed::worker {
namespace {

constexpr float kNeverChosen = -1e30f;  // finite, so that dividing by a temperature stays finite

// Rows of the largest sum over ranks: a pass of the target, or all blocks of the drafter.
int SumRowsMax(const ModelConfig& config, const CacheShape& shape) {
  return std::max(shape.max_rows, shape.max_sequences * config.drafter.block_size);
}

bool DraftsInFp8(DrafterPrecision precision) {
  if (precision != DrafterPrecision::kAuto) return precision == DrafterPrecision::kFp8;
  return kernels::ActiveInstructionSet() == kernels::InstructionSet::kAmxBf16;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CpuExecutor>> CpuExecutor::Create(const ExecutorOptions& options) {
  if (absl::Status status = ValidateOptions(options); !status.ok()) return status;
  if (options.kv_precision != KvPrecision::kBf16) {
    return absl::InvalidArgumentError("kv_precision: is fp8; the CPU executor takes bf16 only");
  }
  absl::StatusOr<ModelConfig> config = LoadModelConfig(options.model_folder, options.experts);
  if (!config.ok()) return config.status();
  absl::StatusOr<int> vocabulary_used = CountUsedTokens(options.model_folder, config->vocabulary);
  if (!vocabulary_used.ok()) return vocabulary_used.status();
  const CacheShape shape = {.max_sequences = options.max_sequences,
                            .max_rows = options.max_batch_tokens,
                            .num_pages = static_cast<int>(PagesOf(options.kv_tokens)),
                            .page_tokens = kPageTokens,
                            .num_snapshots = options.num_snapshots};
  const absl::StatusOr<ModelConfig> part = PartOf(*config, options.num_ranks);
  if (!part.ok()) return part.status();
  std::unique_ptr<CpuExecutor> executor(
      new CpuExecutor(*std::move(config), shape, options.num_ranks, *vocabulary_used));
  if (absl::Status status = executor->Load(options); !status.ok()) return status;
  return executor;
}

absl::StatusOr<std::unique_ptr<Executor>> CreateCpuExecutor(const ExecutorOptions& options) {
  return CpuExecutor::Create(options);
}

CpuExecutor::RankModel::RankModel(const ModelConfig& part_config, ModelWeights loaded,
                                  kernels::PackedMatrix head_for_drafter, const CacheShape& shape,
                                  int num_threads, const RankLink& link)
    : part(part_config),
      weights(std::move(loaded)),
      drafter_head(std::move(head_for_drafter)),
      pool(num_threads),
      target(part, weights.target, shape, pool, statistics, link) {
  if (part.drafter.num_layers > 0) {
    drafter = std::make_unique<DrafterForward>(
        part, weights.drafter, weights.target.embedding,
        drafter_head.bytes() > 0 ? drafter_head : weights.target.head, shape, pool, statistics,
        link);
  }
}

CpuExecutor::CpuExecutor(ModelConfig config, const CacheShape& shape, int num_ranks,
                         int vocabulary_used)
    : config_(std::move(config)),
      shape_(shape),
      vocabulary_used_(vocabulary_used),
      group_(num_ranks,
             static_cast<size_t>(SumRowsMax(config_, shape)) * static_cast<size_t>(config_.hidden)),
      ranks_(static_cast<size_t>(num_ranks)),
      sample_workspace_bytes_((kernels::SampleWorkspaceBytes(vocabulary_used) + 63) / 64 * 64) {
  drafts_.resize(static_cast<size_t>(shape_.max_sequences));
}

// Every rank's part at once, each on its rank's thread.
absl::Status CpuExecutor::Load(const ExecutorOptions& options) {
  const int num_threads = options.num_threads > 0 ? options.num_threads : kernels::NumUsableCores();
  const int num_ranks = group_.num_ranks();
  const ModelConfig part = *PartOf(config_, num_ranks);
  std::vector<absl::Status> statuses(ranks_.size());
  SharedReads reads(num_ranks, options.reads);
  ProgressSum progress(num_ranks, options.progress);
  group_.Run([&](int index) {
    const auto i = static_cast<size_t>(index);
    const Rank rank = {.index = index, .count = num_ranks};
    absl::StatusOr<ModelWeights> weights = LoadModelWeights(options.model_folder, config_,
                                                            {.rank = rank,
                                                             .shared = &reads,
                                                             .progress = progress.OfRank(index),
                                                             .notice = options.notice});
    if (!weights.ok()) {
      statuses[i] = weights.status();
      return;
    }
    kernels::PackedMatrix drafter_head;
    if (config_.drafter.num_layers > 0 && DraftsInFp8(options.drafter_precision)) {
      RoundToFp8(weights->drafter);
      drafter_head = kernels::PackedMatrix::RoundToFp8(weights->target.head);
    }
    ranks_[i] = std::make_unique<RankModel>(
        part, *std::move(weights), std::move(drafter_head), shape_,
        std::max(1, num_threads / num_ranks),
        RankLink{.group = num_ranks > 1 ? &group_ : nullptr, .rank = rank});
  });
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
  }
  if (config_.drafter.markov_rank > 0) {
    markov_ = std::make_unique<MarkovForward>(config_.drafter, weights().drafter.markov,
                                              shape_.max_sequences, pool());
  }
  return absl::OkStatus();
}

std::string CpuExecutor::device() const {
  const int num_threads = ranks_.front()->pool.num_threads();
  const std::string name =
      absl::StrCat("cpu ", kernels::Name(kernels::ActiveInstructionSet()), ", ");
  if (group_.num_ranks() == 1) return absl::StrCat(name, num_threads, " threads");
  return absl::StrCat(name, group_.num_ranks(), " ranks of ", num_threads, " threads");
}

void CpuExecutor::ResetSlot(int slot) {
  KERNELS_CHECK(slot, >=, 0);
  KERNELS_CHECK(slot, <, shape_.max_sequences);
  for (const auto& rank : ranks_) {
    if (rank->drafter != nullptr) rank->drafter->ResetSlot(slot);
  }
}

void CpuExecutor::SaveSnapshot(int snapshot, int slot, int64_t position) {
  CheckSnapshot(snapshot, slot, position, *this);
  for (const auto& rank : ranks_) {
    rank->target.CopySnapshot(SnapshotCopy::kSave, snapshot, slot, position);
    if (rank->drafter != nullptr) rank->drafter->SaveSnapshot(snapshot, slot, position);
  }
}

void CpuExecutor::LoadSnapshot(int snapshot, int slot, int64_t position) {
  CheckSnapshot(snapshot, slot, position, *this);
  for (const auto& rank : ranks_) {
    rank->target.CopySnapshot(SnapshotCopy::kLoad, snapshot, slot, position);
    if (rank->drafter != nullptr) rank->drafter->LoadSnapshot(snapshot, slot, position);
  }
}

RoundResult CpuExecutor::Run(const Round& round) {
  CheckRound(round, *this);
  DraftTokens(round);
  GatherRows(round);
  RunTarget();
  ChooseTokens(round);
  RoundResult result = Accept(round);
  SumStatistics();
  return result;
}

void CpuExecutor::RunTarget() {
  group_.Run(
      [this](int rank) { ranks_[static_cast<size_t>(rank)]->target.Run(sequences_, rows_); });
}

void CpuExecutor::TargetLogits(absl::Span<const int> rows, float* out) {
  group_.Run([&](int rank) { ranks_[static_cast<size_t>(rank)]->target.Logits(rows, out); });
}

// Every rank has all taps: residuals are the same on all.
void CpuExecutor::AddTaps(int slot, int64_t position, int first_row, int count) {
  for (const auto& rank : ranks_) {
    if (rank->drafter != nullptr)
      rank->drafter->AddTaps(slot, position, rank->target.taps(first_row), count);
  }
}

void CpuExecutor::SumStatistics() {
  statistics_ = ranks_.front()->statistics;
  for (size_t rank = 1; rank < ranks_.size(); ++rank) {
    statistics_.target_bytes += ranks_[rank]->statistics.target_bytes;
    statistics_.drafter_bytes += ranks_[rank]->statistics.drafter_bytes;
  }
}

void CpuExecutor::Logits(const SequenceStep& step, float* out) {
  const Round round = {.steps = {step}};
  CheckRound(round, *this);
  KERNELS_CHECK(step.block, ==, 1);
  drafts_.front().clear();  // of the round before
  GatherRows(round);
  RunTarget();
  std::vector<int> rows(static_cast<size_t>(step.num_tokens));
  std::iota(rows.begin(), rows.end(), 0);
  TargetLogits(rows, out);
  AddTaps(step.slot, step.computed, 0, step.num_tokens);
  SumStatistics();
}

// One drafter pass over all sequences that speculate; fills drafts_.
void CpuExecutor::DraftTokens(const Round& round) {
  std::vector<DraftAnchor> anchors;
  drafting_.clear();
  choices_.clear();
  for (size_t s = 0; s < round.steps.size(); ++s) {
    const SequenceStep& step = round.steps[s];
    drafts_[s].assign(step.drafts, step.drafts + step.num_drafts);
    if (!step.wants_drafts()) continue;
    drafting_.push_back({.sequence = s,
                         .first_choice = choices_.size(),
                         .log_least = std::log(kernels::LeastDraftOdds(step.sampling)),
                         .log_reach_min = std::log(step.reach_min),  // of 0: below all
                         .log_reach = 0});
    anchors.push_back({step.slot, step.computed, step.tokens[0], step.block - 1});
    for (int j = 1; j < step.block; ++j)
      choices_.push_back({&step, step.computed + j, step.reach_min > 0, nullptr});
  }
  if (anchors.empty()) return;
  float* const logits = TakeLogits();
  gates_.resize(
      std::max(gates_.size(), choices_.size() * static_cast<size_t>(config_.drafter.markov_rank)));
  group_.Run([&](int rank) {
    ranks_[static_cast<size_t>(rank)]->drafter->Draft(anchors, logits, gates_.data());
  });
  if (markov_ == nullptr) SampleAll();
  for (size_t j = 0; !drafting_.empty(); ++j) {
    if (markov_ != nullptr) SampleBehindDrafts(j);
    std::erase_if(drafting_, [&](Drafting& drafting) { return !TakeDraft(drafting, j); });
  }
}

// Draft j of a sequence, unless it is too unlikely to be reached. Returns whether another comes.
bool CpuExecutor::TakeDraft(Drafting& drafting, size_t j) {
  const Choice& choice = choices_[drafting.first_choice + j];
  drafting.log_reach += std::max(choice.chosen.logprob, drafting.log_least);
  if (drafting.log_reach < drafting.log_reach_min) return false;
  drafts_[drafting.sequence].push_back(choice.chosen.token);
  return static_cast<int>(j) + 2 < choice.step->block;
}

// Draft j of the sequences that go on, by the Markov head: each knows the draft before it.
void CpuExecutor::SampleBehindDrafts(size_t j) {
  const auto rank = static_cast<size_t>(config_.drafter.markov_rank);
  to_sample_.clear();
  markov_rows_.clear();
  for (const Drafting& drafting : drafting_) {
    const size_t row = drafting.first_choice + j;
    Choice& choice = choices_[row];
    to_sample_.push_back(&choice);
    markov_rows_.push_back(
        {.previous = j == 0 ? choice.step->tokens[0] : drafts_[drafting.sequence].back(),
         .gate = &gates_[row * rank],
         .logits = choice.logits});
  }
  markov_->AddBias(markov_rows_);
  MakeNoise();
  Sample(to_sample_);
}

// The noise of to_sample_'s choices, by all threads: there are few of these.
void CpuExecutor::MakeNoise() {
  const auto is_greedy = [](const Choice* c) { return c->step->sampling.temperature == 0; };
  if (std::all_of(to_sample_.begin(), to_sample_.end(), is_greedy)) return;
  constexpr int kPart = 1024;
  const int num_parts = (vocabulary_used_ + kPart - 1) / kPart;
  const auto vocabulary = static_cast<size_t>(vocabulary_used_);
  noise_.resize(std::max(noise_.size(), to_sample_.size() * vocabulary));
  for (size_t row = 0; row < to_sample_.size(); ++row)
    if (!is_greedy(to_sample_[row])) to_sample_[row]->noise = &noise_[row * vocabulary];
  pool().ParallelFor(static_cast<int>(to_sample_.size()) * num_parts, [&](int i) {
    const Choice& choice = *to_sample_[static_cast<size_t>(i / num_parts)];
    const int first = i % num_parts * kPart;
    if (choice.noise == nullptr) return;
    kernels::GumbelNoise(choice.step->sampling.seed, choice.position, first,
                         std::min(kPart, vocabulary_used_ - first), choice.noise + first);
  });
}

// The rows of the target's pass: each step's committed tokens, then its drafts.
void CpuExecutor::GatherRows(const Round& round) {
  sequences_.clear();
  rows_.clear();
  first_row_.clear();
  for (size_t s = 0; s < round.steps.size(); ++s) {
    const SequenceStep& step = round.steps[s];
    const int sequence = static_cast<int>(s);
    sequences_.push_back({step.slot, step.pages, step.num_pages});
    first_row_.push_back(static_cast<int>(rows_.size()));
    for (int i = 0; i < step.num_tokens; ++i)
      rows_.push_back({step.tokens[i], step.computed + i, sequence});
    for (size_t j = 0; j < drafts_[s].size(); ++j) {
      rows_.push_back({drafts_[s][j], step.computed + 1 + static_cast<int64_t>(j), sequence});
    }
  }
}

// The target's own choice after each sampled row: the last committed token and every draft.
void CpuExecutor::ChooseTokens(const Round& round) {
  sampled_rows_.clear();
  choices_.clear();
  for (size_t s = 0; s < round.steps.size(); ++s) {
    const SequenceStep& step = round.steps[s];
    if (!step.sample) continue;
    TokenConstraint::Masks masks;
    if (step.constraint != nullptr) {
      masks = step.constraint->AllowedTokens(drafts_[s]);
    }
    const int num_drafts = static_cast<int>(drafts_[s].size());
    masks.resize(drafts_[s].size() + 1);  // rows after a draft that is not allowed
    for (int j = 0; j <= num_drafts; ++j) {
      const int row = first_row_[s] + step.num_tokens - 1 + j;
      sampled_rows_.push_back(row);
      choices_.push_back({&step, rows_[static_cast<size_t>(row)].position + 1, step.logprobs >= 0,
                          std::move(masks[static_cast<size_t>(j)])});
    }
  }
  TargetLogits(sampled_rows_, TakeLogits());
  SampleAll();
}

// Room for the choices' logits, [choices, V].
float* CpuExecutor::TakeLogits() {
  const auto vocabulary = static_cast<size_t>(config_.vocabulary);
  logits_.resize(std::max(logits_.size(), choices_.size() * vocabulary));
  for (size_t i = 0; i < choices_.size(); ++i) choices_[i].logits = &logits_[i * vocabulary];
  return logits_.data();
}

void CpuExecutor::Sample(absl::Span<Choice* const> choices) {
  sample_workspace_.resize(
      std::max(sample_workspace_.size(), choices.size() * sample_workspace_bytes_ + 64));
  const bool has_mask =
      config_.drafter.num_layers > 0 && config_.drafter.mask_token_id < vocabulary_used_;
  pool().ParallelFor(static_cast<int>(choices.size()), [&](int i) {
    const auto index = static_cast<size_t>(i);
    Choice& choice = *choices[index];
    if (has_mask) choice.logits[config_.drafter.mask_token_id] = kNeverChosen;
    if (choice.allowed != nullptr) {
      for (int32_t token = 0; token < vocabulary_used_; ++token) {
        if (!choice.allowed->Allows(token)) choice.logits[token] = kNeverChosen;
      }
    }
    uint8_t* const aligned =
        sample_workspace_.data() + (-reinterpret_cast<uintptr_t>(sample_workspace_.data()) & 63);
    choice.chosen = kernels::SampleToken(choice.logits, vocabulary_used_, choice.step->sampling,
                                         choice.position, choice.want_logprob,
                                         aligned + index * sample_workspace_bytes_, choice.noise);
  });
}

void CpuExecutor::SampleAll() {
  to_sample_.clear();
  for (Choice& choice : choices_) to_sample_.push_back(&choice);
  Sample(to_sample_);
}

// Keeps the longest prefix of drafts that the target chose itself, plus the target's choice after
// it.
RoundResult CpuExecutor::Accept(const Round& round) {
  RoundResult result;
  result.sequences.resize(round.steps.size());
  size_t choice = 0;
  for (size_t s = 0; s < round.steps.size(); ++s) {
    const SequenceStep& step = round.steps[s];
    SequenceResult& out = result.sequences[s];
    if (step.sample) {
      out.num_drafted = static_cast<int>(drafts_[s].size());
      out.took_own = step.brings_drafts();
      for (int j = 0; j <= out.num_drafted; ++j) {
        const size_t index = choice + static_cast<size_t>(j);
        ChosenToken chosen{.token = choices_[index].chosen.token,
                           .logprob = choices_[index].chosen.logprob,
                           .top_tokens = {},
                           .top_logprobs = {}};
        if (step.logprobs > 0) {
          const int count = std::min(step.logprobs, vocabulary_used_);
          chosen.top_tokens.resize(static_cast<size_t>(count));
          chosen.top_logprobs.resize(static_cast<size_t>(count));
          kernels::TopLogprobs(&logits_[index * static_cast<size_t>(config_.vocabulary)],
                               vocabulary_used_, count, chosen.top_tokens.data(),
                               chosen.top_logprobs.data());
        }
        out.chosen.push_back(std::move(chosen));
        const bool agreed =
            j < out.num_drafted && drafts_[s][static_cast<size_t>(j)] == out.chosen.back().token;
        if (!agreed) break;
        out.num_accepted += 1;
      }
      choice += drafts_[s].size() + 1;
    }
    AddTaps(step.slot, step.computed, first_row_[s], step.num_tokens + out.num_accepted);
  }
  return result;
}

}  // namespace ultraspeed::worker
