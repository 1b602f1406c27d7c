// The HTTP front of a real router with a store, in front of a real worker with the bundled model.
#pragma once

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "tests/cluster/eventually.h"
#include "tests/cluster/http_client.h"
#include "tests/cluster/process.h"
#include "tests/temporary_folder.h"
#include "ultraspeed/v1/inference.grpc.pb.h"
#include "ultraspeed/v1/worker.grpc.pb.h"

namespace ultraspeed::testing {

struct GrpcAnswer {
  std::string text;
  v1::GenerateChunk last;
};

// One worker and one router for all tests; what a test sets up for itself it ends itself.
class HttpClusterTest : public ::testing::Test {
 protected:
  static constexpr char kCode[] =
      "def fibonacci(n):\\n    \\\"\\\"\\\"Return the n-th number.\\\"\\\"\\\"\\n";
  static constexpr char kQuestion[] =
      "Write a function that adds two numbers. \\u03c0 \\ud83d\\ude42";

  template <typename Predicate>
  static bool Eventually(Predicate predicate, absl::Duration timeout = absl::Seconds(10)) {
    return ultraspeed::testing::Eventually(predicate, timeout);
  }

  static void SetUpTestSuite() {
    temporary_ = new TemporaryFolder();
    worker_ = StartWorker().release();
    router_ = StartRouter("router").release();
    open_key_ = NewTenant("open", "");
    tight_key_ = NewTenant("tight", "standard:requests_per_minute=2");
    poor_key_ = NewTenant("poor", "", "--monthly-budget=0.000001");
    stub_ = v1::Inference::NewStub(
                grpc::CreateChannel(router_->address(), grpc::InsecureChannelCredentials()))
                .release();
    EXPECT_TRUE(Eventually([] { return Ask(HttpGetRequest("/readyz", "")).status == 200; }));
    EXPECT_TRUE(
        Eventually([] { return Ask(HttpGetRequest("/v1/models", poor_key_)).status == 200; }));
  }
  static void TearDownTestSuite() {
    delete stub_;
    delete router_;
    delete worker_;
    delete temporary_;
  }

  static std::unique_ptr<Server> StartWorker() {
    auto worker = std::make_unique<Server>(
        temporary_->path(), "worker", "ultraspeed-worker",
        std::vector<std::string>{"--model=models/tiny-mimo", "--listen=127.0.0.1:0", "--threads=1",
                                 "--drain-timeout=30s", "--draft-cost=served-shape"});
    EXPECT_TRUE(worker->AwaitReady()) << worker->process().Log();
    return worker;
  }
  // All of them on the same store.
  static std::unique_ptr<Server> StartRouter(const std::string& name) {
    const std::string folder = temporary_->path();
    std::ofstream(folder + "/pepper") << "a pepper of some length";
    std::ofstream(folder + "/tokens") << "alice 0123456789abcdef0123456789abcdef\n";
    auto router = std::make_unique<Server>(
        folder, name, "ultraspeed-router",
        std::vector<std::string>{
            "--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0",
            "--metrics-listen=127.0.0.1:0", "--store=sqlite:" + folder + "/store.db",
            "--pepper-file=" + folder + "/pepper", "--admin-token-file=" + folder + "/tokens",
            "--worker=" + worker_->address(), "--drain-timeout=20s"});
    EXPECT_TRUE(router->AwaitReady()) << router->process().Log();
    return router;
  }

  static std::string Admin(std::vector<std::string> words) {
    words.insert(words.begin(), {BinFile("ultraspeed"), "admin"});
    words.push_back(absl::StrCat("--server=127.0.0.1:", router_->admin_port()));
    words.push_back("--token-file=" + temporary_->path() + "/tokens");
    Process process(temporary_->path(), "admin", std::move(words));
    EXPECT_EQ(process.Wait(absl::Seconds(20)), 0) << process.Log();
    return process.Output();
  }
  // A key of a new tenant that may use both tiers.
  static std::string NewTenant(const std::string& id, const std::string& limits,
                               const std::string& more = "") {
    std::vector<std::string> words = {"tenants", "create", id,
                                      "--entitlements=tiny-*:standard,tiny-*:ultraspeed"};
    if (!limits.empty()) words.push_back("--limits=" + limits);
    if (!more.empty()) words.push_back(more);
    Admin(std::move(words));
    return std::string(absl::StripAsciiWhitespace(Admin({"keys", "create", id})));
  }

