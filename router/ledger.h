// What the ledger says of a request. An entry is opened before the first token, with what the
// request may cost at most, and closed exactly once with what it did cost; after that it never
// changes. Plain values; store.h keeps them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "router/pricing.h"
#include "router/tier.h"

namespace ultraspeed::router {

// Why a request was billed at another tier than the one that served it.
inline constexpr absl::string_view kBilledAsServed = "";
inline constexpr absl::string_view kBilledForSpeedPromise = "speed_promise";

struct LedgerOpening {
  std::string request_id;  // the router's UUIDv7; the key of the ledger
  std::string tenant_id;
  std::string key_id;
  std::string model;
  Tier tier = Tier::kStandard;  // that serves the request
  int64_t price_version = 0;    // of that tier
  int64_t reserved_tokens = 0;  // prompt + max_tokens
  int64_t reserved_nanodollars =
      0;  // their price; held against the budget until the entry is closed
  std::string router_id;
  absl::Time opened;  // milliseconds; its UTC month is the month that pays
};

struct LedgerClosing {
  std::string request_id;
  std::string worker;  // address of the one that served it last; empty: it was never placed
  TokenCounts tokens;
  int64_t reasoning_tokens = 0;  // part of tokens.completion
  int64_t draft_rounds = 0;
  int64_t decode_us = 0;      // first token to last; what a speed promise was judged by
  std::string finish_reason;  // stop, length, tool_calls, cancelled, error
  Tier billed_tier = Tier::kStandard;
  std::string billed_reason;  // kBilledAsServed or kBilledForSpeedPromise
  int64_t price_version = 0;  // of billed_tier
  int64_t cost_nanodollars = 0;
  absl::Time closed;  // milliseconds
};

struct LedgerEntry {
  LedgerOpening opening;
  std::optional<LedgerClosing> closing;  // nullopt: still open
};

enum class CloseOutcome : uint8_t {
  kClosed,         // by this call
  kAlreadyClosed,  // by an earlier one, whose numbers stand
  kNotOpened,      // the ledger has no such request
};

struct Spend {
  int64_t spent_nanodollars = 0;     // closed entries
  int64_t reserved_nanodollars = 0;  // open entries
};

// UTC calendar month as 202611.
int MonthOf(absl::Time time);

enum class BucketWidth : int64_t { kMinute = 60'000, kHour = 3'600'000, kDay = 86'400'000 };  // ms

// Closed entries of [start, end) by the time they were opened.
struct UsageQuery {
  std::string tenant_id;  // empty: all tenants
  absl::Time start;
  absl::Time end;
  BucketWidth bucket_width = BucketWidth::kHour;
  bool by_key = false;
  bool by_model = false;
  bool by_billed_tier = false;
};

// Sums of one bucket and group. Buckets without requests are absent.
struct UsageBucket {
  absl::Time start;
  std::string key_id;               // empty unless by_key
  std::string model;                // empty unless by_model
  std::optional<Tier> billed_tier;  // nullopt unless by_billed_tier
  int64_t requests = 0;
  TokenCounts tokens;
  int64_t reasoning_tokens = 0;
  int64_t draft_rounds = 0;
  int64_t cost_nanodollars = 0;
};

inline constexpr int kUsageBucketsMax = 10'000;

}  // namespace ultraspeed::router
