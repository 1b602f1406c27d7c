// The real programs as processes on loopback with the bundled model: what a user sees, and what
// happens when something dies.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <fstream>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "tests/cluster/cluster_fixture.h"

namespace ultraspeed {
namespace {

using testing::ReadWholeFile;

// ---- What users do ----

TEST_F(ClusterTest, TheDemoScriptEndsWithItsStatistics) {
  Process demo(folder_, "demo", {"/bin/bash", "scripts/demo.sh", absl::StrCat(BinFile(".."))});
  ASSERT_EQ(demo.Wait(absl::Minutes(2)), 0) << demo.Log();
  const std::vector<std::string> lines = absl::StrSplit(demo.Output(), '\n', absl::SkipEmpty());
  ASSERT_FALSE(lines.empty());
  const boost::json::value stats = boost::json::parse(lines.back());
  for (const char* key : {"prompt_tokens", "completion_tokens", "ttft_ms", "tokens_per_second",
                          "tokens_per_round", "tier", "finish_reason"}) {
    EXPECT_TRUE(stats.as_object().contains(key)) << key;
  }
  EXPECT_EQ(stats.at("tier").as_string(), "ultraspeed");
  EXPECT_GT(stats.at("completion_tokens").to_number<int>(), 0);
}

TEST_F(ClusterTest, TheClientProgramAnswersInEveryForm) {
  StartOneOfEach();
  auto plain = Client({"generate", "--temperature=0", "--max-tokens=20", "--stats-json", kPrompt});
  ASSERT_EQ(plain->Wait(absl::Minutes(1)), 0) << plain->Log();
  const std::string expected = Generate(Request(20)).text;
  EXPECT_TRUE(absl::StartsWith(plain->Output(), expected)) << plain->Output();

  std::ofstream(folder_ + "/prompt") << kPrompt;
  auto as_json = Client({"generate", "--temperature=0", "--max-tokens=20", "--json", "--model",
                         kModel, "--logprobs=2"},
                        kKey, folder_ + "/prompt");
  ASSERT_EQ(as_json->Wait(absl::Minutes(1)), 0) << as_json->Log();
  const boost::json::value whole = boost::json::parse(as_json->Output());
  EXPECT_EQ(whole.at("text").as_string(), expected);
  EXPECT_EQ(whole.at("logprobs").as_array().size(), whole.at("token_ids").as_array().size());

  auto streamed = Client({"generate", "--temperature=0", "--max-tokens=20", "--stream-json",
                          "--file", folder_ + "/prompt"});
  ASSERT_EQ(streamed->Wait(absl::Minutes(1)), 0) << streamed->Log();
  std::string joined;
  for (const absl::string_view line : absl::StrSplit(streamed->Output(), '\n', absl::SkipEmpty())) {
    joined += boost::json::parse(std::string(line)).at("text").as_string().c_str();
  }
  EXPECT_EQ(joined, expected);

  auto models = Client({"models", "--json"});
  ASSERT_EQ(models->Wait(absl::Minutes(1)), 0) << models->Log();
  EXPECT_TRUE(absl::StrContains(models->Output(), kModel));
  auto tokens = Client({"tokenize", "int main() {}"});
  ASSERT_EQ(tokens->Wait(absl::Minutes(1)), 0) << tokens->Log();
  EXPECT_GT(boost::json::parse(tokens->Output()).as_array().size(), 2u);
  auto chat =
      Client({"chat", "--max-tokens=10", "--seed=1", "--json", "--system", "Be brief.", "hello"});
  ASSERT_EQ(chat->Wait(absl::Minutes(1)), 0) << chat->Log();
  EXPECT_GT(boost::json::parse(chat->Output()).at("prompt_tokens").to_number<int>(), 5);
}

TEST_F(ClusterTest, TheClientProgramsExitStatusSaysWhatHappened) {
  StartOneOfEach();
  const auto status_of = [&](std::vector<std::string> words, const std::string& key = kKey) {
    return Client(std::move(words), key)->Wait(absl::Minutes(1));
  };
  EXPECT_EQ(status_of({"generate", "--max-tokens=2147483648", kPrompt}),
            2);  // not an int32: refused before any call
  EXPECT_EQ(status_of({"generate", "--no-such-flag", kPrompt}), 2);
  EXPECT_EQ(status_of({"generate", "--max-tokens=0", kPrompt}), 3);
  EXPECT_EQ(status_of({"generate", "--temperature=nan", kPrompt}), 3);
  EXPECT_EQ(status_of({"generate", "--model", kModel, kPrompt}, "us-wrong"), 4);
  EXPECT_EQ(status_of({"generate", "--model", kModel, kPrompt}, "us-a\nkey"), 2);
  EXPECT_EQ(status_of({"generate", "--model", "no-such-model", kPrompt}), 5);
  EXPECT_EQ(
      status_of({"generate", "--deadline=300ms", "--max-tokens=8000", "--ignore-eos", kPrompt}), 8);
  auto interrupted =
      Client({"generate", "--max-tokens=8000", "--ignore-eos", "--stream-json", kPrompt});
  EXPECT_TRUE(Eventually([&] { return !interrupted->Output().empty(); }));
  interrupted->Signal(SIGINT);
  EXPECT_EQ(interrupted->Wait(absl::Seconds(10)), 130);
  router_->process().Signal(SIGKILL);
  router_->process().Wait(absl::Seconds(10));
  EXPECT_EQ(status_of({"models"}), 7);
}

TEST_F(ClusterTest, TheTextDoesNotDependOnSpeculation) {
  StartOneOfEach();
  for (const float temperature : {0.0f, 0.8f}) {
    v1::GenerateRequest request = Request(150);
    request.mutable_options()->mutable_sampling()->set_temperature(temperature);
    request.mutable_options()->mutable_sampling()->set_seed(4711);
    request.mutable_options()->set_ignore_eos(true);
    request.mutable_options()->set_service_tier(v1::SERVICE_TIER_ULTRASPEED);
    const Answer with = Generate(request);
    request.mutable_options()->set_speculation(false);
    const Answer without = Generate(request);
    ASSERT_TRUE(with.status.ok() && without.status.ok()) << with.status.error_message();
    EXPECT_EQ(with.token_ids, without.token_ids);
    EXPECT_EQ(with.text, without.text);
    EXPECT_EQ(without.last().usage().draft_rounds(), without.last().usage().completion_tokens());
    EXPECT_LE(with.last().usage().draft_rounds(), with.last().usage().completion_tokens());
  }
}

TEST_F(ClusterTest, ASeedRepeatsASampledText) {
  StartOneOfEach();
  v1::GenerateRequest request = Request(60);
  request.mutable_options()->mutable_sampling()->set_temperature(1);
  request.mutable_options()->set_ignore_eos(true);
  const Answer first = Generate(request);  // the router draws a seed and reports it
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  request.mutable_options()->mutable_sampling()->set_seed(first.last().seed());
  EXPECT_EQ(Generate(request).token_ids, first.token_ids);
  request.mutable_options()->mutable_sampling()->set_seed(first.last().seed() + 1);
  EXPECT_NE(Generate(request).token_ids, first.token_ids);
}

TEST_F(ClusterTest, AStopStringEndsTheText) {
  StartOneOfEach();
  v1::GenerateRequest request = Request(100);
  request.mutable_options()->set_ignore_eos(true);
  const Answer whole = Generate(request);
  ASSERT_TRUE(whole.status.ok());
  ASSERT_GT(whole.text.size(), 40u);
  // Some bytes from the middle that lie across a chunk's border, if there is one; where they first
  // occur is where it must end.
  const std::string stop = whole.text.substr(30, 6);
  request.mutable_options()->add_stop(stop);
  const Answer stopped = Generate(request);
  ASSERT_TRUE(stopped.status.ok()) << stopped.status.error_message();
  EXPECT_EQ(stopped.text, whole.text.substr(0, whole.text.find(stop)));
  EXPECT_EQ(stopped.last().finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(stopped.last().matched_stop(), stop);
  EXPECT_EQ(static_cast<int64_t>(stopped.token_ids.size()),
            stopped.last().usage().completion_tokens());
  EXPECT_TRUE(
      Eventually([&] { return Load(*workers_[0]).running_requests() == 0; }, absl::Seconds(2)));
}

TEST_F(ClusterTest, ChatStreams) {
  StartOneOfEach();
  v1::ChatRequest request;
  request.set_model(kModel);
  AddMessage(&request, v1::ROLE_USER, "Write a function that adds two numbers. π 漢字 🙂");
  request.mutable_options()->set_max_tokens(40);
  grpc::ClientContext context;
  AddKey(&context);
  const Answer answer = Read(stub_->Chat(&context, request));
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_GT(answer.last().usage().completion_tokens(), 0);
  EXPECT_NE(answer.last().finish_reason(), v1::FINISH_REASON_UNSPECIFIED);
}

// ---- What users get wrong ----

// A conversation of two turns, and the same on a worker that keeps nothing.
TEST_F(ClusterTest, TheNextTurnOfAChatComputesOnlyWhatIsNew) {
  const auto converse = [&](std::vector<int64_t>* cached_tokens) {
    v1::ChatRequest request;
    request.set_model(kModel);
    request.mutable_options()->set_max_tokens(80);
    request.mutable_options()->mutable_sampling()->set_temperature(0);
    std::string text;
    for (const char* question :
         {"Write a function that returns the n-th Fibonacci number, where the first is 0 and the "
          "second is 1, and say what it does in a docstring of one line, with its arguments.",
          "Now the same without recursion."}) {
      AddMessage(&request, v1::ROLE_USER, question);
      grpc::ClientContext context;
      AddKey(&context);
      const Answer answer = Read(stub_->Chat(&context, request));
      EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
      if (!answer.status.ok()) return text;
      cached_tokens->push_back(answer.last().usage().cached_tokens());
      AddMessage(&request, v1::ROLE_ASSISTANT, answer.text);
      text += answer.text;
    }
    return text;
  };
  StartOneOfEach();
  std::vector<int64_t> cached_tokens;
  const std::string text = converse(&cached_tokens);
  ASSERT_EQ(cached_tokens.size(), 2u);
  EXPECT_EQ(cached_tokens[0], 0);
  EXPECT_GE(cached_tokens[1], 64);

  router_.reset();
  workers_.clear();
  StartWorker(0, {"--prefix-snapshots=0"});
  StartRouter();
  cached_tokens.clear();
  EXPECT_EQ(converse(&cached_tokens), text);
  EXPECT_THAT(cached_tokens, ::testing::ElementsAre(0, 0));
}

TEST_F(ClusterTest, EveryBadInputIsNamedAndTheServersGoOn) {
  StartOneOfEach();
  const auto kInvalid = grpc::StatusCode::INVALID_ARGUMENT;
  ExpectRefused(Request(10, "ab\xff\xfe"), kInvalid, "prompt", "UTF-8");

  v1::GenerateRequest request = Request(1);
  request.clear_options();
  std::string one_too_long;
  {
    // Grow the prompt to exactly the context, which leaves no room for one token.
    grpc::ClientContext models_context;
    AddKey(&models_context);
    v1::ListModelsResponse models;
    ASSERT_TRUE(stub_->ListModels(&models_context, {}, &models).ok());
    const auto num_tokens = [&](const std::string& text) {
      grpc::ClientContext context;
      AddKey(&context);
      v1::TokenizeRequest tokenize;
      tokenize.set_model(kModel);
      tokenize.set_text(text);
      v1::TokenizeResponse response;
      EXPECT_TRUE(stub_->Tokenize(&context, tokenize, &response).ok());
      return response.token_ids_size();
    };
    const auto context_tokens = static_cast<int>(models.models(0).context_tokens());
    const int per_line = num_tokens("x = 1\nx = 1\n") - num_tokens("x = 1\n");
    while (num_tokens(one_too_long) < context_tokens) {
      const int missing = context_tokens - num_tokens(one_too_long);
      for (int i = 0; i < std::max(1, missing / per_line - 1); ++i)
        one_too_long += missing > 2 * per_line ? "x = 1\n" : "\nx";
    }
    EXPECT_LE(num_tokens(one_too_long), context_tokens + 1);
  }
  request.set_prompt(one_too_long);
  ExpectRefused(request, kInvalid, "prompt", "8192");

  request = Request(1);
  request.set_model("no-such-model");
  ExpectRefused(request, grpc::StatusCode::NOT_FOUND, "no-such-model", kModel);
  for (const int32_t max_tokens : {0, -1, std::numeric_limits<int32_t>::max()}) {
    ExpectRefused(Request(max_tokens), kInvalid, "max_tokens", absl::StrCat(max_tokens));
  }
  request = Request(1);
  request.mutable_options()->mutable_sampling()->set_temperature(std::nanf(""));
  ExpectRefused(request, kInvalid, "temperature", "nan");
  request.mutable_options()->mutable_sampling()->set_temperature(2.5f);
  ExpectRefused(request, kInvalid, "temperature", "2.5");
  request = Request(1);
  request.mutable_options()->mutable_sampling()->set_top_p(0);
  ExpectRefused(request, kInvalid, "top_p", "0");
  request = Request(1);
  request.mutable_options()->add_stop("");
  ExpectRefused(request, kInvalid, "stop", "128");
  ExpectRefused(Request(1, ""), kInvalid, "prompt", "");

  for (const char* key : {"", "Bearer us-wrong", "Basic abc"}) {
    grpc::ClientContext context;
    if (*key != '\0') context.AddMetadata("authorization", key);
    EXPECT_EQ(Read(stub_->Generate(&context, Request(1))).status.error_code(),
              grpc::StatusCode::UNAUTHENTICATED);
  }
  const Answer good = Generate(Request(5));
  EXPECT_TRUE(good.status.ok()) << good.status.error_message();
  EXPECT_FALSE(router_->process().HasEnded());
  EXPECT_FALSE(workers_[0]->process().HasEnded());
}

TEST_F(ClusterTest, ADeadlineEndsTheStreamAndFreesTheSlot) {
  StartOneOfEach();
  grpc::ClientContext context;
  AddKey(&context);
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Milliseconds(400)));
  const Answer answer = Read(stub_->Generate(&context, LongRequest()));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_GT(answer.token_ids.size(), 0u);
  EXPECT_TRUE(
      Eventually([&] { return Load(*workers_[0]).running_requests() == 0; }, absl::Seconds(2)));
}

TEST_F(ClusterTest, AClientThatLeavesFreesTheSlotWithinARound) {
  StartOneOfEach();
  grpc::ClientContext context;
  AddKey(&context);
  auto reader = stub_->Generate(&context, LongRequest());
  v1::GenerateChunk chunk;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(reader->Read(&chunk));
  EXPECT_EQ(Load(*workers_[0]).running_requests(), 1);
  const absl::Time left = absl::Now();
  context.TryCancel();
  EXPECT_TRUE(Eventually([&] { return Load(*workers_[0]).running_requests() == 0; }));
  EXPECT_LT(absl::Now() - left, absl::Milliseconds(500));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

// ---- What dies ----

TEST_F(ClusterTest, AKilledWorkerEndsItsStreamAtOnceAndIsFoundAgain) {
  StartOneOfEach();
  const int port = workers_[0]->port();
  absl::Time killed;
  std::thread killer([&] {
    Eventually([&] { return Load(*workers_[0]).running_requests() == 1; });
    absl::SleepFor(absl::Milliseconds(200));
    killed = absl::Now();
    workers_[0]->process().Signal(SIGKILL);
  });
  const Answer answer = Generate(LongRequest());
  const absl::Time ended = absl::Now();
  killer.join();
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE)
      << answer.status.error_message();
  EXPECT_LT(ended - killed, absl::Milliseconds(500));
  ASSERT_FALSE(answer.chunks.empty());
  EXPECT_TRUE(absl::StrContains(answer.status.error_message(), answer.chunks[0].request_id()));
  EXPECT_EQ(workers_[0]->process().Wait(absl::Seconds(10)), 128 + SIGKILL);
  EXPECT_TRUE(Eventually(
      [&] { return Generate(Request(1)).status.error_code() == grpc::StatusCode::UNAVAILABLE; }));

  StartWorker(port);
  ASSERT_TRUE(AwaitWorkersReady(1));
  const Answer again = Generate(Request(5));
  EXPECT_TRUE(again.status.ok()) << again.status.error_message();
}

// The last worker has nobody to go on, but comes back.
TEST_F(ClusterTest, AStreamWhoseWorkerIsKilledGoesOnToTheSameToken) {
  for (int i = 0; i < 3; ++i) StartWorker();
  StartRouter({"--worker-wait=30s"});
  v1::GenerateRequest request = Request(600);
  request.mutable_options()->set_ignore_eos(true);
  request.mutable_options()->mutable_sampling()->set_temperature(0.8f);
  request.mutable_options()->mutable_sampling()->set_seed(20261128);
  const Answer undisturbed = Generate(request);
  ASSERT_TRUE(undisturbed.status.ok()) << undisturbed.status.error_message();

  int port = 0;  // of the last one that was killed
  const auto kill_the_busy_one = [&] { ASSERT_NE(port = KillBusyWorker(), 0); };
  grpc::ClientContext context;
  AddKey(&context);
  auto reader = stub_->Generate(&context, request);
  std::vector<int32_t> token_ids;
  std::string text;
  v1::GenerateChunk chunk;
  for (const size_t num_tokens : {100u, 250u, 400u}) {
    while (token_ids.size() < num_tokens && reader->Read(&chunk)) {
      token_ids.insert(token_ids.end(), chunk.token_ids().begin(), chunk.token_ids().end());
      text += chunk.text();
    }
    kill_the_busy_one();
  }
  ASSERT_TRUE(workers_.empty());
  StartWorker(port);
  const Answer rest = Read(std::move(reader));
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  token_ids.insert(token_ids.end(), rest.token_ids.begin(), rest.token_ids.end());
  EXPECT_EQ(token_ids, undisturbed.token_ids);
  EXPECT_EQ(text + rest.text, undisturbed.text);
  EXPECT_EQ(rest.last().usage().prompt_tokens(), undisturbed.last().usage().prompt_tokens());
  EXPECT_EQ(rest.last().usage().completion_tokens(), 600);
}

TEST_F(ClusterTest, ReadinessFollowsTheWorkers) {
  StartOneOfEach();
  EXPECT_TRUE(Eventually([&] { return Health("readiness") == 1; }));
  EXPECT_EQ(Health(""), 1);
  EXPECT_EQ(Health("ultraspeed.v1.Inference"), 1);
  EXPECT_EQ(Health("liveness"), 1);
  EXPECT_EQ(Health("no-such-service"), -1);
  workers_[0]->process().Signal(SIGKILL);
  EXPECT_TRUE(Eventually([&] { return Health("readiness") == 2; }, absl::Seconds(3)));
  EXPECT_EQ(Health("liveness"), 1);
}

TEST_F(ClusterTest, TwoWorkersShareTheLoadAndOneIsEnough) {
  StartWorker();
  StartWorker();
  StartRouter();
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateChunk>>> readers;
  for (int i = 0; i < 4; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    AddKey(contexts.back().get());
    readers.push_back(stub_->Generate(contexts.back().get(), LongRequest()));
    v1::GenerateChunk chunk;
    ASSERT_TRUE(readers.back()->Read(&chunk));
  }
  EXPECT_EQ(Load(*workers_[0]).running_requests(), 2);
  EXPECT_EQ(Load(*workers_[1]).running_requests(), 2);
  for (const auto& context : contexts) context->TryCancel();
  for (const auto& reader : readers) reader->Finish();
  const Answer first = Generate(Request(10));
  workers_[0]->process().Signal(SIGKILL);
  workers_[0]->process().Wait(absl::Seconds(10));
  for (int i = 0; i < 4; ++i) {
    const Answer answer = Generate(Request(10));
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.token_ids, first.token_ids);
  }
}

