#include "router/fair_queue.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace ultraspeed::router {
namespace {

constexpr int kTenantShare = 4;     // a tenant's part of each bound is one in so many
constexpr int kIntervalWeight = 8;  // of the older turns in the mean interval

// Virtual service of a request. Scaled, so that whole numbers divide by every weight well.
int64_t VirtualCost(const QueuedRequest& request) {
  return request.tokens * kTenantWeightMax / request.weight;
}

}  // namespace

// ---- Places ----

QueueCapacity CapacityOfWorker(int64_t max_running_requests, int64_t other_requests) {
  // Small workers keep fewer places for ultraspeed, and only large ones get one request too many,
  // to bridge the way from here to there when a place becomes free.
  const int64_t reserved = std::min<int64_t>(limits::kUltraspeedBatchMax, max_running_requests / 4);
  const int64_t overcommit = max_running_requests >= 8 ? 1 : 0;
  const int64_t places = std::max<int64_t>(0, max_running_requests + overcommit - other_requests);
  return {.places = places,
          .standard_places = std::max<int64_t>(0, places - reserved),
          .ultraspeed_places = std::min<int64_t>(places, limits::kUltraspeedBatchMax)};
}

QueueCapacity operator+(const QueueCapacity& a, const QueueCapacity& b) {
  return {.places = a.places + b.places,
          .standard_places = a.standard_places + b.standard_places,
          .ultraspeed_places = a.ultraspeed_places + b.ultraspeed_places};
}

// ---- State ----

struct FairQueue::Request {
  uint64_t ticket = 0;
  QueuedRequest spec;
  absl::Duration arrival;
  absl::Duration gives_up_at;
  Tenant* tenant = nullptr;

  // Inside a tenant.
  std::tuple<absl::Duration, int, uint64_t> order() const {
    return {spec.deadline, -spec.priority, ticket};
  }
};

// A tenant of one band.
struct FairQueue::Tenant {
  std::string name;
  int64_t virtual_start = 0;  // of its next request
  uint64_t turn = 0;          // breaks ties: who became first in line earlier
  std::map<std::tuple<absl::Duration, int, uint64_t>, Request*> waiting;

  std::pair<int64_t, uint64_t> order() const { return {virtual_start, turn}; }
};

struct FairQueue::Band {
  int64_t virtual_now = 0;  // start of the request that went last
  uint64_t next_turn = 0;
  int size = 0;
  absl::flat_hash_map<std::string, std::unique_ptr<Tenant>> tenants;
  std::map<std::pair<int64_t, uint64_t>, Tenant*> active;    // with requests that wait
  std::map<std::pair<int64_t, uint64_t>, Tenant*> inactive;  // without, and ahead of the others

  Tenant& Activate(const std::string& name) {
    std::unique_ptr<Tenant>& tenant = tenants[name];
    if (tenant == nullptr) {
      tenant = std::make_unique<Tenant>();
      tenant->name = name;
    }
    if (tenant->waiting.empty()) {
      inactive.erase(tenant->order());
      tenant->virtual_start = std::max(tenant->virtual_start, virtual_now);
      tenant->turn = next_turn++;
      active.emplace(tenant->order(), tenant.get());
    }
    return *tenant;
  }

  // After `tenant` lost a request; `cost` of it if that request went.
  void Move(Tenant& tenant, int64_t cost) {
    active.erase(tenant.order());
    tenant.virtual_start += cost;
    tenant.turn = next_turn++;
    (tenant.waiting.empty() ? inactive : active).emplace(tenant.order(), &tenant);
    Forget();
  }

  // Who is not ahead of the others any more comes back as a newcomer. Nobody is ahead when nobody
  // waits.
  void Forget() {
    while (!inactive.empty() && (active.empty() || inactive.begin()->first.first <= virtual_now)) {
      const std::string name = inactive.begin()->second->name;
      inactive.erase(inactive.begin());
      tenants.erase(name);
    }
    if (tenants.empty()) virtual_now = 0;
  }
};

