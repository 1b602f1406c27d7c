// Tools in OpenAI's and in Anthropic's shape, both ways, without any I/O.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "router/http/anthropic_reply.h"
#include "router/http/anthropic_request.h"
#include "router/http/openai_reply.h"
#include "router/http/openai_request.h"
#include "tests/router/http/call_delta.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

ReplyContext NoContext() {
  return {.created_unix_s = 0, .find_model = [](const std::string&) { return ModelDetails(); }};
}

absl::StatusOr<TranslatedCall> ParseOpenAi(const std::string& fields) {
  return ParseChatCompletion(absl::StrCat(R"({"model":"m",)", fields, "}"), NoContext());
}

absl::StatusOr<TranslatedCall> ParseAnthropic(const std::string& fields) {
  return ParseMessages(absl::StrCat(R"({"model":"m","max_tokens":5,)", fields, "}"));
}

v1::ChatRequest ChatOf(const absl::StatusOr<TranslatedCall>& call) {
  EXPECT_TRUE(call.ok()) << call.status();
  return call.ok() ? std::get<v1::ChatRequest>(call->request) : v1::ChatRequest();
}

// What a caller is told of a refusal by the gRPC API.
std::string Told(const absl::StatusOr<TranslatedCall>& call, const std::string& message) {
  return ErrorOfStatus(absl::InvalidArgumentError(message), false, call->names, "").message;
}

// The same conversation in both shapes.
constexpr char kOpenAi[] = R"("messages":[
    {"role":"user","content":"u"},
    {"role":"assistant","content":null,"tool_calls":[
      {"id":"a","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}},
      {"id":"b","type":"function","function":{"name":"g","arguments":""}}]},
    {"role":"tool","tool_call_id":"b","content":"rb"},
    {"role":"tool","tool_call_id":"a","content":[{"type":"text","text":"ra"}]},
    {"role":"user","content":"v"}],
  "tools":[{"type":"function","function":{"name":"f","description":"d","strict":true,
      "parameters":{"type":"object","properties":{"x":{"type":"integer","minimum":1.5}}}}},
    {"type":"function","function":{"name":"g"}}])";
constexpr char kAnthropic[] = R"("messages":[
    {"role":"user","content":"u"},
    {"role":"assistant","content":[{"type":"tool_use","id":"a","name":"f","input":{"x":1}},
      {"type":"tool_use","id":"b","name":"g","input":{}}]},
    {"role":"user","content":[{"type":"tool_result","tool_use_id":"b","content":"rb"},
      {"type":"tool_result","tool_use_id":"a","content":[{"type":"text","text":"ra"}]},
      {"type":"text","text":"v"}]}],
  "tools":[{"name":"f","description":"d","strict":true,"input_schema":
      {"type":"object","properties":{"x":{"type":"integer","minimum":1.5}}}},
    {"type":"custom","name":"g","cache_control":{"type":"ephemeral"}}])";

TEST(ToolRequest, BothShapesSayTheSame) {
  for (const v1::ChatRequest& request :
       {ChatOf(ParseOpenAi(kOpenAi)), ChatOf(ParseAnthropic(kAnthropic))}) {
    ASSERT_EQ(request.messages_size(), 5);
    ASSERT_EQ(request.messages(1).tool_calls_size(), 2);
    EXPECT_EQ(request.messages(1).content(), "");
    EXPECT_EQ(request.messages(1).tool_calls(0).id(), "a");
    EXPECT_EQ(request.messages(1).tool_calls(0).name(), "f");
    EXPECT_EQ(request.messages(1).tool_calls(0).arguments_json(), R"({"x":1})");
    EXPECT_EQ(request.messages(2).role(), v1::ROLE_TOOL);
    EXPECT_EQ(request.messages(2).tool_call_id(), "b");
    EXPECT_EQ(request.messages(2).content(), "rb");
    EXPECT_EQ(request.messages(3).content(), "ra");
    EXPECT_EQ(request.messages(4).content(), "v");
    ASSERT_EQ(request.tools_size(), 2);
    EXPECT_EQ(request.tools(0).name(), "f");
    EXPECT_EQ(request.tools(0).description(), "d");
    EXPECT_EQ(
        json::parse(request.tools(0).parameters_json()),
        json::parse(R"({"type":"object","properties":{"x":{"type":"integer","minimum":1.5}}})"));
    EXPECT_TRUE(request.tools(0).strict());
    EXPECT_FALSE(request.tools(1).strict());
    EXPECT_FALSE(request.tools(1).has_description());
    EXPECT_EQ(request.tools(1).parameters_json(), "");
    EXPECT_EQ(request.tool_choice(), v1::TOOL_CHOICE_UNSPECIFIED);
    EXPECT_FALSE(request.has_parallel_tool_calls());
  }
}

