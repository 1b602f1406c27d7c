// Output formats over gRPC: what (scripted) workers are asked for, and what is refused before.
#include <gmock/gmock.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/cluster/router_service_fixture.h"

namespace ultraspeed::router {
namespace {

constexpr char kPersonSchema[] = R"({"type":"object","properties":{"age":{"type":"integer"}}})";

class OutputFormatTest : public RouterServiceTest {
 protected:
  static v1::ChatRequest ChatFor(bool enable_thinking) {
    v1::ChatRequest request;
    request.set_model("fake");
    request.set_enable_thinking(enable_thinking);
    v1::ChatMessage* message = request.add_messages();
    message->set_role(v1::ROLE_USER);
    message->set_content("How old?");
    request.mutable_options()->mutable_output_format()->set_json_schema(kPersonSchema);
    return request;
  }

  Answer Chat(const v1::ChatRequest& request) {
    grpc::ClientContext context;
    Answer answer;
    auto reader = stub_->Chat(&context, request);
    v1::GenerateChunk chunk;
    while (reader->Read(&chunk)) {
      answer.text += chunk.text();
      answer.chunks.push_back(chunk);
    }
    answer.status = reader->Finish();
    return answer;
  }

  static int32_t MarkId(const std::string& mark) { return *TestTokenizer().TokenId(mark); }
};

TEST_F(OutputFormatTest, AWorkerIsAskedForIt) {
  FakeWorker& worker = AddWorker();
  StartRouter();
  v1::GenerateRequest request = Request();
  EXPECT_TRUE(Generate(request).status.ok());
  EXPECT_FALSE(worker.last_request().has_output_format());
  request.mutable_options()->mutable_output_format()->set_json_schema(kPersonSchema);
  EXPECT_TRUE(Generate(request).status.ok());
  EXPECT_EQ(worker.last_request().output_format().json_schema(), kPersonSchema);
  EXPECT_FALSE(worker.last_request().has_output_format_after_token_id());
  request.mutable_options()->mutable_output_format()->set_json_object(true);
  EXPECT_TRUE(Generate(request).status.ok());
  EXPECT_TRUE(worker.last_request().output_format().json_object());

  const Answer answer = Chat(ChatFor(false));
  EXPECT_EQ(answer.text, "hello world");
  EXPECT_EQ(worker.last_request().output_format().json_schema(), kPersonSchema);
  EXPECT_FALSE(worker.last_request().has_output_format_after_token_id());
}

TEST_F(OutputFormatTest, ThoughtsAreOpenedForTheModelAndTheFormatBeginsBehindThem) {
  const std::string rest = "hm</think>{}";
  const std::vector<FakeStep> steps = StepsOf(rest);
  FakeWorker& worker = AddWorker({.script = PlaySteps(steps, v1::FINISH_REASON_STOP)});
  StartRouter();
  v1::ChatRequest request = ChatFor(true);
  const Answer answer = Chat(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "<think>hm</think>{}");
  const v1::WorkerGenerateRequest asked = worker.last_request();
  EXPECT_EQ(asked.output_format_after_token_id(), MarkId("</think>"));
  EXPECT_EQ(*asked.prompt_token_ids().rbegin(), MarkId("<think>"));
  EXPECT_EQ(answer.last().usage().completion_tokens(), static_cast<int64_t>(steps.size()));
  EXPECT_EQ(answer.last().usage().reasoning_tokens(),
            static_cast<int64_t>(Encode("hm</think>", SpecialTokens::kParse).size()));

  grpc::ClientContext context;
  v1::TokenizeResponse prompt;
  EXPECT_TRUE(stub_->TokenizeChat(&context, request, &prompt).ok());
  EXPECT_EQ(prompt.token_ids_size(), asked.prompt_token_ids_size());

  // Without a format the model opens them, if it likes.
  request.mutable_options()->clear_output_format();
  EXPECT_EQ(Chat(request).text, rest);
  EXPECT_FALSE(worker.last_request().has_output_format_after_token_id());
  EXPECT_NE(*worker.last_request().prompt_token_ids().rbegin(), MarkId("<think>"));
}

TEST_F(OutputFormatTest, TheWorkerThatGoesOnIsAskedForItToo) {
  const std::vector<FakeStep> whole = StepsOf("because</think>{\"age\": 7}");
  const FakeWorker::Script script = [&](const v1::WorkerGenerateRequest& request,
                                        grpc::ServerContext* context, FakeWorker::Writer* writer) {
    if (request.resumed_tokens() > 0) return PlaySteps(whole)(request, context, writer);
    return PlayStepsThenFail({whole.begin(), whole.begin() + 2},
                             grpc::Status(grpc::StatusCode::INTERNAL, "boom"))(request, context,
                                                                               writer);
  };
  for (int i = 0; i < 2; ++i) AddWorker({.script = script});
  StartRouter();
  const Answer answer = Chat(ChatFor(true));
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "<think>because</think>{\"age\": 7}");
  for (const auto& worker : workers_) {
    EXPECT_EQ(worker->last_request().output_format().json_schema(), kPersonSchema);
    EXPECT_EQ(worker->last_request().output_format_after_token_id(), MarkId("</think>"));
  }
  EXPECT_EQ(
      workers_[0]->last_request().resumed_tokens() + workers_[1]->last_request().resumed_tokens(),
      2);
}

TEST_F(OutputFormatTest, WhatCannotBeHeldToReachesNoWorker) {
  FakeWorker& worker = AddWorker();
  StartRouter();
  v1::ChatRequest request = ChatFor(true);
  request.mutable_options()->mutable_output_format()->set_json_schema(
      R"({"items":{"type":"integer","not":{}}})");
  const Answer answer = Chat(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(answer.status.error_message(),
            "options.output_format.json_schema.items: \"not\" is not supported");
  EXPECT_EQ(worker.num_requests(), 0);
}

}  // namespace
}  // namespace ultraspeed::router