absl::Status FairQueueOptions::Validate() const {
  if (requests_max < kTenantShare)
    return absl::InvalidArgumentError(
        absl::StrCat("queue requests_max=", requests_max, ": must be at least ", kTenantShare));
  if (bytes_max < kTenantShare)
    return absl::InvalidArgumentError(
        absl::StrCat("queue bytes_max=", bytes_max, ": must be at least ", kTenantShare));
  if (wait_max <= absl::ZeroDuration() || wait_max == absl::InfiniteDuration())
    return absl::InvalidArgumentError("queue wait_max: must be above 0 and finite");
  if (standard_floor_turns < 2)
    return absl::InvalidArgumentError(
        absl::StrCat("queue standard_floor_turns=", standard_floor_turns, ": must be at least 2"));
  return absl::OkStatus();
}

FairQueue::FairQueue(const FairQueueOptions& options) : options_(options) {
  for (auto& band : bands_) band = std::make_unique<Band>();
}

FairQueue::~FairQueue() = default;

int FairQueue::size(Tier tier) const { return bands_[static_cast<int>(tier)]->size; }

// ---- In ----

absl::Status FairQueue::CheckRoom(const QueuedRequest& request, absl::Duration now) const {
  const auto held = holdings_.find(request.tenant);
  const Holding holding = held == holdings_.end() ? Holding() : held->second;
  const int free_requests = options_.requests_max - size();
  const int64_t free_bytes = options_.bytes_max - bytes_;
  // No more than is free: however many tenants flood, the next one still finds room.
  const int tenant_requests_max = std::min(options_.requests_max / kTenantShare, free_requests);
  const int64_t tenant_bytes_max = std::min(options_.bytes_max / kTenantShare, free_bytes);
  std::string reason;
  if (free_requests < 1) {
    reason = absl::StrCat(size(), " requests wait, at most ", options_.requests_max);
  } else if (request.bytes > free_bytes) {
    reason = absl::StrCat(bytes_, " bytes wait, at most ", options_.bytes_max);
  } else if (holding.requests >= tenant_requests_max) {
    reason = absl::StrCat(holding.requests, " requests of this tenant wait, at most ",
                          tenant_requests_max, " of the ", options_.requests_max, " in all");
  } else if (holding.bytes + request.bytes > tenant_bytes_max) {
    reason = absl::StrCat(holding.bytes, " bytes of this tenant wait, at most ", tenant_bytes_max,
                          " of the ", options_.bytes_max, " in all");
  }
  const absl::Duration wait = EstimateWait(request.tenant, request.tier);
  if (!reason.empty()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", reason, "; retry after ",
                     absl::FormatDuration(absl::Trunc(RetryAfter(wait), absl::Seconds(1)))));
  }
  const absl::Duration left = request.deadline - now;
  if (left > wait) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat(
      "the queue is about ", absl::FormatDuration(absl::Trunc(wait, absl::Milliseconds(1))),
      " long, the deadline is in ",
      absl::FormatDuration(absl::Trunc(left, absl::Milliseconds(1)))));
}

absl::StatusOr<uint64_t> FairQueue::Push(const QueuedRequest& request, absl::Duration now) {
  CHECK_THAT(request.tokens, >=, 1);
  CHECK_THAT(request.bytes, >=, 0);
  CHECK_THAT(request.weight, >=, 1);
  CHECK_THAT(request.weight, <=, kTenantWeightMax);
  RETURN_IF_ERROR(CheckRoom(request, now));
  auto owned = std::make_unique<Request>();
  Request& waiting = *owned;
  waiting.ticket = next_ticket_++;
  waiting.spec = request;
  waiting.arrival = now;
  waiting.gives_up_at = std::min(request.deadline, now + options_.wait_max);
  Band& band = *bands_[static_cast<int>(request.tier)];
  waiting.tenant = &band.Activate(request.tenant);
  waiting.tenant->waiting.emplace(waiting.order(), &waiting);
  ++band.size;
  Holding& holding = holdings_[request.tenant];
  ++holding.requests;
  holding.bytes += request.bytes;
  bytes_ += request.bytes;
  expiries_.emplace(waiting.gives_up_at, waiting.ticket);
  requests_.emplace(waiting.ticket, std::move(owned));
  return waiting.ticket;
}

