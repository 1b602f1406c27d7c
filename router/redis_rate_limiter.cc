#include "router/redis_rate_limiter.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "common/uuid.h"

namespace ultraspeed::router {
namespace {

// Leases or settlements of one script call.
constexpr size_t kBatchMax = 128;
// A bucket is forgotten this long after it is empty.
constexpr int64_t kBucketTtlSlackMs = 1000;

// The server's clock, and a bucket leaked to it: router/gcra.h in Lua. Only sums and products of
// integers below 2^53; a product above it means "longer ago than needed", where rounding is
// harmless.
constexpr char kBucketFunctions[] = R"lua(
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function load(key, limit)
  local stored = redis.call('HMGET', key, 'level', 'at')
  if not stored[1] then return 0 end
  return math.max(0, stored[1] - math.max(0, now - stored[2]) * limit)
end
local function save(key, level, limit, slack_ms)
  if level <= 0 then
    redis.call('DEL', key)
  else
    redis.call('HSET', key, 'level', string.format('%.0f', level), 'at', string.format('%.0f', now))
    redis.call('PEXPIRE', key, string.format('%.0f', math.ceil(level / limit / 1000) + slack_ms))
  end
end
)lua";

// KEYS: requests bucket, tokens bucket, streams. ARGV: limit and burst and cost of requests
// (parts), the same of tokens, streams (a limit of 0 is none), lease id, lease ttl in ms, slack in
// ms. Answers {passed, level of requests, level of tokens, streams}, as they are afterwards.
const RedisScript& AcquireScript() {
  static const RedisScript script(absl::StrCat(kBucketFunctions, R"lua(
local requests_limit, requests_burst, requests_cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local tokens_limit, tokens_burst, tokens_cost = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local streams_max, ttl_ms, slack_ms = tonumber(ARGV[7]), tonumber(ARGV[9]), tonumber(ARGV[10])
local requests, tokens = 0, 0
if requests_limit > 0 then requests = load(KEYS[1], requests_limit) end
if tokens_limit > 0 then tokens = load(KEYS[2], tokens_limit) end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now))
local streams = redis.call('ZCARD', KEYS[3])
if (requests_limit > 0 and requests + requests_cost > requests_burst)
    or (tokens_limit > 0 and tokens + tokens_cost > tokens_burst)
    or (streams_max > 0 and streams >= streams_max) then
  return {0, requests, tokens, streams}
end
if requests_limit > 0 then
  requests = requests + requests_cost
  save(KEYS[1], requests, requests_limit, slack_ms)
end
if tokens_limit > 0 then
  tokens = tokens + tokens_cost
  save(KEYS[2], tokens, tokens_limit, slack_ms)
end
redis.call('ZADD', KEYS[3], string.format('%.0f', now + ttl_ms * 1000), ARGV[8])
redis.call('PEXPIRE', KEYS[3], ttl_ms)
return {1, requests, tokens, streams + 1}
)lua"));
  return script;
}

