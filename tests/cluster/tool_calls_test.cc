// Tools over gRPC: what the model is told, and calls as their tokens come from (scripted) workers.
#include <gmock/gmock.h>

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/cluster/router_service_fixture.h"

namespace ultraspeed::router {
namespace {

using ::testing::HasSubstr;

constexpr char kCalls[] =
    "I look.<tool_call>\n<function=get_weather>\n<parameter=city>Zürich</parameter>\n"
    "<parameter=days>3</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n"
    "</function>\n</tool_call>";

class ToolCallsTest : public RouterServiceTest {
 protected:
  struct ToolAnswer {
    std::string text;
    std::vector<v1::ToolCallDelta> calls;  // whole
    v1::GenerateChunk last;
    grpc::Status status;
  };

  static v1::ChatRequest Ask() {
    v1::ChatRequest request;
    request.set_model("fake");
    request.set_enable_thinking(false);
    v1::ChatMessage* message = request.add_messages();
    message->set_role(v1::ROLE_USER);
    message->set_content("How is it in Zürich?");
    v1::Tool* tool = request.add_tools();
    tool->set_name("get_weather");
    tool->set_parameters_json(
        R"({"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer"}}})");
    request.add_tools()->set_name("now");
    return request;
  }

  ToolAnswer Chat(const v1::ChatRequest& request) {
    grpc::ClientContext context;
    ToolAnswer answer;
    auto reader = stub_->Chat(&context, request);
    while (reader->Read(&answer.last)) {
      answer.text += answer.last.text();
      for (const v1::ToolCallDelta& delta : answer.last.tool_calls()) {
        if (!delta.id().empty()) {
          EXPECT_EQ(delta.index(), static_cast<int>(answer.calls.size()));
          answer.calls.push_back(delta);
        } else if (!answer.calls.empty()) {
          EXPECT_EQ(delta.index(), answer.calls.back().index());
          answer.calls.back().mutable_arguments()->append(delta.arguments());
        }
      }
    }
    answer.status = reader->Finish();
    return answer;
  }

  std::string PromptText(const FakeWorker& worker) {
    std::string text;
    const v1::WorkerGenerateRequest request = worker.last_request();
    for (const int32_t id : request.prompt_token_ids())
      absl::StrAppend(&text, TestTokenizer().TokenBytes(id));
    return text;
  }

