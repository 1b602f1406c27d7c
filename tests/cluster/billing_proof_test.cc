// Not one token lost or billed twice: two routers, one Redis, one PostgreSQL, four workers, 2,000
// requests of 50 tenants over both tiers with cancellations, deadlines and slow readers; then the
// ledger is compared with the workers' own records, request by request. Once in peace, once with
// kill -9 of a router in the middle, once with two workers that die.
#include <gtest/gtest.h>

#include <atomic>
#include <boost/json.hpp>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "router/ledger.h"
#include "tests/cluster/billing_cluster.h"
#include "tests/cluster/eventually.h"

namespace ultraspeed::testing {
namespace {

using router::LedgerEntry;
using router::Tenant;
using router::Tier;

constexpr int kNumTenants = 50;
constexpr int kNumRequests = 2000;
constexpr int kNumClients = 48;

enum class Death { kNone, kRouter, kWorker };

enum class Behaviour { kPatient, kSlow, kCancels, kCancelsWhenQuiet, kNeverReads, kDeadline };

struct Seen {
  int tenant_idx = 0;
  Behaviour behaviour = Behaviour::kPatient;
  int max_tokens = 0;
  Answer answer;
};

class BillingProof : public BillingCluster {
 protected:
  void Run(Death death) {
    const uint32_t seed = std::random_device()();
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    std::cout << "seed " << seed << "\n";
    AddTenants();
    AddWorkers(4, absl::Milliseconds(3));
    StartRouter();
    StartRouter();
    const absl::Time start = absl::Now();
    const std::vector<Seen> seen = RunClients(seed, death);
    std::cout << kNumRequests << " requests in " << absl::Now() - start << "\n";
    ASSERT_TRUE(AwaitIdleWorkers());
    ASSERT_TRUE(AwaitNothingOpen(absl::Seconds(20)));
    std::cout << "settled after " << absl::Now() - start << "\n";
    CompareWithWorkers();
    CompareWithClients(seen);
    CompareWithSpend();
    EXPECT_TRUE(Eventually([&] { return LeasesInRedis() == 0; }, absl::Seconds(5)));
  }

  // Of every ten: one may run few streams, one was promised too much, one has a budget.
  void AddTenants() {
    for (int i = 0; i < kNumTenants; ++i) {
      Tenant tenant = NewTenant(absl::StrCat("tenant-", i));
      for (router::TierLimits& limits : tenant.terms.limits) {
        limits = {.requests_per_minute = 100'000,
                  .tokens_per_minute = 100'000'000,
                  .concurrent_streams = i % 10 == 1 ? 1 : 50};
      }
      tenant.terms.entitlements = {
          {"*", Tier::kStandard, 0},
          {"*", Tier::kUltraspeed,
           WasPromisedTooMuch(i) ? router::kPromisedTokensPerSecondMax : 1}};
      if (i % 10 == 3)
        tenant.terms.monthly_budget_nanodollars = 1000 * router::kNanodollarsPerDollar;
      keys_.push_back(AddTenant(tenant));
    }
  }
  static bool WasPromisedTooMuch(int tenant_idx) { return tenant_idx % 10 == 2; }

  std::vector<Seen> RunClients(uint32_t seed, Death death) {
    std::vector<Seen> seen(kNumRequests);
    std::atomic<int> next{0};
    std::atomic<bool> killed{false};
    std::vector<std::thread> clients;
    for (int c = 0; c < kNumClients; ++c) {
      clients.emplace_back([&] {
        for (int i; (i = next.fetch_add(1)) < kNumRequests;) {
          std::mt19937 random(seed + static_cast<uint32_t>(i));
          const size_t router_idx = killed ? 1 : random() % 2;
          seen[static_cast<size_t>(i)] = RunOne(i, router_idx, random);
          if (death == Death::kWorker && i == kNumRequests / 3) KillBusyWorker(0);
          if (death == Death::kWorker && i == kNumRequests * 2 / 3) KillBusyWorker(1);
          if (death == Death::kRouter && i == kNumRequests / 2) {
            KillRouter(0);
            killed = true;
          }
        }
      });
    }
    for (std::thread& client : clients) client.join();
    return seen;
  }

  void KillBusyWorker(size_t worker_idx) {
    FakeWorker& worker = *workers_[worker_idx];
    EXPECT_TRUE(Eventually([&] { return worker.num_running() >= 5; }, absl::Seconds(5)));
    worker.Kill();
  }

