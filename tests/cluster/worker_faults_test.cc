// What the router does about workers that refuse, fail, hang, lie, drain or come back.
#include <thread>

#include "absl/strings/match.h"
#include "common/limits.h"
#include "tests/cluster/router_service_fixture.h"

namespace ultraspeed::router {
namespace {

TEST_F(RouterServiceTest, ARefusalBeforeTheFirstTokenGoesToAnotherWorker) {
  for (const auto code : {grpc::StatusCode::RESOURCE_EXHAUSTED, grpc::StatusCode::UNAVAILABLE}) {
    AddWorker({.script = PlayStepsThenFail({}, grpc::Status(code, "no room"))});
  }
  AddWorker();
  StartRouter();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Generate(Request()).text, "hello world");
}

TEST_F(RouterServiceTest, WhenEveryWorkerRefusesTheCallerHearsSo) {
  for (int i = 0; i < 2; ++i) {
    AddWorker({.script = PlayStepsThenFail(
                   {}, grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "no room"))});
  }
  StartRouter();
  const Answer answer = Generate(Request());
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(workers_[0]->num_requests() + workers_[1]->num_requests(), 2);
}

TEST_F(RouterServiceTest, AFailureBeforeTheFirstTokenIsRepeatedOnce) {
  for (int i = 0; i < 3; ++i) {
    AddWorker(
        {.script = PlayStepsThenFail({}, grpc::Status(grpc::StatusCode::INTERNAL, "broken"))});
  }
  StartRouter();
  EXPECT_EQ(Generate(Request()).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(workers_[0]->num_requests() + workers_[1]->num_requests() + workers_[2]->num_requests(),
            2);
  workers_[1]->SetScript(PlaySteps(StepsOf("saved")));
  workers_[2]->SetScript(PlaySteps(StepsOf("saved")));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Generate(Request()).text, "saved");
}

TEST_F(RouterServiceTest, AnErrorInMidStreamIsUnavailableIfNobodyCanGoOn) {
  for (int i = 0; i < 2; ++i) {
    AddWorker({.script = PlayStepsThenFail(StepsOf("half a"),
                                           grpc::Status(grpc::StatusCode::INTERNAL, "boom"))});
  }
  StartRouter();
  const Answer answer = Generate(Request());
  EXPECT_EQ(answer.text, "half a");
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(absl::StrContains(answer.status.error_message(), answer.header_request_id));
  EXPECT_EQ(workers_[0]->num_requests() + workers_[1]->num_requests(), 2);
}

// ---- Failover in mid-stream ----

constexpr char kWhole[] = "the first half, the second half";

// Whoever gets the request first writes `num_tokens` of the text and fails; the next one goes on.
FakeWorker::Script FailsAtFirst(size_t num_tokens, const grpc::Status& status,
                                const std::string& text = kWhole) {
  return [=](const v1::WorkerGenerateRequest& request, grpc::ServerContext* context,
             FakeWorker::Writer* writer) {
    std::vector<FakeStep> steps = StepsOf(text);
    if (request.resumed_tokens() > 0) return PlaySteps(steps)(request, context, writer);
    steps.resize(num_tokens);
    return PlayStepsThenFail(steps, status)(request, context, writer);
  };
}