TEST_F(ClusterTest, SigtermLetsRunningStreamsFinish) {
  StartOneOfEach();
  v1::GenerateRequest request = Request(400);
  request.mutable_options()->set_ignore_eos(true);
  Answer answer;
  std::thread caller([&] { answer = Generate(request); });
  ASSERT_TRUE(Eventually([&] { return Load(*workers_[0]).running_requests() == 1; }));
  router_->process().Signal(SIGTERM);
  workers_[0]->process().Signal(SIGTERM);
  caller.join();
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.token_ids.size(), 400u);
  EXPECT_EQ(router_->process().Wait(absl::Seconds(20)), 0) << router_->process().Log();
  EXPECT_EQ(workers_[0]->process().Wait(absl::Seconds(20)), 0) << workers_[0]->process().Log();
}

// --kv-precision arrives at the executor, which takes it or says what it takes.
TEST_F(ClusterTest, Fp8CachesAreRefusedWithoutAGpu) {
  const auto log_of = [&](const char* flag) {
    Process worker(folder_, "worker",
                   {BinFile("ultraspeed-worker"), absl::StrCat("--model=", kModelFolder),
                    "--device=cpu", "--listen=127.0.0.1:0", flag});
    EXPECT_EQ(worker.Wait(absl::Minutes(1)), 1) << flag;
    return worker.Log();
  };
  EXPECT_THAT(log_of("--kv-precision=fp8"),
              ::testing::HasSubstr("kv_precision: is fp8; the CPU executor takes bf16 only"));
  for (const char* flag : {"--kv-precision=fp4", "--drafter-precision=fp4"}) {
    EXPECT_THAT(log_of(flag), ::testing::AllOf(::testing::HasSubstr(std::string(flag).substr(2, 8)),
                                               ::testing::HasSubstr("fp4")));
  }
}

