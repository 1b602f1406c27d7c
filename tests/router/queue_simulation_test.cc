// Fairness of the queue, shown by simulation on a fake clock: 50 tenants on a busy fleet, with and
// without a flood from one of them. Deterministic. The same traffic through plain FIFO must fail
// the same bounds, or they would prove nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <queue>
#include <random>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "router/fair_queue.h"

namespace ultraspeed::router {
namespace {

constexpr uint64_t kSeed = 20261123;
constexpr int kTenants = 50;
constexpr int kPlaces = 32;
constexpr absl::Duration kTraffic = absl::Seconds(600);
constexpr double kTokensPerSecond = 500;  // of one place
constexpr double kMeanTokens = 550;       // uniform in 100..1000
constexpr double kNormalLoad = 0.8;       // of all places, by all tenants together
constexpr double kFloodFactor = 50;
const absl::Duration kMeanService = absl::Seconds(kMeanTokens / kTokensPerSecond);

struct Arrival {
  absl::Duration when;
  std::string tenant;
  int64_t tokens = 0;
};

// Poisson arrivals; the same for every tenant but the first, which asks `factor` times as much.
std::vector<Arrival> Traffic(double factor) {
  std::vector<Arrival> arrivals;
  for (int tenant = 0; tenant < kTenants; ++tenant) {
    std::mt19937_64 random(kSeed + static_cast<uint64_t>(tenant));
    const double rate = kNormalLoad * kPlaces / absl::ToDoubleSeconds(kMeanService) / kTenants *
                        (tenant == 0 ? factor : 1);
    std::exponential_distribution<double> gap(rate);
    std::uniform_int_distribution<int64_t> tokens(100, 1000);
    for (absl::Duration now = absl::Seconds(gap(random)); now < kTraffic;
         now += absl::Seconds(gap(random))) {
      arrivals.push_back({now, absl::StrCat("tenant-", tenant), tokens(random)});
    }
  }
  std::sort(arrivals.begin(), arrivals.end(), [](const Arrival& a, const Arrival& b) {
    return std::tie(a.when, a.tenant) < std::tie(b.when, b.tenant);
  });
  return arrivals;
}

// kFloodLast: the flooding tenant weighs a thousandth of the others, so it goes only when nobody
// else waits: what no discipline can beat that does not interrupt running requests.
enum class Discipline { kFair, kFifo, kFloodLast };

struct Outcome {
  std::map<std::string, std::vector<double>> wait_seconds;  // by tenant, of those that got a turn
  std::map<std::string, int> refused;