TEST(ToolRequest, Choices) {
  const std::string messages = R"("messages":[{"role":"user","content":"u"}],)";
  const auto openai = [&](const char* fields) { return ChatOf(ParseOpenAi(messages + fields)); };
  EXPECT_EQ(openai(R"("tool_choice":"none")").tool_choice(), v1::TOOL_CHOICE_NONE);
  EXPECT_EQ(openai(R"("tool_choice":"auto")").tool_choice(), v1::TOOL_CHOICE_UNSPECIFIED);
  EXPECT_EQ(openai(R"("tool_choice":"required")").tool_choice(), v1::TOOL_CHOICE_REQUIRED);
  const v1::ChatRequest named =
      openai(R"("tool_choice":{"type":"function","function":{"name":"f"}})");
  EXPECT_EQ(named.tool_choice(), v1::TOOL_CHOICE_REQUIRED);
  EXPECT_EQ(named.required_tool(), "f");
  EXPECT_FALSE(openai(R"("parallel_tool_calls":false)").parallel_tool_calls());
  EXPECT_TRUE(openai(R"("parallel_tool_calls":false)").has_parallel_tool_calls());

  const auto anthropic = [&](const char* choice) {
    return ChatOf(ParseAnthropic(absl::StrCat(messages, R"("tool_choice":)", choice)));
  };
  EXPECT_EQ(anthropic(R"({"type":"none"})").tool_choice(), v1::TOOL_CHOICE_NONE);
  EXPECT_EQ(anthropic(R"({"type":"auto"})").tool_choice(), v1::TOOL_CHOICE_UNSPECIFIED);
  EXPECT_EQ(anthropic(R"({"type":"any"})").tool_choice(), v1::TOOL_CHOICE_REQUIRED);
  EXPECT_EQ(anthropic(R"({"type":"tool","name":"f"})").required_tool(), "f");
  EXPECT_FALSE(
      anthropic(R"({"type":"any","disable_parallel_tool_use":true})").parallel_tool_calls());
}