  Seen RunOne(int request_idx, size_t router_idx, std::mt19937& random) {
    const auto pick = [&random](int min, int max) {
      return min + static_cast<int>(random() % static_cast<uint32_t>(max - min + 1));
    };
    Seen seen;
    seen.tenant_idx = request_idx % kNumTenants;
    seen.max_tokens = 2 * kChunkTokens * pick(1, 10);
    const v1::ServiceTier tiers[] = {v1::SERVICE_TIER_AUTO, v1::SERVICE_TIER_STANDARD,
                                     v1::SERVICE_TIER_ULTRASPEED};
    v1::GenerateRequest request = Request(seen.max_tokens, tiers[pick(0, 2)]);
    if (pick(0, 9) == 0) request.set_model("fake-ultraspeed");
    ClientPlan plan;
    const int dice = pick(0, 99);
    if (dice < 10) {
      seen.behaviour = Behaviour::kSlow;
      plan.read_delay = absl::Milliseconds(pick(5, 20));
    } else if (dice < 25) {
      seen.behaviour = Behaviour::kCancels;
      plan.cancel_after_chunks = pick(1, 6);
    } else if (dice < 35) {
      seen.behaviour = Behaviour::kCancelsWhenQuiet;
      plan.cancel_when_quiet = true;
      request.mutable_options()->mutable_sampling()->set_top_k(kQuietTopK);
    } else if (dice < 40) {
      seen.behaviour = Behaviour::kNeverReads;
      plan.cancel_after_chunks = 0;
    } else if (dice < 50) {
      seen.behaviour = Behaviour::kDeadline;
      plan.deadline = absl::Milliseconds(pick(1, 60));
    }
    seen.answer = Call(router_idx, keys_[static_cast<size_t>(seen.tenant_idx)], request, plan);
    return seen;
  }

  // Every entry against the record of the worker that served it, and the other way round.
  void CompareWithWorkers() {
    entries_ = ClosedEntries();
    const auto records = WorkerRecords();
    const auto prices = store_->ListPrices();
    ASSERT_TRUE(prices.ok());
    const router::PriceTable table(*prices);
    int64_t billed = 0, generated_whole = 0, billed_cut = 0, generated_cut = 0;
    int num_whole = 0, num_cut = 0, num_promises = 0;
    for (const auto& [id, entry] : entries_) {
      SCOPED_TRACE(id);
      const router::LedgerClosing& closing = *entry.closing;
      const auto record = records.find(id);
      const v1::Usage generated = record == records.end() ? v1::Usage() : record->second.usage();
      billed += closing.tokens.completion;
      if (closing.finish_reason == "length") {
        ++num_whole;
        generated_whole += generated.completion_tokens();
        EXPECT_EQ(closing.tokens.completion, generated.completion_tokens());
        EXPECT_EQ(closing.tokens.prompt, generated.prompt_tokens());
        if (record->second.resumed_tokens() > 0) {  // its record knows the last worker's part only
          ++num_moved_;
        } else {
          EXPECT_EQ(closing.tokens.cached, generated.cached_tokens());
          EXPECT_EQ(closing.draft_rounds, generated.draft_rounds());
        }
      } else {
        ++num_cut;
        billed_cut += closing.tokens.completion;
        generated_cut += generated.completion_tokens();
        EXPECT_LE(closing.tokens.completion, generated.completion_tokens());
        const bool is_free = closing.tokens.completion == 0;
        EXPECT_EQ(closing.tokens.prompt, is_free ? 0 : generated.prompt_tokens());
      }
      const auto price = table.FindVersion(closing.price_version);
      ASSERT_TRUE(price.ok());
      EXPECT_EQ(price->tier, closing.billed_tier);
      EXPECT_EQ(closing.cost_nanodollars, PriceOf(closing.tokens, price->per_million));
      const bool broke_promise = closing.billed_reason == router::kBilledForSpeedPromise;
      num_promises += broke_promise;
      EXPECT_EQ(closing.billed_tier, broke_promise ? Tier::kStandard : entry.opening.tier);
    }
    for (const auto& [id, record] : records) EXPECT_EQ(entries_.count(id), 1u) << id;
    EXPECT_EQ(billed, generated_whole + billed_cut);
    EXPECT_GT(num_whole, kNumRequests / 3);
    EXPECT_GT(num_cut, kNumRequests / 10);
    EXPECT_GT(num_promises, 0);
    std::cout << entries_.size() << " entries, " << num_whole << " whole with " << generated_whole
              << " tokens, " << num_cut << " cut short with " << billed_cut << " tokens sent of "
              << generated_cut << " generated, " << num_promises << " broken promises\n";
  }

