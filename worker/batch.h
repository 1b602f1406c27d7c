// What crosses between the engine and an executor: one round of work, and what came of it.
//
// Owner: the engine thread fills a Round, hands it to Executor::Run and reads the RoundResult
// before it fills the next. A sequence is a few ordered integers: cached <= computed <= committed
// <= max. `computed` tokens have KV; the tokens from there to `committed` are known but not yet
// run. Prefill feeds many of them, plain decode and a speculative round feed exactly one (the
// anchor): they are one path.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "common/grammar/token_mask.h"
#include "kernels/ops.h"

namespace ultraspeed::worker {

inline constexpr int kDraftBlockMax = 16;

// What a sequence's tokens are held to, as it is behind the committed ones. Ranks ask for the same
// at the same time.
class TokenConstraint {
 public:
  // What may follow them, and then each prefix of `drafts`, as long as the drafts are allowed
  // themselves: 1 to drafts.size() + 1 masks of the tokens that may be sampled; null: all of them.
  using Masks = std::vector<std::shared_ptr<const grammar::TokenMask>>;
  virtual Masks AllowedTokens(absl::Span<const int32_t> drafts) const = 0;

 protected:
  ~TokenConstraint() = default;
};

struct SequenceStep {
  int slot =
      0;  // ring and drafter-cache index of the sequence, 0 <= slot < Executor::max_sequences()
  int64_t computed = 0;  // position of tokens[0]
  const int32_t* tokens =
      nullptr;         // [num_tokens] committed tokens to run now, owned by the request
  int num_tokens = 0;  // >= 1
  bool sample =
      false;      // the last token of `tokens` is the newest committed one: choose what follows it
  int block = 1;  // 1 = plain. B > 1 = draft B-1 tokens after the anchor and verify them. REQUIRES:
                  // num_tokens == 1 if > 1
  // Drafts that the step brings along, to be verified instead of a drafter's; may be more than
  // block - 1. An executor whose drafter is ahead already may verify that one's. REQUIRES: as of
  // block; num_drafts <= Executor::given_drafts_max().
  const int32_t* drafts = nullptr;  // [num_drafts] owned by the request
  int num_drafts = 0;
  // Only drafts that are at least this likely to be reached, by the drafter's own probabilities (at
  // temperature 1) of the drafts up to them, each at least kernels::LeastDraftOdds, are verified,
  // by executors that weigh drafts. Steps that share a round have the same. Given drafts are all
  // verified.
  float reach_min = 0;
  const int32_t* pages = nullptr;  // [num_pages] pages of the full layers, enough for computed +
                                   // num_tokens + block - 1 positions, and its own drafts
  int num_pages = 0;
  kernels::SamplingSpec sampling = {};
  int logprobs = -1;  // -1 none, else number of alternatives
  // Null: none. Only tokens that it allows are chosen, whatever was drafted.
  const TokenConstraint* constraint = nullptr;

  bool brings_drafts() const { return num_drafts > 0; }
  bool wants_drafts() const { return block > 1 && !brings_drafts(); }
  // Tokens that it may choose, if it samples: behind the newest one and each draft.
  int chosen_max() const { return brings_drafts() ? 1 + num_drafts : block; }
  int rows() const { return num_tokens + chosen_max() - 1; }
};

struct Round {
  std::vector<SequenceStep> steps;  // [S]
};

struct ChosenToken {
  int32_t token = 0;
  float logprob = 0;                // meaningful when asked for
  std::vector<int32_t> top_tokens;  // [logprobs]
  std::vector<float> top_logprobs;  // [logprobs]
};

struct SequenceResult {
  std::vector<ChosenToken>
      chosen;  // empty when !sample; else 1..block tokens, all of them the target's own choices
  int num_drafted = 0;    // and verified: block - 1, or fewer with a reach_min; or the step's own
  int num_accepted = 0;   // chosen.size() - 1
  bool took_own = false;  // they are the drafts that the step brought along
};

struct RoundResult {
  std::vector<SequenceResult> sequences;  // [S], same order as Round::steps
};

}  // namespace ultraspeed::worker
