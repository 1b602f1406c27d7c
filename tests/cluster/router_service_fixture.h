// The router's service, relay and worker pool in this process, against fake workers and over real
// loopback gRPC.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/server_builder.h"
#include "router/inference_service.h"
#include "tests/cluster/eventually.h"
#include "tests/fake_worker/fake_worker.h"

namespace ultraspeed::router {

using testing::FakeStep;
using testing::FakeWorker;
using testing::PlaySteps;
using testing::PlayStepsThenFail;
using testing::PlayStepsThenHang;

inline constexpr char kTokenizerFile[] = "models/tiny-mimo/tokenizer.json";

inline const std::string& TokenizerJson() {
  static const std::string* const json = [] {
    std::ifstream file(kTokenizerFile, std::ios::binary);
    return new std::string(std::istreambuf_iterator<char>(file), {});
  }();
  return *json;
}

inline const Tokenizer& TestTokenizer() {
  static const Tokenizer* const tokenizer = Tokenizer::Create(TokenizerJson())->release();
  return *tokenizer;
}

inline std::vector<int32_t> Encode(const std::string& text,
                                   SpecialTokens special = SpecialTokens::kAsText) {
  return *TestTokenizer().Encode(text, special);
}

// One step per token of `text`, in which spellings of added tokens are these tokens.
inline std::vector<FakeStep> StepsOf(const std::string& text,
                                     absl::Duration delay = absl::ZeroDuration()) {
  std::vector<FakeStep> steps;
  for (const int32_t id : Encode(text, SpecialTokens::kParse)) steps.push_back({delay, {id}});
  return steps;
}

template <typename Predicate>
bool Eventually(Predicate predicate, absl::Duration timeout = absl::Seconds(5)) {
  return ultraspeed::testing::Eventually(predicate, timeout);
}

struct Answer {
  std::vector<v1::GenerateChunk> chunks;
  std::string text;
  grpc::Status status;
  std::string header_request_id;
  absl::Duration duration;

  const v1::GenerateChunk& last() const { return chunks.back(); }
};

class RouterServiceTest : public ::testing::Test {
 protected:
  FakeWorker& AddWorker(FakeWorker::Options options = {}) {
    if (options.tokenizer_json.empty()) options.tokenizer_json = TokenizerJson();
    if (!options.script) options.script = PlaySteps(StepsOf("hello world"));
    workers_.push_back(std::make_unique<FakeWorker>(std::move(options)));
    return *workers_.back();
  }

  void StartRouter(const Authenticator* keys = nullptr, int num_ready = -1) {
    WorkerPool::Options options;
    for (const auto& worker : workers_) options.addresses.push_back(worker->address());
    options.tls.insecure = true;
    options.load_interval = absl::Milliseconds(20);
    options.call_timeout = absl::Milliseconds(300);
    options.on_capacity = [this](const std::string& model, const QueueCapacity& capacity) {
      queue_->SetCapacity(model, capacity);
    };
    queue_ = std::make_unique<RequestQueue>(RequestQueue::Options{});
    auto pool = WorkerPool::Create(std::move(options));
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
    service_ =
        std::make_unique<InferenceService>(InferenceService::Options{.pool = pool_.get(),
                                                                     .queue = queue_.get(),
                                                                     .admission = &admission_,
                                                                     .keys = keys,
                                                                     .metrics = &router_metrics_,
                                                                     .worker_wait = worker_wait_});
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    router_address_ = absl::StrCat("127.0.0.1:", port);
    stub_ = v1::Inference::NewStub(
        grpc::CreateChannel(router_address_, grpc::InsecureChannelCredentials()));
    if (num_ready < 0) num_ready = static_cast<int>(workers_.size());
    ASSERT_TRUE(Eventually([&] { return NumIn(WorkerState::kReady) == num_ready; }));
  }

  void TearDown() override {
    if (server_ != nullptr) server_->Shutdown(absl::ToChronoTime(absl::Now() + absl::Seconds(1)));
    server_.reset();
    service_.reset();
    pool_.reset();
    queue_.reset();
    workers_.clear();
  }

  int NumIn(WorkerState state) const { return pool_->CountStates()[static_cast<int>(state)]; }

  static v1::GenerateRequest Request(const std::string& prompt = "say something") {
    v1::GenerateRequest request;
    request.set_model("fake");
    request.set_prompt(prompt);
    return request;
  }

  Answer Generate(const v1::GenerateRequest& request, grpc::ClientContext* context = nullptr) {
    grpc::ClientContext own_context;
    if (context == nullptr) context = &own_context;
    Answer answer;
    const absl::Time start = absl::Now();
    auto reader = stub_->Generate(context, request);
    v1::GenerateChunk chunk;
    while (reader->Read(&chunk)) {
      answer.text += chunk.text();
      answer.chunks.push_back(chunk);
    }
    answer.status = reader->Finish();
    answer.duration = absl::Now() - start;
    const auto& headers = context->GetServerInitialMetadata();
    if (const auto found = headers.find("x-request-id"); found != headers.end()) {
      answer.header_request_id = std::string(found->second.data(), found->second.size());
    }
    return answer;
  }

  std::vector<std::unique_ptr<FakeWorker>> workers_;
  absl::Duration worker_wait_ = absl::ZeroDuration();
  Metrics metrics_;
  RouterMetrics router_metrics_{&metrics_};
  const Admission admission_{{}};
  std::unique_ptr<RequestQueue> queue_;
  std::unique_ptr<WorkerPool> pool_;
  std::unique_ptr<InferenceService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::string router_address_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

// ---- The good path ----

}  // namespace ultraspeed::router
