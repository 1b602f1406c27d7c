// The paid part of letting a request in, after its text was checked and before it queues:
//   limits (reserve) -> budget check and ledger opening
// for the first of the tiers that it may be served at which both allow. The result is a Settlement
// that gives everything back.
//
// Called by InferenceService: on its gRPC thread if nothing can block (no store, no shared limiter
// or no limits), else on its blocking pool.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "router/accounts_cache.h"
#include "router/authenticator.h"
#include "router/outbox.h"
#include "router/rate_limiter.h"
#include "router/settlement.h"
#include "router/store.h"

namespace ultraspeed::router {

struct AdmissionRequest {
  std::string request_id;
  AuthenticatedTenant tenant;
  std::string model;
  int64_t prompt_tokens = 0;
  int64_t max_tokens = 0;     // the budget reserves them all
  int64_t likely_tokens = 0;  // of max_tokens: what the token limit reserves until it is settled
  std::vector<Tier> tiers;    // in order of preference, at least one; entitlement was checked
};

struct AdmissionResult {
  // RESOURCE_EXHAUSTED: a limit, or too much waits; FAILED_PRECONDITION: the budget, or no price;
  // UNAVAILABLE: the budget cannot be checked, or the outbox is full.
  absl::StatusOr<Settlement> settlement;
  std::vector<std::pair<std::string, std::string>> metadata;  // x-ratelimit-*, retry-after
};

// Thread contract: any thread.
class Admission {
 public:
  struct Options {
    RateLimiter* limiter = nullptr;  // null: no tenant has limits
    bool limiter_blocks = false;     // it asks Redis
    // All three or none: without them nothing is billed.
    Store* store = nullptr;
    const AccountsCache* accounts = nullptr;
    Outbox* outbox = nullptr;
    std::string router_id = {};  // of this process; entries name it
    const Clock* clock = &RealClock();
  };

  explicit Admission(Options options) : options_(std::move(options)) {}

  // Whether Admit may wait for a database.
  bool MayBlock(const AdmissionRequest& request) const;
  AdmissionResult Admit(const AdmissionRequest& request) const;

 private:
  AdmissionResult AdmitAt(Tier tier, const AdmissionRequest& request) const;
  absl::StatusOr<Settlement::OpenEntry> OpenEntry(Tier tier, const AdmissionRequest& request) const;
  absl::Status OpenWithoutStore(const LedgerOpening& opening, bool has_budget) const;

  const Options options_;
};

}  // namespace ultraspeed::router