TEST(ToolRequest, WhatIsWrongHasTheCallersName) {
  const auto openai = ParseOpenAi(kOpenAi);
  EXPECT_EQ(Told(openai, "tools[1].name is \"\"; it"), "tools[1].function.name is \"\"; it");
  EXPECT_EQ(Told(openai, "messages[1].tool_calls[0].arguments_json is no"),
            "messages[1].tool_calls[0].function.arguments is no");
  EXPECT_EQ(Told(openai, "required_tool is \"h\"; it"), "tool_choice.function.name is \"h\"; it");
  const auto anthropic = ParseAnthropic(kAnthropic);
  EXPECT_EQ(Told(anthropic, "tools[0].parameters_json is no"), "tools[0].input_schema is no");
  EXPECT_EQ(Told(anthropic, "messages[4].content has 0 bytes"), "messages[2].content has 0 bytes");
  EXPECT_EQ(Told(anthropic, "enable_thinking is true; it"), "thinking is true; it");
  for (const char* const property : {"x", "é e"}) {  // a property may be called anything
    const std::string place = absl::StrCat(".properties.", property, ": \"not\" is not supported");
    const std::string message = absl::StrCat("tools[3].parameters_json", place);
    EXPECT_EQ(Told(openai, message), absl::StrCat("tools[3].function.parameters", place));
    EXPECT_EQ(Told(anthropic, message), absl::StrCat("tools[3].input_schema", place));
  }
  EXPECT_EQ(ParseAnthropic(R"("messages":[],"tools":[{"name":"f","strict":1}])").status().message(),
            "tools[0].strict is 1; it must be true or false");
  const auto error = [](const char* fields) {
    return std::string(ParseOpenAi(fields).status().message());
  };
  EXPECT_EQ(error(R"("messages":[{"role":"assistant","tool_calls":[{"id":"a"}]}])"),
            "messages[0].tool_calls[0].function is missing; it must be an object");
  EXPECT_EQ(error(R"("messages":[],"tools":[{"type":"function"}])"),
            "tools[0].function is missing; it must be an object");
  EXPECT_EQ(ParseAnthropic(R"("messages":[{"role":"assistant","content":[{"type":"tool_use"}]}])")
                .status()
                .message(),
            "messages[0].content[0].input is missing; it must be an object");
}

// ---- Replies ----

v1::GenerateChunk Chunk(const std::string& text) {
  v1::GenerateChunk chunk;
  chunk.set_request_id("id-1");
  chunk.set_model("m");
  chunk.set_text(text);
  return chunk;
}

// Text, a call in three chunks, text behind it, and another call.
std::vector<v1::GenerateChunk> Chunks() {
  std::vector<v1::GenerateChunk> chunks = {Chunk("<think>w</think>I look."), Chunk(""), Chunk("So"),
                                           Chunk("")};
  AddCallDelta(0, "f", "", &chunks[0]);
  AddCallDelta(0, "", R"({"x":)", &chunks[1]);
  AddCallDelta(0, "", R"("é"})", &chunks[2]);
  AddCallDelta(1, "g", "{}", &chunks[2]);
  chunks[3].set_finish_reason(v1::FINISH_REASON_TOOL_CALLS);
  return chunks;
}

std::vector<json::value> DataOf(const std::string& events) {
  std::vector<json::value> data;
  for (const absl::string_view event : absl::StrSplit(events, "\n\n", absl::SkipEmpty())) {
    const size_t begin = event.find("data: ") + 6;
    if (event.substr(begin) != "[DONE]")
      data.push_back(json::parse({event.data() + begin, event.size() - begin}));
  }
  return data;
}

TEST(ToolReply, OpenAiStream) {
  const auto writer = NewChatCompletionWriter({}, NoContext());
  std::vector<json::value> deltas;
  const char* finish = "";
  for (const v1::GenerateChunk& chunk : Chunks()) {
    for (const json::value& event : DataOf(writer->Events(chunk))) {
      const json::value& choice = event.at("choices").at(0);
      deltas.push_back(choice.at("delta"));
      if (!choice.at("finish_reason").is_null()) finish = "tool_calls";
    }
  }
  ASSERT_EQ(deltas.size(), 5u);
  EXPECT_EQ(deltas[1], json::parse(R"({"reasoning_content":"w","content":"I look.","tool_calls":[
      {"index":0,"id":"call_0","type":"function","function":{"name":"f","arguments":""}}]})"));
  EXPECT_EQ(deltas[2],
            json::parse(R"({"tool_calls":[{"index":0,"function":{"arguments":"{\"x\":"}}]})"));
  EXPECT_EQ(deltas[3], json::parse(R"({"content":"So","tool_calls":[
      {"index":0,"function":{"arguments":"\"é\"}"}},
      {"index":1,"id":"call_1","type":"function","function":{"name":"g","arguments":"{}"}}]})"));
  EXPECT_EQ(deltas[4], json::object());
  EXPECT_STREQ(finish, "tool_calls");
}

