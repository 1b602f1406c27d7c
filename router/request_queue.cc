#include "router/request_queue.h"

#include <array>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace ultraspeed::router {
namespace {

const MetricBuckets kQueuePositionBuckets = {0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};

}  // namespace

struct RequestQueue::Lane {
  explicit Lane(const FairQueueOptions& options) : queue(options) {}

  FairQueue queue;
  absl::flat_hash_map<uint64_t, OnTurn> on_turn;  // by ticket; as many as wait
  QueueCapacity capacity;
  int64_t held[kNumTiers] = {0, 0};

  bool MayGo(Tier tier) const {
    const int64_t tier_places =
        tier == Tier::kUltraspeed ? capacity.ultraspeed_places : capacity.standard_places;
    return held[0] + held[1] < capacity.places && held[static_cast<int>(tier)] < tier_places;
  }
  std::optional<FairQueue::Turn> NextTurn(absl::Duration now) {
    return queue.Pop(MayGo(Tier::kStandard), MayGo(Tier::kUltraspeed), now);
  }
};

struct RequestQueue::Instruments {
  struct PerTier {
    prometheus::Gauge* waiting;
    prometheus::Histogram* wait;
    prometheus::Histogram* position;
    prometheus::Counter* refused;
    prometheus::Counter* expired;
  };

  explicit Instruments(Metrics& metrics) {
    for (const Tier tier : {Tier::kStandard, Tier::kUltraspeed}) {
      const MetricLabels labels = {{"tier", std::string(TierName(tier))}};
      tiers[static_cast<size_t>(tier)] = {
          .waiting = &metrics.Gauge("ultraspeed_router_queue_requests",
                                    "Requests that wait for a place on a worker", labels),
          .wait = &metrics.Histogram("ultraspeed_router_queue_wait_seconds",
                                     "From entering the queue to a place on a worker",
                                     kQueueWaitBuckets, labels),
          .position = &metrics.Histogram("ultraspeed_router_queue_position",
                                         "Requests ahead of one that had to wait, when it came",
                                         kQueuePositionBuckets, labels),
          .refused =
              &metrics.Counter("ultraspeed_router_queue_refused_total",
                               "Requests refused at once: full, or too late for them", labels),
          .expired = &metrics.Counter("ultraspeed_router_queue_expired_total",
                                      "Requests whose time was over while they waited", labels)};
    }
  }
  PerTier& of(Tier tier) { return tiers[static_cast<size_t>(tier)]; }

  std::array<PerTier, kNumTiers> tiers;
};

// ---- Places ----

RequestQueue::Place& RequestQueue::Place::operator=(Place&& other) noexcept {
  if (this == &other) return *this;
  Release();
  queue_ = std::exchange(other.queue_, nullptr);
  lane_ = std::exchange(other.lane_, nullptr);
  tier_ = other.tier_;
  return *this;
}

void RequestQueue::Place::Release() {
  if (queue_ != nullptr) std::exchange(queue_, nullptr)->GiveBack(*lane_, tier_);
}

RequestQueue::Place RequestQueue::TakePlace(Lane& lane, Tier tier) {
  ++lane.held[static_cast<int>(tier)];
  ++num_places_held_;
  Place place;
  place.queue_ = this;
  place.lane_ = &lane;
  place.tier_ = tier;
  return place;
}

void RequestQueue::GiveBack(Lane& lane, Tier tier) {
  absl::MutexLock lock(&mutex_);
  --lane.held[static_cast<int>(tier)];
  --num_places_held_;
  changed_ = changed_ || !lane.queue.empty();
}

// ---- Start and end ----

RequestQueue::RequestQueue(Options options)
    : options_(std::move(options)),
      instruments_(options_.metrics == nullptr ? nullptr
                                               : std::make_unique<Instruments>(*options_.metrics)),
      thread_([this] { Run(); }) {}

RequestQueue::~RequestQueue() {
  {
    absl::MutexLock lock(&mutex_);
    closing_ = true;
  }
  thread_.join();
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(
      +[](int64_t* num_places) { return *num_places == 0; }, &num_places_held_));
}

// ---- Callers' threads ----

RequestQueue::Lane& RequestQueue::LaneOf(const std::string& model) {
  std::unique_ptr<Lane>& lane = lanes_[model];
  if (lane == nullptr) lane = std::make_unique<Lane>(options_.bounds);
  return *lane;
}

const RequestQueue::Lane* RequestQueue::FindLane(const std::string& model) const {
  const auto found = lanes_.find(model);
  return found == lanes_.end() ? nullptr : found->second.get();
}

void RequestQueue::SetCapacity(const std::string& model, const QueueCapacity& capacity) {
  absl::MutexLock lock(&mutex_);
  Lane& lane = LaneOf(model);
  if (lane.capacity == capacity) return;
  lane.capacity = capacity;
  changed_ = changed_ || !lane.queue.empty();
}

