// OpenAI's Responses, both ways, without any I/O.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "router/http/responses_reply.h"
#include "router/http/responses_request.h"
#include "tests/router/http/call_delta.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;
using ::testing::ElementsAre;

ReplyContext AContext() {
  return {.created_unix_s = 1700000000,
          .find_model = [](const std::string&) { return ModelDetails(); }};
}

absl::StatusOr<TranslatedCall> Parse(const std::string& fields) {
  return ParseResponse(absl::StrCat(R"({"model":"m",)", fields, "}"), AContext());
}

v1::ChatRequest ParsedResponse(const std::string& fields) {
  const auto call = Parse(fields);
  EXPECT_TRUE(call.ok()) << call.status() << "\n" << fields;
  return call.ok() ? std::get<v1::ChatRequest>(call->request) : v1::ChatRequest();
}

std::string ResponseError(const std::string& fields) {
  const auto call = Parse(fields);
  EXPECT_EQ(call.status().code(), absl::StatusCode::kInvalidArgument) << fields;
  return std::string(call.status().message());
}

TEST(ResponsesRequest, EveryFieldArrives) {
  const v1::ChatRequest request = ParsedResponse(R"("input":"hi","instructions":"be brief",
      "max_output_tokens":5,"temperature":0.5,"top_p":0.25,"top_k":7,"seed":3,"user":"label",
      "service_tier":"priority","ignore_eos":true,"parallel_tool_calls":false,
      "reasoning":{"effort":"high","summary":"auto"},"store":false,"include":["x"],
      "text":{"format":{"type":"text"},"verbosity":"low"},"tool_choice":"auto",
      "tools":[{"type":"function","name":"f","description":"d","strict":true,
                "parameters":{"type":"object"}}])");
  ASSERT_EQ(request.messages_size(), 2);
  EXPECT_EQ(request.messages(0).role(), v1::ROLE_SYSTEM);
  EXPECT_EQ(request.messages(0).content(), "be brief");
  EXPECT_EQ(request.messages(1).content(), "hi");
  EXPECT_EQ(request.options().max_tokens(), 5);
  EXPECT_EQ(request.options().sampling().top_k(), 7);
  EXPECT_EQ(request.options().client_request_id(), "label");
  EXPECT_EQ(request.options().service_tier(), v1::SERVICE_TIER_ULTRASPEED);
  EXPECT_TRUE(request.options().ignore_eos());
  EXPECT_TRUE(request.enable_thinking());
  EXPECT_FALSE(request.parallel_tool_calls());
  ASSERT_EQ(request.tools_size(), 1);
  EXPECT_EQ(request.tools(0).name(), "f");
  EXPECT_EQ(request.tools(0).parameters_json(), R"({"type":"object"})");
  EXPECT_TRUE(request.tools(0).strict());
  EXPECT_FALSE(ParsedResponse(R"("input":"hi")").has_enable_thinking());
  EXPECT_FALSE(ParsedResponse(R"("input":"hi","reasoning":{"effort":"none"})").enable_thinking());
}

// What one answer's items said comes back as one message.
TEST(ResponsesRequest, ItemsBecomeMessages) {
  const auto call = Parse(R"("instructions":"i","input":[
      {"role":"developer","content":"s"},
      {"type":"message","role":"user","content":[{"type":"input_text","text":"a"},
                                                 {"type":"input_text","text":"b"}]},
      {"type":"reasoning","id":"rs_1","summary":[],"content":[{"type":"reasoning_text","text":"why"}]},
      {"type":"message","role":"assistant","content":[{"type":"output_text","text":"c"}]},
      {"type":"function_call","call_id":"1","name":"f","arguments":"{}"},
      {"type":"function_call","call_id":"2","name":"g","arguments":"{\"x\":1}"},
      {"type":"function_call_output","call_id":"2","output":"r2"},
      {"type":"function_call_output","call_id":"1","output":[{"type":"input_text","text":"r1"}]},
      {"type":"reasoning","id":"rs_2","summary":[{"type":"summary_text","text":"s"}]},
      {"type":"function_call","call_id":"3","name":"h","arguments":"{}"},
      {"type":"function_call_output","call_id":"3","output":""},
      {"role":"assistant","content":"d"},{"role":"assistant","content":"e"},
      {"role":"user","content":"f"}])");
  ASSERT_TRUE(call.ok()) << call.status();
  const auto& request = std::get<v1::ChatRequest>(call->request);
  std::string roles;
  for (const v1::ChatMessage& message : request.messages())
    roles += "?SUAT"[static_cast<int>(message.role())];
  EXPECT_EQ(roles, "SSUATTATAAU");
  EXPECT_EQ(request.messages(2).content(), "a\nb");
  EXPECT_EQ(request.messages(3).reasoning_content(), "why");
  EXPECT_EQ(request.messages(3).content(), "c");
  ASSERT_EQ(request.messages(3).tool_calls_size(), 2);
  EXPECT_EQ(request.messages(3).tool_calls(1).arguments_json(), R"({"x":1})");
  EXPECT_EQ(request.messages(4).tool_call_id(), "2");
  EXPECT_EQ(request.messages(5).content(), "r1");
  EXPECT_EQ(request.messages(6).tool_calls(0).name(), "h");
  const auto told = [&](const char* message) {
    return ErrorOfStatus(absl::InvalidArgumentError(message), false, call->names, "").message;
  };
  EXPECT_EQ(told("messages[0].content is not UTF-8"), "instructions is not UTF-8");
  EXPECT_EQ(told("messages[5].content has 0 bytes"), "input[7].content has 0 bytes");
  EXPECT_EQ(told("options.max_tokens is 0"), "max_output_tokens is 0");
}

