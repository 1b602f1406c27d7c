// worker.proto over a real server on a free port, in front of an engine with a scripted executor.
#include "worker/worker_service.h"

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "common/metrics.h"
#include "common/uuid.h"
#include "tests/worker/scripted_executor.h"
#include "worker/sha256.h"
#include "worker/worker_metrics.h"
#include "worker/worker_server.h"

namespace ultraspeed::worker {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// A stream read to its end.
struct Collected {
  std::vector<int32_t> tokens;
  std::vector<v1::WorkerGenerateChunk> chunks;
  grpc::Status status;

  int NumTerminal() const {
    return static_cast<int>(std::count_if(chunks.begin(), chunks.end(), [](const auto& chunk) {
      return chunk.finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
    }));
  }
};

class WorkerServiceTest : public testing::Test {
 protected:
  ~WorkerServiceTest() override { std::filesystem::remove_all(folder_); }

  void Start(ScriptedOptions scripted = {}, absl::Duration round_time = absl::ZeroDuration(),
             int waiting_max = 8) {
    scripted_ = scripted;
    std::filesystem::create_directories(folder_ + "/dflash");
    tokenizer_ = std::string(5 * limits::kTokenizerPartBytes / 2, 't');
    std::ofstream(folder_ + "/tokenizer.json") << tokenizer_;
    std::ofstream(folder_ + "/config.json") << "{}";
    std::ofstream(folder_ + "/dflash/config.json") << "{\"a\":1}";
    std::ofstream(folder_ + "/model.safetensors") << std::string(100000, 'w');
    auto executor = std::make_unique<ScriptedExecutor>(scripted);
    executor_ = executor.get();
    if (round_time > absl::ZeroDuration())
      executor->before_round = [=](const Round&) { absl::SleepFor(round_time); };
    worker_metrics_ = std::make_unique<WorkerMetrics>(metrics_, scripted.draft_block);
    engine_ = std::make_unique<Engine>(std::move(executor),
                                       EngineOptions{.waiting_max = waiting_max, .scheduler = {}},
                                       RealClock(), worker_metrics_.get());
    absl::StatusOr<ModelIdentity> identity = ReadModelIdentity(folder_);
    ASSERT_TRUE(identity.ok()) << identity.status();
    absl::StatusOr<std::unique_ptr<WorkerServer>> server =
        WorkerServer::Create(*engine_, *std::move(identity), "127.0.0.1:0", {});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    engine_->Start();
    engine_->WaitReady();
    server_->SetServing(true);
    channel_ = grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->port()),
                                   grpc::InsecureChannelCredentials());
    stub_ = v1::Worker::NewStub(channel_);
  }

  static v1::WorkerGenerateRequest Request(const std::string& id, int num_prompt_tokens,
                                           int max_tokens) {
    v1::WorkerGenerateRequest request;
    const RequestSpec spec = MakeSpec(id, num_prompt_tokens, max_tokens);
    request.set_request_id(id);
    request.mutable_prompt_token_ids()->Add(spec.prompt.begin(), spec.prompt.end());
    request.set_max_tokens(max_tokens);
    request.set_temperature(0);
    request.set_top_p(1);
    request.set_seed(spec.sampling.seed);
    request.set_speculation(true);
    request.set_service_tier(v1::SERVICE_TIER_STANDARD);
    request.set_logprobs(-1);
    return request;
  }

  static Collected ReadAll(grpc::ClientReader<v1::WorkerGenerateChunk>& reader) {
    Collected collected;
    v1::WorkerGenerateChunk chunk;
    while (reader.Read(&chunk)) {
      collected.tokens.insert(collected.tokens.end(), chunk.token_ids().begin(),
                              chunk.token_ids().end());
      EXPECT_EQ(chunk.usage().completion_tokens(), static_cast<int64_t>(collected.tokens.size()))
          << "usage is cumulative";
      collected.chunks.push_back(chunk);
    }
    collected.status = reader.Finish();
    return collected;
  }

  Collected Generate(const v1::WorkerGenerateRequest& request) {
    grpc::ClientContext context;
    return ReadAll(*stub_->Generate(&context, request));
  }

  grpc::Status Abort(const std::string& id) {
    grpc::ClientContext context;
    v1::AbortRequest request;
    request.set_request_id(id);
    v1::AbortResponse response;
    return stub_->Abort(&context, request, &response);
  }

  v1::GetLoadResponse Load() {
    grpc::ClientContext context;
    v1::GetLoadResponse response;
    EXPECT_TRUE(stub_->GetLoad(&context, {}, &response).ok());
    return response;
  }

  v1::GetLoadResponse WaitForNothingRunning() {
    const absl::Time deadline = absl::Now() + absl::Seconds(5);
    v1::GetLoadResponse load = Load();
    while (load.running_requests() + load.waiting_requests() > 0 && absl::Now() < deadline) {
      absl::SleepFor(absl::Milliseconds(1));
      load = Load();
    }
    return load;
  }

  // grpc.health.v1 status of `service`: 1 SERVING, 2 NOT_SERVING; -1 = the call failed.
  int Health(const std::string& service) {
    grpc::GenericStub stub(channel_);
    grpc::ClientContext context;
    std::string bytes =
        absl::StrCat("\x0A", std::string(1, static_cast<char>(service.size())), service);
    if (service.empty()) bytes.clear();
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    grpc::ByteBuffer response;
    grpc::Status status;
    absl::Notification done;
    stub.UnaryCall(&context, "/grpc.health.v1.Health/Check", {}, &request, &response,
                   [&](grpc::Status s) {
                     status = std::move(s);
                     done.Notify();
                   });
    done.WaitForNotification();
    std::vector<grpc::Slice> slices;
    if (!status.ok() || !response.Dump(&slices).ok() || slices.empty() || slices[0].size() != 2)
      return -1;
    return slices[0].begin()[1];
  }

  const std::string folder_ = testing::TempDir() + "/worker_service_test_" + NewUuidV7();
  std::string tokenizer_;
  ScriptedOptions scripted_;
  Metrics metrics_;
  std::unique_ptr<WorkerMetrics> worker_metrics_;
  ScriptedExecutor* executor_ = nullptr;  // the engine's
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<WorkerServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Worker::Stub> stub_;
};

