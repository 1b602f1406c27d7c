#include "bench/decode_loop.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <numeric>
#include <optional>

#include "worker/lookup_drafter.h"
#include "worker/speculation.h"

namespace ultraspeed::bench {
namespace {

using Clock = std::chrono::steady_clock;

// A prompt in a slot of its own, with an even share of the pages.
class Sequence {
 public:
  // `of_all`: of the sequences so far.
  Sequence(worker::Executor& executor, const DecodeOptions& options, size_t prompt_idx, int slot,
           const std::vector<int32_t>& prompt, worker::SpeculationState& of_all)
      : executor_(executor),
        of_all_(of_all),
        speculation_(of_all.acceptance()),
        options_(options),
        prompt_idx_(prompt_idx),
        slot_(slot),
        prompt_size_(prompt.size()),
        committed_(prompt),
        pages_(static_cast<size_t>(executor.num_pages() / options.sequences)) {
    std::iota(pages_.begin(), pages_.end(), slot * static_cast<int32_t>(pages_.size()));
    executor.ResetSlot(slot);
    if (options.output.constraint != nullptr) constraint_.emplace(options.output);
    while (committed_.size() == prompt_size_) {
      const worker::Round round{.steps = {Step({}, /*reach_min=*/0)}};
      Take(round.steps[0], executor.Run(round).sequences[0]);
    }
  }

  size_t prompt_idx() const { return prompt_idx_; }
  int slot() const { return slot_; }
  int64_t committed() const { return static_cast<int64_t>(committed_.size()); }
  bool done() const {
    return ends_ || committed_.size() >= prompt_size_ + static_cast<size_t>(options_.max_tokens);
  }
  // `drafts_max`: to look up.
  worker::Drafting Drafting(int drafts_max) {
    const auto left = static_cast<int>(prompt_size_ + static_cast<size_t>(options_.max_tokens) -
                                       committed_.size());
    looked_up_ = lookup_.Propose(committed_, std::min(drafts_max, left - 1));
    return {.acceptance = speculation_.acceptance(),
            .bound = std::min(left, worker::kDraftBlockMax),
            .looked_up = lookup_.proposal()};
  }
  worker::SequenceStep Step(const worker::RowShare& share, double reach_min) const {
    const auto left = static_cast<int64_t>(committed_.size()) - computed_;
    worker::SequenceStep step;
    step.slot = slot_;
    step.computed = computed_;
    step.tokens = committed_.data() + computed_;
    step.num_tokens = static_cast<int>(std::min<int64_t>(executor_.max_batch_tokens(), left));
    step.sample = step.num_tokens == left;
    step.block = share.block;
    step.drafts = looked_up_.data();
    step.num_drafts = share.looked_up;
    step.reach_min = static_cast<float>(reach_min);
    step.pages = pages_.data();
    step.num_pages = static_cast<int>(pages_.size());
    step.sampling = options_.sampling;
    step.constraint = constraint_ ? &*constraint_ : nullptr;
    return step;
  }
  void Take(const worker::SequenceStep& step, const worker::SequenceResult& result) {
    computed_ += step.num_tokens + result.num_accepted;
    if (step.sample && !result.took_own) {
      speculation_.Record(step.block - 1, result.num_accepted);
      of_all_.Record(step.block - 1, result.num_accepted);
    }
    lookup_.Record(result.chosen);
    for (const worker::ChosenToken& chosen : result.chosen) {
      if (done()) break;  // surplus of the last round
      committed_.push_back(chosen.token);
      if (constraint_) constraint_->Commit(chosen.token);
      const std::vector<int32_t>& stops = executor_.config().eos_token_ids;
      ends_ = std::count(stops.begin(), stops.end(), chosen.token) > 0;
    }
  }
  std::vector<int32_t> Text() const {
    return {committed_.begin() + static_cast<ptrdiff_t>(prompt_size_), committed_.end()};
  }

