// The order in which requests of one model get their turns. Pure: no threads, no clock of its own,
// no gRPC; the same calls give the same order.
//
//   * Bands by tier. Ultraspeed goes first, but while standard waits it gets one turn in
//     standard_floor_turns. Standard never takes the places that are kept for ultraspeed.
//   * Inside a band tenants share by weight, counted in estimated tokens: the tenant with the least
//     virtual service is next (start-time fair queueing). These are the shares of a weighted
//     deficit round robin, without its quantum: a request of a million tokens costs no rounds of a
//     loop, and every choice is O(log n). A tenant that comes back from a pause gets no credit for
//     it.
//   * Inside a tenant: earliest deadline, then higher priority, then arrival.
// A tenant may hold at most as many queued requests (and bytes) as are still free, so a flood
// always leaves room for the others.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/limits.h"
#include "router/tier.h"

namespace ultraspeed::router {

// How many requests may be on the workers at once.
struct QueueCapacity {
  int64_t places = 0;
  int64_t standard_places = 0;    // of these, standard may hold so many …
  int64_t ultraspeed_places = 0;  // … and ultraspeed so many; the sum may exceed `places`

  friend bool operator==(const QueueCapacity&, const QueueCapacity&) = default;
};

// What one ready worker adds. `max_running_requests` as it reports it (0 = not known yet: nothing),
// `other_requests` those that other routers have on it.
QueueCapacity CapacityOfWorker(int64_t max_running_requests, int64_t other_requests);
QueueCapacity operator+(const QueueCapacity& a, const QueueCapacity& b);

struct QueuedRequest {
  std::string tenant;
  Tier tier = Tier::kStandard;
  int64_t tokens = 1;  // estimated: prompt + what it will likely generate; at least 1
  int64_t bytes = 0;   // that it keeps in memory while it waits
  int priority = 0;
  int weight = 1;                                      // of the tenant, 1..kTenantWeightMax
  absl::Duration deadline = absl::InfiniteDuration();  // on the clock that `now` is read from
};

inline constexpr int kTenantWeightMax = 1000;

// A tenant may hold at most a quarter of either bound, and never more than is still free.
struct FairQueueOptions {
  int requests_max = limits::kQueueRequestsMax;
  int64_t bytes_max = limits::kQueueBytesMax;
  absl::Duration wait_max = absl::Seconds(60);
  int standard_floor_turns = 8;  // while both tiers wait, standard gets one turn in so many

  absl::Status Validate() const;
};

// Thread contract: one thread at a time.
class FairQueue {
 public:
  explicit FairQueue(const FairQueueOptions& options);
  ~FairQueue();

  // A ticket (never 0), or RESOURCE_EXHAUSTED (a bound is reached) or DEADLINE_EXCEEDED (at the
  // present rate its turn would come too late). O(log n).
  absl::StatusOr<uint64_t> Push(const QueuedRequest& request, absl::Duration now);

  struct Turn {
    uint64_t ticket = 0;
    Tier tier = Tier::kStandard;
    absl::Duration wait;
  };
  // The next one of the bands that may go, taken out; nullopt if none waits there. O(log n).
  std::optional<Turn> Pop(bool standard_may_go, bool ultraspeed_may_go, absl::Duration now);

  // Takes a request out; false if it does not wait. O(log n).
  bool Remove(uint64_t ticket);

  std::optional<Tier> TierOf(uint64_t ticket) const;  // nullopt: it does not wait

  struct Expired {
    uint64_t ticket = 0;
    Tier tier = Tier::kStandard;
    absl::Status status;  // DEADLINE_EXCEEDED, or RESOURCE_EXHAUSTED after wait_max
  };
  // One whose time is over, taken out. O(log n).
  std::optional<Expired> PopExpired(absl::Duration now);
  absl::Duration NextExpiry() const;  // infinite if nothing waits

  int size() const { return static_cast<int>(requests_.size()); }
  bool empty() const { return requests_.empty(); }
  int size(Tier tier) const;
  int64_t bytes() const { return bytes_; }

  // How many go before this one if nobody else comes, and places of both bands keep coming. O(n).
  std::optional<int> Position(uint64_t ticket) const;
  // Until a request that came now would get its turn, from the rate of turns while requests waited.
  // Zero while that is not known. O(1).
  absl::Duration EstimateWait(const std::string& tenant, Tier tier) const;
  // What a caller is told who would wait so long.
  static absl::Duration RetryAfter(absl::Duration wait);

  // Aborts unless every index agrees with every other.
  void CheckIntegrity() const;

 private:
  struct Request;
  struct Tenant;
  struct Band;

  absl::Status CheckRoom(const QueuedRequest& request, absl::Duration now) const;
  // `virtual_cost` is charged to the tenant: 0 for a request that leaves without a turn.
  void TakeOut(Request& request, int64_t virtual_cost);
  // Turns of both bands before one that has `num_ahead` before it in its own.
  int WithOtherBand(Tier tier, int num_ahead) const;

  const FairQueueOptions options_;
  std::unique_ptr<Band> bands_[kNumTiers];
  absl::flat_hash_map<uint64_t, std::unique_ptr<Request>> requests_;  // by ticket
  std::set<std::pair<absl::Duration, uint64_t>> expiries_;            // (when, ticket)
  struct Holding {
    int requests = 0;
    int64_t bytes = 0;
  };
  absl::flat_hash_map<std::string, Holding>
      holdings_;  // by tenant, both bands; only those that wait
  int64_t bytes_ = 0;
  uint64_t next_ticket_ = 1;
  int turns_without_standard_ = 0;
  // Turns while requests waited: mean time between two, and when the last one was.
  absl::Duration mean_interval_ = absl::ZeroDuration();
  std::optional<absl::Duration> last_turn_;
};

}  // namespace ultraspeed::router
