#include "worker/calibration.h"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace ultraspeed::worker {
namespace {

constexpr int kPromptTokens = 192;  // past the sliding window, short enough to cost nothing
constexpr int kRounds = 15;         // per block; the median counts

// Decodes one sequence of arbitrary tokens with a fixed block.
class Probe {
 public:
  Probe(Executor& executor, const Clock& clock) : executor_(executor), clock_(clock) {
    pages_.resize(executor.num_pages());
    std::iota(pages_.begin(), pages_.end(), 0);
    step_.pages = pages_.data();
    step_.num_pages = static_cast<int>(pages_.size());
  }

  // Median seconds of a round that feeds one token and drafts block - 1.
  double SecondsOfRound(int block) {
    Prefill();
    std::vector<double> seconds;
    for (int i = 0; i < kRounds; ++i) {
      step_.tokens = &anchor_;
      step_.num_tokens = 1;
      step_.sample = true;
      step_.block = block;
      const absl::Duration start = clock_.Monotonic();
      const RoundResult result = executor_.Run({{step_}});
      seconds.push_back(absl::ToDoubleSeconds(clock_.Monotonic() - start));
      step_.computed += 1 + result.sequences[0].num_accepted;
      anchor_ = result.sequences[0].chosen.back().token;
    }
    executor_.ResetSlot(0);
    std::nth_element(seconds.begin(), seconds.begin() + kRounds / 2, seconds.end());
    return seconds[kRounds / 2];
  }

 private:
  void Prefill() {
    executor_.ResetSlot(0);
    const int64_t kv_tokens = int64_t{executor_.num_pages()} * executor_.page_tokens();
    const int64_t room =
        std::min(kv_tokens, executor_.config().context_tokens) - kRounds * kDraftBlockMax;
    std::vector<int32_t> prompt(std::clamp<int64_t>(room, 1, kPromptTokens));
    for (size_t i = 0; i < prompt.size(); ++i)
      prompt[i] = static_cast<int32_t>(i * 7 % executor_.vocabulary_used());
    step_.computed = 0;
    step_.block = 1;
    step_.sample = false;
    while (step_.computed < static_cast<int64_t>(prompt.size())) {
      step_.tokens = prompt.data() + step_.computed;
      step_.num_tokens =
          std::min<int64_t>(executor_.max_batch_tokens(), prompt.size() - step_.computed);
      executor_.Run({{step_}});
      step_.computed += step_.num_tokens;
    }
    anchor_ = prompt.back();
  }

  Executor& executor_;
  const Clock& clock_;
  std::vector<int32_t> pages_;
  SequenceStep step_;
  int32_t anchor_ = 0;
};

}  // namespace

DraftCost MeasureDraftCost(Executor& executor, const Clock& clock) {
  const DrafterConfig& drafter = executor.config().drafter;
  const int block = std::min(drafter.block_size, kDraftBlockMax);
  if (drafter.num_layers == 0 || block <= 2) return {};
  Probe probe(executor, clock);
  const double plain = probe.SecondsOfRound(1);
  const double shortest = probe.SecondsOfRound(2) / plain;
  const double longest = probe.SecondsOfRound(block) / plain;
  const double row = std::max(0.0, (longest - shortest) / (block - 2));
  return {.fixed = std::max(0.0, shortest - 1 - row), .row = row};
}

}  // namespace ultraspeed::worker