  void CompareWithClients(const std::vector<Seen>& all) {
    std::map<std::string, int> num_answers;
    int num_exact = 0, num_refused = 0;
    for (const Seen& seen : all) {
      const Answer& answer = seen.answer;
      if (answer.request_id.empty()) {  // nothing came, not even the first metadata
        EXPECT_EQ(answer.num_tokens, 0);
        continue;
      }
      SCOPED_TRACE(absl::StrCat(answer.request_id, " ", answer.status.error_message()));
      EXPECT_EQ(++num_answers[answer.request_id], 1);
      const auto found = entries_.find(answer.request_id);
      if (answer.status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) {
        ++num_refused;
        EXPECT_TRUE(found == entries_.end() || found->second.closing->cost_nanodollars == 0);
        continue;
      }
      if (answer.num_tokens == 0) continue;
      ASSERT_NE(found, entries_.end());
      const LedgerEntry& entry = found->second;
      const int64_t billed = entry.closing->tokens.completion;
      EXPECT_EQ(entry.opening.tenant_id, absl::StrCat("tenant-", seen.tenant_idx));
      EXPECT_GE(billed, answer.num_tokens);
      if (answer.status.ok()) {
        EXPECT_EQ(billed, answer.num_tokens);
        EXPECT_EQ(billed, answer.last().usage().completion_tokens());
        EXPECT_EQ(entry.closing->tokens.prompt, answer.last().usage().prompt_tokens());
        EXPECT_EQ(entry.closing->billed_tier == Tier::kUltraspeed,
                  answer.last().billed_tier() == v1::SERVICE_TIER_ULTRASPEED);
        EXPECT_EQ(entry.closing->billed_reason, answer.last().billed_reason());
        const bool is_measured = answer.chunks.size() > 2;
        if (is_measured && WasPromisedTooMuch(seen.tenant_idx) &&
            entry.opening.tier == Tier::kUltraspeed) {
          EXPECT_EQ(entry.closing->billed_reason, router::kBilledForSpeedPromise);
        }
      }
      const bool saw_all_that_was_sent = seen.behaviour == Behaviour::kCancelsWhenQuiet &&
                                         answer.num_tokens == seen.max_tokens / 2;
      if (saw_all_that_was_sent) {
        ++num_exact;
        EXPECT_EQ(billed, answer.num_tokens);
      }
    }
    EXPECT_GT(num_exact, kNumRequests / 20);
    std::cout << num_exact << " cancelled when all that was sent was read, " << num_refused
              << " refused\n";
  }

  void CompareWithSpend() {
    std::map<std::string, int64_t> costs;
    const int month = router::MonthOf(absl::Now());
    for (const auto& [id, entry] : entries_)
      costs[entry.opening.tenant_id] += entry.closing->cost_nanodollars;
    for (const auto& [tenant, cost] : costs) {
      const auto spend = store_->GetSpend(tenant, month);
      ASSERT_TRUE(spend.ok()) << spend.status();
      EXPECT_EQ(spend->reserved_nanodollars, 0) << tenant;
      EXPECT_EQ(spend->spent_nanodollars, cost) << tenant;
    }
  }

  std::vector<std::string> keys_;
  std::map<std::string, LedgerEntry> entries_;
  int num_moved_ = 0;  // streams that went on at another worker, to their end
};

TEST_F(BillingProof, EveryTokenIsBilledOnce) {
  Run(Death::kNone);
  EXPECT_EQ(num_moved_, 0);
}

TEST_F(BillingProof, EveryTokenIsBilledOnceAlthoughWorkersDie) {
  Run(Death::kWorker);
  EXPECT_GT(num_moved_, 0);
  std::cout << num_moved_ << " streams of the dead workers went on to their end\n";
}

TEST_F(BillingProof, EveryTokenIsBilledOnceAlthoughARouterIsKilled) {
  Run(Death::kRouter);
  // What the dead router left open is billed exactly as the workers' records say.
  const auto records = WorkerRecords();
  int num_swept = 0;
  for (const absl::string_view line : absl::StrSplit(routers_[1]->process().Log(), '\n')) {
    if (!absl::StrContains(line, "router.swept")) continue;
    ++num_swept;
    const boost::json::value event = boost::json::parse(std::string(line));
    const std::string id(event.at("request_id").as_string());
    const auto record = records.find(id);
    const int64_t generated =
        record == records.end() ? 0 : record->second.usage().completion_tokens();
    ASSERT_EQ(entries_.count(id), 1u);
    EXPECT_EQ(entries_[id].closing->tokens.completion, generated) << id;
  }
  EXPECT_GT(num_swept, 0);
  std::cout << num_swept << " entries of the killed router were swept\n";
}

}  // namespace
}  // namespace ultraspeed::testing
