// The sweeper against a real store (SQLite) and fake workers over real gRPC. Its clock is the
// test's; heartbeats of other routers are written by the test.
#include "router/sweeper.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "grpcpp/create_channel.h"
#include "router/settlement.h"
#include "tests/cluster/eventually.h"
#include "tests/fake_worker/fake_worker.h"
#include "tests/router/store_fixture.h"

namespace ultraspeed::router {
namespace {

using ::testing::HasSubstr;
using testing::OpeningOf;
using ::ultraspeed::testing::Eventually;
using ::ultraspeed::testing::FakeStep;
using ::ultraspeed::testing::FakeWorker;
using ::ultraspeed::testing::PlaySteps;
using ::ultraspeed::testing::PlayStepsThenHang;

constexpr absl::Duration kDeadAfter = absl::Seconds(10);
constexpr absl::Duration kLostAfter = absl::Seconds(60);

std::string TokenizerJson() {
  std::ifstream file("models/tiny-mimo/tokenizer.json", std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

class SweeperTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto store = OpenStore(testing::NewStoreUrl(testing::Backend::kSqlite));
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    WorkerPool::Options options;
    for (int i = 0; i < 2; ++i) {
      workers_.push_back(std::make_unique<FakeWorker>(FakeWorker::Options{
          .tokenizer_json = TokenizerJson(), .script = PlaySteps({{absl::ZeroDuration(), {1}}})}));
      options.addresses.push_back(workers_.back()->address());
    }
    options.tls.insecure = true;
    auto pool = WorkerPool::Create(std::move(options));
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
    ASSERT_TRUE(
        Eventually([&] { return pool_->CountStates()[static_cast<int>(WorkerState::kReady)] == 2; },
                   absl::Seconds(10)));
  }

  std::unique_ptr<Sweeper> NewSweeper(const std::string& router_id) {
    return std::make_unique<Sweeper>(Sweeper::Options{.store = store_.get(),
                                                      .pool = pool_.get(),
                                                      .router_id = router_id,
                                                      .interval = absl::ZeroDuration(),
                                                      .dead_after = kDeadAfter,
                                                      .lost_after = kLostAfter,
                                                      .clock = &clock_,
                                                      .metrics = &metrics_});
  }

  // A router that beat once and opened these.
  void LeaveOpen(const std::string& router_id, const std::vector<std::string>& request_ids) {
    ASSERT_TRUE(store_->Beat(router_id).ok());
    for (const std::string& id : request_ids) {
      LedgerOpening opening = OpeningOf(id);
      opening.router_id = router_id;
      opening.price_version = UltraspeedPriceVersion();
      ASSERT_TRUE(store_->OpenEntry(opening, std::nullopt).ok());
    }
  }

  int64_t UltraspeedPriceVersion() {
    return PriceTable(*store_->ListPrices())
        .Find("tiny-mimo", Tier::kUltraspeed, testing::TestTime())
        ->version;
  }

  // Runs a request on one of the workers, to its end.
  void RunOnWorker(int worker_idx, const std::string& request_id, std::vector<FakeStep> steps) {
    RunOnWorker(worker_idx, RequestOf(request_id), std::move(steps));
  }
  void RunOnWorker(int worker_idx, const v1::WorkerGenerateRequest& request,
                   std::vector<FakeStep> steps) {
    const std::string& request_id = request.request_id();
    workers_[worker_idx]->SetScript(PlaySteps(std::move(steps)));
    const auto stub = v1::Worker::NewStub(
        grpc::CreateChannel(workers_[worker_idx]->address(), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    auto reader = stub->Generate(&context, request);
    v1::WorkerGenerateChunk chunk;
    while (reader->Read(&chunk)) {
    }
    ASSERT_TRUE(reader->Finish().ok());
    ASSERT_TRUE(Eventually([&] { return workers_[worker_idx]->records().count(request_id) == 1; },
                           absl::Seconds(5)));
  }

  static v1::WorkerGenerateRequest RequestOf(const std::string& request_id) {
    v1::WorkerGenerateRequest request;
    request.set_request_id(request_id);
    for (int i = 0; i < 7; ++i) request.add_prompt_token_ids(i);
    return request;
  }

  int Sweep(Sweeper& sweeper) {
    const auto num_closed = sweeper.SweepOnce();
    EXPECT_TRUE(num_closed.ok()) << num_closed.status();
    return num_closed.value_or(-1);
  }

  LedgerEntry Entry(const std::string& id) { return *store_->GetEntry(id); }

  std::vector<std::string> RouterIds() {
    std::vector<std::string> ids;
    const auto beats = store_->ListBeats();
    for (const RouterBeats& one : *beats) ids.push_back(one.router_id);
    return ids;
  }

  FakeClock clock_{testing::TestTime() + absl::Minutes(1)};
  Metrics metrics_;
  std::unique_ptr<Store> store_;
  std::vector<std::unique_ptr<FakeWorker>> workers_;
  std::unique_ptr<WorkerPool> pool_;
};

TEST_F(SweeperTest, ADeadRoutersRequestIsBilledByTheWorkersRecord) {
  LeaveOpen("b-dead", {"r1"});
  RunOnWorker(1, "r1", {{absl::ZeroDuration(), {1, 2, 3}}, {absl::ZeroDuration(), {4, 5}}});
  const auto sweeper = NewSweeper("a-live");
  EXPECT_EQ(Sweep(*sweeper), 0);
  clock_.Advance(kDeadAfter - absl::Seconds(1));
  EXPECT_EQ(Sweep(*sweeper), 0);  // it may still live
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(Sweep(*sweeper), 1);
  const LedgerEntry entry = Entry("r1");
  ASSERT_TRUE(entry.closing.has_value());
  EXPECT_EQ(entry.closing->worker, workers_[1]->address());
  EXPECT_EQ(entry.closing->tokens.prompt, 7);
  EXPECT_EQ(entry.closing->tokens.completion, 5);
  EXPECT_EQ(entry.closing->finish_reason, "length");
  EXPECT_EQ(entry.closing->billed_tier, Tier::kUltraspeed);
  EXPECT_EQ(entry.closing->cost_nanodollars, 7 * 1290 + 5 * 2610);
  EXPECT_EQ(store_->GetSpend("acme", MonthOf(testing::TestTime()))->reserved_nanodollars, 0);
  EXPECT_EQ(Sweep(*sweeper), 0);
  EXPECT_THAT(RouterIds(), ::testing::ElementsAre("a-live"));
  EXPECT_THAT(metrics_.Text(),
              HasSubstr("ultraspeed_router_swept_entries_total{finish_reason=\"length\"} 1"));
}

TEST_F(SweeperTest, AStreamThatWentOnElsewhereIsBilledWhole) {
  const std::vector<FakeStep> steps = {{absl::ZeroDuration(), {1, 2, 3}},
                                       {absl::ZeroDuration(), {4, 5}}};
  LeaveOpen("b-dead", {"r1"});
  RunOnWorker(0, "r1", {steps[0]});
  v1::WorkerGenerateRequest rest = RequestOf("r1");
  for (const int32_t id : {1, 2, 3}) rest.add_prompt_token_ids(id);
  rest.set_resumed_tokens(3);
  RunOnWorker(1, rest, steps);
  const auto sweeper = NewSweeper("a-live");
  Sweep(*sweeper);
  clock_.Advance(kDeadAfter);
  EXPECT_EQ(Sweep(*sweeper), 1);
  const LedgerEntry entry = Entry("r1");
  EXPECT_EQ(entry.closing->worker, workers_[1]->address());
  EXPECT_EQ(entry.closing->tokens.prompt, 7);
  EXPECT_EQ(entry.closing->tokens.completion, 5);
}

TEST_F(SweeperTest, ARouterThatBeatsIsLeftAloneHoweverOldItsRequestsAre) {
  LeaveOpen("b-live", {"r1"});
  const auto sweeper = NewSweeper("a-live");
  for (int i = 0; i < 20; ++i) {
    clock_.Advance(kDeadAfter / 2);
    ASSERT_TRUE(store_->Beat("b-live").ok());
    EXPECT_EQ(Sweep(*sweeper), 0);
  }
  EXPECT_FALSE(Entry("r1").closing.has_value());
}

TEST_F(SweeperTest, ARequestThatAWorkerStillRunsWaits) {
  LeaveOpen("b-dead", {"r1"});
  workers_[0]->SetScript(PlayStepsThenHang({{absl::ZeroDuration(), {1, 2}}}));
  const auto stub = v1::Worker::NewStub(
      grpc::CreateChannel(workers_[0]->address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, RequestOf("r1"));
  v1::WorkerGenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  const auto sweeper = NewSweeper("a-live");
  Sweep(*sweeper);
  clock_.Advance(kDeadAfter + 2 * kLostAfter);
  EXPECT_EQ(Sweep(*sweeper), 0);
  EXPECT_FALSE(Entry("r1").closing.has_value());
  context.TryCancel();
  reader->Finish();
  ASSERT_TRUE(
      Eventually([&] { return workers_[0]->records().count("r1") == 1; }, absl::Seconds(5)));
  EXPECT_EQ(Sweep(*sweeper), 1);
  EXPECT_EQ(Entry("r1").closing->tokens.completion, 2);
  EXPECT_EQ(Entry("r1").closing->finish_reason, "cancelled");
}

TEST_F(SweeperTest, WhatNoWorkerKnowsIsFreeAfterAGrace) {
  LeaveOpen("b-dead", {"r1"});
  const auto sweeper = NewSweeper("a-live");
  Sweep(*sweeper);
  clock_.Advance(kDeadAfter + kLostAfter - absl::Seconds(1));
  EXPECT_EQ(Sweep(*sweeper), 0);
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(Sweep(*sweeper), 1);
  EXPECT_EQ(Entry("r1").closing->finish_reason, kFinishLost);
  EXPECT_EQ(Entry("r1").closing->cost_nanodollars, 0);
}

TEST_F(SweeperTest, OneSweepsAndAnotherTakesOverWhenItDies) {
  LeaveOpen("c-dead", {"r1"});
  RunOnWorker(0, "r1", {{absl::ZeroDuration(), {1}}});
  const auto first = NewSweeper("a-live");
  const auto second = NewSweeper("b-live");
  Sweep(*first);
  Sweep(*second);
  clock_.Advance(kDeadAfter);
  ASSERT_TRUE(store_->Beat("a-live").ok());
  EXPECT_EQ(Sweep(*second), 0);  // the other one's turn
  EXPECT_FALSE(Entry("r1").closing.has_value());
  clock_.Advance(kDeadAfter);
  EXPECT_EQ(Sweep(*second), 1);  // which is silent now
  EXPECT_TRUE(Entry("r1").closing.has_value());
}

TEST_F(SweeperTest, AClosingThatCameLateChangesNothing) {
  LeaveOpen("b-dead", {"r1"});
  RunOnWorker(0, "r1", {{absl::ZeroDuration(), {1}}});
  const auto sweeper = NewSweeper("a-live");
  Sweep(*sweeper);
  clock_.Advance(kDeadAfter);
  EXPECT_EQ(Sweep(*sweeper), 1);
  const int64_t cost = Entry("r1").closing->cost_nanodollars;
  EXPECT_EQ(*store_->CloseEntry(testing::ClosingOf("r1", 999)), CloseOutcome::kAlreadyClosed);
  EXPECT_EQ(Entry("r1").closing->cost_nanodollars, cost);
}

TEST_F(SweeperTest, ThePromiseIsJudgedByTheWorkersOwnMeasure) {
  Tenant tenant = testing::TenantOf("acme");
  tenant.terms.entitlements = {{"*", Tier::kUltraspeed, 1000}};
  ASSERT_TRUE(store_->CreateTenant(tenant, testing::ActOf("tenants.create", "acme")).ok());
  LeaveOpen("b-dead", {"slow", "fast"});
  RunOnWorker(0, "slow", {{absl::ZeroDuration(), {1}}, {absl::Milliseconds(30), {2, 3}}});
  std::vector<int32_t> many(2000, 1);
  RunOnWorker(0, "fast", {{absl::ZeroDuration(), {1}}, {absl::Milliseconds(5), many}});
  const auto sweeper = NewSweeper("a-live");
  Sweep(*sweeper);
  clock_.Advance(kDeadAfter);
  EXPECT_EQ(Sweep(*sweeper), 2);
  EXPECT_EQ(Entry("slow").closing->billed_tier, Tier::kStandard);
  EXPECT_EQ(Entry("slow").closing->billed_reason, kBilledForSpeedPromise);
  EXPECT_EQ(Entry("slow").closing->cost_nanodollars, 7 * 430 + 3 * 870);
  EXPECT_EQ(Entry("fast").closing->billed_tier, Tier::kUltraspeed);
}

}  // namespace
}  // namespace ultraspeed::router
