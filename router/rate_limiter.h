// Limits per tenant and tier: requests per minute, tokens per minute, concurrent streams. All three
// are tested together and taken together or not at all.
//
// Two implementations: InProcessRateLimiter here (one router) and RedisRateLimiter
// (router/redis_rate_limiter.h: any number of routers share one limit exactly). docs/LIMITS.md has
// the rules as a tenant sees them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "router/gcra.h"
#include "router/tier.h"

namespace ultraspeed::router {

// 0 = not limited. A burst of 0 is one minute's worth.
struct TierLimits {
  int64_t requests_per_minute = 0;
  int64_t requests_burst = 0;
  int64_t tokens_per_minute = 0;
  int64_t tokens_burst = 0;
  int64_t concurrent_streams = 0;

  // INVALID_ARGUMENT names field, value and bound.
  absl::Status Validate() const;
};

// One logical request: taken once, outside any retry loop.
struct LimitRequest {
  std::string tenant;
  Tier tier = Tier::kStandard;
  TierLimits limits;
  int64_t tokens = 0;  // reserved now: prompt + max_tokens
};

enum class LimitKind : uint8_t { kRequests, kTokens, kStreams };
absl::string_view LimitKindName(LimitKind kind);  // "requests per minute" …

// One limit as it stands after the decision.
struct LimitState {
  int64_t limit = 0;  // 0 = not limited; the other fields then mean nothing
  int64_t remaining = 0;
  absl::Duration reset;  // until `remaining` is all there again if nothing more is asked
};

struct LimitReport {
  LimitState requests;
  LimitState tokens;
  LimitState streams;  // reset is 0: it depends on the streams
};

class RateLimiter;

// What a grant took, and from whom. A limiter needs nothing else to give it back.
struct GrantRecord {
  std::string id;  // unique over all routers
  std::string tenant;
  Tier tier = Tier::kStandard;
  TierLimits limits;
  int64_t reserved_tokens = 0;
};

// What one admitted request holds: a stream, and its reserved tokens. Its end gives the stream back
// and settles the tokens, exactly once, and never blocks. A router that dies takes its grants with
// it: their streams expire, their reservations leak out with the bucket.
class Grant {
 public:
  Grant() = default;
  Grant(Grant&& other) noexcept { *this = std::move(other); }
  Grant& operator=(Grant&& other) noexcept;
  ~Grant() { Settle(0); }

  // Ends the grant: `actual_tokens` (prompt + completion) were used of those that were reserved.
  // The first call counts; destruction without one means that nothing was used.
  void Settle(int64_t actual_tokens);
  bool empty() const { return limiter_ == nullptr; }
  const GrantRecord& record() const { return record_; }

 private:
  friend class RateLimiter;
  RateLimiter* limiter_ = nullptr;
  GrantRecord record_;
};

struct LimitDecision {
  std::optional<Grant> grant;  // absent = refused, and nothing was taken
  LimitReport report;
  // Of a refusal:
  LimitKind exceeded = LimitKind::kRequests;
  absl::Duration retry_after;  // exact for requests and tokens, a guess for streams; infinite: asks
                               // for more than the limit could ever give at once

  bool admitted() const { return grant.has_value(); }
};

// RESOURCE_EXHAUSTED that names limit, value and bound. REQUIRES: !decision.admitted().
absl::Status RefusalStatus(const LimitRequest& request, const LimitDecision& decision);

// x-ratelimit-limit-requests, -remaining-requests, -reset-requests, the same for -tokens, and for a
// refusal retry-after (whole seconds, rounded up). Limits that are not set have no entries.
std::vector<std::pair<std::string, std::string>> RateLimitMetadata(const LimitDecision& decision);

// ---- For implementations ----

std::optional<GcraRate> RequestRate(const TierLimits& limits);  // nullopt = not limited
std::optional<GcraRate> TokenRate(const TierLimits& limits);

// What a tenant and tier have taken, leaked to now.
struct LimitUse {
  GcraBucket requests;
  GcraBucket tokens;
  int64_t streams = 0;
};

// Pure: the report, and if the request does not pass, the limit that makes it wait longest.
struct LimitVerdict {
  bool passes = false;
  LimitKind exceeded = LimitKind::kRequests;
  absl::Duration retry_after;
};
LimitVerdict JudgeRequest(const LimitRequest& request, const LimitUse& use);
LimitReport ReportUse(const TierLimits& limits, const LimitUse& use);

// Thread contract: every method may be called from any thread. Must outlive its grants.
class RateLimiter {
 public:
  virtual ~RateLimiter() = default;

  // May block for some ten milliseconds if the limits are shared. REQUIRES: request.limits are
  // valid, tokens >= 0.
  virtual LimitDecision Acquire(const LimitRequest& request) = 0;

 protected:
  Grant MakeGrant(GrantRecord record);

 private:
  friend class Grant;
  // Never blocks.
  virtual void Settle(const GrantRecord& record, int64_t actual_tokens) = 0;
};

}  // namespace ultraspeed::router
