// Drafts without a model: what followed the last time that a sequence's newest tokens stood in its
// text (prompt lookup decoding; SuffixDecoding, arXiv 2411.04975).
//
// Whoever edits a file or quotes a tool's answer repeats long parts of the prompt. Such drafts cost
// nothing to make, need no drafter's context and are better than a drafter's inside a copy. How
// good they are is learned for each sequence and for matches of each length, from every proposal,
// verified or not: what the target chose says how far it would have been right. Pure; one of each
// sequence. Thread: the engine thread.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "worker/batch.h"
#include "worker/speculation.h"
#include "worker/suffix_index.h"

namespace ultraspeed::worker {

class LookupDrafter {
 public:
  LookupDrafter();

  // The drafts behind `tokens`, count_max of them or none. Valid until the next call. REQUIRES:
  // `tokens` begin with those of the call before; count_max >= 0.
  absl::Span<const int32_t> Propose(absl::Span<const int32_t> tokens, int count_max);
  // How likely each of them is accepted, and how many there are.
  LookedUp proposal() const;
  // What the target chose behind those tokens. May be left out.
  void Record(absl::Span<const ChosenToken> chosen);

 private:
  // By the length of the match: 3, from 4, from 8, from 16 tokens.
  static constexpr int kClasses = 4;

  SuffixIndex index_;
  std::array<SpeculationState, kClasses> by_length_;
  std::vector<int32_t> drafts_;  // the last proposal, of a match of this class:
  size_t class_ = 0;
};

}  // namespace ultraspeed::worker
