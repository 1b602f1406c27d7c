// Settles what dead routers left open. Every router says twice a second in the store that it lives;
// of those that do, the one with the smallest id asks the workers how the requests of the dead
// ended, and closes their entries: exactly once, because the store closes an entry once, whoever
// asks.
//
//   * A router is dead when its heartbeats have not changed for `dead_after`, by the clock of the
//     router that watches. Time during which the store was away does not count, so nobody is
//     declared dead because nobody could beat.
//   * A request that a worker still runs is left for the next sweep. One that no worker has known
//     for `lost_after` is closed without tokens and with finish reason "lost": it is free.
//   * How many of the tokens were thoughts only the dead router knew: reasoning_tokens is 0, which
//     costs nobody anything, as thoughts have the price of the other completion tokens.
//   * A tenant's speed promise is judged by the worker's own measure.
//
// Own thread: one. Uses Store and WorkerPool.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "router/settlement.h"
#include "router/store.h"
#include "router/worker_pool.h"

namespace ultraspeed::router {

class Sweeper {
 public:
  struct Options {
    Store* store = nullptr;
    WorkerPool* pool = nullptr;
    std::string router_id;                              // of this process
    absl::Duration interval = absl::Milliseconds(500);  // zero: nobody sweeps but the caller
    absl::Duration dead_after = absl::Seconds(15);
    absl::Duration lost_after = absl::Minutes(2);  // after the router was found dead
    const Clock* clock = &RealClock();
    Metrics* metrics = nullptr;  // may be null
  };

  explicit Sweeper(Options options);
  // Forgets this router in the store: end every stream first.
  ~Sweeper();

  // One heartbeat and, if it is this router's turn, one sweep. Returns the number of entries that
  // were closed. REQUIRES: interval is zero.
  absl::StatusOr<int> SweepOnce() { return Sweep(); }

 private:
  struct Watched {
    int64_t num_beats = -1;
    absl::Duration changed;  // monotonic
  };

  void Run();
  absl::StatusOr<int> Sweep();
  absl::Status WatchRouters();
  bool IsDead(const std::string& router_id, absl::Duration after) const;
  bool IsMyTurn() const;
  absl::StatusOr<std::vector<LedgerEntry>> OrphanedEntries();
  absl::StatusOr<std::vector<LedgerClosing>> Closings(const std::vector<LedgerEntry>& entries);
  absl::StatusOr<LedgerClosing> Closing(const LedgerEntry& entry, const PriceTable& prices,
                                        const RequestOutcome& outcome);
  absl::Status ForgetTheDead(const std::vector<LedgerEntry>& orphans);

  const Options options_;
  std::map<std::string, Watched> routers_;  // the sweeping thread's
  absl::Notification closing_;
  std::thread thread_;
};

}  // namespace ultraspeed::router