absl::StatusOr<RequestQueue::Entry> RequestQueue::Enter(const std::string& model,
                                                        const QueuedRequest& request,
                                                        OnTurn on_turn) {
  absl::MutexLock lock(&mutex_);
  if (closing_) return absl::UnavailableError("the router stops");
  Lane& lane = LaneOf(model);
  const absl::Duration now = options_.clock->Monotonic();
  const bool was_empty = lane.queue.empty();
  const absl::StatusOr<uint64_t> ticket = lane.queue.Push(request, now);
  if (!ticket.ok()) {
    if (instruments_ != nullptr) instruments_->of(request.tier).refused->Increment();
    return ticket.status();
  }
  Entry entry;
  if (was_empty && lane.MayGo(request.tier)) {  // then it is the next one
    const auto turn = lane.NextTurn(now);
    CHECK_THAT(turn->ticket, ==, *ticket);
    entry.place = TakePlace(lane, request.tier);
    if (instruments_ != nullptr) instruments_->of(request.tier).wait->Observe(0);
    return entry;
  }
  entry.ticket = *ticket;
  lane.on_turn.emplace(*ticket, std::move(on_turn));
  changed_ = true;
  if (instruments_ != nullptr) {
    instruments_->of(request.tier).waiting->Increment();
    instruments_->of(request.tier).position->Observe(*lane.queue.Position(*ticket));
  }
  return entry;
}

bool RequestQueue::Cancel(const std::string& model, uint64_t ticket) {
  OnTurn dropped;  // destroyed after the lock is gone: it may own the caller
  absl::MutexLock lock(&mutex_);
  const auto lane = lanes_.find(model);
  if (lane == lanes_.end()) return false;
  const std::optional<Tier> tier = lane->second->queue.TierOf(ticket);
  if (!tier) return false;
  lane->second->queue.Remove(ticket);
  auto callback = lane->second->on_turn.extract(ticket);
  dropped = std::move(callback.mapped());
  if (instruments_ != nullptr) instruments_->of(*tier).waiting->Decrement();
  return true;
}

bool RequestQueue::HasFreePlace(const std::string& model, Tier tier) const {
  absl::MutexLock lock(&mutex_);
  const Lane* lane = FindLane(model);
  return lane != nullptr && lane->queue.size(tier) == 0 && lane->MayGo(tier);
}

absl::Duration RequestQueue::RetryAfter(const std::string& model, const std::string& tenant,
                                        Tier tier) const {
  absl::MutexLock lock(&mutex_);
  const Lane* lane = FindLane(model);
  return FairQueue::RetryAfter(lane == nullptr ? absl::ZeroDuration()
                                               : lane->queue.EstimateWait(tenant, tier));
}

RequestQueue::Status RequestQueue::GetStatus(const std::string& model) const {
  absl::MutexLock lock(&mutex_);
  const Lane* lane = FindLane(model);
  if (lane == nullptr) return {};
  return {.waiting = lane->queue.size(),
          .waiting_bytes = lane->queue.bytes(),
          .held_places = {lane->held[0], lane->held[1]},
          .capacity = lane->capacity};
}

std::optional<int> RequestQueue::Position(const std::string& model, uint64_t ticket) const {
  absl::MutexLock lock(&mutex_);
  const Lane* lane = FindLane(model);
  return lane == nullptr ? std::nullopt : lane->queue.Position(ticket);
}

// ---- The queue's thread ----

std::vector<RequestQueue::Delivery> RequestQueue::Collect(absl::Duration now) {
  std::vector<Delivery> deliveries;
  const auto deliver = [&](Lane& lane, uint64_t ticket, Tier tier, absl::StatusOr<Place> outcome) {
    auto callback = lane.on_turn.extract(ticket);
    deliveries.push_back({std::move(callback.mapped()), std::move(outcome)});
    if (instruments_ != nullptr) instruments_->of(tier).waiting->Decrement();
  };
  for (auto& [model, lane] : lanes_) {
    while (auto expired = lane->queue.PopExpired(closing_ ? absl::InfiniteDuration() : now)) {
      if (instruments_ != nullptr) instruments_->of(expired->tier).expired->Increment();
      deliver(*lane, expired->ticket, expired->tier,
              closing_ ? absl::UnavailableError("the router stops") : expired->status);
    }
    while (auto turn = lane->NextTurn(now)) {
      if (instruments_ != nullptr)
        instruments_->of(turn->tier).wait->Observe(absl::ToDoubleSeconds(turn->wait));
      deliver(*lane, turn->ticket, turn->tier, TakePlace(*lane, turn->tier));
    }
  }
  return deliveries;
}

void RequestQueue::Run() {
  for (;;) {
    std::vector<Delivery> deliveries;
    bool closing = false;
    {
      absl::MutexLock lock(&mutex_);
      absl::Duration expiry = absl::InfiniteDuration();
      for (const auto& [model, lane] : lanes_) expiry = std::min(expiry, lane->queue.NextExpiry());
      const auto has_work = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return changed_ || closing_;
      };
      mutex_.AwaitWithTimeout(absl::Condition(&has_work), expiry - options_.clock->Monotonic());
      changed_ = false;
      closing = closing_;
      deliveries = Collect(options_.clock->Monotonic());
    }
    for (Delivery& delivery : deliveries) delivery.on_turn(std::move(delivery.outcome));
    if (closing) return;
  }
}

}  // namespace ultraspeed::router
