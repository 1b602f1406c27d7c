#include "router/settlement.h"

#include <utility>

namespace ultraspeed::router {

LedgerClosing MakeClosing(const std::string& request_id, const RequestOutcome& outcome,
                          const BilledTier& billed, const std::array<Price, kNumTiers>& prices,
                          absl::Time closed) {
  const Price& price = prices[static_cast<size_t>(billed.tier)];
  return {.request_id = request_id,
          .worker = outcome.worker,
          .tokens = outcome.sent,
          .reasoning_tokens = outcome.reasoning_tokens,
          .draft_rounds = outcome.draft_rounds,
          .decode_us = absl::ToInt64Microseconds(outcome.decode_time),
          .finish_reason = std::string(outcome.finish_reason),
          .billed_tier = billed.tier,
          .billed_reason = std::string(billed.reason),
          .price_version = price.version,
          .cost_nanodollars = PriceOf(outcome.sent, price.per_million),
          .closed = absl::FromUnixMillis(absl::ToUnixMillis(closed))};
}

Settlement::Settlement(Tier tier, int64_t promised_tokens_per_second, Grant grant,
                       std::optional<OpenEntry> entry)
    : tier_(tier),
      promised_tokens_per_second_(promised_tokens_per_second),
      grant_(std::move(grant)),
      entry_(std::move(entry)) {}

Settlement& Settlement::operator=(Settlement&& other) noexcept {
  if (this == &other) return *this;
  Settle({});
  tier_ = other.tier_;
  promised_tokens_per_second_ = other.promised_tokens_per_second_;
  grant_ = std::move(other.grant_);
  entry_ = std::exchange(other.entry_, std::nullopt);
  return *this;
}

BilledTier Settlement::Judge(std::optional<double> tokens_per_second) const {
  return JudgeSpeed(tier_, promised_tokens_per_second_, tokens_per_second);
}

void Settlement::Settle(const RequestOutcome& outcome) {
  grant_.Settle(outcome.sent.prompt + outcome.sent.completion);
  if (!entry_) return;
  const OpenEntry entry = *std::exchange(entry_, std::nullopt);
  entry.outbox->Add(MakeClosing(entry.request_id, outcome, Judge(outcome.tokens_per_second),
                                entry.prices, entry.clock->Now()));
}

}  // namespace ultraspeed::router
