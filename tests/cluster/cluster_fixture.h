// Router and workers as processes on loopback with the bundled model, and one client.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/security/credentials.h"
#include "tests/cluster/eventually.h"
#include "tests/cluster/process.h"
#include "tests/temporary_folder.h"
#include "ultraspeed/v1/inference.grpc.pb.h"
#include "ultraspeed/v1/worker.grpc.pb.h"

namespace ultraspeed {

using testing::BinFile;
using testing::Process;
using testing::Server;

inline constexpr char kModelFolder[] = "models/tiny-mimo";
inline constexpr char kModel[] = "tiny-mimo";
inline constexpr char kPrompt[] = "def fibonacci(n):\n    \"\"\"Return the n-th number.\"\"\"\n";
inline constexpr char kKey[] = "us-0123456789abcdef0123456789abcdef";

template <typename Predicate>
bool Eventually(Predicate predicate, absl::Duration timeout = absl::Seconds(20)) {
  return ultraspeed::testing::Eventually(predicate, timeout);
}

struct Answer {
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<v1::GenerateChunk> chunks;
  grpc::Status status;
  absl::Duration duration;

  const v1::GenerateChunk& last() const { return chunks.back(); }
};

class ClusterTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(testing::WriteKeyFiles(folder_, kKey)); }

  void TearDown() override {
    router_.reset();
    workers_.clear();
    if (HasFailure()) temporary_.Keep();
  }

  // port 0 = a free one.
  Server& StartWorker(int port = 0, const std::vector<std::string>& more_flags = {}) {
    std::vector<std::string> flags = {absl::StrCat("--model=", kModelFolder),
                                      absl::StrCat("--listen=127.0.0.1:", port), "--threads=1",
                                      "--drain-timeout=30s",
                                      "--draft-cost=served-shape"};  // measuring takes a second
    flags.insert(flags.end(), more_flags.begin(), more_flags.end());
    workers_.push_back(std::make_unique<Server>(folder_, absl::StrCat("worker", workers_.size()),
                                                "ultraspeed-worker", flags));
    EXPECT_TRUE(workers_.back()->AwaitReady()) << workers_.back()->process().Log();
    return *workers_.back();
  }

  void StartRouter(const std::vector<std::string>& more_flags = {}) {
    std::vector<std::string> flags = {
        "--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", "--api-keys=" + folder_ + "/keys",
        "--pepper-file=" + folder_ + "/pepper", "--drain-timeout=30s"};
    flags.insert(flags.end(), more_flags.begin(), more_flags.end());
    for (const auto& worker : workers_) flags.push_back("--worker=" + worker->address());
    router_ = std::make_unique<Server>(folder_, "router", "ultraspeed-router", flags);
    ASSERT_TRUE(router_->AwaitReady()) << router_->process().Log();
    stub_ = v1::Inference::NewStub(
        grpc::CreateChannel(router_->address(), grpc::InsecureChannelCredentials()));
    ASSERT_TRUE(AwaitWorkersReady(static_cast<int>(workers_.size())));
  }

  void StartOneOfEach() {
    StartWorker();
    StartRouter();
  }

  bool AwaitWorkersReady(int count) {
    return Eventually([&] {
      grpc::ClientContext context;
      AddKey(&context);
      v1::ListModelsResponse response;
      return stub_->ListModels(&context, {}, &response).ok() && response.models_size() == 1 &&
             response.models(0).workers_ready() == count;
    });
  }

  static void AddKey(grpc::ClientContext* context) {
    context->AddMetadata("authorization", absl::StrCat("Bearer ", kKey));
  }

  static v1::GenerateRequest Request(int max_tokens, const std::string& prompt = kPrompt) {
    v1::GenerateRequest request;
    request.set_model(kModel);
    request.set_prompt(prompt);
    request.mutable_options()->set_max_tokens(max_tokens);
    request.mutable_options()->mutable_sampling()->set_temperature(0);
    return request;
  }

  // Runs until something ends it: several thousand tokens.
  static v1::GenerateRequest LongRequest() {
    v1::GenerateRequest request = Request(8000);
    request.mutable_options()->set_ignore_eos(true);
    return request;
  }

  static void AddMessage(v1::ChatRequest* request, v1::Role role, const std::string& content) {
    v1::ChatMessage* const message = request->add_messages();
    message->set_role(role);
    message->set_content(content);
  }

  Answer Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    AddKey(&context);
    return Read(stub_->Generate(&context, request));
  }

  static Answer Read(std::unique_ptr<grpc::ClientReader<v1::GenerateChunk>> reader) {
    Answer answer;
    const absl::Time start = absl::Now();
    v1::GenerateChunk chunk;
    while (reader->Read(&chunk)) {
      answer.text += chunk.text();
      answer.token_ids.insert(answer.token_ids.end(), chunk.token_ids().begin(),
                              chunk.token_ids().end());
      answer.chunks.push_back(chunk);
    }
    answer.status = reader->Finish();
    answer.duration = absl::Now() - start;
    return answer;
  }

  // Kills the worker that runs a request, with SIGKILL; its port, 0: there is none.
  int KillBusyWorker() {
    const auto busy = std::find_if(workers_.begin(), workers_.end(), [](const auto& worker) {
      return Load(*worker).running_requests() == 1;
    });
    if (busy == workers_.end()) return 0;
    const int port = (*busy)->port();
    (*busy)->process().Signal(SIGKILL);
    workers_.erase(busy);
    return port;
  }

  static v1::GetLoadResponse Load(Server& worker) {
    const auto stub = v1::Worker::NewStub(
        grpc::CreateChannel(worker.address(), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    v1::GetLoadResponse response;
    EXPECT_TRUE(stub->GetLoad(&context, {}, &response).ok());
    return response;
  }

  // The `ultraspeed` program; `words` after the command get --server.
  std::unique_ptr<Process> Client(std::vector<std::string> words, const std::string& key = kKey,
                                  const std::string& input_file = "/dev/null") {
    words.insert(words.begin(), BinFile("ultraspeed"));
    words.insert(words.begin() + 2, "--server=" + router_->address());
    return std::make_unique<Process>(
        folder_, "client", words, std::map<std::string, std::string>{{"ULTRASPEED_API_KEY", key}},
        input_file);
  }

  // What grpc.health.v1.Health/Check says of `service`: 1 = serving, 2 = not, -1 = no answer.
  // Hand-made messages of one field each.
  int Health(const std::string& service) {
    grpc::GenericStub stub(
        grpc::CreateChannel(router_->address(), grpc::InsecureChannelCredentials()));
    std::string bytes =
        absl::StrCat("\x0a", std::string(1, static_cast<char>(service.size())), service);
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    grpc::ByteBuffer response;
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", request, &queue);
    grpc::Status status;
    call->StartCall();
    call->Finish(&response, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    std::vector<grpc::Slice> slices;
    if (!status.ok() || !response.Dump(&slices).ok() || slices.empty() || slices[0].size() != 2)
      return -1;
    return slices[0].begin()[1];
  }

  void ExpectRefused(const v1::GenerateRequest& request, grpc::StatusCode code,
                     const std::string& name, const std::string& value) {
    const Answer answer = Generate(request);
    EXPECT_EQ(answer.status.error_code(), code) << answer.status.error_message();
    EXPECT_TRUE(absl::StrContains(answer.status.error_message(), name))
        << answer.status.error_message();
    EXPECT_TRUE(absl::StrContains(answer.status.error_message(), value))
        << answer.status.error_message();
  }

  TemporaryFolder temporary_;
  const std::string folder_ = temporary_.path();
  std::vector<std::unique_ptr<Server>> workers_;
  std::unique_ptr<Server> router_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

}  // namespace ultraspeed