  // Over all tenants but the flooding one.
  double OthersQuantile(double quantile) const {
    std::vector<double> all;
    for (const auto& [tenant, waits] : wait_seconds) {
      if (tenant != "tenant-0") all.insert(all.end(), waits.begin(), waits.end());
    }
    const auto at = all.begin() + static_cast<ptrdiff_t>(quantile * double(all.size() - 1));
    std::nth_element(all.begin(), at, all.end());
    return *at;
  }
  int OthersRefused() const {
    int count = 0;
    for (const auto& [tenant, number] : refused) count += tenant == "tenant-0" ? 0 : number;
    return count;
  }
};

Outcome Simulate(const std::vector<Arrival>& arrivals, Discipline discipline) {
  FakeClock clock;
  // FIFO: everybody is one tenant, in order of arrival. Its bounds are lifted so that what is
  // compared is the order.
  const bool fifo = discipline == Discipline::kFifo;
  FairQueue queue({.requests_max = fifo ? 1 << 20 : 1024, .wait_max = absl::Hours(10)});
  Outcome outcome;
  std::map<uint64_t, const Arrival*> waiting;
  using End = std::pair<absl::Duration, uint64_t>;
  std::priority_queue<End, std::vector<End>, std::greater<>> running;
  size_t next = 0;
  while (next < arrivals.size() || !running.empty()) {
    const bool arrives =
        next < arrivals.size() && (running.empty() || arrivals[next].when < running.top().first);
    const absl::Duration when = arrives ? arrivals[next].when : running.top().first;
    clock.Advance(when - clock.Monotonic());
    const absl::Duration now = clock.Monotonic();
    if (arrives) {
      const Arrival& arrival = arrivals[next++];
      const bool is_flood = arrival.tenant == "tenant-0";
      const auto ticket = queue.Push(
          {.tenant = fifo ? "everybody" : arrival.tenant,
           .tokens = arrival.tokens,
           .weight = discipline == Discipline::kFloodLast && !is_flood ? kTenantWeightMax : 1},
          now);
      if (ticket.ok()) {
        waiting[*ticket] = &arrival;
      } else {
        ++outcome.refused[arrival.tenant];
      }
    } else {
      running.pop();
    }
    while (running.size() < kPlaces) {
      const auto turn = queue.Pop(true, true, now);
      if (!turn) break;
      const Arrival& arrival = *waiting.at(turn->ticket);
      outcome.wait_seconds[arrival.tenant].push_back(absl::ToDoubleSeconds(turn->wait));
      running.emplace(now + absl::Seconds(double(arrival.tokens) / kTokensPerSecond), turn->ticket);
      waiting.erase(turn->ticket);
    }
  }
  return outcome;
}

// A flood keeps every place busy, and running requests are not interrupted: whoever comes waits at
// least for the next place to become free. What is promised beyond the wait of quiet times is one
// request's own time; the second test shows that hardly any of it is the queue's doing.
const double kToleranceSeconds = absl::ToDoubleSeconds(kMeanService);

TEST(QueueSimulation, AFloodLeavesTheOthersWaitUnchanged) {
  const Outcome quiet = Simulate(Traffic(1), Discipline::kFair);
  const Outcome flooded = Simulate(Traffic(kFloodFactor), Discipline::kFair);
  const double before = quiet.OthersQuantile(.99);
  const double after = flooded.OthersQuantile(.99);
  RecordProperty("p99_quiet_s", absl::StrCat(before));
  RecordProperty("p99_flooded_s", absl::StrCat(after));
  EXPECT_LE(after, before + kToleranceSeconds) << "quiet p99 " << before << " s";
  EXPECT_EQ(flooded.OthersRefused(), 0);
  EXPECT_GT(flooded.refused.at("tenant-0"), 1000) << "the flood must be one";
}

TEST(QueueSimulation, AFloodCostsTheOthersHardlyMoreThanItsRunningRequestsMust) {
  const std::vector<Arrival> traffic = Traffic(kFloodFactor);
  const double fair = Simulate(traffic, Discipline::kFair).OthersQuantile(.99);
  const double least = Simulate(traffic, Discipline::kFloodLast).OthersQuantile(.99);
  RecordProperty("p99_fair_s", absl::StrCat(fair));
  RecordProperty("p99_least_s", absl::StrCat(least));
  EXPECT_LE(fair, 1.5 * least);
}

TEST(QueueSimulation, PlainFifoFailsTheSameBound) {
  const Outcome quiet = Simulate(Traffic(1), Discipline::kFifo);
  const Outcome flooded = Simulate(Traffic(kFloodFactor), Discipline::kFifo);
  const double before = quiet.OthersQuantile(.99);
  const double after = flooded.OthersQuantile(.99);
  RecordProperty("p99_quiet_s", absl::StrCat(before));
  RecordProperty("p99_flooded_s", absl::StrCat(after));
  EXPECT_GT(after, before + 100 * kToleranceSeconds);
}

// Everybody floods: every tenant gets the same number of tokens (Jain's index).
TEST(QueueSimulation, UnderGeneralOverloadSharesAreEqual) {
  const std::vector<Arrival> traffic = Traffic(1);
  std::vector<Arrival> crowded;  // everything arrives in the first tenth of the time
  for (Arrival arrival : traffic) {
    arrival.when /= 10;
    crowded.push_back(std::move(arrival));
  }
  const Outcome outcome = Simulate(crowded, Discipline::kFair);
  double sum = 0;
  double squares = 0;
  for (const auto& [tenant, waits] : outcome.wait_seconds) {
    const auto turns = static_cast<double>(waits.size());
    sum += turns;
    squares += turns * turns;
  }
  ASSERT_EQ(outcome.wait_seconds.size(), static_cast<size_t>(kTenants));
  EXPECT_GT(sum * sum / (kTenants * squares), 0.98);
}

// Ultraspeed requests of many tenants beside a standard flood wait for less than one standard place
// to become free, and standard gets its floor of the turns beside an ultraspeed flood.
TEST(QueueSimulation, TiersKeepTheirSharesUnderAFloodOfTheOther) {
  FairQueue queue({});
  absl::Duration now = absl::Seconds(1);
  int turns[kNumTiers] = {0, 0};
  for (int i = 0; i < 4000; ++i, now += absl::Milliseconds(10)) {
    while (queue.Push({.tenant = absl::StrCat("s", i % 7), .tier = Tier::kStandard}, now).ok() &&
           queue.size(Tier::kStandard) < 50) {
    }
    while (queue.Push({.tenant = absl::StrCat("u", i % 7), .tier = Tier::kUltraspeed}, now).ok() &&
           queue.size(Tier::kUltraspeed) < 50) {
    }
    ++turns[static_cast<int>(queue.Pop(true, true, now)->tier)];
  }
  EXPECT_EQ(turns[static_cast<int>(Tier::kStandard)], 500);
  EXPECT_EQ(turns[static_cast<int>(Tier::kUltraspeed)], 3500);
}

}  // namespace
}  // namespace ultraspeed::router
