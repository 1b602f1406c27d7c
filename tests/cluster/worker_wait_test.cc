// --worker-wait: what becomes of requests and streams while the only worker is away.
#include <functional>
#include <thread>

#include "absl/strings/match.h"
#include "tests/cluster/router_service_fixture.h"

namespace ultraspeed::router {
namespace {

constexpr char kAnswer[] = "the first part, the second part";

class WorkerWaitTest : public RouterServiceTest {
 protected:
  // The one worker, which writes three tokens and then nothing.
  void StartWithAWorkerThatHangs() {
    std::vector<FakeStep> begun = StepsOf(kAnswer);
    begun.resize(3);
    port_ = std::stoi(AddWorker({.script = PlayStepsThenHang(begun)}).address().substr(10));
    StartRouter();
  }
  bool AwaitThreeTokens() {
    return Eventually([&] { return workers_[0]->num_running() == 1; });
  }
  void LoseTheWorker() {
    workers_[0]->Kill();
    EXPECT_TRUE(Eventually([&] { return NumIn(WorkerState::kLost) == 1; }));
  }
  // Another process at the same address.
  void StartAgain() {
    FakeWorker::Options options;
    options.port = port_;
    options.script = PlaySteps(StepsOf(kAnswer));
    AddWorker(std::move(options));
  }
  // Runs beside a call, and ends before this does.
  Answer GenerateBeside(const std::function<void()>& event) {
    std::thread thread(event);
    const Answer answer = Generate(Request());
    thread.join();
    return answer;
  }

  int port_ = 0;
};

TEST_F(WorkerWaitTest, AStreamWaitsForItsWorkerToComeBackAndGoesOn) {
  worker_wait_ = absl::Seconds(20);
  StartWithAWorkerThatHangs();
  const Answer answer = GenerateBeside([&] {
    EXPECT_TRUE(AwaitThreeTokens());
    absl::SleepFor(absl::Milliseconds(50));
    workers_[0]->Kill();
    absl::SleepFor(absl::Milliseconds(300));
    StartAgain();
  });
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, kAnswer);
  EXPECT_GT(answer.duration, absl::Milliseconds(300));
  EXPECT_EQ(workers_[1]->last_request().resumed_tokens(), 3);
  EXPECT_EQ(answer.last().usage().completion_tokens(),
            static_cast<int64_t>(Encode(kAnswer).size()));
  EXPECT_TRUE(absl::StrContains(metrics_.Text(), "ultraspeed_router_resumed_streams_total 1"));
  // The worker's call ends after the answer.
  EXPECT_TRUE(Eventually([&] { return queue_->GetStatus("fake").held_places[0] == 0; }));
}

TEST_F(WorkerWaitTest, ARequestWaitsForAWorker) {
  worker_wait_ = absl::Seconds(20);
  StartWithAWorkerThatHangs();
  LoseTheWorker();
  const Answer answer = GenerateBeside([&] {
    EXPECT_TRUE(Eventually([&] { return queue_->GetStatus("fake").waiting == 1; }));
    StartAgain();
  });
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, kAnswer);
}

TEST_F(WorkerWaitTest, WhoWaitsInVainHearsItInTime) {
  worker_wait_ = absl::Milliseconds(400);
  StartWithAWorkerThatHangs();
  const Answer cut = GenerateBeside([&] {
    EXPECT_TRUE(AwaitThreeTokens());
    absl::SleepFor(absl::Milliseconds(50));
    workers_[0]->Kill();
  });
  EXPECT_EQ(cut.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(
      absl::StrContains(cut.status.error_message(), "model fake: no worker was ready within 400ms"))
      << cut.status.error_message();
  const Answer refused = Generate(Request());
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_GE(refused.duration, absl::Milliseconds(350));
  EXPECT_LT(refused.duration, absl::Seconds(3));
  EXPECT_EQ(queue_->GetStatus("fake").waiting, 0);
}

TEST_F(WorkerWaitTest, TheCallersOwnEndComesFirst) {
  worker_wait_ = absl::Seconds(20);
  StartWithAWorkerThatHangs();
  LoseTheWorker();
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Milliseconds(200)));
  EXPECT_EQ(Generate(Request(), &context).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  grpc::ClientContext left;
  std::thread leaver([&] {
    EXPECT_TRUE(Eventually([&] { return queue_->GetStatus("fake").waiting == 1; }));
    left.TryCancel();
  });
  EXPECT_EQ(Generate(Request(), &left).status.error_code(), grpc::StatusCode::CANCELLED);
  leaver.join();
  EXPECT_TRUE(Eventually([&] { return queue_->GetStatus("fake").waiting == 0; }));
}

// One that says UNAVAILABLE but lives is asked again when it has answered the router.
TEST_F(WorkerWaitTest, AWorkerThatWasDoubtedWronglyIsAskedAgain) {
  worker_wait_ = absl::Seconds(20);
  FakeWorker& worker = AddWorker();
  auto num_calls = std::make_shared<std::atomic<int>>(0);
  worker.SetScript([num_calls](const v1::WorkerGenerateRequest& request,
                               grpc::ServerContext* context, FakeWorker::Writer* writer) {
    if (++*num_calls == 1) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "not now");
    return PlaySteps(StepsOf(kAnswer))(request, context, writer);
  });
  StartRouter();
  const Answer answer = Generate(Request());
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, kAnswer);
  EXPECT_EQ(*num_calls, 2);
}

// One that fails again and again is not asked for ever.
TEST_F(WorkerWaitTest, AWorkerThatBreaksEveryStreamEndsThem) {
  worker_wait_ = absl::Milliseconds(500);
  AddWorker({.script = PlayStepsThenFail({}, grpc::Status(grpc::StatusCode::UNAVAILABLE, "no"))});
  StartRouter();
  const Answer answer = Generate(Request());
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_LT(answer.duration, absl::Seconds(5));
  EXPECT_GT(workers_[0]->num_requests(), 1);
  EXPECT_LT(workers_[0]->num_requests(), 60);
}

}  // namespace
}  // namespace ultraspeed::router
