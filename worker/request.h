// A request as the engine sees it: an immutable spec from outside, and the engine's private
// progress, a few ordered integers.
//
// cached <= computed <= committed <= max. `cached` prompt tokens had their KV already, `computed`
// tokens have KV now, `committed` tokens are known (prompt and output), `max` is prompt +
// max_tokens. Thread: a spec is never written after Submit; a Sequence belongs to the engine thread
// alone.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "kernels/ops.h"
#include "worker/batch.h"
#include "worker/kv_cache.h"
#include "worker/lookup_drafter.h"
#include "worker/output_constraint.h"
#include "worker/speculation.h"

namespace ultraspeed::worker {

enum class Tier : uint8_t { kStandard, kUltraspeed };

enum class FinishReason : uint8_t {
  kNone,       // the stream goes on
  kStop,       // one of stop_token_ids was chosen; it is the last token, committed and counted
  kLength,     // max_tokens reached
  kCancelled,  // Cancel
  kShutdown,   // the engine stopped before the request was done; it may continue on another worker
};

struct RequestSpec {
  std::string id;
  std::vector<int32_t> prompt;  // 1..context-1 ids
  int64_t max_tokens = 0;
  kernels::SamplingSpec sampling;
  std::vector<int32_t> stop_token_ids;  // empty = go on to max_tokens
  bool speculation = true;
  Tier tier = Tier::kStandard;
  int logprobs = -1;
  int priority = 0;
  int64_t resumed_tokens =
      0;  // tail of the prompt that another worker produced; no effect on the result
  // Only requests of the same scope share what they have computed (prefix_cache.h).
  std::string cache_scope = {};
  OutputGrammar output = {};  // of what follows the prompt, and of its begun and resumed tokens
  int64_t begun_tokens = 0;   // of the prompt before the resumed ones: what `output` begins with
};

// What bounds a spec: facts of the model and of this worker's memory.
struct RequestBounds {
  int64_t context_tokens = 0;  // prompt + max_tokens
  int vocabulary = 0;
};

// INVALID_ARGUMENT names the field of worker.proto, its value and the bound.
absl::Status ValidateRequest(const RequestSpec& spec, const RequestBounds& bounds);

struct UsageCounts {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t draft_rounds = 0;  // rounds that chose at least one token
};

// One sequence's share of one round. The last event of a request, and only it, has a finish reason;
// it may carry tokens.
struct TokenEvent {
  std::vector<ChosenToken> tokens;
  UsageCounts usage;  // cumulative, includes `tokens`
  FinishReason finish = FinishReason::kNone;
  int32_t stop_token = -1;  // with kStop
};

// Where a request's events go. Called on the engine thread, in order; must not block and must not
// call back into the engine.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  virtual void OnTokens(TokenEvent event) = 0;
};

// A request in the engine, from its acceptance to its terminal event.
class Sequence {
 public:
  Sequence(RequestSpec spec, std::shared_ptr<TokenSink> sink, absl::Duration submitted_at);

  const RequestSpec& spec() const { return spec_; }
  TokenSink& sink() const { return *sink_; }
  absl::Duration submitted_at() const { return submitted_at_; }

  int64_t computed() const { return computed_; }
  int64_t committed() const { return static_cast<int64_t>(tokens_.size()); }
  int64_t max() const { return max_; }
  int64_t pending() const {
    return committed() - computed_;
  }  // known tokens without KV, >= 1 while running
  bool is_decoding() const { return committed() > prompt_tokens() && pending() == 1; }
  int64_t prompt_tokens() const { return static_cast<int64_t>(spec_.prompt.size()); }
  const int32_t* tokens_to_compute() const { return tokens_.data() + computed_; }
  absl::Span<const int32_t> tokens() const { return tokens_; }             // [committed]
  const TokenConstraint* constraint() const { return constraint_.get(); }  // null: none

  // The first tokens of the prompt have KV already. REQUIRES: nothing has run; num_tokens <
  // prompt_tokens().
  void StartAt(int64_t num_tokens);

  // Applies one round's outcome: `num_tokens` pending tokens now have KV, `result` follows them.
  // Tokens after a stop token are dropped. ENSURES: the order of the four integers, else aborts.
  TokenEvent Advance(int num_tokens, SequenceResult result);
  // The terminal event of a request that ends before it is done.
  TokenEvent End(FinishReason reason) const;

  KvLease lease;                 // held while running
  int64_t shared_tokens = 0;     // of the prompt that another request began with: worth a snapshot
  SpeculationState speculation;  // of the drafter's drafts
  LookupDrafter lookup;
  int64_t last_turn = -1;  // the scheduler's: when this sequence was last served
  absl::Duration first_token_at = absl::ZeroDuration();
  absl::Duration last_token_at = absl::ZeroDuration();
  int64_t first_event_tokens = 0;

 private:
  UsageCounts usage() const;
  void CheckOrder() const;

  const RequestSpec spec_;
  const std::shared_ptr<TokenSink> sink_;
  const absl::Duration submitted_at_;
  const int64_t max_;
  int64_t cached_ = 0;
  int64_t computed_ = 0;
  int64_t draft_rounds_ = 0;
  std::vector<int32_t> tokens_;  // [committed], reserved to max: pointers into it stay valid
  const std::unique_ptr<OutputConstraint> constraint_;  // null: none
};

}  // namespace ultraspeed::worker