  static void ExpectTheCalls(const ToolAnswer& answer) {
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.text, "I look.");
    ASSERT_EQ(answer.calls.size(), 2u);
    EXPECT_EQ(answer.calls[0].name(), "get_weather");
    EXPECT_EQ(answer.calls[0].arguments(), R"({"city":"Zürich","days":3})");
    EXPECT_EQ(answer.calls[1].name(), "now");
    EXPECT_EQ(answer.calls[1].arguments(), "{}");
    EXPECT_NE(answer.calls[0].id(), answer.calls[1].id());
    EXPECT_EQ(answer.last.finish_reason(), v1::FINISH_REASON_TOOL_CALLS);
  }
};

TEST_F(ToolCallsTest, CallsArriveAsTheirTokensCome) {
  const std::vector<FakeStep> steps = StepsOf(kCalls);
  FakeWorker& worker = AddWorker({.script = PlaySteps(steps, v1::FINISH_REASON_STOP)});
  StartRouter();
  const ToolAnswer answer = Chat(Ask());
  ExpectTheCalls(answer);
  EXPECT_EQ(answer.last.usage().completion_tokens(), static_cast<int64_t>(steps.size()));
  const std::string prompt = PromptText(worker);
  EXPECT_THAT(prompt, HasSubstr("<function>\n<name>get_weather</name>"));
  EXPECT_THAT(prompt, HasSubstr("<name>days</name>\n<type>integer</type>"));
}

TEST_F(ToolCallsTest, WithoutToolsTheSameTokensAreText) {
  AddWorker({.script = PlaySteps(StepsOf(kCalls), v1::FINISH_REASON_STOP)});
  StartRouter();
  v1::ChatRequest request = Ask();
  request.set_tool_choice(v1::TOOL_CHOICE_NONE);
  const ToolAnswer answer = Chat(request);
  EXPECT_EQ(answer.text, kCalls);
  EXPECT_TRUE(answer.calls.empty());
  EXPECT_EQ(answer.last.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_THAT(PromptText(*workers_[0]), ::testing::Not(HasSubstr("# Tools")));
}

TEST_F(ToolCallsTest, TheResultsGoBackWithTheCalls) {
  FakeWorker& worker = AddWorker();
  StartRouter();
  v1::ChatRequest request = Ask();
  v1::ChatMessage* calls = request.add_messages();
  calls->set_role(v1::ROLE_ASSISTANT);
  v1::ToolCall* call = calls->add_tool_calls();
  call->set_id("a");
  call->set_name("get_weather");
  call->set_arguments_json(R"({"city":"Zürich","days":3})");
  v1::ChatMessage* result = request.add_messages();
  result->set_role(v1::ROLE_TOOL);
  result->set_tool_call_id("a");
  result->set_content("rain");
  EXPECT_EQ(Chat(request).text, "hello world");
  EXPECT_THAT(PromptText(worker),
              HasSubstr("<think></think><tool_call>\n<function=get_weather>\n"
                        "<parameter=city>Zürich</parameter>\n<parameter=days>3</parameter>\n"
                        "</function>\n</tool_call><|im_end|><|im_start|>tool\n<tool_response>\n"
                        "rain\n</tool_response>\n<|im_end|><|im_start|>assistant\n"));
  call->set_arguments_json("[]");
  const ToolAnswer refused = Chat(request);
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(refused.status.error_message(),
            "messages[1].tool_calls[0].arguments_json is no JSON object");
}

TEST_F(ToolCallsTest, ARequiredCallIsBegunForTheModel) {
  const std::string rest = "<parameter=city>Bern</parameter>\n</function>\n</tool_call>";
  FakeWorker& worker = AddWorker({.script = PlaySteps(StepsOf(rest), v1::FINISH_REASON_STOP)});
  StartRouter();
  v1::ChatRequest request = Ask();
  request.clear_enable_thinking();
  request.set_tool_choice(v1::TOOL_CHOICE_REQUIRED);
  request.set_required_tool("get_weather");
  const ToolAnswer answer = Chat(request);
  EXPECT_TRUE(
      absl::EndsWith(PromptText(worker), "<think></think><tool_call>\n<function=get_weather>\n"));
  EXPECT_EQ(answer.text, "");
  ASSERT_EQ(answer.calls.size(), 1u);
  EXPECT_EQ(answer.calls[0].arguments(), R"({"city":"Bern"})");
  EXPECT_EQ(answer.last.finish_reason(), v1::FINISH_REASON_TOOL_CALLS);
}

TEST_F(ToolCallsTest, TheFirstCallEndsTheAnswerIfThereMayBeOneOnly) {
  FakeWorker& worker = AddWorker({.script = PlayStepsThenHang(StepsOf(kCalls))});
  StartRouter();
  v1::ChatRequest request = Ask();
  request.set_parallel_tool_calls(false);
  const ToolAnswer answer = Chat(request);
  ASSERT_EQ(answer.calls.size(), 1u);
  EXPECT_EQ(answer.last.finish_reason(), v1::FINISH_REASON_TOOL_CALLS);
  EXPECT_LT(answer.last.usage().completion_tokens(), static_cast<int64_t>(StepsOf(kCalls).size()));
  EXPECT_TRUE(Eventually([&] { return worker.num_running() == 0; }));
}

// ---- Strict tools ----

constexpr char kStrictSchema[] = R"({"type":"object","properties":{"days":{"type":"integer"}}})";

TEST_F(ToolCallsTest, AWorkerIsAskedToHoldCallsOfStrictTools) {
  FakeWorker& worker = AddWorker();
  StartRouter();
  v1::ChatRequest request = Ask();
  Chat(request);
  EXPECT_FALSE(worker.last_request().has_tool_calls());
  request.mutable_tools(0)->set_strict(true);
  request.mutable_tools(0)->set_parameters_json(kStrictSchema);
  request.mutable_tools(0)->set_description("how it is");
  Chat(request);
  const v1::ToolCallFormat calls = worker.last_request().tool_calls();
  ASSERT_EQ(calls.tools_size(), 2);
  EXPECT_EQ(calls.tools(0).name(), "get_weather");
  EXPECT_TRUE(calls.tools(0).strict());
  EXPECT_EQ(calls.tools(0).parameters_json(), kStrictSchema);
  EXPECT_FALSE(calls.tools(0).has_description());
  EXPECT_EQ(calls.tools(1).name(), "now");
  EXPECT_FALSE(calls.tools(1).strict());
  const Tokenizer& tokenizer = TestTokenizer();
  EXPECT_EQ(calls.begin_token_id(), *tokenizer.TokenId("<tool_call>"));
  EXPECT_EQ(calls.end_token_id(), *tokenizer.TokenId("</tool_call>"));
  EXPECT_EQ(calls.thought_begin_token_id(), *tokenizer.TokenId("<think>"));
  EXPECT_EQ(calls.thought_end_token_id(), *tokenizer.TokenId("</think>"));
  EXPECT_EQ(calls.begun_tokens(), 0);
  request.set_tool_choice(v1::TOOL_CHOICE_NONE);
  Chat(request);
  EXPECT_FALSE(worker.last_request().has_tool_calls());
}

TEST_F(ToolCallsTest, AWorkerIsToldOfTheCallThatThePromptBegins) {
  FakeWorker& worker = AddWorker();
  StartRouter();
  v1::ChatRequest request = Ask();
  request.mutable_tools(0)->set_strict(true);
  request.set_tool_choice(v1::TOOL_CHOICE_REQUIRED);
  Chat(request);
  EXPECT_EQ(worker.last_request().tool_calls().begun_tokens(), 1);
  request.set_required_tool("get_weather");
  Chat(request);
  const v1::WorkerGenerateRequest asked = worker.last_request();
  std::string text;
  for (int i = asked.tool_calls().begun_tokens(); i > 0; --i) {
    const int32_t id = asked.prompt_token_ids(asked.prompt_token_ids_size() - i);
    absl::StrAppend(&text, TestTokenizer().TokenBytes(id));
  }
  EXPECT_EQ(text, "<tool_call>\n<function=get_weather>\n");
}

TEST_F(ToolCallsTest, TheWorkerThatGoesOnHoldsThemToo) {
  const std::vector<FakeStep> steps = StepsOf(kCalls);
  const FakeWorker::Script script = [&](const v1::WorkerGenerateRequest& request,
                                        grpc::ServerContext* context, FakeWorker::Writer* writer) {
    if (request.resumed_tokens() > 0)
      return PlaySteps(steps, v1::FINISH_REASON_STOP)(request, context, writer);
    return PlayStepsThenFail({steps.begin(), steps.begin() + 8},
                             grpc::Status(grpc::StatusCode::INTERNAL, "dies"))(request, context,
                                                                               writer);
  };
  for (int i = 0; i < 2; ++i) AddWorker({.script = script});
  StartRouter();
  v1::ChatRequest request = Ask();
  request.mutable_tools(0)->set_strict(true);
  ExpectTheCalls(Chat(request));
  EXPECT_EQ(workers_[0]->last_request().tool_calls().SerializeAsString(),
            workers_[1]->last_request().tool_calls().SerializeAsString());
  EXPECT_TRUE(workers_[0]->last_request().has_tool_calls());
}

TEST_F(ToolCallsTest, ASchemaThatCannotBeHeldToReachesNoWorker) {
  FakeWorker& worker = AddWorker();
  StartRouter();
  v1::ChatRequest request = Ask();
  request.mutable_tools(1)->set_strict(true);
  request.mutable_tools(1)->set_parameters_json(
      R"({"properties":{"zone":{"type":"integer","not":{}}}})");
  const ToolAnswer answer = Chat(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(answer.status.error_message(),
            "tools[1].parameters_json.properties.zone: \"not\" is not supported");
  EXPECT_EQ(worker.num_requests(), 0);
}

// Wherever a worker fails in the answer, the calls that another one completes are the same.
TEST_F(ToolCallsTest, AnotherWorkerGoesOnInTheMiddleOfACall) {
  const std::vector<FakeStep> steps = StepsOf(kCalls);
  FakeWorker& first = AddWorker();
  FakeWorker& second = AddWorker();
  StartRouter();
  for (size_t num_had = 1; num_had < steps.size(); num_had += 3) {
    const std::vector<FakeStep> begun(steps.begin(), steps.begin() + num_had);
    const auto fail_then_go_on = [steps, begun](const v1::WorkerGenerateRequest& request,
                                                grpc::ServerContext* context,
                                                FakeWorker::Writer* writer) {
      return request.resumed_tokens() == 0
                 ? PlayStepsThenFail(begun, grpc::Status(grpc::StatusCode::INTERNAL, "dies"))(
                       request, context, writer)
                 : PlaySteps(steps, v1::FINISH_REASON_STOP)(request, context, writer);
    };
    first.SetScript(fail_then_go_on);
    second.SetScript(fail_then_go_on);
    ExpectTheCalls(Chat(Ask()));
  }
}

}  // namespace
}  // namespace ultraspeed::router
