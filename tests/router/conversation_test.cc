#include "router/conversation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "common/limits.h"

namespace ultraspeed::router {
namespace {

using ::testing::HasSubstr;

v1::ChatMessage* Add(v1::Role role, const std::string& content, v1::ChatRequest* request) {
  v1::ChatMessage* message = request->add_messages();
  message->set_role(role);
  message->set_content(content);
  return message;
}

void AddCall(const std::string& id, v1::ChatMessage* message) {
  v1::ToolCall* call = message->add_tool_calls();
  call->set_id(id);
  call->set_name("f");
  call->set_arguments_json(R"({"x": 1})");
}

void AddResult(const std::string& id, const std::string& content, v1::ChatRequest* request) {
  Add(v1::ROLE_TOOL, content, request)->set_tool_call_id(id);
}

v1::ChatRequest WithTools() {
  v1::ChatRequest request;
  Add(v1::ROLE_USER, "Hello", &request);
  v1::Tool* tool = request.add_tools();
  tool->set_name("f");
  tool->set_description("d");
  tool->set_parameters_json(R"({"type": "object"})");
  return request;
}

void ExpectRefused(const v1::ChatRequest& request, const std::string& words) {
  const absl::Status status = ValidateConversation(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(words));
}

TEST(Conversation, ToolsArrive) {
  v1::ChatRequest request = WithTools();
  request.add_tools()->set_name("bare");
  request.set_parallel_tool_calls(false);
  const auto conversation = ValidateConversation(request);
  ASSERT_TRUE(conversation.ok()) << conversation.status();
  ASSERT_EQ(conversation->tools.functions.size(), 2u);
  EXPECT_EQ(conversation->tools.functions[0].description, "d");
  EXPECT_EQ(conversation->tools.functions[0].parameters, R"({"type": "object"})");
  EXPECT_EQ(conversation->tools.functions[1].description, std::nullopt);
  EXPECT_FALSE(conversation->tools.call_required);
  EXPECT_FALSE(conversation->parallel_tool_calls);
}

TEST(Conversation, ToolChoices) {
  v1::ChatRequest request = WithTools();
  request.set_tool_choice(v1::TOOL_CHOICE_NONE);
  EXPECT_TRUE(ValidateConversation(request)->tools.functions.empty());
  request.set_tool_choice(v1::TOOL_CHOICE_REQUIRED);
  EXPECT_TRUE(ValidateConversation(request)->tools.call_required);
  request.set_required_tool("f");
  EXPECT_EQ(ValidateConversation(request)->tools.required_name, "f");
  request.set_required_tool("g");
  ExpectRefused(request, "required_tool is \"g\"; it must be the name of a tool");
  request.set_enable_thinking(true);
  ExpectRefused(request, "enable_thinking is true; it must be false or absent");
  request.set_tool_choice(v1::TOOL_CHOICE_AUTO);
  ExpectRefused(request, "required_tool is \"g\"; it must be empty unless");
  request.set_tool_choice(static_cast<v1::ToolChoice>(9));
  ExpectRefused(request, "tool_choice is 9; it must be 0..3");
  request = WithTools();
  request.clear_tools();
  request.set_tool_choice(v1::TOOL_CHOICE_REQUIRED);
  ExpectRefused(request, "tool_choice is 3; it must be 0..2 where tools has 0 entries");
}

TEST(Conversation, StrictToolsHaveSchemasThatCanBeHeldTo) {
  v1::ChatRequest request = WithTools();
  const char* kSchema =
      R"({"type":"object","properties":{"n":{"type":"integer","not":{}}},"required":["n"]})";
  request.mutable_tools(0)->set_parameters_json(kSchema);
  EXPECT_TRUE(ValidateConversation(request).ok());
  EXPECT_FALSE(ValidateConversation(request)->tools.any_strict());
  request.add_tools()->set_name("g");
  request.mutable_tools(1)->set_strict(true);
  EXPECT_TRUE(ValidateConversation(request)->tools.any_strict());
  EXPECT_TRUE(ValidateConversation(request)->tools.functions[1].is_strict);
  request.mutable_tools(0)->set_strict(true);
  ExpectRefused(request, "tools[0].parameters_json.properties.n: \"not\" is not supported");
  request.set_tool_choice(v1::TOOL_CHOICE_NONE);  // nothing is held
  EXPECT_TRUE(ValidateConversation(request).ok());
  request.clear_tool_choice();
  request.mutable_tools(0)->set_parameters_json(
      absl::StrCat(R"({"title":")", std::string(limits::kSchemaBytesMax, 't'), "\"}"));
  ExpectRefused(request,
                "tools[0].parameters_json: has 131084 bytes; at most 131072 are supported");
}

TEST(Conversation, ToolsHaveBounds) {
  v1::ChatRequest request = WithTools();
  *request.add_tools() = request.tools(0);
  ExpectRefused(request, "tools[1].name is \"f\"; it must be a name that no tool before it has");
  request.mutable_tools(1)->set_name("a b");
  ExpectRefused(request, "tools[1].name is \"a b\"; it must be of a-z");
  request.mutable_tools(1)->set_name("");
  ExpectRefused(request, "tools[1].name has 0 bytes; it must have 1..128");
  request.mutable_tools(1)->set_name("g");
  request.mutable_tools(1)->set_parameters_json("[]");
  ExpectRefused(request, "tools[1].parameters_json is no JSON object");
  request.mutable_tools(1)->set_parameters_json("{");
  ExpectRefused(request, "tools[1].parameters_json is not valid JSON");
  request.mutable_tools(1)->set_parameters_json(std::string(200, '['));
  ExpectRefused(request, "tools[1].parameters_json is nested deeper than 64 levels");
  request.mutable_tools(1)->clear_parameters_json();
  for (int i = 2; i < 129; ++i) request.add_tools()->set_name(absl::StrCat("t", i));
  ExpectRefused(request, "tools has 129 entries; it must have 0..128");
  request.mutable_tools()->RemoveLast();
  EXPECT_TRUE(ValidateConversation(request).ok());
  request.mutable_tools(3)->set_description(std::string(limits::kPromptBytesMax, 'd'));
  ExpectRefused(request, "bytes together, with tools; they must have 0..8388608");
}

TEST(Conversation, ResultsStandInTheOrderOfTheCalls) {
  v1::ChatRequest request = WithTools();
  v1::ChatMessage* calls = Add(v1::ROLE_ASSISTANT, "", &request);
  for (const char* id : {"a", "b", "c"}) AddCall(id, calls);
  for (const char* id : {"c", "a", "b"}) AddResult(id, id, &request);
  const auto order = [&request] {
    const auto conversation = ValidateConversation(request);
    EXPECT_TRUE(conversation.ok()) << conversation.status();
    EXPECT_EQ(conversation->turns[1].tool_calls[2].name, "f");
    std::string contents;
    for (const ChatTurn& turn : conversation->turns) contents += turn.content;
    return contents;
  };
  EXPECT_EQ(order(), "Helloabc");
  request.mutable_messages(3)->clear_tool_call_id();  // one without says that all are in order
  EXPECT_EQ(order(), "Hellocab");

  AddResult("d", "d", &request);
  request.mutable_messages(3)->set_tool_call_id("a");
  ExpectRefused(request,
                "messages[5].tool_call_id is \"d\"; it must be the id of a call in messages[1]");
}

TEST(Conversation, TheAnswerMayBeBegun) {
  v1::ChatRequest request = WithTools();
  v1::ChatMessage* begun = Add(v1::ROLE_ASSISTANT, "{", &request);
  EXPECT_TRUE(ValidateConversation(request).ok());
  request.set_tool_choice(v1::TOOL_CHOICE_REQUIRED);
  ExpectRefused(request, "tool_choice is 3; it must be 0..2 where the answer is begun");
  AddCall("a", begun);
  ExpectRefused(request, "messages[1].tool_calls has 1 entries; their results must come last");
  begun->clear_content();
  ExpectRefused(request, "messages[1].content has 0 bytes; an answer that is begun");
}

TEST(Conversation, CallsAndResultsHaveTheirPlaces) {
  v1::ChatRequest request = WithTools();
  AddCall("a", request.mutable_messages(0));
  ExpectRefused(request, "messages[0].tool_calls has 1 entries; only assistant messages");
  request = WithTools();
  request.mutable_messages(0)->set_tool_call_id("a");
  ExpectRefused(request,
                "messages[0].tool_call_id is \"a\"; it must be empty but in tool messages");
  request = WithTools();
  AddCall("a", Add(v1::ROLE_ASSISTANT, "", &request));
  AddResult("a", "", &request);
  EXPECT_TRUE(ValidateConversation(request).ok());
  v1::ToolCall* call = request.mutable_messages(1)->mutable_tool_calls(0);
  call->set_arguments_json("7");
  ExpectRefused(request, "messages[1].tool_calls[0].arguments_json is no JSON object");
  call->clear_arguments_json();
  call->set_name("any name that a model may write");
  EXPECT_TRUE(ValidateConversation(request).ok());
  call->set_name("a>b");
  ExpectRefused(request, "messages[1].tool_calls[0].name is \"a>b\"; it must be without <");
}

}  // namespace
}  // namespace ultraspeed::router