TEST(ResponsesRequest, WhatCannotBeHonouredIsRefusedByName) {
  for (const char* field :
       {R"("previous_response_id":"resp_1")", R"("store":true)", R"("background":true)",
        R"("conversation":"c")", R"("prompt":{"id":"p"})", R"("top_logprobs":2)",
        R"("tools":[{"type":"web_search"}])", R"("tool_choice":"sometimes")",
        R"("tool_choice":{"type":"mcp"})", R"("service_tier":"flex")",
        R"("text":{"format":{"type":"grammar"}})"}) {
    const std::vector<std::string> quoted = absl::StrSplit(field, '"');
    const std::string error = ResponseError(absl::StrCat(R"("input":"a",)", field));
    EXPECT_TRUE(absl::StartsWith(error, quoted[1])) << error;
  }
  EXPECT_EQ(ResponseError(R"("stream":true)"),
            "input is missing; it must be a string or an array of items");
  EXPECT_EQ(ResponseError(R"("input":[{"type":"item_reference","id":"x"}])"),
            "input[0].type is \"item_reference\"; it must be one of message, reasoning, "
            "function_call, function_call_output");
  EXPECT_EQ(ResponseError(R"("input":[{"role":"user","content":[{"type":"input_image"}]}])"),
            "input[0].content[0].type is \"input_image\"; it must be one of input_text, "
            "output_text, text");
}

v1::GenerateChunk AChunk(const std::string& text) {
  v1::GenerateChunk chunk;
  chunk.set_request_id("0-1");
  chunk.set_model("m");
  chunk.set_text(text);
  return chunk;
}

std::vector<v1::GenerateChunk> AnAnswer(v1::FinishReason reason) {
  std::vector<v1::GenerateChunk> chunks = {AChunk("<think>w"), AChunk("hy</think>I lo"),
                                           AChunk("ok."), AChunk(""), AChunk("")};
  AddCallDelta(0, "f", "{\"x\":", &chunks[2]);
  AddCallDelta(0, "", "1}", &chunks[3]);
  AddCallDelta(1, "g", "{}", &chunks[3]);
  chunks.back().set_finish_reason(reason);
  chunks.back().mutable_usage()->set_prompt_tokens(10);
  chunks.back().mutable_usage()->set_cached_tokens(4);
  chunks.back().mutable_usage()->set_completion_tokens(6);
  chunks.back().mutable_usage()->set_reasoning_tokens(2);
  return chunks;
}