 private:
  worker::Executor& executor_;
  worker::SpeculationState& of_all_;
  worker::SpeculationState speculation_;
  const DecodeOptions& options_;
  size_t prompt_idx_;
  int slot_;
  size_t prompt_size_;
  std::vector<int32_t> committed_;  // prompt, then completion
  std::vector<int32_t> pages_;
  std::optional<worker::OutputConstraint> constraint_;
  worker::LookupDrafter lookup_;
  absl::Span<const int32_t> looked_up_;
  int64_t computed_ = 0;
  bool ends_ = false;
};

// A whole block of rows, divided evenly; text instead of a drafter where that gives more.
std::vector<worker::RowShare> WholeBlock(const std::vector<worker::Drafting>& sequences, int block,
                                         int drafts_max, const worker::DraftCost& cost) {
  const auto count = static_cast<int>(sequences.size());
  const worker::DraftCost in_company = worker::InCompany(cost, count);
  std::vector<worker::RowShare> division;
  int rows_left = block;
  for (int i = 0; i < count; ++i) {
    const int rows = worker::NextShare(rows_left, count - i);
    const int num_max = count > 1 ? std::min(drafts_max, rows - 1) : drafts_max;
    division.push_back({.block = rows,
                        .looked_up = worker::ChooseLookedUp(sequences[static_cast<size_t>(i)], rows,
                                                            num_max, in_company)});
    rows_left -= rows;
  }
  return division;
}

worker::Round NextRound(const std::vector<std::unique_ptr<Sequence>>& running,
                        const DecodeOptions& options, const worker::Executor& executor) {
  const int drafts_max = options.looks_up ? executor.given_drafts_max() : 0;
  std::vector<worker::Drafting> drafting;
  int64_t tokens_max = 0;
  for (const auto& sequence : running) {
    drafting.push_back(sequence->Drafting(drafts_max));
    tokens_max = std::max(tokens_max, sequence->committed());
  }
  const worker::DraftCost cost = options.draft_costs.At(tokens_max);
  const std::vector<worker::RowShare> division =
      options.chooses_blocks ? worker::DivideRows(drafting,
                                                  {.block_max = options.block,
                                                   .blocks_max = executor.decode_blocks(),
                                                   .rows_max = executor.max_batch_tokens(),
                                                   .looked_up_max = drafts_max},
                                                  cost)
                             : WholeBlock(drafting, options.block, drafts_max, cost);
  const double reach_min = worker::ReachMin(drafting, division, options.block, cost);
  worker::Round round;
  for (size_t i = 0; i < running.size(); ++i)
    round.steps.push_back(running[i]->Step(division[i], reach_min));
  return round;
}

}  // namespace

DecodeOutcome Decode(worker::Executor& executor, const std::vector<std::vector<int32_t>>& prompts,
                     const DecodeOptions& options) {
  DecodeOutcome outcome;
  worker::SpeculationState drafting(worker::kPriorAcceptance, worker::kFadeOfAll);
  outcome.texts.resize(prompts.size());
  std::vector<int> free_slots(static_cast<size_t>(options.sequences));
  std::iota(free_slots.rbegin(), free_slots.rend(), 0);
  std::vector<std::unique_ptr<Sequence>> running;
  const auto bytes_read = [&] {
    return options.statistics == nullptr
               ? 0
               : options.statistics->target_bytes + options.statistics->drafter_bytes;
  };
  const auto retire = [&] {
    for (const auto& sequence : running) {
      if (!sequence->done()) continue;
      std::vector<int32_t>& text = outcome.texts[sequence->prompt_idx()];
      text = sequence->Text();
      outcome.tokens += static_cast<int64_t>(text.size()) - 1;
      free_slots.push_back(sequence->slot());
    }
    std::erase_if(running, [](const auto& sequence) { return sequence->done(); });
  };
  for (size_t next = 0; next < prompts.size() || !running.empty();) {
    while (next < prompts.size() && !free_slots.empty()) {
      options.on_prompt_started(next);
      const Clock::time_point start = Clock::now();
      running.push_back(std::make_unique<Sequence>(executor, options, next, free_slots.back(),
                                                   prompts[next], drafting));
      outcome.prompt_seconds += std::chrono::duration<double>(Clock::now() - start).count();
      outcome.prompt_tokens += static_cast<int64_t>(prompts[next].size());
      free_slots.pop_back();
      ++next;
      retire();  // a completion may end with its first token
    }
    if (running.empty()) continue;
    const worker::Round round = NextRound(running, options, executor);
    const int64_t bytes_before = bytes_read();
    const Clock::time_point start = Clock::now();
    const worker::RoundResult result = executor.Run(round);
    outcome.weight_bytes += bytes_read() - bytes_before;
    outcome.rounds += 1;
    outcome.sequence_rounds += static_cast<int64_t>(running.size());
    for (size_t i = 0; i < running.size(); ++i) {
      running[i]->Take(round.steps[i], result.sequences[i]);
      outcome.rows += 1 + result.sequences[i].num_drafted;
      if (!result.sequences[i].took_own) continue;
      outcome.looked_up_rounds += 1;
      outcome.looked_up_tokens += static_cast<int64_t>(result.sequences[i].chosen.size());
    }
    outcome.seconds += std::chrono::duration<double>(Clock::now() - start).count();
    retire();
  }
  return outcome;
}

}  // namespace ultraspeed::bench