constexpr ScriptedOptions kLongContext{.max_sequences = 4,
                                       .max_batch_tokens = 64,
                                       .page_tokens = 64,
                                       .num_pages = 8192,
                                       .vocabulary = 1000,
                                       .context_tokens = 400'000,
                                       .draft_block = 8};

TEST_F(WorkerServiceTest, StreamsTokensAndOneTerminalRecord) {
  Start();
  v1::WorkerGenerateRequest request = Request("a", 10, 100);
  request.set_logprobs(2);
  const Collected got = Generate(request);
  EXPECT_TRUE(got.status.ok()) << got.status.error_message();
  EXPECT_EQ(got.tokens, ExpectedTokens(MakeSpec("a", 10, 100), 1000));
  EXPECT_EQ(got.NumTerminal(), 1);
  const v1::WorkerGenerateChunk& last = got.chunks.back();
  EXPECT_EQ(last.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(last.usage().prompt_tokens(), 10);
  EXPECT_EQ(last.usage().completion_tokens(), 100);
  EXPECT_GT(last.usage().draft_rounds(), 0);
  for (const v1::WorkerGenerateChunk& chunk : got.chunks) {
    ASSERT_EQ(chunk.logprobs_size(), chunk.token_ids_size());
    for (int i = 0; i < chunk.logprobs_size(); ++i) {
      EXPECT_EQ(chunk.logprobs(i).token_id(), chunk.token_ids(i));
      EXPECT_EQ(chunk.logprobs(i).top_token_ids_size(), 2);
    }
  }
  const v1::GetLoadResponse load = Load();
  EXPECT_EQ(load.requests_total(), 1u);
  EXPECT_EQ(load.prompt_tokens_total(), 10u);
  EXPECT_EQ(load.completion_tokens_total(), 100u);
}

TEST_F(WorkerServiceTest, StopTokenIsCountedAndNamed) {
  Start({.vocabulary = 20});
  v1::WorkerGenerateRequest request = Request("a", 1, 400);
  request.set_prompt_token_ids(0, 3);
  request.add_stop_token_ids(5);
  const Collected got = Generate(request);
  ASSERT_TRUE(got.status.ok());
  EXPECT_EQ(got.tokens.back(), 5);
  EXPECT_EQ(got.chunks.back().finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(got.chunks.back().stop_token_id(), 5);
  EXPECT_EQ(got.chunks.back().usage().completion_tokens(), static_cast<int64_t>(got.tokens.size()));
}

TEST_F(WorkerServiceTest, RefusesEveryBadFieldByNameAndBound) {
  Start();
  struct Case {
    void (*spoil)(v1::WorkerGenerateRequest&);
    const char* field;
    const char* bound;
  };
  const Case cases[] = {
      {[](auto& r) { r.clear_request_id(); }, "request_id", "1..64"},
      {[](auto& r) { r.set_request_id(std::string(65, 'x')); }, "request_id", "1..64"},
      {[](auto& r) { r.clear_prompt_token_ids(); }, "prompt_token_ids: 0 ids", "1..511"},
      {[](auto& r) { r.mutable_prompt_token_ids()->Resize(512, 1); }, "prompt_token_ids: 512 ids",
       "1..511"},
      {[](auto& r) { r.set_prompt_token_ids(1, -1); }, "prompt_token_ids[1]=-1", "0..999"},
      {[](auto& r) { r.set_prompt_token_ids(3, 1000); }, "prompt_token_ids[3]=1000", "0..999"},
      {[](auto& r) { r.set_max_tokens(0); }, "max_tokens=0", "1..502"},
      {[](auto& r) { r.set_max_tokens(503); }, "max_tokens=503", "1..502"},
      {[](auto& r) { r.set_temperature(-1); }, "temperature=-1", "0..2"},
      {[](auto& r) { r.set_temperature(2.5f); }, "temperature=2.5", "0..2"},
      {[](auto& r) { r.set_temperature(std::numeric_limits<float>::quiet_NaN()); },
       "temperature=nan", "0..2"},
      {[](auto& r) { r.set_top_p(0); }, "top_p=0", "(0, 1]"},
      {[](auto& r) { r.set_top_p(1.5f); }, "top_p=1.5", "(0, 1]"},
      {[](auto& r) { r.set_top_p(std::numeric_limits<float>::quiet_NaN()); }, "top_p=nan",
       "(0, 1]"},
      {[](auto& r) { r.set_top_k(-1); }, "top_k=-1", "0..1000"},
      {[](auto& r) { r.set_top_k(1001); }, "top_k=1001", "0..1000"},
      {[](auto& r) { r.set_logprobs(-2); }, "logprobs=-2", "-1..8"},
      {[](auto& r) { r.set_logprobs(9); }, "logprobs=9", "-1..8"},
      {[](auto& r) { r.add_stop_token_ids(-1); }, "stop_token_ids[0]=-1", "0..999"},
      {[](auto& r) { r.mutable_stop_token_ids()->Resize(65, 1); }, "stop_token_ids: 65 ids",
       "at most 64"},
      {[](auto& r) { r.set_service_tier(v1::SERVICE_TIER_UNSPECIFIED); }, "service_tier=0",
       "SERVICE_TIER_STANDARD"},
      {[](auto& r) { r.set_service_tier(v1::SERVICE_TIER_AUTO); }, "service_tier=1",
       "SERVICE_TIER_ULTRASPEED"},
      {[](auto& r) { r.set_service_tier(static_cast<v1::ServiceTier>(77)); }, "service_tier=77",
       "SERVICE_TIER_STANDARD"},
      {[](auto& r) { r.set_priority(-101); }, "priority=-101", "-100..100"},
      {[](auto& r) { r.set_resumed_tokens(10); }, "resumed_tokens=10", "0..9"},
      {[](auto& r) { r.mutable_output_format(); }, "output_format", "not with this model"},
      {[](auto& r) { r.set_output_format_after_token_id(3); }, "output_format_after_token_id",
       "no output_format"},
  };
  for (const Case& test_case : cases) {
    SCOPED_TRACE(test_case.field);
    v1::WorkerGenerateRequest request = Request("a", 10, 5);
    test_case.spoil(request);
    const Collected got = Generate(request);
    EXPECT_EQ(got.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(got.status.error_message(), HasSubstr(test_case.field));
    EXPECT_THAT(got.status.error_message(), HasSubstr(test_case.bound));
    EXPECT_TRUE(got.chunks.empty());
  }
  EXPECT_EQ(Load().requests_total(), 0u) << "a refused request costs nothing";
}

TEST_F(WorkerServiceTest, MessageOverTheBoundIsRefused) {
  Start();
  v1::WorkerGenerateRequest request = Request("a", 10, 5);
  request.mutable_prompt_token_ids()->Resize(limits::kGrpcMessageBytesMax / 2 + 1000,
                                             999);  // two bytes each
  EXPECT_EQ(Generate(request).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(WorkerServiceTest, SecondUseOfARunningIdAndFullQueueAreRefused) {
  ScriptedOptions options = kLongContext;
  options.max_sequences = 1;
  Start(options, absl::Milliseconds(1), 1);
  grpc::ClientContext first_context;
  const auto first = stub_->Generate(&first_context, Request("a", 4, 100'000));
  v1::WorkerGenerateChunk chunk;
  ASSERT_TRUE(first->Read(&chunk));
  EXPECT_EQ(Generate(Request("a", 4, 5)).status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  grpc::ClientContext second_context;
  const auto second = stub_->Generate(&second_context, Request("b", 4, 5));
  while (Load().waiting_requests() == 0) absl::SleepFor(absl::Milliseconds(1));
  const Collected third = Generate(Request("c", 4, 5));
  EXPECT_EQ(third.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(third.status.error_message(), HasSubstr("at most 2"));
  EXPECT_THAT(Load().running_request_ids(), ElementsAre("a"));
  first_context.TryCancel();
  EXPECT_TRUE(ReadAll(*second).status.ok());
}

TEST_F(WorkerServiceTest, ChunksPileUpIntoOneWhileTheReaderSleeps) {
  Start(kLongContext);
  constexpr int kTokens = 20'000;
  // A client that takes no more than its window of 64 KiB before it reads.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  const auto channel = grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", server_->port()),
                                                 grpc::InsecureChannelCredentials(), arguments);
  const auto stub = v1::Worker::NewStub(channel);
  v1::WorkerGenerateRequest request = Request("a", 4, kTokens);
  request.set_logprobs(8);
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, request);
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (Load().requests_total() == 0) {
    ASSERT_LT(absl::Now(), deadline) << "a slow reader must not hold the engine up";
    absl::SleepFor(absl::Milliseconds(1));
  }
  const Collected got = ReadAll(*reader);
  EXPECT_TRUE(got.status.ok());
  EXPECT_EQ(got.tokens, ExpectedTokens(MakeSpec("a", 4, kTokens), 1000));
  EXPECT_EQ(got.NumTerminal(), 1);
  EXPECT_EQ(got.chunks.back().finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_LT(static_cast<int64_t>(got.chunks.size()), got.chunks.back().usage().draft_rounds() / 2);
  for (const v1::WorkerGenerateChunk& chunk : got.chunks)
    EXPECT_LE(chunk.token_ids_size(), limits::kChunkTokensMax);
}

TEST_F(WorkerServiceTest, AbortEndsExactlyTheNamedRequest) {
  Start(kLongContext, absl::Milliseconds(1));
  grpc::ClientContext context, other_context;
  const auto reader = stub_->Generate(&context, Request("req-1", 4, 100'000));
  const auto other = stub_->Generate(&other_context, Request("req-10", 4, 100'000));
  while (Load().running_requests() < 2) absl::SleepFor(absl::Milliseconds(1));
  for (const char* id : {"req", "req-", "REQ-1", "", "req-100"}) {
    EXPECT_EQ(Abort(id).error_code(), grpc::StatusCode::NOT_FOUND) << id;
  }
  EXPECT_TRUE(Abort("req-1").ok());
  const Collected got = ReadAll(*reader);
  EXPECT_EQ(got.status.error_code(), grpc::StatusCode::CANCELLED);
  ASSERT_EQ(got.NumTerminal(), 1);
  EXPECT_EQ(got.chunks.back().finish_reason(), v1::FINISH_REASON_CANCELLED);
  const v1::GetLoadResponse load = Load();
  EXPECT_THAT(load.running_request_ids(), ElementsAre("req-10"));
  EXPECT_EQ(load.completion_tokens_total(), got.tokens.size())
      << "what was sent is what is counted";
  EXPECT_EQ(Abort("req-1").error_code(), grpc::StatusCode::NOT_FOUND);
  other_context.TryCancel();
}

TEST_F(WorkerServiceTest, CancelledCallFreesItsSlot) {
  Start(kLongContext, absl::Milliseconds(2));
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Request("a", 4, 300'000));
  v1::WorkerGenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  context.TryCancel();
  EXPECT_EQ(ReadAll(*reader).status.error_code(), grpc::StatusCode::CANCELLED);
  const v1::GetLoadResponse load = WaitForNothingRunning();
  EXPECT_EQ(load.running_requests(), 0);
  EXPECT_EQ(load.kv_tokens_used(), 0);
  EXPECT_EQ(load.requests_total(), 1u);
  const int rounds = executor_->num_rounds;
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_EQ(executor_->num_rounds, rounds) << "the engine sleeps";
  EXPECT_THAT(metrics_.Text(),
              HasSubstr("ultraspeed_worker_requests_total{finish_reason=\"cancelled\"} 1"));
}

TEST_F(WorkerServiceTest, DeadlineFreesTheSlot) {
  Start(kLongContext, absl::Milliseconds(2));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  EXPECT_EQ(ReadAll(*stub_->Generate(&context, Request("a", 4, 300'000))).status.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(WaitForNothingRunning().running_requests(), 0);
}

TEST_F(WorkerServiceTest, CancelStormLeaksNothing) {
  ScriptedOptions options = kLongContext;
  options.max_sequences = 8;
  Start(options, absl::Microseconds(200), 64);
  std::vector<std::thread> clients;
  for (int t = 0; t < 4; ++t) {
    clients.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        grpc::ClientContext context;
        const auto reader =
            stub_->Generate(&context, Request(absl::StrCat("r", t, "-", i), 4, 1000));
        v1::WorkerGenerateChunk chunk;
        if (i % 2 == 0) reader->Read(&chunk);
        context.TryCancel();
        ReadAll(*reader);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  const v1::GetLoadResponse load = WaitForNothingRunning();
  EXPECT_EQ(load.running_requests() + load.waiting_requests(), 0);
  EXPECT_EQ(load.kv_tokens_used(), 0);
}

TEST_F(WorkerServiceTest, DrainRefusesNewAndFinishesRunning) {
  Start({}, absl::Milliseconds(2));
  EXPECT_EQ(Health("readiness"), 1);
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Request("a", 4, 200));
  v1::WorkerGenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  for (int i = 0; i < 2; ++i) {  // idempotent
    grpc::ClientContext drain_context;
    v1::DrainResponse response;
    ASSERT_TRUE(stub_->Drain(&drain_context, {}, &response).ok());
    EXPECT_EQ(response.running_requests(), 1);
  }
  EXPECT_TRUE(Load().draining());
  EXPECT_EQ(Generate(Request("b", 4, 5)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Health("readiness"), 2);
  EXPECT_EQ(Health("ultraspeed.v1.Worker"), 2);
  EXPECT_EQ(Health(""), 2);
  EXPECT_EQ(Health("liveness"), 1);
  v1::WorkerGenerateChunk last = chunk;
  while (reader->Read(&chunk)) last = chunk;
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(last.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(last.usage().completion_tokens(), 200);
}

TEST_F(WorkerServiceTest, ShutdownAfterTheDrainTimeoutEndsStreamsWithUnavailable) {
  Start(kLongContext, absl::Milliseconds(1));
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Request("a", 4, 300'000));
  v1::WorkerGenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  std::thread shutdown([this] { EXPECT_FALSE(server_->Shutdown(absl::Milliseconds(20))); });
  std::vector<int32_t> tokens(chunk.token_ids().begin(), chunk.token_ids().end());
  int num_terminal = 0;
  while (reader->Read(&chunk)) {
    tokens.insert(tokens.end(), chunk.token_ids().begin(), chunk.token_ids().end());
    num_terminal += chunk.finish_reason() != v1::FINISH_REASON_UNSPECIFIED ? 1 : 0;
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE)
      << "the router continues it elsewhere";
  EXPECT_EQ(num_terminal, 0);
  shutdown.join();
  EXPECT_EQ(engine_->Load().completion_tokens_total, tokens.size())
      << "nothing that was committed is lost";
}

TEST_F(WorkerServiceTest, TokenizerArrivesWholeAndHashesToModelInfo) {
  Start();
  grpc::ClientContext info_context;
  v1::ModelInfo info;
  ASSERT_TRUE(stub_->GetModelInfo(&info_context, {}, &info).ok());
  grpc::ClientContext context;
  const auto reader = stub_->GetTokenizer(&context, {});
  std::string bytes;
  v1::TokenizerPart part;
  int num_parts = 0;
  while (reader->Read(&part)) {
    EXPECT_LE(part.data().size(), limits::kTokenizerPartBytes);
    bytes += part.data();
    ++num_parts;
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(num_parts, 3);
  EXPECT_TRUE(bytes == tokenizer_);
  EXPECT_EQ(info.tokenizer_sha256(), Sha256Hex(bytes));
  EXPECT_EQ(info.name(), "scripted");
  EXPECT_EQ(info.context_tokens(), 512);
  EXPECT_EQ(info.vocabulary_size(), 1000);
  EXPECT_EQ(info.draft_block_size(), 8);
  EXPECT_THAT(info.eos_token_ids(), ElementsAre(7));
  EXPECT_EQ(info.chat_template_id(), "mimo_v2");
  EXPECT_EQ(info.device(), "scripted");
  EXPECT_FLOAT_EQ(info.default_temperature(), 0.5f);
  EXPECT_EQ(info.weights_sha256().size(), 64u);
}

TEST_F(WorkerServiceTest, EndedRequestsCanBeAskedForAgain) {
  Start(kLongContext, absl::Milliseconds(2));
  v1::WorkerGenerateRequest resumed = Request("whole", 10, 20);
  resumed.set_resumed_tokens(4);
  const Collected whole = Generate(resumed);
  ASSERT_TRUE(whole.status.ok());
  const auto list = [&](std::vector<std::string> ids) {
    v1::ListRecordsRequest request;
    for (std::string& id : ids) request.add_request_ids(std::move(id));
    grpc::ClientContext context;
    v1::ListRecordsResponse response;
    const grpc::Status status = stub_->ListRecords(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  };
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, Request("cut", 10, 100'000));
  v1::WorkerGenerateChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  EXPECT_THAT(list({"whole", "cut", "never"}).live_request_ids(), ElementsAre("cut"));
  // A second request of a running id is refused and leaves the first one's mark alone.
  EXPECT_EQ(Generate(Request("cut", 10, 10)).status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_THAT(list({"cut"}).live_request_ids(), ElementsAre("cut"));
  context.TryCancel();
  reader->Finish();
  WaitForNothingRunning();
  const v1::ListRecordsResponse after = list({"whole", "cut", "never"});
  EXPECT_EQ(after.live_request_ids_size(), 0);
  ASSERT_EQ(after.records_size(), 2);
  EXPECT_EQ(after.records(0).request_id(), "whole");
  EXPECT_EQ(after.records(0).finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(after.records(0).usage().prompt_tokens(), 10);
  EXPECT_EQ(after.records(0).usage().completion_tokens(), 20);
  EXPECT_EQ(after.records(0).resumed_tokens(), 4);
  EXPECT_GT(after.records(0).tokens_per_second(), 0);
  EXPECT_EQ(after.records(1).finish_reason(), v1::FINISH_REASON_CANCELLED);
  EXPECT_EQ(after.records(1).resumed_tokens(), 0);
  EXPECT_GE(after.records(1).usage().completion_tokens(), chunk.usage().completion_tokens());

  v1::ListRecordsRequest too_many;
  for (int i = 0; i <= limits::kListRecordsMax; ++i) too_many.add_request_ids("x");
  grpc::ClientContext refused;
  v1::ListRecordsResponse response;
  EXPECT_EQ(stub_->ListRecords(&refused, too_many, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(TerminalRecordsTest, TheOldestGoFirst) {
  TerminalRecords records(2);
  for (const char* id : {"a", "b", "c"}) {
    records.Begin(id);
    records.End(id, {.usage = {.completion_tokens = id[0]}, .finish = FinishReason::kLength});
  }
  EXPECT_FALSE(records.Find("a").has_value());
  EXPECT_EQ(records.Find("b")->usage.completion_tokens, 'b');
  EXPECT_EQ(records.Find("c")->usage.completion_tokens, 'c');
  EXPECT_FALSE(records.IsLive("c"));
}

TEST_F(WorkerServiceTest, MetricsFollowTheRequests) {
  Start();
  Generate(Request("a", 10, 50));
  const std::string text = metrics_.Text();
  EXPECT_THAT(text, HasSubstr("ultraspeed_worker_prompt_tokens_total 10"));
  EXPECT_THAT(text, HasSubstr("ultraspeed_worker_completion_tokens_total 50"));
  EXPECT_THAT(text, HasSubstr("ultraspeed_worker_requests_total{finish_reason=\"length\"} 1"));
  EXPECT_THAT(text, HasSubstr("ultraspeed_worker_accepted_per_position_total{position=\"7\"}"));
  EXPECT_THAT(text, HasSubstr("ultraspeed_worker_draft_tokens_total{source=\"drafter\"}"));
  EXPECT_THAT(text, HasSubstr("ultraspeed_worker_accepted_tokens_total{source=\"text\"} 0"));
  EXPECT_THAT(text, HasSubstr("ultraspeed_worker_ttft_seconds_count 1"));
  EXPECT_THAT(text, HasSubstr("ultraspeed_worker_running_max 4"));
}

TEST(IdentityTest, WeightsHashFollowsContentNotFolder) {
  const std::string folders[] = {testing::TempDir() + "/identity_a_" + NewUuidV7(),
                                 testing::TempDir() + "/identity_b_" + NewUuidV7()};
  const auto write = [](const std::string& folder, char weight) {
    std::filesystem::create_directories(folder);
    std::ofstream(folder + "/tokenizer.json") << "{}";
    std::ofstream(folder + "/config.json") << "{\"hidden\":1}";
    std::ofstream(folder + "/model.safetensors") << std::string(50000, weight);
  };
  write(folders[0], 'a');
  write(folders[1], 'a');
  EXPECT_EQ(ReadModelIdentity(folders[0])->weights_sha256,
            ReadModelIdentity(folders[1])->weights_sha256);
  write(folders[1], 'b');
  EXPECT_NE(ReadModelIdentity(folders[0])->weights_sha256,
            ReadModelIdentity(folders[1])->weights_sha256);
  std::ofstream(folders[0] + "/tokenizer.json") << "{ }";
  EXPECT_NE(ReadModelIdentity(folders[0])->tokenizer_sha256,
            ReadModelIdentity(folders[1])->tokenizer_sha256);
  std::filesystem::remove(folders[0] + "/tokenizer.json");
  EXPECT_EQ(ReadModelIdentity(folders[0]).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  for (const std::string& folder : folders) std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace ultraspeed::worker
