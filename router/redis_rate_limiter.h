// RateLimiter for any number of routers: the state is in Redis, and one script tests and takes all
// three limits atomically, by the server's clock. Exact however many routers ask.
//
// Acquire blocks for one round trip, at most Options::timeout: call it on a pool thread. Everything
// else (settling, keeping streams alive, finding Redis again) is done by one thread of the limiter.
// Without Redis each router grants its local share (limit / replicas); the gauge
// ultraspeed_router_rate_limiter_degraded is 1 meanwhile, and it recovers by itself.
//
// A stream is a lease in a sorted set that this thread renews; a dead router's leases run out. The
// lease is also the identity of the reservation: a settlement that finds no lease changes nothing,
// so it may be repeated safely.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "router/in_process_rate_limiter.h"
#include "router/rate_limiter.h"
#include "router/redis_client.h"

namespace ultraspeed::router {

class RedisRateLimiter : public RateLimiter {
 public:
  struct Options {
    RedisAddress address;
    std::string key_prefix = "ultraspeed:";  // two systems may share one Redis
    int replicas = 1;                        // routers that share the limits, for the local share
    absl::Duration timeout = absl::Milliseconds(50);          // of one connect and of one call
    absl::Duration lease_ttl = absl::Seconds(30);             // of a stream whose router died
    absl::Duration probe_interval = absl::Milliseconds(200);  // while Redis is away
    Metrics* metrics = nullptr;                               // may be null
    const Clock* clock = &RealClock();                        // of the local share only

    absl::Status Validate() const;
  };

  // Succeeds without Redis, too: it then starts degraded.
  static absl::StatusOr<std::unique_ptr<RedisRateLimiter>> Create(Options options);
  // Settles what is left to settle, if Redis is there. REQUIRES: no grant is left.
  ~RedisRateLimiter() override;

  LimitDecision Acquire(const LimitRequest& request) override;

  bool degraded() const { return degraded_.load(std::memory_order_relaxed); }
  // Redis knows of everything that has ended.
  bool settled() const;

 private:
  struct Lease {
    GrantRecord record;
    bool was_lost = false;  // by Redis, and with it the reservation: nothing to correct
  };
  struct Settlement {
    GrantRecord record;
    int64_t correction_tokens = 0;  // actual less reserved
  };
  struct Instruments;

  explicit RedisRateLimiter(Options options);
  absl::StatusOr<LimitDecision> AcquireShared(const LimitRequest& request);
  void Settle(const GrantRecord& record, int64_t actual_tokens) override;
  void SetDegraded(bool degraded, const absl::Status& reason);

  // The limiter's thread.
  void Run();
  absl::Status RenewLeases(RedisConnection& connection);
  absl::Status SendSettlements(RedisConnection& connection);

  const Options options_;
  const std::string id_prefix_;  // of this limiter's grants; random
  InProcessRateLimiter local_;
  RedisConnectionPool connections_;
  const std::unique_ptr<Instruments> instruments_;  // null without metrics
  std::atomic<bool> degraded_{false};
  std::atomic<uint64_t> next_id_{1};

  mutable absl::Mutex mutex_;
  std::map<std::string, Lease> live_ ABSL_GUARDED_BY(mutex_);   // by id: those to renew
  std::deque<Settlement> settlements_ ABSL_GUARDED_BY(mutex_);  // at most one per grant
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace ultraspeed::router