// ---- Out ----

void FairQueue::TakeOut(Request& request, int64_t virtual_cost) {
  Band& band = *bands_[static_cast<int>(request.spec.tier)];
  request.tenant->waiting.erase(request.order());
  --band.size;
  if (request.tenant->waiting.empty() || virtual_cost > 0) band.Move(*request.tenant, virtual_cost);
  const auto holding = holdings_.find(request.spec.tenant);
  --holding->second.requests;
  holding->second.bytes -= request.spec.bytes;
  if (holding->second.requests == 0) holdings_.erase(holding);
  bytes_ -= request.spec.bytes;
  expiries_.erase({request.gives_up_at, request.ticket});
  requests_.erase(request.ticket);
  if (requests_.empty()) last_turn_.reset();
}

std::optional<FairQueue::Turn> FairQueue::Pop(bool standard_may_go, bool ultraspeed_may_go,
                                              absl::Duration now) {
  Band& standard = *bands_[static_cast<int>(Tier::kStandard)];
  Band& ultraspeed = *bands_[static_cast<int>(Tier::kUltraspeed)];
  const bool standard_goes = standard_may_go && standard.size > 0;
  const bool ultraspeed_goes = ultraspeed_may_go && ultraspeed.size > 0;
  if (!standard_goes && !ultraspeed_goes) return std::nullopt;
  const bool floor_reached = turns_without_standard_ + 1 >= options_.standard_floor_turns;
  const Tier tier =
      ultraspeed_goes && !(standard_goes && floor_reached) ? Tier::kUltraspeed : Tier::kStandard;
  if (tier == Tier::kStandard || standard.size == 0) {
    turns_without_standard_ = 0;
  } else {
    ++turns_without_standard_;
  }
  Band& band = *bands_[static_cast<int>(tier)];
  Tenant& tenant = *band.active.begin()->second;
  Request& request = *tenant.waiting.begin()->second;
  const Turn turn = {.ticket = request.ticket, .tier = tier, .wait = now - request.arrival};
  band.virtual_now = tenant.virtual_start;
  if (last_turn_) {
    const absl::Duration interval = now - *last_turn_;
    mean_interval_ = mean_interval_ == absl::ZeroDuration()
                         ? interval
                         : mean_interval_ + (interval - mean_interval_) / kIntervalWeight;
  }
  last_turn_ = now;
  TakeOut(request, VirtualCost(request.spec));
  return turn;
}

bool FairQueue::Remove(uint64_t ticket) {
  const auto found = requests_.find(ticket);
  if (found == requests_.end()) return false;
  TakeOut(*found->second, 0);
  return true;
}

std::optional<Tier> FairQueue::TierOf(uint64_t ticket) const {
  const auto found = requests_.find(ticket);
  if (found == requests_.end()) return std::nullopt;
  return found->second->spec.tier;
}

absl::Duration FairQueue::NextExpiry() const {
  return expiries_.empty() ? absl::InfiniteDuration() : expiries_.begin()->first;
}

std::optional<FairQueue::Expired> FairQueue::PopExpired(absl::Duration now) {
  if (requests_.empty() || NextExpiry() > now) return std::nullopt;
  Request& request = *requests_.at(expiries_.begin()->second);
  const std::string waited = absl::StrCat(
      "waited ", absl::FormatDuration(absl::Trunc(now - request.arrival, absl::Milliseconds(1))),
      " in the queue");
  Expired expired = {
      .ticket = request.ticket,
      .tier = request.spec.tier,
      .status = request.spec.deadline <= now
                    ? absl::DeadlineExceededError(absl::StrCat("deadline passed: ", waited))
                    : absl::ResourceExhaustedError(absl::StrCat(
                          waited, ", at most ", absl::FormatDuration(options_.wait_max)))};
  TakeOut(request, 0);
  return expired;
}

