// The file, and the way to a real store that goes away and comes back (PostgreSQL).
#include "router/outbox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <thread>

#include "absl/strings/str_cat.h"
#include "router/admission.h"
#include "tests/cluster/eventually.h"
#include "tests/router/store_fixture.h"

namespace ultraspeed::router {
namespace {

using testing::Backend;
using testing::ClosingOf;
using ::testing::HasSubstr;
using testing::OpeningOf;
using ::ultraspeed::testing::Eventually;

std::string NewPath() {
  static int counter = 0;
  const std::string path = absl::StrCat(::testing::TempDir(), "outbox_", getpid(), "_", ++counter);
  unlink(path.c_str());
  return path;
}

// ---- The file ----

TEST(OutboxFileTest, WritesComeBackInOrderAndAsTheyWere) {
  auto file = OutboxFile::Open(NewPath());
  ASSERT_TRUE(file.ok()) << file.status();
  LedgerOpening opening = OpeningOf("r1");
  opening.key_id = "quotes \" and\nlines";
  const std::vector<LedgerWrite> writes = {opening, ClosingOf("r1", 123), ClosingOf("r2")};
  ASSERT_TRUE((*file)->Append(writes).ok());
  EXPECT_EQ((*file)->size(), 3);
  const auto front = (*file)->Front(2);
  ASSERT_TRUE(front.ok()) << front.status();
  ASSERT_EQ(front->size(), 2u);
  const auto& opened = std::get<LedgerOpening>((*front)[0]);
  EXPECT_EQ(opened.request_id, "r1");
  EXPECT_EQ(opened.key_id, opening.key_id);
  EXPECT_EQ(opened.tier, opening.tier);
  EXPECT_EQ(opened.reserved_nanodollars, opening.reserved_nanodollars);
  EXPECT_EQ(opened.opened, opening.opened);
  const auto& closed = std::get<LedgerClosing>((*front)[1]);
  const LedgerClosing expected = ClosingOf("r1", 123);
  EXPECT_EQ(closed.worker, expected.worker);
  EXPECT_EQ(closed.tokens.prompt, expected.tokens.prompt);
  EXPECT_EQ(closed.tokens.cached, expected.tokens.cached);
  EXPECT_EQ(closed.tokens.completion, expected.tokens.completion);
  EXPECT_EQ(closed.reasoning_tokens, expected.reasoning_tokens);
  EXPECT_EQ(closed.draft_rounds, expected.draft_rounds);
  EXPECT_EQ(closed.decode_us, expected.decode_us);
  EXPECT_EQ(closed.finish_reason, expected.finish_reason);
  EXPECT_EQ(closed.billed_tier, expected.billed_tier);
  EXPECT_EQ(closed.billed_reason, expected.billed_reason);
  EXPECT_EQ(closed.price_version, expected.price_version);
  EXPECT_EQ(closed.cost_nanodollars, 123);
  EXPECT_EQ(closed.closed, expected.closed);
  ASSERT_TRUE((*file)->Pop(2).ok());
  EXPECT_EQ(std::get<LedgerClosing>((*file)->Front(10)->at(0)).request_id, "r2");
}

TEST(OutboxFileTest, ManyWritesSurviveAReopenAndLeaveAnEmptyFileWhenTaken) {
  const std::string path = NewPath();
  constexpr int kNumWrites = 5000;  // more than one read's worth
  {
    auto file = OutboxFile::Open(path);
    for (int i = 0; i < kNumWrites; i += 100) {
      std::vector<LedgerWrite> writes;
      for (int k = i; k < i + 100; ++k) writes.push_back(ClosingOf(absl::StrCat("r", k)));
      ASSERT_TRUE((*file)->Append(writes).ok());
    }
  }
  auto file = OutboxFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->size(), kNumWrites);
  for (int num_taken = 0; num_taken < kNumWrites;) {
    const auto front = (*file)->Front(333);
    ASSERT_TRUE(front.ok()) << front.status();
    for (const LedgerWrite& write : *front) {
      EXPECT_EQ(std::get<LedgerClosing>(write).request_id, absl::StrCat("r", num_taken++));
    }
    ASSERT_TRUE((*file)->Pop(static_cast<int64_t>(front->size())).ok());
  }
  EXPECT_EQ((*file)->size(), 0);
  std::ifstream in(path, std::ios::ate);
  EXPECT_EQ(in.tellg(), 0);
}

TEST(OutboxFileTest, AHalfWrittenLastLineIsCutOffAndOtherDamageIsNamed) {
  const std::string path = NewPath();
  {
    auto file = OutboxFile::Open(path);
    ASSERT_TRUE((*file)->Append({ClosingOf("r1")}).ok());
  }
  std::ofstream(path, std::ios::app) << R"({"write":"clo)";
  {
    auto file = OutboxFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ((*file)->size(), 1);
    ASSERT_TRUE((*file)->Append({ClosingOf("r2")}).ok());
    EXPECT_EQ((*file)->Front(10)->size(), 2u);
  }
  std::ofstream(path, std::ios::app) << "{\"write\":\"close\"}\n";
  const auto damaged = OutboxFile::Open(path);
  EXPECT_TRUE(absl::IsDataLoss(damaged.status())) << damaged.status();
  EXPECT_THAT(std::string(damaged.status().message()), HasSubstr(path));
}

