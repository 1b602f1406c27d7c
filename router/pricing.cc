#include "router/pricing.h"

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/accounts.h"

namespace ultraspeed::router {
namespace {

constexpr int64_t kTokensPerPrice = 1'000'000;

bool IsWithin(int64_t value, int64_t min, int64_t max) { return value >= min && value <= max; }

void CheckBounds(const TokenCounts& counts, const TokenPrices& prices) {
  if (IsWithin(counts.prompt, 0, kBilledTokensMax) && IsWithin(counts.cached, 0, counts.prompt) &&
      IsWithin(counts.completion, 0, kBilledTokensMax) &&
      IsWithin(prices.input, 0, kPriceNanodollarsMax) &&
      IsWithin(prices.cached_input, 0, kPriceNanodollarsMax) &&
      IsWithin(prices.output, 0, kPriceNanodollarsMax)) {
    return;
  }
  std::fprintf(
      stderr, "PriceOf: out of bounds: prompt %lld cached %lld completion %lld at %lld %lld %lld\n",
      static_cast<long long>(counts.prompt), static_cast<long long>(counts.cached),
      static_cast<long long>(counts.completion), static_cast<long long>(prices.input),
      static_cast<long long>(prices.cached_input), static_cast<long long>(prices.output));
  std::abort();
}

}  // namespace

int64_t PriceOf(const TokenCounts& counts, const TokenPrices& per_million) {
  CheckBounds(counts, per_million);
  using Wide = __int128;  // a line of a request can pass 2^63 before it is divided
  const Wide millionths = Wide{counts.prompt - counts.cached} * per_million.input +
                          Wide{counts.cached} * per_million.cached_input +
                          Wide{counts.completion} * per_million.output;
  return static_cast<int64_t>((millionths + kTokensPerPrice / 2) / kTokensPerPrice);
}

absl::Status ValidatePrice(const Price& price) {
  if (!IsModelPattern(price.model_pattern)) {
    return absl::InvalidArgumentError(
        absl::StrCat("price.model=", price.model_pattern,
                     ": must be a model's name or a prefix that ends in *"));
  }
  const std::pair<const char*, int64_t> lines[] = {{"input", price.per_million.input},
                                                   {"cached_input", price.per_million.cached_input},
                                                   {"output", price.per_million.output}};
  for (const auto& [name, value] : lines) {
    if (!IsWithin(value, 0, kPriceNanodollarsMax)) {
      return absl::InvalidArgumentError(absl::StrCat("price.", name, "=", value, ": must be in 0..",
                                                     kPriceNanodollarsMax,
                                                     " nano-dollars per million tokens"));
    }
  }
  return absl::OkStatus();
}

PriceTable::PriceTable(std::vector<Price> prices) : prices_(std::move(prices)) {}

absl::StatusOr<Price> PriceTable::Find(absl::string_view model, Tier tier, absl::Time time) const {
  const Price* best = nullptr;
  std::tuple<size_t, absl::Time, int64_t> best_rank;
  for (const Price& price : prices_) {
    if (price.tier != tier || price.effective_from > time) continue;
    const std::optional<size_t> match = ModelMatch(price.model_pattern, model);
    if (!match) continue;
    const std::tuple rank(*match, price.effective_from, price.version);
    if (best == nullptr || rank > best_rank) {
      best = &price;
      best_rank = rank;
    }
  }
  if (best == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("model=", model, " tier=", TierName(tier), ": no price is in force"));
  }
  return *best;
}

absl::StatusOr<Price> PriceTable::FindVersion(int64_t version) const {
  for (const Price& price : prices_) {
    if (price.version == version) return price;
  }
  return absl::NotFoundError(absl::StrCat("price version ", version, ": there is none"));
}

}  // namespace ultraspeed::router
