#include "router/ledger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "router/ledger_export.h"
#include "router/sql_database.h"
#include "tests/router/store_fixture.h"

namespace ultraspeed::router {
namespace {

using testing::Backend;
using testing::ClosingOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::OpeningOf;
using testing::TestTime;

constexpr int kMonth = 202701;  // of TestTime()

class LedgerTest : public testing::StoreTest {
 protected:
  Spend SpendOf(const std::string& tenant_id, int month = kMonth) {
    const auto spend = store_->GetSpend(tenant_id, month);
    EXPECT_TRUE(spend.ok()) << spend.status();
    return spend.value_or(Spend());
  }
  void OpenAndClose(LedgerOpening opening, int64_t cost_nanodollars) {
    ASSERT_TRUE(store_->OpenEntry(opening, std::nullopt).ok());
    ASSERT_EQ(*store_->CloseEntry(ClosingOf(opening.request_id, cost_nanodollars)),
              CloseOutcome::kClosed);
  }
};

TEST(MonthOf, IsTheCalendarMonthInUtc) {
  EXPECT_EQ(MonthOf(TestTime()), kMonth);
  EXPECT_EQ(MonthOf(absl::FromUnixSeconds(0)), 197001);
  EXPECT_EQ(MonthOf(absl::FromUnixSeconds(0) - absl::Nanoseconds(1)), 196912);
}

TEST_P(LedgerTest, AnEntryComesBackAsItWasOpenedAndClosed) {
  const LedgerOpening opening = OpeningOf("r1");
  ASSERT_TRUE(store_->OpenEntry(opening, std::nullopt).ok());
  const auto open = store_->GetEntry("r1");
  ASSERT_TRUE(open.ok()) << open.status();
  EXPECT_EQ(open->opening.tenant_id, "acme");
  EXPECT_EQ(open->opening.key_id, "abcdefgh");
  EXPECT_EQ(open->opening.model, "tiny-mimo");
  EXPECT_EQ(open->opening.tier, Tier::kUltraspeed);
  EXPECT_EQ(open->opening.price_version, 2);
  EXPECT_EQ(open->opening.reserved_tokens, 300);
  EXPECT_EQ(open->opening.reserved_nanodollars, 100);
  EXPECT_EQ(open->opening.router_id, "router-1");
  EXPECT_EQ(open->opening.opened, TestTime());
  EXPECT_FALSE(open->closing.has_value());

  EXPECT_EQ(*store_->CloseEntry(ClosingOf("r1", 42)), CloseOutcome::kClosed);
  const LedgerClosing closing = *store_->GetEntry("r1")->closing;
  EXPECT_EQ(closing.worker, "10.0.0.2:50052");
  EXPECT_EQ(closing.tokens.prompt, 100);
  EXPECT_EQ(closing.tokens.cached, 40);
  EXPECT_EQ(closing.tokens.completion, 20);
  EXPECT_EQ(closing.reasoning_tokens, 5);
  EXPECT_EQ(closing.draft_rounds, 7);
  EXPECT_EQ(closing.decode_us, 12'345);
  EXPECT_EQ(closing.finish_reason, "stop");
  EXPECT_EQ(closing.billed_tier, Tier::kStandard);
  EXPECT_EQ(closing.billed_reason, kBilledForSpeedPromise);
  EXPECT_EQ(closing.price_version, 1);
  EXPECT_EQ(closing.cost_nanodollars, 42);
  EXPECT_EQ(closing.closed, TestTime() + absl::Seconds(3));
}

TEST_P(LedgerTest, ASecondCloseChangesNothingWhateverItsNumbers) {
  ASSERT_TRUE(store_->OpenEntry(OpeningOf("r1"), std::nullopt).ok());
  EXPECT_EQ(*store_->CloseEntry(ClosingOf("r1", 42)), CloseOutcome::kClosed);
  EXPECT_EQ(*store_->CloseEntry(ClosingOf("r1", 42)), CloseOutcome::kAlreadyClosed);
  EXPECT_EQ(*store_->CloseEntry(ClosingOf("r1", 99)), CloseOutcome::kAlreadyClosed);
  EXPECT_EQ(store_->GetEntry("r1")->closing->cost_nanodollars, 42);
  EXPECT_EQ(SpendOf("acme").spent_nanodollars, 42);
  EXPECT_EQ(SpendOf("acme").reserved_nanodollars, 0);
}

TEST_P(LedgerTest, WhatWasNeverOpenedIsNotClosed) {
  EXPECT_EQ(*store_->CloseEntry(ClosingOf("none")), CloseOutcome::kNotOpened);
  EXPECT_EQ(store_->GetEntry("none").status().code(), absl::StatusCode::kNotFound);
}

TEST_P(LedgerTest, ARequestIsOpenedOnce) {
  ASSERT_TRUE(store_->OpenEntry(OpeningOf("r1"), std::nullopt).ok());
  EXPECT_EQ(store_->OpenEntry(OpeningOf("r1"), std::nullopt).code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(SpendOf("acme").reserved_nanodollars, 100);
  EXPECT_EQ(*store_->CloseEntry(ClosingOf("r1")), CloseOutcome::kClosed);
  EXPECT_EQ(store_->OpenEntry(OpeningOf("r1"), std::nullopt).code(),
            absl::StatusCode::kAlreadyExists);
}

TEST_P(LedgerTest, ManyCloseInOneCallEachWithItsOutcome) {
  for (const char* id : {"r1", "r2", "r3"}) {
    ASSERT_TRUE(store_->OpenEntry(OpeningOf(id), std::nullopt).ok());
  }
  ASSERT_TRUE(store_->CloseEntry(ClosingOf("r2", 1)).ok());
  const std::vector<LedgerClosing> batch = {ClosingOf("r3", 5), ClosingOf("r2", 9),
                                            ClosingOf("none", 9), ClosingOf("r1", 3),
                                            ClosingOf("r3", 9)};
  const auto outcomes = store_->CloseMany(batch);
  ASSERT_TRUE(outcomes.ok()) << outcomes.status();
  // r3 is in the batch twice: one of the two closes it.
  EXPECT_EQ((*outcomes)[1], CloseOutcome::kAlreadyClosed);
  EXPECT_EQ((*outcomes)[2], CloseOutcome::kNotOpened);
  EXPECT_EQ((*outcomes)[3], CloseOutcome::kClosed);
  EXPECT_EQ(std::count(outcomes->begin(), outcomes->end(), CloseOutcome::kClosed), 2);
  const int64_t cost_of_r3 = store_->GetEntry("r3")->closing->cost_nanodollars;
  EXPECT_EQ(SpendOf("acme").spent_nanodollars, 1 + 3 + cost_of_r3);
  EXPECT_EQ(SpendOf("acme").reserved_nanodollars, 0);
}

// Several closers race for every entry, alone and in batches, with different numbers: each entry is
// closed once, and the month's spend is the sum of the numbers that won.
TEST_P(LedgerTest, ConcurrentClosersCloseEachEntryExactlyOnce) {
  constexpr int kNumEntries = 60;
  constexpr int kNumClosers = 6;
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  for (int i = 0; i < kNumEntries; ++i) {
    ASSERT_TRUE(
        store_->OpenEntry(OpeningOf(absl::StrCat("r", i), absl::StrCat("t", i % 3)), std::nullopt)
            .ok());
  }
  std::atomic<int> num_closed{0};
  std::atomic<int64_t> won_cost{0};
  std::vector<std::thread> closers;
  for (int c = 0; c < kNumClosers; ++c) {
    closers.emplace_back([&, c] {
      std::mt19937 random(seed + static_cast<unsigned>(c));
      std::vector<LedgerClosing> closings;
      for (int i = 0; i < kNumEntries; ++i) {
        closings.push_back(ClosingOf(absl::StrCat("r", i), 1 + static_cast<int>(random() % 1000)));
      }
      std::shuffle(closings.begin(), closings.end(), random);
      for (size_t begin = 0; begin < closings.size();) {
        const size_t size = std::min<size_t>(1 + random() % 7, closings.size() - begin);
        const auto batch = absl::MakeConstSpan(closings).subspan(begin, size);
        const auto outcomes = store_->CloseMany(batch);
        ASSERT_TRUE(outcomes.ok()) << outcomes.status();
        for (size_t i = 0; i < size; ++i) {
          if ((*outcomes)[i] != CloseOutcome::kClosed) continue;
          ++num_closed;
          won_cost += batch[i].cost_nanodollars;
        }
        begin += size;
      }
    });
  }
  for (std::thread& closer : closers) closer.join();
  EXPECT_EQ(num_closed, kNumEntries);
  int64_t spent = 0;
  for (const char* tenant_id : {"t0", "t1", "t2"}) {
    spent += SpendOf(tenant_id).spent_nanodollars;
    EXPECT_EQ(SpendOf(tenant_id).reserved_nanodollars, 0);
  }
  EXPECT_EQ(spent, won_cost);
  EXPECT_TRUE(store_->ListOpen(absl::InfiniteFuture(), 10)->empty());
}

TEST_P(LedgerTest, TheDatabaseItselfRefusesToChangeOrForget) {
  OpenAndClose(OpeningOf("r1"), 42);
  auto database = GetParam() == Backend::kSqlite ? OpenSqlite(url_.substr(7))  // after "sqlite:"
                                                 : OpenPostgres(url_, 1);
  ASSERT_TRUE(database.ok()) << database.status();
  for (const char* statement :
       {"UPDATE ledger SET cost = 0", "DELETE FROM ledger WHERE request_id = 'r1'"}) {
    const absl::Status status = (*database)->Transact(
        SqlAccess::kWrite,
        [&](SqlConnection& connection) { return connection.Execute(statement, {}).status(); });
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << statement << ": " << status;
  }
  EXPECT_EQ(store_->GetEntry("r1")->closing->cost_nanodollars, 42);
}

// ---- Budget ----

TEST_P(LedgerTest, ABudgetIsAHardStopThatCountsReservations) {
  const int64_t budget = 250;  // each opening reserves 100
  ASSERT_TRUE(store_->OpenEntry(OpeningOf("r1"), budget).ok());
  ASSERT_TRUE(store_->OpenEntry(OpeningOf("r2"), budget).ok());
  const absl::Status refused = store_->OpenEntry(OpeningOf("r3"), budget);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("at most 250"));
  // What was refused left nothing behind.
  EXPECT_EQ(store_->GetEntry("r3").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(SpendOf("acme").reserved_nanodollars, 200);
  // A request that cost less than its reservation makes room.
  ASSERT_EQ(*store_->CloseEntry(ClosingOf("r1", 10)), CloseOutcome::kClosed);
  EXPECT_TRUE(store_->OpenEntry(OpeningOf("r3"), budget).ok());
  EXPECT_FALSE(store_->OpenEntry(OpeningOf("r4"), budget).ok());
  EXPECT_TRUE(store_->OpenEntry(OpeningOf("r4", "other"), budget).ok());
}

TEST_P(LedgerTest, AMonthPaysForWhatWasOpenedInIt) {
  LedgerOpening last_of_january = OpeningOf("r1");
  ASSERT_TRUE(absl::ParseTime(absl::RFC3339_full, "2027-01-31T23:59:59.999Z",
                              &last_of_january.opened, nullptr));
  ASSERT_TRUE(store_->OpenEntry(last_of_january, 100).ok());
  LedgerOpening first_of_february = OpeningOf("r2");
  first_of_february.opened = last_of_january.opened + absl::Milliseconds(1);
  ASSERT_TRUE(store_->OpenEntry(first_of_february, 100).ok());  // a new month's budget
  LedgerClosing closing = ClosingOf("r1", 60);
  closing.closed = first_of_february.opened + absl::Hours(1);
  ASSERT_TRUE(store_->CloseEntry(closing).ok());
  EXPECT_EQ(SpendOf("acme", 202701).spent_nanodollars, 60);
  EXPECT_EQ(SpendOf("acme", 202702).spent_nanodollars, 0);
  EXPECT_EQ(SpendOf("acme", 202702).reserved_nanodollars, 100);
}

TEST_P(LedgerTest, ConcurrentOpeningsNeverPassTheBudget) {
  std::atomic<int> num_opened{0};
  std::vector<std::thread> routers;
  for (int t = 0; t < 6; ++t) {
    routers.emplace_back([&, t] {
      for (int i = 0; i < 10; ++i) {
        const absl::Status status =
            store_->OpenEntry(OpeningOf(absl::StrCat("r", t, "-", i)), 2500);
        if (status.ok()) ++num_opened;
        EXPECT_TRUE(status.ok() || absl::IsFailedPrecondition(status)) << status;
      }
    });
  }
  for (std::thread& router : routers) router.join();
  EXPECT_EQ(num_opened, 25);
  EXPECT_EQ(SpendOf("acme").reserved_nanodollars, 2500);
}

// ---- Sweeping ----

TEST_P(LedgerTest, OpenEntriesAreListedByAgeOldestFirst) {
  for (int i = 0; i < 4; ++i) {
    LedgerOpening opening = OpeningOf(absl::StrCat("r", i));
    opening.opened = TestTime() - absl::Minutes(i);
    ASSERT_TRUE(store_->OpenEntry(opening, std::nullopt).ok());
  }
  ASSERT_TRUE(store_->CloseEntry(ClosingOf("r2")).ok());
  const auto Ids = [&](absl::Time before, int num_max) {
    std::vector<std::string> ids;
    const auto open = store_->ListOpen(before, num_max);
    EXPECT_TRUE(open.ok()) << open.status();
    for (const LedgerEntry& entry : *open) ids.push_back(entry.opening.request_id);
    return ids;
  };
  EXPECT_THAT(Ids(TestTime(), 10), ElementsAre("r3", "r1"));
  EXPECT_THAT(Ids(TestTime() + absl::Seconds(1), 10), ElementsAre("r3", "r1", "r0"));
  EXPECT_THAT(Ids(TestTime(), 1), ElementsAre("r3"));
}

// ---- Usage ----

class UsageTest : public LedgerTest {
 protected:
  // Twelve entries of two tenants, ten minutes apart, over two keys and two models, costs 1 .. 12.
  void SetUp() override {
    LedgerTest::SetUp();
    if (HasFatalFailure()) return;
    for (int i = 0; i < 12; ++i) {
      LedgerOpening opening = OpeningOf(absl::StrCat("r", i), i < 8 ? "acme" : "other");
      opening.key_id = i % 2 == 0 ? "aaaaaaaa" : "bbbbbbbb";
      opening.model = i % 4 < 2 ? "tiny-mimo" : "say \"hi\", model";
      opening.opened = TestTime() + absl::Minutes(10 * i);
      OpenAndClose(opening, i + 1);
    }
    ASSERT_TRUE(store_->OpenEntry(OpeningOf("still-open"), std::nullopt).ok());
    query_ = {.tenant_id = "acme",
              .start = TestTime() - absl::Hours(1),
              .end = TestTime() + absl::Hours(24)};
  }

  UsageQuery query_;
};

TEST_P(UsageTest, BucketsSumTheClosedEntriesOfTheirTime) {
  const auto buckets = store_->QueryUsage(query_);
  ASSERT_TRUE(buckets.ok()) << buckets.status();
  ASSERT_EQ(buckets->size(), 2u);
  EXPECT_EQ((*buckets)[0].start, TestTime());  // a full hour
  EXPECT_EQ((*buckets)[0].requests, 6);
  EXPECT_EQ((*buckets)[0].tokens.prompt, 600);
  EXPECT_EQ((*buckets)[0].tokens.cached, 240);
  EXPECT_EQ((*buckets)[0].tokens.completion, 120);
  EXPECT_EQ((*buckets)[0].reasoning_tokens, 30);
  EXPECT_EQ((*buckets)[0].draft_rounds, 42);
  EXPECT_EQ((*buckets)[0].cost_nanodollars, 1 + 2 + 3 + 4 + 5 + 6);
  EXPECT_EQ((*buckets)[0].key_id, "");
  EXPECT_FALSE((*buckets)[0].billed_tier.has_value());
  EXPECT_EQ((*buckets)[1].start, TestTime() + absl::Hours(1));
  EXPECT_EQ((*buckets)[1].cost_nanodollars, 7 + 8);
}

TEST_P(UsageTest, WidthsAndTheEndsOfTheTimeAreExact) {
  query_.bucket_width = BucketWidth::kMinute;
  EXPECT_EQ(store_->QueryUsage(query_)->size(), 8u);
  query_.bucket_width = BucketWidth::kDay;
  EXPECT_EQ(store_->QueryUsage(query_)->size(), 1u);
  query_.start = TestTime() + absl::Minutes(10);
  query_.end = TestTime() + absl::Minutes(20);
  ASSERT_EQ(store_->QueryUsage(query_)->size(), 1u);
  EXPECT_EQ(store_->QueryUsage(query_)->at(0).cost_nanodollars, 2);
}

TEST_P(UsageTest, GroupsByKeyModelAndTier) {
  query_.tenant_id = "";
  query_.bucket_width = BucketWidth::kDay;
  query_.by_key = query_.by_model = query_.by_billed_tier = true;
  const auto buckets = store_->QueryUsage(query_);
  ASSERT_TRUE(buckets.ok()) << buckets.status();
  ASSERT_EQ(buckets->size(), 4u);
  EXPECT_EQ((*buckets)[1].key_id, "aaaaaaaa");
  EXPECT_EQ((*buckets)[1].model, "tiny-mimo");
  EXPECT_EQ((*buckets)[1].billed_tier, Tier::kStandard);
  EXPECT_EQ((*buckets)[1].cost_nanodollars, 1 + 5 + 9);
}

TEST_P(UsageTest, TooManyBucketsAreRefused) {
  auto database = GetParam() == Backend::kSqlite ? OpenSqlite(url_.substr(7))  // after "sqlite:"
                                                 : OpenPostgres(url_, 1);
  ASSERT_TRUE(database.ok()) << database.status();
  const absl::Status filled =
      (*database)->Transact(SqlAccess::kWrite, [](SqlConnection& connection) {
        return connection.ExecuteScript(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10001) "
            "INSERT INTO ledger SELECT 'x' || i, 'acme', 'k', 'm', 0, 1, 1, 1, 'r', i * 60000, '', "
            "1, 1, 0, 1, 0, 1, 1, 'stop', 0, '', 1, 1 FROM n");
      });
  ASSERT_TRUE(filled.ok()) << filled;
  query_.start = absl::FromUnixSeconds(0);
  query_.bucket_width = BucketWidth::kMinute;
  EXPECT_EQ(store_->QueryUsage(query_).status().code(), absl::StatusCode::kOutOfRange);
  query_.bucket_width = BucketWidth::kHour;
  EXPECT_TRUE(store_->QueryUsage(query_).ok());
}

TEST_P(UsageTest, PagesOfClosedEntriesCoverEachOnce) {
  std::vector<std::string> ids;
  std::optional<LedgerEntry> last;
  for (;;) {
    const auto page = store_->ListClosed(query_, last, 3);
    ASSERT_TRUE(page.ok()) << page.status();
    if (page->empty()) break;
    for (const LedgerEntry& entry : *page) ids.push_back(entry.opening.request_id);
    last = page->back();
  }
  EXPECT_THAT(ids, ElementsAre("r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7"));
}

TEST_P(UsageTest, ExportsSumToTheLedger) {
  const auto entries = store_->ListClosed(query_, std::nullopt, 100);
  ASSERT_TRUE(entries.ok()) << entries.status();
  const auto Export = [&](ExportFormat format) {
    LedgerExport file(format);
    std::string text = file.Head();
    for (const LedgerEntry& entry : *entries) text += file.Row(entry);
    return text + file.Tail();
  };
  const int64_t spent = SpendOf("acme").spent_nanodollars;
  EXPECT_EQ(spent, 36);

  int64_t json_sum = 0;
  const boost::json::value json = boost::json::parse(Export(ExportFormat::kJson));
  ASSERT_EQ(json.as_array().size(), 8u);
  for (const boost::json::value& row : json.as_array()) {
    json_sum += row.at("cost_nanodollars").as_int64();
  }
  EXPECT_EQ(json_sum, spent);
  EXPECT_EQ(json.at(0).at("request_id").as_string(), "r0");
  EXPECT_EQ(json.at(0).at("tier").as_string(), "ultraspeed");
  EXPECT_EQ(json.at(0).at("billed_tier").as_string(), "standard");
  EXPECT_EQ(json.at(0).at("billed_reason").as_string(), "speed_promise");
  EXPECT_EQ(json.at(0).at("opened").as_string(), "2027-01-15T08:00:00.000Z");
  EXPECT_EQ(json.at(2).at("model").as_string(), "say \"hi\", model");

  const std::string csv = Export(ExportFormat::kCsv);
  const std::vector<std::string> lines = absl::StrSplit(csv, "\r\n", absl::SkipEmpty());
  ASSERT_EQ(lines.size(), 9u);
  EXPECT_THAT(lines[0], ::testing::EndsWith(",cost_nanodollars"));
  EXPECT_THAT(lines[3], HasSubstr(",\"say \"\"hi\"\", model\","));
  int64_t csv_sum = 0;
  for (size_t i = 1; i < lines.size(); ++i) {
    const std::vector<std::string> fields = absl::StrSplit(lines[i], ',');
    int64_t cost = 0;
    ASSERT_TRUE(absl::SimpleAtoi(fields.back(), &cost));
    csv_sum += cost;
  }
  EXPECT_EQ(csv_sum, spent);
}

TEST(LedgerExport, AnEmptyOneIsStillAFile) {
  const LedgerExport json(ExportFormat::kJson);
  EXPECT_TRUE(boost::json::parse(json.Head() + json.Tail()).as_array().empty());
}

INSTANTIATE_STORE_TESTS(LedgerTest);
INSTANTIATE_STORE_TESTS(UsageTest);

}  // namespace
}  // namespace ultraspeed::router