// ---- Looking ahead ----

absl::Duration FairQueue::RetryAfter(absl::Duration wait) {
  return std::clamp(wait, absl::Seconds(1), absl::Seconds(60));
}

int FairQueue::WithOtherBand(Tier tier, int num_ahead) const {
  const int floor = options_.standard_floor_turns - 1;  // ultraspeed turns per standard turn
  return tier == Tier::kUltraspeed
             ? num_ahead + std::min(size(Tier::kStandard), num_ahead / floor)
             : num_ahead + std::min(size(Tier::kUltraspeed), num_ahead * floor);
}

absl::Duration FairQueue::EstimateWait(const std::string& tenant, Tier tier) const {
  if (empty()) return absl::ZeroDuration();
  const Band& band = *bands_[static_cast<int>(tier)];
  // Fair sharing lets each of the others go once per request of this tenant's.
  const auto found = band.tenants.find(tenant);
  const size_t num_own = found == band.tenants.end() ? 0 : found->second->waiting.size();
  const size_t num_ahead =
      std::min<size_t>(static_cast<size_t>(band.size), (num_own + 1) * band.active.size());
  return mean_interval_ * WithOtherBand(tier, static_cast<int>(num_ahead));
}

std::optional<int> FairQueue::Position(uint64_t ticket) const {
  const auto found = requests_.find(ticket);
  if (found == requests_.end()) return std::nullopt;
  const Request& request = *found->second;
  const Band& band = *bands_[static_cast<int>(request.spec.tier)];
  const auto start_of = [](const Tenant& tenant, const Request& target) {
    int64_t start = tenant.virtual_start;
    for (const auto& [order, other] : tenant.waiting) {
      if (other == &target) break;
      start += VirtualCost(other->spec);
    }
    return start;
  };
  const int64_t own_start = start_of(*request.tenant, request);
  int num_ahead = 0;
  for (const auto& [order, tenant] : band.active) {
    int64_t start = tenant->virtual_start;
    for (const auto& [inner, other] : tenant->waiting) {
      const bool is_before =
          tenant == request.tenant
              ? inner < request.order()
              : std::pair(start, tenant->turn) < std::pair(own_start, request.tenant->turn);
      if (!is_before) break;
      ++num_ahead;
      start += VirtualCost(other->spec);
    }
  }
  return WithOtherBand(request.spec.tier, num_ahead);
}

void FairQueue::CheckIntegrity() const {
  size_t num_requests = 0;
  int64_t bytes = 0;
  int num_held = 0;
  for (const auto& band : bands_) {
    int band_size = 0;
    for (const auto& [order, tenant] : band->active) {
      CHECK_THAT(order == tenant->order(), ==, true);
      CHECK_THAT(tenant->waiting.empty(), ==, false);
      CHECK_THAT(tenant->virtual_start, >=, 0);
      for (const auto& [inner, request] : tenant->waiting) {
        CHECK_THAT(inner == request->order(), ==, true);
        CHECK_THAT(request->tenant == tenant, ==, true);
        CHECK_THAT(requests_.contains(request->ticket), ==, true);
        CHECK_THAT(expiries_.count({request->gives_up_at, request->ticket}), ==, 1u);
        bytes += request->spec.bytes;
        ++band_size;
      }
    }
    for (const auto& [order, tenant] : band->inactive) {
      CHECK_THAT(order == tenant->order(), ==, true);
      CHECK_THAT(tenant->waiting.empty(), ==, true);
    }
    CHECK_THAT(band_size, ==, band->size);
    CHECK_THAT(band->active.size() + band->inactive.size(), ==, band->tenants.size());
    num_requests += static_cast<size_t>(band_size);
  }
  for (const auto& [tenant, holding] : holdings_) num_held += holding.requests;
  CHECK_THAT(num_requests, ==, requests_.size());
  CHECK_THAT(num_requests, ==, expiries_.size());
  CHECK_THAT(num_held, ==, size());
  CHECK_THAT(bytes, ==, bytes_);
}

}  // namespace ultraspeed::router