TEST(OutboxFileTest, TwoProcessesCannotShareIt) {
  const std::string path = NewPath();
  const auto first = OutboxFile::Open(path);
  ASSERT_TRUE(first.ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(OutboxFile::Open(path).status()));
}

// ---- The way to the store ----

class OutboxTest : public ::testing::Test {
 protected:
  void OpenStoreOn(Backend backend) {
    const std::string url = testing::NewStoreUrl(backend);
    ASSERT_NE(url, "");
    auto store = OpenStore(url);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  std::unique_ptr<Outbox> NewOutbox(int64_t writes_max = 1000) {
    auto outbox = Outbox::Create({.store = store_.get(),
                                  .path = path_,
                                  .writes_max = writes_max,
                                  .retry_interval = absl::Milliseconds(20),
                                  .close_timeout = absl::Milliseconds(100),
                                  .metrics = &metrics_});
    EXPECT_TRUE(outbox.ok()) << outbox.status();
    return *std::move(outbox);
  }
  std::string FileText() const {
    std::ifstream file(path_);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  Spend SpendOf(const std::string& tenant) {
    return store_->GetSpend(tenant, MonthOf(testing::TestTime())).value_or(Spend{-1, -1});
  }

  const std::string path_ = NewPath();
  Metrics metrics_;
  std::unique_ptr<Store> store_;
};

TEST_F(OutboxTest, WritesReachTheStoreOnceHoweverOftenTheyAreAdded) {
  OpenStoreOn(Backend::kSqlite);
  const auto outbox = NewOutbox();
  for (int i = 0; i < 600; ++i) {
    outbox->Add(OpeningOf(absl::StrCat("r", i)));
    outbox->Add(ClosingOf(absl::StrCat("r", i), 10));
    outbox->Add(ClosingOf(absl::StrCat("r", i), 99));  // a replay: the first one stands
  }
  ASSERT_TRUE(outbox->Flush(absl::Seconds(30)));
  EXPECT_EQ(SpendOf("acme").spent_nanodollars, 6000);
  EXPECT_EQ(SpendOf("acme").reserved_nanodollars, 0);
  EXPECT_THAT(metrics_.Text(),
              HasSubstr("ultraspeed_router_ledger_closings_total{outcome=\"already_closed\"} 600"));
  EXPECT_EQ(FileText(), "");
}

TEST_F(OutboxTest, AWriteThatTheStoreRefusesHoldsUpNoOther) {
  OpenStoreOn(Backend::kSqlite);
  const auto outbox = NewOutbox();
  outbox->Add(ClosingOf("never-opened"));
  outbox->Add(OpeningOf("r1"));
  outbox->Add(ClosingOf("r1"));
  ASSERT_TRUE(outbox->Flush(absl::Seconds(5)));
  EXPECT_TRUE(store_->GetEntry("r1")->closing.has_value());
  EXPECT_THAT(metrics_.Text(), HasSubstr("outcome=\"not_opened\"} 1"));
}

TEST_F(OutboxTest, WhileTheStoreIsAwayWritesWaitOnDiskAndOutliveTheRouter) {
  OpenStoreOn(Backend::kPostgres);
  ASSERT_TRUE(store_->OpenEntry(OpeningOf("before"), std::nullopt).ok());
  testing::StopPostgres();
  {
    const auto outbox = NewOutbox(4);
    outbox->Add(ClosingOf("before", 10));
    ASSERT_TRUE(Eventually([&] { return outbox->store_is_away(); }, absl::Seconds(10)));
    EXPECT_FALSE(outbox->is_full());
    outbox->Add(OpeningOf("during"));
    outbox->Add(ClosingOf("during", 5));
    outbox->Add(OpeningOf("open"));
    EXPECT_TRUE(outbox->is_full());
    EXPECT_EQ(outbox->depth(), 4);
  }
  EXPECT_THAT(FileText(), HasSubstr("during"));
  testing::StartPostgres();
  const auto outbox = NewOutbox();
  ASSERT_TRUE(outbox->Flush(absl::Seconds(10)));
  EXPECT_TRUE(Eventually([&] { return !outbox->store_is_away(); }, absl::Seconds(5)));
  EXPECT_EQ(SpendOf("acme").spent_nanodollars, 15);
  EXPECT_EQ(SpendOf("acme").reserved_nanodollars, OpeningOf("open").reserved_nanodollars);
  EXPECT_EQ(FileText(), "");
}

TEST_F(OutboxTest, ATenantWithABudgetIsRefusedWhileTheStoreIsAwayAndOneWithoutIsServed) {
  OpenStoreOn(Backend::kPostgres);
  auto accounts = AccountsCache::Create({.store = store_.get(),
                                         .pepper = "only for this test",
                                         .poll_interval = absl::ZeroDuration()});
  ASSERT_TRUE(accounts.ok()) << accounts.status();
  const auto outbox = NewOutbox(100);
  const Admission admission({.store = store_.get(),
                             .accounts = accounts->get(),
                             .outbox = outbox.get(),
                             .router_id = "a"});
  const auto admit = [&](const std::string& id, std::optional<int64_t> budget) {
    auto terms = std::make_shared<TenantTerms>(*UnrestrictedTerms());
    terms->monthly_budget_nanodollars = budget;
    return admission
        .Admit({.request_id = id,
                .tenant = {.tenant = "acme", .key_id = "k", .terms = terms},
                .model = "m",
                .prompt_tokens = 10,
                .max_tokens = 10,
                .likely_tokens = 10,
                .tiers = {Tier::kStandard}})
        .settlement;
  };
  testing::StopPostgres();
  const absl::Status refused = admit("budget", int64_t{1'000'000'000}).status();
  EXPECT_TRUE(absl::IsUnavailable(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("budget of tenant acme"));
  auto served = admit("no-budget", std::nullopt);
  ASSERT_TRUE(served.ok()) << served.status();
  RequestOutcome outcome;
  outcome.sent = {.prompt = 10, .cached = 0, .completion = 4};
  served->Settle(outcome);
  testing::StartPostgres();
  ASSERT_TRUE(outbox->Flush(absl::Seconds(10)));
  const auto entry = store_->GetEntry("no-budget");
  ASSERT_TRUE(entry.ok()) << entry.status();
  ASSERT_TRUE(entry->closing.has_value());
  EXPECT_EQ(entry->closing->tokens.completion, 4);
  EXPECT_TRUE(absl::IsNotFound(store_->GetEntry("budget").status()));
  ASSERT_TRUE(Eventually([&] { return !outbox->store_is_away(); }, absl::Seconds(5)));
  EXPECT_TRUE(admit("budget-again", int64_t{1'000'000'000}).ok());
}

}  // namespace
}  // namespace ultraspeed::router
