// What a request costs. Prices are data: rows of (model pattern, tier, effective from), each with a
// version that ledger entries name. Money is a whole number of nano-dollars; prices are
// nano-dollars per million tokens, because a cached token costs less than one nano-dollar.
//
// Rounding, the only place where there is any: a request's exact cost, a fraction with denominator
// 1,000,000, is rounded half up to a nano-dollar once, on the total of its three lines.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "router/tier.h"

namespace ultraspeed::router {

// $1,000,000 per million tokens.
inline constexpr int64_t kPriceNanodollarsMax = 1'000'000'000'000'000;
// Of one line of one request. With it a cost stays below 2^63.
inline constexpr int64_t kBilledTokensMax = 1'000'000'000;

struct TokenCounts {
  int64_t prompt = 0;      // 0..kBilledTokensMax
  int64_t cached = 0;      // the part of prompt whose KV was reused: 0..prompt
  int64_t completion = 0;  // 0..kBilledTokensMax
};

// Nano-dollars per million tokens of each line, 0..kPriceNanodollarsMax.
struct TokenPrices {
  int64_t input = 0;
  int64_t cached_input = 0;
  int64_t output = 0;
  bool operator==(const TokenPrices&) const = default;
};

struct Price {
  int64_t version = 0;        // set by the store, ascending, never reused
  std::string model_pattern;  // see accounts.h
  Tier tier = Tier::kStandard;
  TokenPrices per_million = {};
  absl::Time effective_from = {};  // milliseconds
};

// Nano-dollars. REQUIRES: counts and prices within their bounds; aborts otherwise.
int64_t PriceOf(const TokenCounts& counts, const TokenPrices& per_million);

// INVALID_ARGUMENT names field, value and bound.
absl::Status ValidatePrice(const Price& price);

// Immutable. Thread contract: any.
class PriceTable {
 public:
  PriceTable() = default;
  explicit PriceTable(std::vector<Price> prices);

  // The price in force: of the patterns that match and have begun by `time`, the most specific; of
  // its rows the latest to begin, then the highest version. NOT_FOUND names model and tier.
  absl::StatusOr<Price> Find(absl::string_view model, Tier tier, absl::Time time) const;
  // NOT_FOUND if there is no such version.
  absl::StatusOr<Price> FindVersion(int64_t version) const;

  const std::vector<Price>& prices() const { return prices_; }

 private:
  std::vector<Price> prices_;
};

}  // namespace ultraspeed::router