TEST_F(RouterServiceTest, AStreamGoesOnAtAnotherWorkerWhereItsOwnFailed) {
  for (const auto code : {grpc::StatusCode::INTERNAL, grpc::StatusCode::UNAVAILABLE,
                          grpc::StatusCode::RESOURCE_EXHAUSTED, grpc::StatusCode::OK}) {
    SCOPED_TRACE(code);
    TearDown();
    for (int i = 0; i < 2; ++i) AddWorker({.script = FailsAtFirst(3, grpc::Status(code, "boom"))});
    StartRouter();
    v1::GenerateRequest request = Request();
    request.mutable_options()->set_max_tokens(50);
    request.mutable_options()->mutable_sampling()->set_seed(99);
    const Answer answer = Generate(request);
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.text, kWhole);
    int num_terminal = 0;
    for (const auto& chunk : answer.chunks)
      num_terminal += chunk.finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
    EXPECT_EQ(num_terminal, 1);
    const std::vector<int32_t> whole = Encode(kWhole), prompt = Encode("say something");
    EXPECT_EQ(answer.last().usage().completion_tokens(), static_cast<int64_t>(whole.size()));
    EXPECT_EQ(answer.last().usage().prompt_tokens(), static_cast<int64_t>(prompt.size()));
    EXPECT_EQ(answer.last().usage().draft_rounds(), static_cast<int64_t>(whole.size()));
    const v1::WorkerGenerateRequest rest =
        workers_[workers_[0]->last_request().resumed_tokens() > 0 ? 0 : 1]->last_request();
    EXPECT_EQ(rest.resumed_tokens(), 3);
    EXPECT_EQ(rest.max_tokens(), 47);
    EXPECT_EQ(rest.seed(), 99u);
    EXPECT_EQ(rest.request_id(), answer.header_request_id);
    std::vector<int32_t> expected = prompt;
    expected.insert(expected.end(), whole.begin(), whole.begin() + 3);
    EXPECT_EQ(std::vector<int32_t>(rest.prompt_token_ids().begin(), rest.prompt_token_ids().end()),
              expected);
  }
  EXPECT_TRUE(absl::StrContains(metrics_.Text(), "ultraspeed_router_resumed_streams_total 4"));
  EXPECT_TRUE(
      absl::StrContains(metrics_.Text(), "ultraspeed_router_worker_protocol_errors_total 0"));
}

TEST_F(RouterServiceTest, AStopStringIsFoundAcrossTheSeam) {
  const size_t num_tokens = Encode("the first half, the").size();
  for (int i = 0; i < 2; ++i) {
    AddWorker({.script = FailsAtFirst(num_tokens, grpc::Status(grpc::StatusCode::INTERNAL, ""))});
  }
  StartRouter();
  v1::GenerateRequest request = Request();
  request.mutable_options()->add_stop("the second");
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "the first half, ");
  EXPECT_EQ(answer.last().matched_stop(), "the second");
}

TEST_F(RouterServiceTest, AThoughtAcrossTheSeamIsCountedOnce) {
  const std::string thought = "<think>first this, then that</think>";
  const std::string text = thought + "the answer";
  for (int i = 0; i < 2; ++i) {
    AddWorker({.script = FailsAtFirst(4, grpc::Status(grpc::StatusCode::INTERNAL, ""), text)});
  }
  StartRouter();
  const Answer answer = Generate(Request());
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, text);
  EXPECT_EQ(workers_[0]->num_requests() + workers_[1]->num_requests(), 2);
  const auto num_thoughts = static_cast<int64_t>(StepsOf(thought).size());
  EXPECT_GT(num_thoughts, 4);
  EXPECT_EQ(answer.last().usage().reasoning_tokens(), num_thoughts);
  EXPECT_EQ(answer.last().usage().completion_tokens(), static_cast<int64_t>(StepsOf(text).size()));
}

TEST_F(RouterServiceTest, ALostLastWordIsNotAskedForAgain) {
  const size_t num_tokens = Encode(kWhole).size();
  for (int i = 0; i < 2; ++i) {
    AddWorker({.script = FailsAtFirst(num_tokens, grpc::Status(grpc::StatusCode::INTERNAL, ""))});
  }
  StartRouter();
  v1::GenerateRequest request = Request();
  request.mutable_options()->set_max_tokens(static_cast<int>(num_tokens));
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, kWhole);
  EXPECT_EQ(answer.last().finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(workers_[0]->num_requests() + workers_[1]->num_requests(), 1);
}

TEST_F(RouterServiceTest, ARequestThatBringsWorkersDownDoesNotReachThemAll) {
  constexpr int kWorkers = 7;
  for (int i = 0; i < kWorkers; ++i) {
    AddWorker({.script = [](const v1::WorkerGenerateRequest& request, grpc::ServerContext* context,
                            FakeWorker::Writer* writer) {
      std::vector<FakeStep> steps = StepsOf(kWhole);
      steps.resize(static_cast<size_t>(request.resumed_tokens()) + 1);
      return PlayStepsThenFail(steps, grpc::Status(grpc::StatusCode::INTERNAL, "boom"))(
          request, context, writer);
    }});
  }
  StartRouter();
  const Answer answer = Generate(Request());
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  int num_requests = 0;
  for (const auto& worker : workers_) num_requests += worker->num_requests();
  EXPECT_EQ(num_requests, 1 + limits::kStreamFailuresMax);
  EXPECT_EQ(answer.last().usage().completion_tokens(), num_requests);
}

