// Where requests wait for a worker, so that workers hardly queue: the thread-safe front of
// FairQueue (router/fair_queue.h has the order). One per router; each model has a queue and places
// of its own.
//
// A place is the right to have one request on the model's workers. WorkerPool says how many there
// are (SetCapacity); which worker a request then goes to stays the routing policy's choice. A
// request enters, waits for its turn, holds its place until it has ended, and gives it back by
// destruction.
//   auto entry = queue->Enter({...}, on_turn);   // refused: RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED
//   entry->place                                 // present: go on at once
//   entry->ticket                                // else: on_turn comes, or Cancel(ticket)
// No gRPC types. Own thread: one, runs on_turn and expiry.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "router/fair_queue.h"

namespace ultraspeed::router {

// Thread contract: every method may be called from any thread, also from on_turn.
class RequestQueue {
 private:
  struct Lane;  // one model's queue and places

 public:
  struct Options {
    FairQueueOptions bounds = {};  // of each model
    const Clock* clock = &RealClock();
    Metrics* metrics = nullptr;  // may be null

    absl::Status Validate() const { return bounds.Validate(); }
  };

  // Movable; its end gives the place back, exactly once.
  class Place {
   public:
    Place() = default;
    Place(Place&& other) noexcept { *this = std::move(other); }
    Place& operator=(Place&& other) noexcept;
    ~Place() { Release(); }
    void Release();
    bool empty() const { return queue_ == nullptr; }

   private:
    friend class RequestQueue;
    RequestQueue* queue_ = nullptr;
    Lane* lane_ = nullptr;
    Tier tier_ = Tier::kStandard;
  };

  // A place, or why there will be none: DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED (waited longer than
  // bounds.wait_max), UNAVAILABLE (the router stops). Called at most once, on the queue's thread,
  // without locks; may come before Enter has returned.
  using OnTurn = std::function<void(absl::StatusOr<Place>)>;

  struct Entry {
    std::optional<Place> place;  // the request did not have to wait; on_turn is dropped
    uint64_t ticket = 0;         // else: of Cancel
  };

  explicit RequestQueue(Options options);
  // Ends what waits with UNAVAILABLE, then waits until every place was given back.
  ~RequestQueue();
  RequestQueue(const RequestQueue&) = delete;
  RequestQueue& operator=(const RequestQueue&) = delete;

  // How many requests the model's ready workers may hold now. Fewer than are held: nothing is taken
  // away, the next ones wait.
  void SetCapacity(const std::string& model, const QueueCapacity& capacity);

  // At once, under a millisecond however long the queue. RESOURCE_EXHAUSTED (full; the message and
  // RetryAfter say when to come again) or DEADLINE_EXCEEDED (would not get its turn in time).
  absl::StatusOr<Entry> Enter(const std::string& model, const QueuedRequest& request,
                              OnTurn on_turn);

  // True: it waited, and on_turn will not come. False: on_turn came, runs, or is about to.
  bool Cancel(const std::string& model, uint64_t ticket);

  // Would a request of this tier get a place without waiting? For "downgrade only if the caller
  // said auto"; the answer may be stale when used.
  bool HasFreePlace(const std::string& model, Tier tier) const;
  // When to come again, from the rate at which requests got their turns lately. For retry-after.
  absl::Duration RetryAfter(const std::string& model, const std::string& tenant, Tier tier) const;

  struct Status {
    int waiting = 0;
    int64_t waiting_bytes = 0;
    int64_t held_places[kNumTiers] = {0, 0};
    QueueCapacity capacity;
  };
  Status GetStatus(const std::string& model) const;
  // Requests of the model that go before this one if nobody else comes; nullopt: it does not wait.
  std::optional<int> Position(const std::string& model, uint64_t ticket) const;

 private:
  struct Instruments;

  Lane& LaneOf(const std::string& model) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  const Lane* FindLane(const std::string& model) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Place TakePlace(Lane& lane, Tier tier) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void GiveBack(Lane& lane, Tier tier);

  struct Delivery {
    OnTurn on_turn;
    absl::StatusOr<Place> outcome;
  };
  void Run();
  // Whose turn it is, and whose time is over (all of them when closing).
  std::vector<Delivery> Collect(absl::Duration now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  const std::unique_ptr<Instruments> instruments_;  // null without metrics
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<std::string, std::unique_ptr<Lane>> lanes_ ABSL_GUARDED_BY(mutex_);
  int64_t num_places_held_ ABSL_GUARDED_BY(mutex_) = 0;
  bool changed_ ABSL_GUARDED_BY(mutex_) = false;  // the thread has something to look at
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace ultraspeed::router
