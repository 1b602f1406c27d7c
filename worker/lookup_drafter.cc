#include "worker/lookup_drafter.h"

#include <algorithm>

#include "kernels/check.h"

namespace ultraspeed::worker {
namespace {

size_t ClassOf(int length) { return length < 4 ? 0 : length < 8 ? 1 : length < 16 ? 2 : 3; }

}  // namespace

// Shares of looked-up drafts that the bundled model accepted (docs/PERFORMANCE.md).
LookupDrafter::LookupDrafter()
    : by_length_{SpeculationState(0.7), SpeculationState(0.8), SpeculationState(0.9),
                 SpeculationState(0.96)} {}

absl::Span<const int32_t> LookupDrafter::Propose(absl::Span<const int32_t> tokens, int count_max) {
  KERNELS_CHECK(count_max, >=, 0);
  drafts_.clear();
  if (count_max == 0) return drafts_;
  const SuffixMatch match = index_.Longest(tokens);
  if (match.length == 0) return drafts_;
  class_ = ClassOf(match.length);
  for (size_t next = static_cast<size_t>(match.end); static_cast<int>(drafts_.size()) < count_max;
       ++next) {
    // A match that reaches the end of the text repeats itself.
    drafts_.push_back(next < tokens.size() ? tokens[next] : drafts_[next - tokens.size()]);
  }
  return drafts_;
}

LookedUp LookupDrafter::proposal() const {
  return {.acceptance = by_length_[class_].acceptance(),
          .num_drafts = static_cast<int>(drafts_.size())};
}

void LookupDrafter::Record(absl::Span<const ChosenToken> chosen) {
  const size_t bound = std::min(drafts_.size(), chosen.size());
  size_t agreed = 0;
  while (agreed < bound && drafts_[agreed] == chosen[agreed].token) ++agreed;
  if (bound > 0) by_length_[class_].Record(static_cast<int>(bound), static_cast<int>(agreed));
  drafts_.clear();
}

}  // namespace ultraspeed::worker