TEST_F(RouterServiceTest, AStreamOutlivesItsKilledWorker) {
  for (int i = 0; i < 2; ++i)
    AddWorker({.script = PlaySteps(StepsOf(kWhole, absl::Milliseconds(60)))});
  StartRouter();
  std::thread killer([&] {
    Eventually([&] { return workers_[0]->num_running() + workers_[1]->num_running() == 1; });
    absl::SleepFor(absl::Milliseconds(150));
    workers_[workers_[0]->num_running() == 1 ? 0 : 1]->Kill();
  });
  const Answer answer = Generate(Request());
  killer.join();
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, kWhole);
  EXPECT_EQ(workers_[0]->num_requests() + workers_[1]->num_requests(), 2);
}

TEST_F(RouterServiceTest, AStreamWithoutTerminalRecordIsAnError) {
  AddWorker({.script = PlayStepsThenFail(StepsOf("half a"), grpc::Status::OK)});
  StartRouter();
  const Answer answer = Generate(Request());
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(absl::StrContains(answer.status.error_message(), "terminal record"))
      << answer.status.error_message();
}

TEST_F(RouterServiceTest, AKilledWorkerEndsTheStreamAtOnce) {
  FakeWorker& worker = AddWorker({.script = PlayStepsThenHang(StepsOf("half a"))});
  StartRouter();
  std::thread killer([&] {
    Eventually([&] { return worker.num_running() == 1; });
    absl::SleepFor(absl::Milliseconds(50));
    worker.Kill();
  });
  const Answer answer = Generate(Request());
  killer.join();
  EXPECT_EQ(answer.text, "half a");
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_LT(answer.duration, absl::Seconds(2));
}

TEST_F(RouterServiceTest, AHungWorkerLosesItsStreams) {
  FakeWorker& worker = AddWorker({.script = PlayStepsThenHang(StepsOf("half a"))});
  StartRouter();
  std::thread hanger([&] {
    Eventually([&] { return worker.num_running() == 1; });
    worker.SetControlDelay(absl::Seconds(1));  // longer than the pool's call timeout
  });
  const Answer answer = Generate(Request());  // no deadline: the pool must notice
  hanger.join();
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_LT(answer.duration, absl::Seconds(5));
  worker.SetControlDelay(absl::ZeroDuration());
  EXPECT_TRUE(Eventually([&] { return NumIn(WorkerState::kReady) == 1; }));
}

TEST_F(RouterServiceTest, TheCallerOwesWhatWasDelivered) {
  AddWorker({.script = [](const v1::WorkerGenerateRequest&, grpc::ServerContext*,
                          FakeWorker::Writer* writer) {
    v1::WorkerGenerateChunk chunk;
    for (const int32_t id : Encode("two words")) chunk.add_token_ids(id);
    chunk.mutable_usage()->set_prompt_tokens(1'000'000);
    chunk.mutable_usage()->set_completion_tokens(1'000'000);
    chunk.set_finish_reason(v1::FINISH_REASON_LENGTH);
    writer->Write(chunk);
    return grpc::Status::OK;
  }});
  StartRouter();
  const Answer answer = Generate(Request());
  ASSERT_TRUE(answer.status.ok());
  EXPECT_EQ(answer.last().usage().completion_tokens(),
            static_cast<int64_t>(Encode("two words").size()));
  EXPECT_EQ(answer.last().usage().prompt_tokens(),
            static_cast<int64_t>(Encode("say something").size()));
  EXPECT_TRUE(
      absl::StrContains(metrics_.Text(), "ultraspeed_router_worker_protocol_errors_total 1"));
}