// KEYS: per settlement tokens bucket and streams. ARGV: slack in ms, then per settlement lease id,
// limit of tokens, and the correction in parts (may be negative). Answers {how many leases it
// found}.
const RedisScript& SettleScript() {
  static const RedisScript script(absl::StrCat(kBucketFunctions, R"lua(
local found = 0
for i = 1, #KEYS / 2 do
  local id, limit, correction = ARGV[3 * i - 1], tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
  if redis.call('ZREM', KEYS[2 * i], id) == 1 then
    found = found + 1
    if limit > 0 and correction ~= 0 then
      save(KEYS[2 * i - 1], load(KEYS[2 * i - 1], limit) + correction, limit, tonumber(ARGV[1]))
    end
  end
end
return {found}
)lua"));
  return script;
}

// KEYS: a probe key, then the streams of each lease. ARGV: ttl in ms, then the lease ids. Writes
// the probe key even without leases: a server that cannot be written to is of no use. Leases that
// the server lost come back.
const RedisScript& RenewScript() {
  static const RedisScript script(absl::StrCat(kBucketFunctions, R"lua(
local ttl_ms = tonumber(ARGV[1])
redis.call('SET', KEYS[1], '1', 'PX', 1000)
local lost = {}
for i = 2, #KEYS do
  lost[i - 1] = redis.call('ZADD', KEYS[i], string.format('%.0f', now + ttl_ms * 1000), ARGV[i])
  redis.call('PEXPIRE', KEYS[i], ttl_ms)
end
return lost
)lua"));
  return script;
}

// The braces are Redis Cluster's: a tenant's keys live on one node.
std::string Key(const std::string& prefix, const std::string& tenant, Tier tier,
                absl::string_view what) {
  return absl::StrCat(prefix, "{", tenant, "}:", TierName(tier), ":", what);
}

void AppendRate(const std::optional<GcraRate>& rate, int64_t cost,
                std::vector<std::string>& arguments) {
  arguments.push_back(absl::StrCat(rate ? rate->limit_per_minute : 0));
  arguments.push_back(absl::StrCat(rate ? rate->burst_parts() : 0));
  // More than any burst is refused as well as a little more; the product must not overflow.
  arguments.push_back(absl::StrCat(std::min(cost, kRateLimitMax + 1) * kPartsPerUnit));
}

}  // namespace

struct RedisRateLimiter::Instruments {
  explicit Instruments(Metrics& metrics)
      : degraded(metrics.Gauge("ultraspeed_router_rate_limiter_degraded",
                               "1 while Redis is away and limits are this router's local share")),
        local_decisions(
            metrics.Counter("ultraspeed_router_rate_limiter_local_decisions_total",
                            "Requests judged by the local share because Redis was away")) {}
  prometheus::Gauge& degraded;
  prometheus::Counter& local_decisions;
};

absl::Status RedisRateLimiter::Options::Validate() const {
  if (replicas < 1)
    return absl::InvalidArgumentError(absl::StrCat("replicas=", replicas, ": must be at least 1"));
  if (timeout < absl::Milliseconds(1) || timeout > absl::Seconds(5))
    return absl::InvalidArgumentError(
        absl::StrCat("redis timeout=", absl::FormatDuration(timeout), ": must be 1ms to 5s"));
  if (lease_ttl < absl::Milliseconds(100) || lease_ttl > absl::Hours(1))
    return absl::InvalidArgumentError(
        absl::StrCat("lease_ttl=", absl::FormatDuration(lease_ttl), ": must be 100ms to 1h"));
  if (probe_interval < absl::Milliseconds(1))
    return absl::InvalidArgumentError("redis probe_interval: must be at least 1ms");
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<RedisRateLimiter>> RedisRateLimiter::Create(Options options) {
  RETURN_IF_ERROR(options.Validate());
  return std::unique_ptr<RedisRateLimiter>(new RedisRateLimiter(std::move(options)));
}

RedisRateLimiter::RedisRateLimiter(Options options)
    : options_(std::move(options)),
      id_prefix_(absl::StrCat(NewUuidV7(), "-")),
      local_(*options_.clock, options_.replicas),
      connections_(options_.address, options_.timeout),
      instruments_(options_.metrics == nullptr ? nullptr
                                               : std::make_unique<Instruments>(*options_.metrics)),
      thread_([this] { Run(); }) {}

RedisRateLimiter::~RedisRateLimiter() {
  {
    absl::MutexLock lock(&mutex_);
    closing_ = true;
  }
  thread_.join();
}

// ---- Callers' threads ----

LimitDecision RedisRateLimiter::Acquire(const LimitRequest& request) {
  if (!degraded()) {
    absl::StatusOr<LimitDecision> decision = AcquireShared(request);
    if (decision.ok()) return *std::move(decision);
    SetDegraded(true, decision.status());
  }
  if (instruments_ != nullptr) instruments_->local_decisions.Increment();
  return local_.Acquire(request);
}

absl::StatusOr<LimitDecision> RedisRateLimiter::AcquireShared(const LimitRequest& request) {
  const TierLimits& limits = request.limits;
  GrantRecord record = {
      .id = absl::StrCat(id_prefix_, next_id_.fetch_add(1, std::memory_order_relaxed)),
      .tenant = request.tenant,
      .tier = request.tier,
      .limits = limits,
      .reserved_tokens = request.tokens};
  std::vector<std::string> arguments;
  AppendRate(RequestRate(limits), 1, arguments);
  AppendRate(TokenRate(limits), request.tokens, arguments);
  arguments.push_back(absl::StrCat(limits.concurrent_streams));
  arguments.push_back(record.id);
  arguments.push_back(absl::StrCat(absl::ToInt64Milliseconds(options_.lease_ttl)));
  arguments.push_back(absl::StrCat(kBucketTtlSlackMs));
  const auto key = [&](absl::string_view what) {
    return Key(options_.key_prefix, request.tenant, request.tier, what);
  };
  ASSIGN_OR_RETURN(std::unique_ptr<RedisConnection> connection, connections_.Take());
  const auto reply =
      connection->Run(AcquireScript(), {key("requests"), key("tokens"), key("streams")}, arguments);
  if (!reply.ok()) {
    // It may have passed all the same: take it back once Redis is there again.
    absl::MutexLock lock(&mutex_);
    const int64_t reserved = record.reserved_tokens;
    settlements_.push_back({.record = std::move(record), .correction_tokens = -reserved});
    return reply.status();
  }
  connections_.GiveBack(std::move(connection));
  if (reply->size() != 4) return absl::InternalError("redis: the limit script answered wrongly");
  const LimitUse use = {.requests = {.level_parts = (*reply)[1], .updated_us = 0},
                        .tokens = {.level_parts = (*reply)[2], .updated_us = 0},
                        .streams = (*reply)[3]};
  LimitDecision decision;
  decision.report = ReportUse(limits, use);
  if ((*reply)[0] == 0) {
    const LimitVerdict verdict = JudgeRequest(request, use);
    decision.exceeded = verdict.exceeded;
    decision.retry_after = verdict.retry_after;
    return decision;
  }
  {
    absl::MutexLock lock(&mutex_);
    live_.emplace(record.id, Lease{.record = record});
  }
  decision.grant = MakeGrant(std::move(record));
  return decision;
}

void RedisRateLimiter::Settle(const GrantRecord& record, int64_t actual_tokens) {
  absl::MutexLock lock(&mutex_);
  const auto lease = live_.find(record.id);
  CHECK_THAT(lease != live_.end(), ==, true);
  const int64_t correction = lease->second.was_lost ? 0 : actual_tokens - record.reserved_tokens;
  settlements_.push_back(
      {.record = std::move(lease->second.record), .correction_tokens = correction});
  live_.erase(lease);
}

bool RedisRateLimiter::settled() const {
  absl::MutexLock lock(&mutex_);
  return settlements_.empty();
}

void RedisRateLimiter::SetDegraded(bool degraded, const absl::Status& reason) {
  if (degraded_.exchange(degraded) == degraded) return;
  connections_.Clear();
  if (instruments_ != nullptr) instruments_->degraded.Set(degraded ? 1 : 0);
  Log(degraded ? LogLevel::kError : LogLevel::kInfo, "router.rate_limiter",
      {{"degraded", degraded},
       {"redis", options_.address.HostPort()},
       {"reason", std::string(reason.message())}});
}

// ---- The limiter's thread ----

void RedisRateLimiter::Run() {
  std::unique_ptr<RedisConnection> connection;  // null: to be made
  const absl::Duration renew_interval = options_.lease_ttl / 3;
  absl::Time renew_at = absl::Now() + renew_interval;
  for (;;) {
    bool closing = false;
    {
      absl::MutexLock lock(&mutex_);
      const auto has_work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return closing_ || (!degraded() && !settlements_.empty());
      };
      const absl::Time wake_at = degraded()
                                     ? absl::Now() + options_.probe_interval
                                     : std::min(renew_at, absl::Now() + options_.probe_interval);
      mutex_.AwaitWithDeadline(absl::Condition(&has_work), wake_at);
      closing = closing_;
    }
    const bool was_degraded = degraded();
    if (was_degraded) connection = nullptr;
    absl::Status status;
    if (connection == nullptr) {
      auto connected = RedisConnection::Connect(options_.address, options_.timeout);
      status = connected.status();
      if (connected.ok()) connection = *std::move(connected);
    }
    // Leases first: what is settled below must not be renewed afterwards, and after a restart of
    // Redis a settlement must find its lease.
    if (status.ok() && (was_degraded || absl::Now() >= renew_at)) {
      status = RenewLeases(*connection);
      renew_at = absl::Now() + renew_interval;
    }
    if (status.ok()) status = SendSettlements(*connection);
    if (!status.ok()) connection = nullptr;
    SetDegraded(!status.ok(), status);
    if (closing) return;
  }
}

absl::Status RedisRateLimiter::RenewLeases(RedisConnection& connection) {
  std::vector<GrantRecord> records;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [id, lease] : live_) records.push_back(lease.record);
  }
  size_t begin = 0;
  do {
    const size_t end = std::min(records.size(), begin + kBatchMax);
    std::vector<std::string> keys = {absl::StrCat(options_.key_prefix, "probe")};
    std::vector<std::string> arguments = {
        absl::StrCat(absl::ToInt64Milliseconds(options_.lease_ttl))};
    for (size_t i = begin; i < end; ++i) {
      keys.push_back(Key(options_.key_prefix, records[i].tenant, records[i].tier, "streams"));
      arguments.push_back(records[i].id);
    }
    ASSIGN_OR_RETURN(const std::vector<int64_t> lost,
                     connection.Run(RenewScript(), keys, arguments));
    if (lost.size() != end - begin)
      return absl::InternalError("redis: the renewal script answered wrongly");
    absl::MutexLock lock(&mutex_);
    for (size_t i = begin; i < end; ++i) {
      const auto lease = live_.find(records[i].id);
      if (lease != live_.end() && lost[i - begin] == 1) lease->second.was_lost = true;
    }
    begin = end;
  } while (begin < records.size());
  return absl::OkStatus();
}

