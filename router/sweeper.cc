#include "router/sweeper.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "router/finish_name.h"
#include "router/settlement.h"

namespace ultraspeed::router {
namespace {

constexpr int kEntriesMax = 10'000;  // open ones that one sweep looks at

RequestOutcome OutcomeOf(const std::string& worker, const v1::TerminalRecord& record) {
  RequestOutcome outcome;
  outcome.worker = worker;
  outcome.finish_reason = FinishName(record.finish_reason());
  const v1::Usage& usage = record.usage();
  const int64_t resumed = record.resumed_tokens();  // the caller had them from another worker
  if (resumed + usage.completion_tokens() == 0) return outcome;
  outcome.sent = {.prompt = usage.prompt_tokens() - resumed,
                  .cached = usage.cached_tokens(),
                  .completion = resumed + usage.completion_tokens()};
  outcome.draft_rounds = usage.draft_rounds();
  if (record.tokens_per_second() > 0) outcome.tokens_per_second = record.tokens_per_second();
  return outcome;
}

}  // namespace

Sweeper::Sweeper(Options options) : options_(std::move(options)) {
  if (options_.interval > absl::ZeroDuration()) thread_ = std::thread([this] { Run(); });
}

Sweeper::~Sweeper() {
  closing_.Notify();
  if (thread_.joinable()) thread_.join();
  (void)options_.store->ForgetRouter(options_.router_id);  // else it is found dead in time
}

void Sweeper::Run() {
  do {
    const auto num_closed = Sweep();
    if (!num_closed.ok() && !absl::IsUnavailable(num_closed.status())) {
      Log(LogLevel::kError, "router.sweep",
          {{"message", std::string(num_closed.status().message())}});
    }
  } while (!closing_.WaitForNotificationWithTimeout(options_.interval));
}

absl::StatusOr<int> Sweeper::Sweep() {
  if (const absl::Status status = WatchRouters(); !status.ok()) {
    routers_.clear();  // who was silent meanwhile could not speak
    return status;
  }
  if (!IsMyTurn()) return 0;
  ASSIGN_OR_RETURN(const std::vector<LedgerEntry> orphans, OrphanedEntries());
  ASSIGN_OR_RETURN(const std::vector<LedgerClosing> closings, Closings(orphans));
  if (!closings.empty()) {
    ASSIGN_OR_RETURN(const std::vector<CloseOutcome> outcomes, options_.store->CloseMany(closings));
    for (size_t i = 0; i < closings.size(); ++i) {
      if (outcomes[i] != CloseOutcome::kClosed) continue;
      Log(LogLevel::kInfo, "router.swept",
          {{"request_id", closings[i].request_id},
           {"finish_reason", closings[i].finish_reason},
           {"prompt_tokens", closings[i].tokens.prompt},
           {"completion_tokens", closings[i].tokens.completion}});
      if (options_.metrics == nullptr) continue;
      options_.metrics
          ->Counter("ultraspeed_router_swept_entries_total",
                    "Ledger entries of dead routers that this one closed",
                    {{"finish_reason", closings[i].finish_reason}})
          .Increment();
    }
  }
  RETURN_IF_ERROR(ForgetTheDead(orphans));
  return static_cast<int>(closings.size());
}

// ---- Who lives ----

absl::Status Sweeper::WatchRouters() {
  RETURN_IF_ERROR(options_.store->Beat(options_.router_id));
  ASSIGN_OR_RETURN(const std::vector<RouterBeats> beats, options_.store->ListBeats());
  const absl::Duration now = options_.clock->Monotonic();
  for (const RouterBeats& one : beats) {
    Watched& watched = routers_[one.router_id];
    if (watched.num_beats == one.num_beats) continue;
    watched = {.num_beats = one.num_beats, .changed = now};
  }
  return absl::OkStatus();
}

bool Sweeper::IsDead(const std::string& router_id, absl::Duration after) const {
  const auto found = routers_.find(router_id);
  return found != routers_.end() && options_.clock->Monotonic() - found->second.changed >= after;
}

bool Sweeper::IsMyTurn() const {
  return std::all_of(routers_.begin(), routers_.end(), [&](const auto& router) {
    return router.first >= options_.router_id || IsDead(router.first, options_.dead_after);
  });
}

// ---- What they left ----

absl::StatusOr<std::vector<LedgerEntry>> Sweeper::OrphanedEntries() {
  ASSIGN_OR_RETURN(std::vector<LedgerEntry> entries,
                   options_.store->ListOpen(options_.clock->Now(), kEntriesMax));
  const absl::Duration now = options_.clock->Monotonic();
  std::vector<LedgerEntry> orphans;
  for (LedgerEntry& entry : entries) {
    const std::string& router_id = entry.opening.router_id;
    // One that the store has forgotten gets as long to speak as any other.
    routers_.try_emplace(router_id, Watched{.num_beats = -1, .changed = now});
    if (router_id == options_.router_id || !IsDead(router_id, options_.dead_after)) continue;
    orphans.push_back(std::move(entry));
  }
  return orphans;
}

absl::StatusOr<std::vector<LedgerClosing>> Sweeper::Closings(
    const std::vector<LedgerEntry>& entries) {
  std::vector<LedgerClosing> closings;
  if (entries.empty()) return closings;
  ASSIGN_OR_RETURN(std::vector<Price> prices, options_.store->ListPrices());
  const PriceTable table(std::move(prices));
  std::vector<std::string> ids;
  for (const LedgerEntry& entry : entries) ids.push_back(entry.opening.request_id);
  std::set<std::string> live;
  absl::flat_hash_map<std::string, RequestOutcome> outcomes;
  for (const WorkerPool::WorkerRecords& known : options_.pool->ListRecords(ids)) {
    const v1::ListRecordsResponse& response = known.response;
    live.insert(response.live_request_ids().begin(), response.live_request_ids().end());
    for (const v1::TerminalRecord& record : response.records()) {
      // Of a request that was placed twice, the placement that got further is the one that was
      // sent.
      RequestOutcome& best = outcomes[record.request_id()];
      RequestOutcome outcome = OutcomeOf(known.address, record);
      if (best.worker.empty() || best.sent.completion < outcome.sent.completion)
        best = std::move(outcome);
    }
  }
  for (const LedgerEntry& entry : entries) {
    if (live.count(entry.opening.request_id) > 0) continue;
    const auto known = outcomes.find(entry.opening.request_id);
    RequestOutcome outcome;
    outcome.finish_reason = kFinishLost;
    if (known != outcomes.end()) {
      outcome = known->second;
    } else if (!IsDead(entry.opening.router_id, options_.dead_after + options_.lost_after)) {
      continue;
    }
    ASSIGN_OR_RETURN(LedgerClosing closing, Closing(entry, table, outcome));
    closings.push_back(std::move(closing));
  }
  return closings;
}

absl::StatusOr<LedgerClosing> Sweeper::Closing(const LedgerEntry& entry, const PriceTable& prices,
                                               const RequestOutcome& outcome) {
  const LedgerOpening& opening = entry.opening;
  std::array<Price, kNumTiers> by_tier;
  BilledTier billed{.tier = opening.tier, .reason = kBilledAsServed};
  if (opening.tier == Tier::kUltraspeed) {
    ASSIGN_OR_RETURN(by_tier[static_cast<size_t>(Tier::kStandard)],
                     prices.Find(opening.model, Tier::kStandard, opening.opened));
    const auto tenant = options_.store->GetTenant(opening.tenant_id);
    if (absl::IsUnavailable(tenant.status())) return tenant.status();
    const Entitlement* const entitlement =
        tenant.ok() ? tenant->terms.Find(opening.model, opening.tier) : nullptr;
    billed = JudgeSpeed(opening.tier,
                        entitlement == nullptr ? 0 : entitlement->promised_tokens_per_second,
                        outcome.tokens_per_second);
  }
  ASSIGN_OR_RETURN(by_tier[static_cast<size_t>(opening.tier)],
                   prices.FindVersion(opening.price_version));
  return MakeClosing(opening.request_id, outcome, billed, by_tier, options_.clock->Now());
}

absl::Status Sweeper::ForgetTheDead(const std::vector<LedgerEntry>& orphans) {
  std::set<std::string> still_owing;
  for (const LedgerEntry& entry : orphans) still_owing.insert(entry.opening.router_id);
  for (auto router = routers_.begin(); router != routers_.end();) {
    const bool forget =
        IsDead(router->first, options_.dead_after) && still_owing.count(router->first) == 0;
    if (!forget) {
      ++router;
      continue;
    }
    RETURN_IF_ERROR(options_.store->ForgetRouter(router->first));
    router = routers_.erase(router);
  }
  return absl::OkStatus();
}

}  // namespace ultraspeed::router