TEST_F(RouterServiceTest, MoreTokensThanAskedAndImpossibleTokensAreErrors) {
  FakeWorker& worker = AddWorker();
  StartRouter();
  v1::GenerateRequest request = Request();
  request.mutable_options()->set_max_tokens(1);
  EXPECT_EQ(Generate(request).status.error_code(), grpc::StatusCode::INTERNAL);
  worker.SetScript(PlaySteps({{absl::ZeroDuration(), {1 << 21}}}));
  EXPECT_EQ(Generate(Request()).status.error_code(), grpc::StatusCode::INTERNAL);
  worker.SetScript(PlaySteps({{absl::ZeroDuration(), {-1}}}));
  EXPECT_EQ(Generate(Request()).status.error_code(), grpc::StatusCode::INTERNAL);
}

TEST_F(RouterServiceTest, AnotherTokenizerThanPromisedIsRefused) {
  AddWorker({.wrong_tokenizer_hash = true});
  StartRouter(nullptr, 0);
  EXPECT_TRUE(Eventually([&] { return NumIn(WorkerState::kRefused) == 1; }));
  EXPECT_EQ(Generate(Request()).status.error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(RouterServiceTest, OtherWeightsUnderTheSameNameAreRefusedUntilTheFirstAreGone) {
  AddWorker({.weights_sha256 = "a"});
  AddWorker({.weights_sha256 = "b"});
  StartRouter(nullptr, 1);
  EXPECT_TRUE(Eventually([&] { return NumIn(WorkerState::kRefused) == 1; }));
  grpc::ClientContext context;
  v1::ListModelsResponse models;
  ASSERT_TRUE(stub_->ListModels(&context, {}, &models).ok());
  workers_[models.models(0).weights_sha256() == "a" ? 0 : 1]->Kill();
  EXPECT_TRUE(Eventually(
      [&] { return NumIn(WorkerState::kRefused) == 0 && NumIn(WorkerState::kReady) == 1; }));
  EXPECT_TRUE(Generate(Request()).status.ok());
}

TEST_F(RouterServiceTest, AWorkerThatComesBackIsFoundAgain) {
  FakeWorker& first = AddWorker();
  StartRouter();
  const int port = first.port();
  first.Kill();
  ASSERT_TRUE(Eventually([&] { return NumIn(WorkerState::kLost) == 1; }));
  EXPECT_EQ(Generate(Request()).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  AddWorker({.port = port, .script = PlaySteps(StepsOf("back"))});
  ASSERT_TRUE(Eventually([&] { return NumIn(WorkerState::kReady) == 1; }));
  EXPECT_EQ(Generate(Request()).text, "back");
}

TEST_F(RouterServiceTest, ADrainingWorkerGetsNothingNew) {
  AddWorker();
  AddWorker();
  StartRouter();
  workers_[0]->SetDraining(true);
  ASSERT_TRUE(Eventually([&] { return NumIn(WorkerState::kDraining) == 1; }));
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(Generate(Request()).status.ok());
  EXPECT_EQ(workers_[0]->num_requests(), 0);
  EXPECT_EQ(workers_[1]->num_requests(), 4);
}

TEST_F(RouterServiceTest, RunningRequestsSpreadEvenly) {
  for (int i = 0; i < 3; ++i) AddWorker({.script = PlayStepsThenHang(StepsOf("x"))});
  StartRouter();
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateChunk>>> readers;
  for (int i = 0; i < 12; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(stub_->Generate(contexts.back().get(), Request()));
    v1::GenerateChunk chunk;
    ASSERT_TRUE(readers.back()->Read(&chunk));
  }
  for (const auto& worker : workers_) EXPECT_EQ(worker->num_running(), 4);
  for (const auto& context : contexts) context->TryCancel();
  for (const auto& reader : readers)
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  for (const auto& worker : workers_)
    EXPECT_TRUE(Eventually([&] { return worker->num_running() == 0; }));
  EXPECT_TRUE(Eventually(
      [&] { return absl::StrContains(metrics_.Text(), "ultraspeed_router_active_streams 0"); }));
}

// ---- Ends from outside ----

}  // namespace
}  // namespace ultraspeed::router