absl::Status RedisRateLimiter::SendSettlements(RedisConnection& connection) {
  for (;;) {
    std::vector<Settlement> batch;
    {
      absl::MutexLock lock(&mutex_);
      const size_t count = std::min(settlements_.size(), kBatchMax);
      batch.assign(settlements_.begin(), settlements_.begin() + static_cast<ptrdiff_t>(count));
    }
    if (batch.empty()) return absl::OkStatus();
    std::vector<std::string> keys;
    std::vector<std::string> arguments = {absl::StrCat(kBucketTtlSlackMs)};
    for (const Settlement& settlement : batch) {
      const GrantRecord& record = settlement.record;
      const auto rate = TokenRate(record.limits);
      const int64_t correction =
          std::clamp(settlement.correction_tokens, -kRateLimitMax, kRateLimitMax);
      keys.push_back(Key(options_.key_prefix, record.tenant, record.tier, "tokens"));
      keys.push_back(Key(options_.key_prefix, record.tenant, record.tier, "streams"));
      arguments.push_back(record.id);
      arguments.push_back(absl::StrCat(rate ? rate->limit_per_minute : 0));
      arguments.push_back(absl::StrCat(correction * kPartsPerUnit));
    }
    RETURN_IF_ERROR(connection.Run(SettleScript(), keys, arguments).status());
    absl::MutexLock lock(&mutex_);
    settlements_.erase(settlements_.begin(),
                       settlements_.begin() + static_cast<ptrdiff_t>(batch.size()));
  }
}

}  // namespace ultraspeed::router
