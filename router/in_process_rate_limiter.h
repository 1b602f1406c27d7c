// RateLimiter for one router: the state lives and dies with the process. Also what a router falls
// back to while Redis is away, with its share of the limits.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "router/gcra.h"
#include "router/rate_limiter.h"

namespace ultraspeed::router {

class InProcessRateLimiter : public RateLimiter {
 public:
  // With num_shares > 1 every limit is divided by it (at least 1 is left): the share of one router
  // of so many that cannot agree on the whole. `clock` is not owned.
  explicit InProcessRateLimiter(const Clock& clock, int num_shares = 1);

  // Never blocks.
  LimitDecision Acquire(const LimitRequest& request) override;

  // Tenants and tiers that are remembered: those with a stream or a bucket that has not leaked out,
  // and a few more.
  size_t num_accounts() const;

 private:
  // (tenant, tier)
  using Key = std::pair<std::string, Tier>;
  struct Account {
    GcraBucket requests;
    GcraBucket tokens;
    int64_t streams = 0;
    int64_t idle_after_us = 0;  // both buckets are empty from then on
  };
  struct Shard {
    mutable absl::Mutex mutex;
    absl::flat_hash_map<Key, Account> accounts ABSL_GUARDED_BY(mutex);
    size_t prune_at ABSL_GUARDED_BY(mutex) = 64;
  };

  void Settle(const GrantRecord& record, int64_t actual_tokens) override;
  Shard& ShardOf(const Key& key);
  int64_t NowMicros() const;
  static void PruneIdle(Shard& shard, int64_t now_us) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mutex);

  const Clock& clock_;
  const int num_shares_;
  std::atomic<uint64_t> next_id_{1};
  std::array<Shard, 16> shards_;
};

}  // namespace ultraspeed::router