// --resident is a flag of every build: without a GPU, either value leaves the executor as it is.
TEST_F(ClusterTest, TheResidentEngineIsAFlagThatIsTrueOrFalse) {
  const auto start = [&](const char* flag) {
    return std::make_unique<Process>(
        folder_, "worker",
        std::vector<std::string>{BinFile("ultraspeed-worker"),
                                 absl::StrCat("--model=", kModelFolder), "--device=cpu",
                                 "--listen=127.0.0.1:0", "--kv-precision=fp8", flag});
  };
  for (const char* flag : {"--resident", "--resident=true", "--resident=false"}) {
    const auto worker = start(flag);
    EXPECT_EQ(worker->Wait(absl::Minutes(1)), 1) << flag;
    EXPECT_TRUE(absl::StrContains(worker->Log(), "the CPU executor takes bf16 only"))
        << flag << ": " << worker->Log();
  }
  const auto perhaps = start("--resident=perhaps");
  EXPECT_EQ(perhaps->Wait(absl::Minutes(1)), 1);
  EXPECT_TRUE(absl::StrContains(perhaps->Log(), "resident")) << perhaps->Log();
  EXPECT_TRUE(absl::StrContains(perhaps->Log(), "perhaps")) << perhaps->Log();
}

TEST_F(ClusterTest, TheRouterRefusesToRunOpenByMistake) {
  const auto status_of = [&](std::vector<std::string> flags) {
    flags.insert(flags.begin(), {BinFile("ultraspeed-router"), "--worker=127.0.0.1:1"});
    return Process(folder_, "router", flags).Wait(absl::Seconds(10));
  };
  EXPECT_EQ(status_of({"--listen=127.0.0.1:0"}), 2);
  EXPECT_EQ(status_of({"--listen=0.0.0.0:0", "--no-auth"}), 1);
  EXPECT_EQ(status_of({"--listen=0.0.0.0:0", "--api-keys=" + folder_ + "/keys",
                       "--pepper-file=" + folder_ + "/pepper"}),
            1);  // off loopback without TLS
  EXPECT_EQ(status_of({"--listen=127.0.0.1:0", "--api-keys=/no/such/file",
                       "--pepper-file=" + folder_ + "/pepper"}),
            1);
}

TEST_F(ClusterTest, NoLogHoldsAPromptOrAKey) {
  StartOneOfEach();
  v1::GenerateRequest request = Request(5, "xylophone_sentinel = 1\n");
  ASSERT_TRUE(Generate(request).status.ok());
  request.mutable_options()->set_max_tokens(0);
  ASSERT_FALSE(Generate(request).status.ok());
  ASSERT_TRUE(
      Eventually([&] { return absl::StrContains(router_->process().Log(), "router.request"); }));
  for (const std::string& log : {router_->process().Log(), workers_[0]->process().Log()}) {
    EXPECT_FALSE(absl::StrContains(log, "xylophone_sentinel"));
    EXPECT_FALSE(absl::StrContains(log, kKey));
  }
}

}  // namespace
}  // namespace ultraspeed
