// How fast a stream was, and whether that keeps what its tenant was promised. Used by StreamRelay
// while tokens come and by RequestGuard when the request is billed. Pure: times are handed in.
//
// The speed is the router's view of the worker: tokens after the first chunk, over the time they
// took. While the client does not read, the router stops reading from the worker; the chunk that
// ends such a pause says nothing about the worker, so its tokens and its time are both left out.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "router/tier.h"

namespace ultraspeed::router {

// Thread contract: one thread at a time.
class DecodeSpeed {
 public:
  // A chunk of `num_tokens` >= 1 tokens came from the worker at `now` (monotonic).
  void OnTokens(absl::Duration now, int64_t num_tokens);
  // The worker's stream is not read until its next chunk: the client is behind.
  void OnPause() { paused_ = true; }

  // Time that counts.
  absl::Duration decode_time() const { return time_; }
  // nullopt: too few tokens to tell.
  std::optional<double> tokens_per_second() const;

 private:
  std::optional<absl::Duration> last_;
  bool paused_ = false;
  int64_t num_tokens_ = 0;
  absl::Duration time_ = absl::ZeroDuration();
};

struct BilledTier {
  Tier tier = Tier::kStandard;
  absl::string_view reason;  // kBilledAsServed or kBilledForSpeedPromise, see ledger.h
};

// A stream that was served at `served`, at a measured speed (nullopt: could not be told, which
// breaks no promise), with a promised floor in tokens per second (0: none).
BilledTier JudgeSpeed(Tier served, int64_t promised_tokens_per_second,
                      std::optional<double> tokens_per_second);

}  // namespace ultraspeed::router
