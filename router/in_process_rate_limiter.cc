#include "router/in_process_rate_limiter.h"

#include <algorithm>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace ultraspeed::router {
namespace {

constexpr size_t kPruneMin = 64;

int64_t Share(int64_t limit, int num_shares) {
  return limit == 0 ? 0 : std::max<int64_t>(1, limit / num_shares);
}

// A request may be larger than a share's burst and still be one that the whole limit allows: it
// then passes when the bucket is empty, and the others wait until it has leaked out.
TierLimits ShareOf(const LimitRequest& request, int num_shares) {
  const TierLimits& whole = request.limits;
  TierLimits share = {.requests_per_minute = Share(whole.requests_per_minute, num_shares),
                      .requests_burst = Share(whole.requests_burst, num_shares),
                      .tokens_per_minute = Share(whole.tokens_per_minute, num_shares),
                      .tokens_burst = 0,
                      .concurrent_streams = Share(whole.concurrent_streams, num_shares)};
  if (const auto rate = TokenRate(whole)) {
    share.tokens_burst =
        std::max(Share(rate->burst, num_shares), std::min(request.tokens, rate->burst));
  }
  return share;
}

void LeakTo(int64_t now_us, const TierLimits& limits, GcraBucket& requests, GcraBucket& tokens) {
  if (const auto rate = RequestRate(limits)) requests = Leak(requests, *rate, now_us);
  if (const auto rate = TokenRate(limits)) tokens = Leak(tokens, *rate, now_us);
}

int64_t MicrosUntilIdle(const TierLimits& limits, const GcraBucket& requests,
                        const GcraBucket& tokens) {
  int64_t micros = 0;
  if (const auto rate = RequestRate(limits)) micros = MicrosUntilEmpty(requests, *rate);
  if (const auto rate = TokenRate(limits))
    micros = std::max(micros, MicrosUntilEmpty(tokens, *rate));
  return micros;
}

}  // namespace

InProcessRateLimiter::InProcessRateLimiter(const Clock& clock, int num_shares)
    : clock_(clock), num_shares_(num_shares) {
  for (Shard& shard : shards_) shard.prune_at = kPruneMin;
}

int64_t InProcessRateLimiter::NowMicros() const {
  return absl::ToInt64Microseconds(clock_.Monotonic());
}

InProcessRateLimiter::Shard& InProcessRateLimiter::ShardOf(const Key& key) {
  return shards_[absl::HashOf(key) % shards_.size()];
}

LimitDecision InProcessRateLimiter::Acquire(const LimitRequest& asked) {
  LimitRequest request = asked;
  if (num_shares_ > 1) request.limits = ShareOf(asked, num_shares_);
  const TierLimits& limits = request.limits;
  const Key key(request.tenant, request.tier);
  Shard& shard = ShardOf(key);
  LimitDecision decision;
  {
    absl::MutexLock lock(&shard.mutex);
    const int64_t now_us = NowMicros();
    if (shard.accounts.size() >= shard.prune_at) PruneIdle(shard, now_us);
    Account& account = shard.accounts[key];
    LeakTo(now_us, limits, account.requests, account.tokens);
    const LimitVerdict verdict = JudgeRequest(
        request,
        {.requests = account.requests, .tokens = account.tokens, .streams = account.streams});
    decision.exceeded = verdict.exceeded;
    decision.retry_after = verdict.retry_after;
    if (verdict.passes) {
      if (RequestRate(limits)) account.requests = Take(account.requests, 1);
      if (TokenRate(limits)) account.tokens = Take(account.tokens, request.tokens);
      ++account.streams;
    }
    account.idle_after_us = now_us + MicrosUntilIdle(limits, account.requests, account.tokens);
    decision.report = ReportUse(
        limits,
        {.requests = account.requests, .tokens = account.tokens, .streams = account.streams});
    if (!verdict.passes) return decision;
  }
  decision.grant =
      MakeGrant({.id = absl::StrCat("local-", next_id_.fetch_add(1, std::memory_order_relaxed)),
                 .tenant = request.tenant,
                 .tier = request.tier,
                 .limits = limits,
                 .reserved_tokens = request.tokens});
  return decision;
}

void InProcessRateLimiter::Settle(const GrantRecord& record, int64_t actual_tokens) {
  const Key key(record.tenant, record.tier);
  Shard& shard = ShardOf(key);
  absl::MutexLock lock(&shard.mutex);
  const auto found = shard.accounts.find(key);  // kept as long as it has a stream
  CHECK_THAT(found != shard.accounts.end(), ==, true);
  Account& account = found->second;
  CHECK_THAT(account.streams, >=, 1);
  const int64_t now_us = NowMicros();
  --account.streams;
  LeakTo(now_us, record.limits, account.requests, account.tokens);
  if (TokenRate(record.limits))
    account.tokens = Take(account.tokens, actual_tokens - record.reserved_tokens);
  account.idle_after_us = now_us + MicrosUntilIdle(record.limits, account.requests, account.tokens);
}

void InProcessRateLimiter::PruneIdle(Shard& shard, int64_t now_us) {
  absl::erase_if(shard.accounts, [now_us](const auto& entry) {
    return entry.second.streams == 0 && entry.second.idle_after_us <= now_us;
  });
  shard.prune_at = std::max(kPruneMin, 2 * shard.accounts.size());
}

size_t InProcessRateLimiter::num_accounts() const {
  size_t count = 0;
  for (const Shard& shard : shards_) {
    absl::MutexLock lock(&shard.mutex);
    count += shard.accounts.size();
  }
  return count;
}

}  // namespace ultraspeed::router
