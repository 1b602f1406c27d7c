// What one admitted request has taken and must give back when it is over: the limiter's grant (a
// stream and reserved tokens) and the open ledger entry (a reservation on the budget). Made by
// Admission, owned by the request's StreamRelay, settled exactly once however the request ends;
// destruction without Settle means that nothing was sent, and costs nothing.
//
// What is billed: the tokens that were sent to the caller. For a stream that reached its end these
// are the worker's terminal record; for one that broke off, the tokens of every chunk that left
// before. A request that got no token costs nothing, its prompt included.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "common/clock.h"
#include "router/outbox.h"
#include "router/rate_limiter.h"
#include "router/speed_promise.h"

namespace ultraspeed::router {

inline constexpr absl::string_view kFinishCancelled = "cancelled";
inline constexpr absl::string_view kFinishError = "error";
inline constexpr absl::string_view kFinishLost = "lost";  // no worker knows how it ended: free

// How a request ended.
struct RequestOutcome {
  std::string worker;  // as LedgerClosing
  TokenCounts sent;
  int64_t reasoning_tokens = 0;
  int64_t draft_rounds = 0;
  absl::Duration decode_time = absl::ZeroDuration();
  std::optional<double> tokens_per_second;  // see DecodeSpeed
  absl::string_view finish_reason = kFinishError;
};

// The closing of an entry. `prices`: in force when it was opened, by Tier.
LedgerClosing MakeClosing(const std::string& request_id, const RequestOutcome& outcome,
                          const BilledTier& billed, const std::array<Price, kNumTiers>& prices,
                          absl::Time closed);

// Movable. Thread contract: one thread at a time. Nothing in it blocks.
class Settlement {
 public:
  // What is needed to close the ledger entry.
  struct OpenEntry {
    std::string request_id;
    std::array<Price, kNumTiers> prices;  // of the tier served and of standard; by Tier
    Outbox* outbox = nullptr;             // must outlive the settlement
    const Clock* clock = nullptr;
  };

  Settlement() = default;  // settled: nothing is owed
  Settlement(Tier tier, int64_t promised_tokens_per_second, Grant grant,
             std::optional<OpenEntry> entry);
  Settlement(Settlement&& other) noexcept { *this = std::move(other); }
  Settlement& operator=(Settlement&& other) noexcept;
  ~Settlement() { Settle({}); }

  Tier tier() const { return tier_; }
  // The tier that a stream of this speed is billed at.
  BilledTier Judge(std::optional<double> tokens_per_second) const;
  // Gives back the limiter's grant before the caller can hear that the request is over: who may run
  // one stream and calls again at once must not be refused. The first call counts.
  void SettleLimits(int64_t used_tokens) { grant_.Settle(used_tokens); }
  // What SettleLimits has not, and the ledger entry. The first call counts.
  void Settle(const RequestOutcome& outcome);

 private:
  Tier tier_ = Tier::kStandard;
  int64_t promised_tokens_per_second_ = 0;
  Grant grant_;
  std::optional<OpenEntry> entry_;
};

}  // namespace ultraspeed::router