TEST(ToolReply, OpenAiWhole) {
  const auto writer = NewChatCompletionWriter({}, NoContext());
  for (const v1::GenerateChunk& chunk : Chunks()) writer->Collect(chunk);
  const json::value choice = json::parse(writer->Body()).at("choices").at(0);
  EXPECT_EQ(choice.at("finish_reason"), "tool_calls");
  EXPECT_EQ(choice.at("message"), json::parse(R"({"role":"assistant","content":"I look.So",
      "refusal":null,"reasoning_content":"w","tool_calls":[
      {"id":"call_0","type":"function","function":{"name":"f","arguments":"{\"x\":\"é\"}"}},
      {"id":"call_1","type":"function","function":{"name":"g","arguments":"{}"}}]})"));

  const auto call_only = NewChatCompletionWriter({}, NoContext());
  v1::GenerateChunk chunk = Chunk("");
  AddCallDelta(0, "f", "{}", &chunk);
  call_only->Collect(chunk);
  EXPECT_TRUE(
      json::parse(call_only->Body()).at("choices").at(0).at("message").at("content").is_null());
}

TEST(ToolReply, AnthropicStream) {
  const auto writer = NewMessageWriter({});
  std::vector<json::value> events;
  for (const v1::GenerateChunk& chunk : Chunks()) {
    for (json::value& event : DataOf(writer->Events(chunk))) events.push_back(std::move(event));
  }
  // Put together as a client does it: every delta belongs to the block that is open.
  std::vector<json::value> blocks;
  std::vector<std::string> inputs;
  bool is_open = false;
  for (const json::value& event : events) {
    const json::string& type = event.at("type").as_string();
    if (type == "content_block_start") {
      EXPECT_FALSE(is_open);
      is_open = true;
      EXPECT_EQ(event.at("index"), blocks.size());
      blocks.push_back(event.at("content_block"));
      inputs.emplace_back();
    } else if (type == "content_block_delta") {
      ASSERT_TRUE(is_open);
      EXPECT_EQ(event.at("index"), blocks.size() - 1);
      const json::object& delta = event.at("delta").as_object();
      if (delta.contains("partial_json"))
        inputs.back() += std::string(delta.at("partial_json").as_string());
    } else if (type == "content_block_stop") {
      EXPECT_TRUE(is_open);
      is_open = false;
    }
  }
  ASSERT_EQ(blocks.size(), 5u);  // thinking, text, call, text, call
  EXPECT_EQ(blocks[2], json::parse(R"({"type":"tool_use","id":"call_0","name":"f","input":{}})"));
  EXPECT_EQ(inputs[2], R"({"x":"é"})");
  EXPECT_EQ(blocks[3].at("type"), "text");
  EXPECT_EQ(blocks[4].at("name"), "g");
  EXPECT_EQ(inputs[4], "{}");
  EXPECT_EQ(events[events.size() - 2].at("delta").at("stop_reason"), "tool_use");
}

TEST(ToolReply, AnthropicWhole) {
  const auto writer = NewMessageWriter({});
  for (const v1::GenerateChunk& chunk : Chunks()) writer->Collect(chunk);
  v1::GenerateChunk cut = Chunk("");
  AddCallDelta(2, "h", R"({"x":)", &cut);
  cut.set_finish_reason(v1::FINISH_REASON_LENGTH);
  writer->Collect(cut);
  const json::value body = json::parse(writer->Body());
  EXPECT_EQ(body.at("content"), json::parse(R"([{"type":"thinking","thinking":"w","signature":""},
      {"type":"text","text":"I look.So"},
      {"type":"tool_use","id":"call_0","name":"f","input":{"x":"é"}},
      {"type":"tool_use","id":"call_1","name":"g","input":{}},
      {"type":"tool_use","id":"call_2","name":"h","input":{}}])"));
  EXPECT_EQ(body.at("stop_reason"), "max_tokens");
}

}  // namespace
}  // namespace ultraspeed::router
