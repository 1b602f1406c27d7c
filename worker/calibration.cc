#include "worker/calibration.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace ultraspeed::worker {
namespace {

// Past the sliding window, and short enough to cost nothing; long enough to tell what attention to
// more tokens costs, and still computed in less than a second on a slow machine.
constexpr int kFewTokens = 192, kManyTokens = 768;
constexpr int kRounds = 11;  // of a kind; the median counts
// Values of SequenceStep::reach_min.
constexpr float kAllDrafts = std::numeric_limits<float>::min(), kNoDraft = 2;

// Sequences of arbitrary tokens that decode, in the first slots, with an even share of the pages.
class Probe {
 public:
  // Of so many tokens each before the first round, fewer where there is no room for them.
  Probe(Executor& executor, const Clock& clock, int block_max, int prompt_tokens,
        int num_sequences = 1)
      : executor_(executor),
        clock_(clock),
        pages_(executor.num_pages()),
        anchors_(num_sequences),
        round_{.steps = std::vector<SequenceStep>(num_sequences)} {
    std::iota(pages_.begin(), pages_.end(), 0);
    const int64_t room = Room(executor, block_max, num_sequences);
    const std::vector<int32_t> prompt = Prompt(std::clamp<int64_t>(room, 1, prompt_tokens));
    for (int s = 0; s < num_sequences; ++s) Prefill(s, prompt);
  }
  ~Probe() {
    for (const SequenceStep& step : round_.steps) executor_.ResetSlot(step.slot);
  }
  Probe(const Probe&) = delete;
  Probe& operator=(const Probe&) = delete;

  // Tokens that each of so many sequences may have before its rounds.
  static int64_t Room(const Executor& executor, int block_max, int num_sequences) {
    const int64_t kv_tokens =
        int64_t{executor.num_pages()} / num_sequences * executor.page_tokens();
    return std::min(kv_tokens, executor.config().context_tokens) -
           int64_t{kRounds} * (1 + 2 * block_max);  // plain rounds, and two kinds of others
  }

  // Median seconds of the next rounds, in each of which every sequence feeds one token and drafts
  // block - 1.
  double SecondsOfRound(int block, float reach_min = kAllDrafts) {
    for (SequenceStep& step : round_.steps) {
      step.block = block;
      step.reach_min = reach_min;
    }
    std::vector<double> seconds;
    for (int i = 0; i < kRounds; ++i) {
      const absl::Duration start = clock_.Monotonic();
      const RoundResult result = executor_.Run(round_);
      seconds.push_back(absl::ToDoubleSeconds(clock_.Monotonic() - start));
      for (size_t s = 0; s < anchors_.size(); ++s) {
        round_.steps[s].computed += 1 + result.sequences[s].num_accepted;
        anchors_[s] = result.sequences[s].chosen.back().token;
      }
    }
    std::nth_element(seconds.begin(), seconds.begin() + kRounds / 2, seconds.end());
    return seconds[kRounds / 2];
  }

 private:
  std::vector<int32_t> Prompt(int64_t count) const {
    std::vector<int32_t> prompt(count);
    for (size_t i = 0; i < prompt.size(); ++i)
      prompt[i] = static_cast<int32_t>(i * 7 % executor_.vocabulary_used());
    return prompt;
  }
  // Of slot `slot`; its next step is the one that follows, with the prompt's last token as anchor.
  void Prefill(int slot, const std::vector<int32_t>& prompt) {
    executor_.ResetSlot(slot);
    SequenceStep& step = round_.steps[slot];
    step.slot = slot;
    step.num_pages = static_cast<int>(pages_.size() / anchors_.size());
    step.pages = pages_.data() + slot * step.num_pages;
    while (step.computed < static_cast<int64_t>(prompt.size())) {
      step.tokens = prompt.data() + step.computed;
      step.num_tokens =
          std::min<int64_t>(executor_.max_batch_tokens(), prompt.size() - step.computed);
      executor_.Run({{step}});
      step.computed += step.num_tokens;
    }
    anchors_[slot] = prompt.back();
    step.tokens = &anchors_[slot];
    step.num_tokens = 1;
    step.sample = true;
  }

  Executor& executor_;
  const Clock& clock_;
  std::vector<int32_t> pages_;
  std::vector<int32_t> anchors_;  // [sequences]
  Round round_;                   // the next
};

// Without the cost of a further block.
DraftCosts::Point MeasurePoint(Probe& probe, int tokens, int block, bool weighs) {
  const double plain = probe.SecondsOfRound(1);
  // Where drafts are weighed, rows are what the round decides about: the block stays.
  const int few = weighs ? 1 : 2;
  const double longest = probe.SecondsOfRound(block) / plain;
  const double shortest =
      (weighs ? probe.SecondsOfRound(block, kNoDraft) : probe.SecondsOfRound(few)) / plain;
  const double row = std::max(0.0, (longest - shortest) / (block - few));
  return {.tokens = tokens,
          .plain_seconds = plain,
          .cost = {.fixed = std::max(0.0, shortest - 1 - row * (few - 1)),
                   .row = row,
                   .block = 0,
                   .unreached = weighs ? kUnreachedOfWeighed : 1}};
}

}  // namespace

DraftCosts MeasureDraftCosts(Executor& executor, const Clock& clock) {
  const DrafterConfig& drafter = executor.config().drafter;
  const int block = std::min(drafter.block_size, kDraftBlockMax);
  if (drafter.num_layers == 0 || block <= 2) return {};
  const bool weighs = executor.weighs_drafts();
  DraftCosts costs;
  DraftCost& cost = costs.few.cost;
  {
    Probe probe(executor, clock, block, kFewTokens);
    costs.few = MeasurePoint(probe, kFewTokens, block, weighs);
  }
  if (executor.decode_blocks() > 1 && executor.max_sequences() >= 2 &&
      executor.max_batch_tokens() >= 2 * block && Probe::Room(executor, block, 2) > 0) {
    Probe probe(executor, clock, block, kFewTokens, /*num_sequences=*/2);
    const double two = probe.SecondsOfRound(block) / costs.few.plain_seconds;
    cost.block = std::max(0.0, two - (1 + 2 * cost.fixed + cost.row * (2 * block - 1)));
  }
  if (Probe::Room(executor, block, 1) < kManyTokens) return cost;
  Probe probe(executor, clock, block, kManyTokens);
  costs.many = MeasurePoint(probe, kManyTokens, block, weighs);
  costs.many.cost.block = cost.block;
  return costs;
}

}  // namespace ultraspeed::worker
