#include <algorithm>
#include <numeric>
#include <thread>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "worker/cpu/cpu_executor.h"
#include "worker/model/vocabulary.h"

namespace ultraspeed::worker {
namespace {

constexpr float kNeverChosen = -1e30f;  // finite, so that dividing by a temperature stays finite
}  // namespace

absl::StatusOr<std::unique_ptr<CpuExecutor>> CpuExecutor::Create(const ExecutorOptions& options) {
  if (absl::Status status = ValidateOptions(options); !status.ok()) return status;
  if (options.kv_precision != KvPrecision::kBf16) {
    return absl::InvalidArgumentError("kv_precision: is fp8; the CPU executor takes bf16 only");
  }
  absl::StatusOr<ModelConfig> config = LoadModelConfig(options.model_folder);
  if (!config.ok()) return config.status();
  absl::StatusOr<int> vocabulary_used = CountUsedTokens(options.model_folder, config->vocabulary);
  if (!vocabulary_used.ok()) return vocabulary_used.status();
  absl::StatusOr<ModelWeights> weights =
      LoadModelWeights(options.model_folder, *config, {.progress = options.progress});
  if (!weights.ok()) return weights.status();
  const CacheShape shape = {
      .max_sequences = options.max_sequences,
      .max_rows = options.max_batch_tokens,
      .num_pages = static_cast<int>((options.kv_tokens + kPageTokens - 1) / kPageTokens),
      .page_tokens = kPageTokens};
  const int num_threads = options.num_threads > 0
                              ? options.num_threads
                              : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  return std::unique_ptr<CpuExecutor>(new CpuExecutor(*std::move(config), *std::move(weights),
                                                      shape, num_threads, *vocabulary_used));
}

absl::StatusOr<std::unique_ptr<Executor>> CreateCpuExecutor(const ExecutorOptions& options) {
  return CpuExecutor::Create(options);
}

CpuExecutor::CpuExecutor(ModelConfig config, ModelWeights weights, const CacheShape& shape,
                         int num_threads, int vocabulary_used)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      shape_(shape),
      vocabulary_used_(vocabulary_used),
      pool_(num_threads),
      target_(config_, weights_.target, shape_, pool_, statistics_),
      sample_workspace_bytes_((kernels::SampleWorkspaceBytes(vocabulary_used) + 63) / 64 * 64) {
  if (config_.drafter.num_layers > 0) {
    drafter_ = std::make_unique<DrafterForward>(
        config_, weights_.drafter, weights_.target, shape_.max_sequences,
        int64_t{shape_.num_pages} * shape_.page_tokens, pool_, statistics_);
  }
  drafts_.resize(static_cast<size_t>(shape_.max_sequences));
}

std::string CpuExecutor::device() const {
  return absl::StrCat("cpu ", kernels::Name(kernels::ActiveInstructionSet()), ", ",
                      pool_.num_threads(), " threads");
}

void CpuExecutor::ResetSlot(int slot) {
  KERNELS_CHECK(slot, >=, 0);
  KERNELS_CHECK(slot, <, shape_.max_sequences);
  if (drafter_ != nullptr) drafter_->ResetSlot(slot);
}

RoundResult CpuExecutor::Run(const Round& round) {
  CheckRound(round, *this);
  DraftTokens(round);
  GatherRows(round);
  target_.Run(sequences_, rows_);
  ChooseTokens(round);
  return Accept(round);
}

void CpuExecutor::Logits(const SequenceStep& step, float* out) {
  const Round round = {.steps = {step}};
  CheckRound(round, *this);
  KERNELS_CHECK(step.block, ==, 1);
  GatherRows(round);
  target_.Run(sequences_, rows_);
  std::vector<int> rows(static_cast<size_t>(step.num_tokens));
  std::iota(rows.begin(), rows.end(), 0);
  target_.Logits(rows, out);
  if (drafter_ != nullptr)
    drafter_->AddTaps(step.slot, step.computed, target_.taps(0), step.num_tokens);
}

// One drafter pass over all sequences that speculate; fills drafts_.
void CpuExecutor::DraftTokens(const Round& round) {
  std::vector<DraftAnchor> anchors;
  choices_.clear();
  for (const SequenceStep& step : round.steps) {
    if (step.block == 1) continue;
    anchors.push_back({step.slot, step.computed, step.tokens[0], step.block - 1});
    for (int j = 1; j < step.block; ++j) choices_.push_back({&step, step.computed + j, false, {}});
  }
  if (anchors.empty()) return;
  logits_.resize(
      std::max(logits_.size(), choices_.size() * static_cast<size_t>(config_.vocabulary)));
  drafter_->Draft(anchors, logits_.data());
  Sample(choices_);
  size_t choice = 0;
  for (size_t s = 0; s < round.steps.size(); ++s) {
    drafts_[s].clear();
    for (int j = 1; j < round.steps[s].block; ++j)
      drafts_[s].push_back(choices_[choice++].chosen.token);
  }
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
    for (int j = 1; j < step.block; ++j) {
      rows_.push_back({drafts_[s][static_cast<size_t>(j - 1)], step.computed + j, sequence});
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
    for (int j = 0; j < step.block; ++j) {
      const int row = first_row_[s] + step.num_tokens - 1 + j;
      sampled_rows_.push_back(row);
      choices_.push_back(
          {&step, rows_[static_cast<size_t>(row)].position + 1, step.logprobs >= 0, {}});
    }
  }
  logits_.resize(
      std::max(logits_.size(), choices_.size() * static_cast<size_t>(config_.vocabulary)));
  target_.Logits(sampled_rows_, logits_.data());
  Sample(choices_);
}

void CpuExecutor::Sample(std::vector<Choice>& choices) {
  const auto vocabulary = static_cast<size_t>(config_.vocabulary);
  sample_workspace_.resize(
      std::max(sample_workspace_.size(), choices.size() * sample_workspace_bytes_ + 64));
  const bool has_mask =
      config_.drafter.num_layers > 0 && config_.drafter.mask_token_id < vocabulary_used_;
  pool_.ParallelFor(static_cast<int>(choices.size()), [&](int i) {
    const auto row = static_cast<size_t>(i);
    Choice& choice = choices[row];
    float* logits = &logits_[row * vocabulary];
    if (has_mask) logits[config_.drafter.mask_token_id] = kNeverChosen;
    uint8_t* const aligned =
        sample_workspace_.data() + (-reinterpret_cast<uintptr_t>(sample_workspace_.data()) & 63);
    choice.chosen =
        kernels::SampleToken(logits, vocabulary_used_, choice.step->sampling, choice.position,
                             choice.want_logprob, aligned + row * sample_workspace_bytes_);
  });
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
      out.num_drafted = step.block - 1;
      for (int j = 0; j < step.block; ++j) {
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
            j + 1 < step.block && drafts_[s][static_cast<size_t>(j)] == out.chosen.back().token;
        if (!agreed) break;
        out.num_accepted += 1;
      }
      choice += static_cast<size_t>(step.block);
    }
    if (drafter_ != nullptr) {
      drafter_->AddTaps(step.slot, step.computed, target_.taps(first_row_[s]),
                        step.num_tokens + out.num_accepted);
    }
  }
  return result;
}

}  // namespace ultraspeed::worker