  static HttpResponse Ask(const std::string& request) {
    HttpConnection connection(router_->http_port());
    connection.Send(request);
    return connection.Receive();
  }
  static HttpResponse AskChat(const std::string& fields, const std::string& key = open_key_) {
    return Ask(
        HttpPost("/v1/chat/completions",
                 absl::StrCat(R"({"model":"tiny-mimo","messages":[{"role":"user","content":")",
                              kQuestion, "\"}],", fields, "}"),
                 key));
  }
  static HttpResponse AskCompletion(const std::string& fields, const std::string& key = open_key_) {
    return Ask(HttpPost(
        "/v1/completions",
        absl::StrCat(R"({"model":"tiny-mimo","prompt":")", kCode, "\",", fields, "}"), key));
  }
  // Runs until something ends it.
  static std::string LongCompletion(const std::string& key = open_key_) {
    return HttpPost("/v1/completions",
                    absl::StrCat(R"({"model":"tiny-mimo","prompt":")", kCode,
                                 R"(","max_tokens":8000,"ignore_eos":true,"stream":true})"),
                    key);
  }

  static void SetOptions(v1::GenerateOptions* options) {
    options->set_max_tokens(60);
    options->set_ignore_eos(true);
    options->mutable_sampling()->set_temperature(0.8f);
    options->mutable_sampling()->set_seed(4711);
  }
  static constexpr char kSameOptions[] =
      R"("max_tokens":60,"ignore_eos":true,"temperature":0.8,"seed":4711)";

  template <typename Reader>
  static GrpcAnswer ReadAll(std::unique_ptr<Reader> reader) {
    GrpcAnswer answer;
    v1::GenerateChunk chunk;
    while (reader->Read(&chunk)) {
      answer.text += chunk.text();
      answer.last = chunk;
    }
    EXPECT_TRUE(reader->Finish().ok());
    return answer;
  }
  static GrpcAnswer GrpcCompletion() {
    v1::GenerateRequest request;
    request.set_model("tiny-mimo");
    request.set_prompt(boost::json::parse(absl::StrCat("\"", kCode, "\"")).as_string().c_str());
    SetOptions(request.mutable_options());
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + open_key_);
    return ReadAll(stub_->Generate(&context, request));
  }
  static GrpcAnswer GrpcChat() {
    v1::ChatRequest request;
    request.set_model("tiny-mimo");
    v1::ChatMessage* message = request.add_messages();
    message->set_role(v1::ROLE_USER);
    message->set_content(
        boost::json::parse(absl::StrCat("\"", kQuestion, "\"")).as_string().c_str());
    SetOptions(request.mutable_options());
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer " + open_key_);
    return ReadAll(stub_->Chat(&context, request));
  }

  static int NumRunning() {
    const auto stub = v1::Worker::NewStub(
        grpc::CreateChannel(worker_->address(), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    v1::GetLoadResponse response;
    EXPECT_TRUE(stub->GetLoad(&context, {}, &response).ok());
    return response.running_requests();
  }

  static void ExpectUsage(const boost::json::value& usage, const v1::Usage& expected) {
    EXPECT_EQ(usage.at("prompt_tokens"), expected.prompt_tokens());
    EXPECT_EQ(usage.at("completion_tokens"), expected.completion_tokens());
    EXPECT_EQ(usage.at("total_tokens"), expected.prompt_tokens() + expected.completion_tokens());
  }

  static inline TemporaryFolder* temporary_ = nullptr;
  static inline Server* worker_ = nullptr;
  static inline Server* router_ = nullptr;
  static inline v1::Inference::Stub* stub_ = nullptr;
  static inline std::string open_key_, tight_key_, poor_key_;
};

}  // namespace ultraspeed::testing
