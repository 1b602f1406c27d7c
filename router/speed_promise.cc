#include "router/speed_promise.h"

#include <utility>

#include "router/ledger.h"

namespace ultraspeed::router {

void DecodeSpeed::OnTokens(absl::Duration now, int64_t num_tokens) {
  const bool after_pause = std::exchange(paused_, false);
  if (last_ && !after_pause) {
    num_tokens_ += num_tokens;
    time_ += now - *last_;
  }
  last_ = now;
}

std::optional<double> DecodeSpeed::tokens_per_second() const {
  if (num_tokens_ == 0 || time_ <= absl::ZeroDuration()) return std::nullopt;
  return static_cast<double>(num_tokens_) / absl::ToDoubleSeconds(time_);
}

BilledTier JudgeSpeed(Tier served, int64_t promised_tokens_per_second,
                      std::optional<double> tokens_per_second) {
  const bool broken = served == Tier::kUltraspeed && tokens_per_second.has_value() &&
                      *tokens_per_second < static_cast<double>(promised_tokens_per_second);
  if (broken) return {.tier = Tier::kStandard, .reason = kBilledForSpeedPromise};
  return {.tier = served, .reason = kBilledAsServed};
}

}  // namespace ultraspeed::router