TEST(ResponsesReply, AStreamTellsEveryItemAndItsPieces) {
  const auto writer = NewResponseWriter(R"({"tools":[],"temperature":1})", false, AContext());
  std::vector<std::string> types;
  std::vector<json::value> data;
  for (const v1::GenerateChunk& chunk : AnAnswer(v1::FINISH_REASON_TOOL_CALLS)) {
    const std::string events = writer->Events(chunk);
    for (const absl::string_view event : absl::StrSplit(events, "\n\n", absl::SkipEmpty())) {
      const std::vector<std::string> lines = absl::StrSplit(event, '\n');
      ASSERT_EQ(lines.size(), 2u);
      data.push_back(json::parse(lines[1].substr(6)));
      EXPECT_EQ(absl::StrCat("event: ", data.back().at("type").as_string().c_str()), lines[0]);
      EXPECT_EQ(data.back().at("sequence_number"), data.size() - 1);
      types.push_back(lines[0].substr(std::string("event: response.").size()));
    }
  }
  EXPECT_THAT(types,
              ElementsAre("created", "in_progress", "output_item.added", "content_part.added",
                          "reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done",
                          "content_part.done", "output_item.done", "output_item.added",
                          "content_part.added", "output_text.delta", "output_text.delta",
                          "output_text.done", "content_part.done", "output_item.done",
                          "output_item.added", "function_call_arguments.delta",
                          "function_call_arguments.delta", "function_call_arguments.done",
                          "output_item.done", "output_item.added", "function_call_arguments.delta",
                          "function_call_arguments.done", "output_item.done", "completed"));
  EXPECT_EQ(data[0].at("response").at("status"), "in_progress");
  EXPECT_EQ(data[4], json::parse(R"({"type":"response.reasoning_text.delta","sequence_number":4,
      "item_id":"rs_010","output_index":0,"content_index":0,"delta":"w"})"));
  EXPECT_EQ(data[11], json::parse(R"({"type":"response.output_text.delta","sequence_number":11,
      "item_id":"msg_011","output_index":1,"content_index":0,"delta":"I lo","logprobs":[]})"));
  EXPECT_EQ(data[16].at("item"), json::parse(R"({"id":"fc_012","type":"function_call",
      "call_id":"call_0","name":"f","arguments":"","status":"in_progress"})"));
  EXPECT_EQ(data[19].at("arguments"), R"({"x":1})");
  EXPECT_EQ(data[21].at("output_index"), 3);

  // The whole answer says the same.
  const auto whole = NewResponseWriter(R"({"tools":[],"temperature":1})", false, AContext());
  for (const v1::GenerateChunk& chunk : AnAnswer(v1::FINISH_REASON_TOOL_CALLS))
    whole->Collect(chunk);
  const json::value body = json::parse(whole->Body());
  EXPECT_EQ(body, data.back().at("response"));
  EXPECT_EQ(body.at("id"), "resp_01");
  EXPECT_EQ(body.at("status"), "completed");
  EXPECT_EQ(body.at("temperature"), 1);
  EXPECT_EQ(body.at("output").at(0).at("content").at(0).at("text"), "why");
  EXPECT_EQ(body.at("output").at(1), json::parse(R"({"id":"msg_011","type":"message",
      "role":"assistant","status":"completed","content":[{"type":"output_text","text":"I look.",
      "annotations":[],"logprobs":[]}]})"));
  EXPECT_EQ(body.at("output").at(3).at("name"), "g");
  EXPECT_EQ(body.at("usage"), json::parse(R"({"input_tokens":10,
      "input_tokens_details":{"cached_tokens":4,"cache_write_tokens":0},"output_tokens":6,
      "output_tokens_details":{"reasoning_tokens":2},"total_tokens":16})"));
}

TEST(ResponsesReply, WhatMaxTokensCutIsIncomplete) {
  const auto writer = NewResponseWriter("{}", true, AContext());
  v1::GenerateChunk chunk = AChunk("abc");
  chunk.set_finish_reason(v1::FINISH_REASON_LENGTH);
  const std::string events = writer->Events(chunk);
  EXPECT_TRUE(absl::StrContains(events, "event: response.incomplete\n"));
  const json::value body = json::parse(writer->Body());
  EXPECT_EQ(body.at("status"), "incomplete");
  EXPECT_EQ(body.at("incomplete_details").at("reason"), "max_output_tokens");
  EXPECT_EQ(body.at("output").at(0).at("status"), "incomplete");
  EXPECT_EQ(body.at("service_tier"), "standard");

  // What came before it is whole, although the same chunk ends it.
  const auto cut_call = NewResponseWriter("{}", true, AContext());
  cut_call->Collect(AChunk("abc"));
  v1::GenerateChunk last = AChunk("");
  AddCallDelta(0, "f", "{\"x\":", &last);
  last.set_finish_reason(v1::FINISH_REASON_LENGTH);
  cut_call->Collect(last);
  const json::value output = json::parse(cut_call->Body()).at("output");
  EXPECT_EQ(output.at(0).at("status"), "completed");
  EXPECT_EQ(output.at(1).at("status"), "incomplete");
}

TEST(ResponsesReply, AnErrorInMidStreamIsItsEvent) {
  const std::string event =
      ErrorEvent({.kind = ErrorKind::kUnavailable, .message = "gone"}, Dialect::kResponses, "id");
  EXPECT_TRUE(absl::StartsWith(event, "event: error\ndata: "));
  const json::value data = json::parse(event.substr(event.find('{')));
  EXPECT_EQ(data.at("type"), "error");
  EXPECT_EQ(data.at("message"), "gone");
  EXPECT_EQ(data.at("error").at("message"), "gone");
}

}  // namespace
}  // namespace ultraspeed::router
