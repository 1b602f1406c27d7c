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
constexpr int kRounds = 15;  // of a kind; the median counts
// Values of SequenceStep::reach_min.
constexpr float kAllDrafts = std::numeric_limits<float>::min(), kNoDraft = 2;

// Decodes sequences of arbitrary tokens with a fixed block each.
class Probe {
 public:
  Probe(Executor& executor, const Clock& clock, int prompt_tokens)
      : executor_(executor), clock_(clock), prompt_tokens_(prompt_tokens) {
    pages_.resize(executor.num_pages());
    std::iota(pages_.begin(), pages_.end(), 0);
  }

  // Whether its sequences are as long as they should be.
  bool HasRoomForPrompt() const { return RoomFor(1) >= prompt_tokens_; }
  // Whether so many sequences have pages and a round has rows for their blocks.
  bool HasRoomFor(int num_sequences, int block) const {
    const int64_t tokens = int64_t{executor_.num_pages()} / num_sequences * executor_.page_tokens();
    return num_sequences <= executor_.max_sequences() && tokens > kRounds * kDraftBlockMax &&
           num_sequences * block <= executor_.max_batch_tokens();
  }

  // Median seconds of a round of so many sequences, each of which feeds one token and drafts
  // block - 1.
  double SecondsOfRound(int block, int num_sequences = 1, float reach_min = kAllDrafts) {
    std::vector<int32_t> anchors(num_sequences);
    Round round;
    for (int s = 0; s < num_sequences; ++s) {
      SequenceStep step = Prefill(s, num_sequences, anchors[s]);
      step.tokens = &anchors[s];
      step.num_tokens = 1;
      step.sample = true;
      step.block = block;
      step.reach_min = reach_min;
      round.steps.push_back(step);
    }
    std::vector<double> seconds;
    for (int i = 0; i < kRounds; ++i) {
      const absl::Duration start = clock_.Monotonic();
      const RoundResult result = executor_.Run(round);
      seconds.push_back(absl::ToDoubleSeconds(clock_.Monotonic() - start));
      for (int s = 0; s < num_sequences; ++s) {
        round.steps[s].computed += 1 + result.sequences[s].num_accepted;
        anchors[s] = result.sequences[s].chosen.back().token;
      }
    }
    for (int s = 0; s < num_sequences; ++s) executor_.ResetSlot(s);
    std::nth_element(seconds.begin(), seconds.begin() + kRounds / 2, seconds.end());
    return seconds[kRounds / 2];
  }

 private:
  // Tokens of each of so many sequences' prompts.
  int64_t RoomFor(int num_sequences) const {
    const int64_t kv_tokens =
        static_cast<int64_t>(pages_.size()) / num_sequences * executor_.page_tokens();
    return std::min(kv_tokens, executor_.config().context_tokens) - kRounds * kDraftBlockMax;
  }
  // Of slot `slot`, with its share of the pages; `anchor` is the prompt's last token.
  SequenceStep Prefill(int slot, int num_sequences, int32_t& anchor) {
    executor_.ResetSlot(slot);
    SequenceStep step;
    step.slot = slot;
    step.num_pages = static_cast<int>(pages_.size()) / num_sequences;
    step.pages = pages_.data() + slot * step.num_pages;
    std::vector<int32_t> prompt(std::clamp<int64_t>(RoomFor(num_sequences), 1, prompt_tokens_));
    for (size_t i = 0; i < prompt.size(); ++i)
      prompt[i] = static_cast<int32_t>(i * 7 % executor_.vocabulary_used());
    step.block = 1;
    step.sample = false;
    while (step.computed < static_cast<int64_t>(prompt.size())) {
      step.tokens = prompt.data() + step.computed;
      step.num_tokens =
          std::min<int64_t>(executor_.max_batch_tokens(), prompt.size() - step.computed);
      executor_.Run({{step}});
      step.computed += step.num_tokens;
    }
    anchor = prompt.back();
    return step;
  }

  Executor& executor_;
  const Clock& clock_;
  const int prompt_tokens_;
  std::vector<int32_t> pages_;
};

// Without the cost of a further block.
DraftCosts::Point MeasurePoint(Probe& probe, int tokens, int block, bool weighs) {
  const double plain = probe.SecondsOfRound(1);
  // Where drafts are weighed, rows are what the round decides about: the block stays.
  const int few = weighs ? 1 : 2;
  const double longest = probe.SecondsOfRound(block) / plain;
  const double shortest =
      (weighs ? probe.SecondsOfRound(block, 1, kNoDraft) : probe.SecondsOfRound(few)) / plain;
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
  Probe few(executor, clock, kFewTokens), many(executor, clock, kManyTokens);
  const bool weighs = executor.weighs_drafts();
  DraftCosts costs;
  DraftCost& cost = costs.few.cost;
  costs.few = MeasurePoint(few, kFewTokens, block, weighs);
  if (executor.decode_blocks() > 1 && few.HasRoomFor(2, block)) {
    const double two = few.SecondsOfRound(block, 2) / costs.few.plain_seconds;
    cost.block = std::max(0.0, two - (1 + 2 * cost.fixed + cost.row * (2 * block - 1)));
  }
  if (!many.HasRoomForPrompt()) return cost;
  costs.many = MeasurePoint(many, kManyTokens, block, weighs);
  costs.many.cost.block = cost.block;
  return costs;
}

}  // namespace ultraspeed::worker
