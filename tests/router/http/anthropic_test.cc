// The Anthropic shape, both ways, without any I/O.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "router/http/anthropic_reply.h"
#include "router/http/anthropic_request.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;
using ::testing::ElementsAre;

std::string Messages(const std::string& more) {
  return absl::StrCat(R"({"model":"m","max_tokens":5,"messages":[{"role":"user","content":"hi"}])",
                      more.empty() ? "" : ",", more, "}");
}

v1::ChatRequest Parsed(const std::string& body) {
  const auto call = ParseMessages(body);
  EXPECT_TRUE(call.ok()) << call.status() << "\n" << body;
  return call.ok() ? std::get<v1::ChatRequest>(call->request) : v1::ChatRequest();
}

std::string ErrorOf(const std::string& body) {
  const auto call = ParseMessages(body);
  EXPECT_EQ(call.status().code(), absl::StatusCode::kInvalidArgument) << body;
  return std::string(call.status().message());
}

TEST(AnthropicRequest, EveryFieldArrives) {
  const v1::ChatRequest request = Parsed(R"({
      "model": "m", "max_tokens": 5, "temperature": 0.5, "top_p": 0.25, "top_k": 7,
      "system": [{"type": "text", "text": "be"}, {"type": "text", "text": "brief",
                  "cache_control": {"type": "ephemeral"}}],
      "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [
          {"type": "thinking", "thinking": "why", "signature": "s"}, {"type": "text", "text": "c"}]},
        {"role": "user", "content": "d"}],
      "stop_sequences": ["x"], "metadata": {"user_id": "label"}, "speed": "fast",
      "thinking": {"type": "enabled", "budget_tokens": 1024}, "tools": [],
      "tool_choice": {"type": "none"}, "seed": 3, "nobody_knows": 1})");
  ASSERT_EQ(request.messages_size(), 4);
  EXPECT_EQ(request.messages(0).role(), v1::ROLE_SYSTEM);
  EXPECT_EQ(request.messages(0).content(), "be\nbrief");
  EXPECT_EQ(request.messages(1).content(), "a\nb");
  EXPECT_EQ(request.messages(2).reasoning_content(), "why");
  EXPECT_EQ(request.messages(2).content(), "c");
  EXPECT_EQ(request.options().max_tokens(), 5);
  EXPECT_EQ(request.options().sampling().top_k(), 7);
  EXPECT_EQ(request.options().sampling().seed(), 3u);
  EXPECT_EQ(request.options().stop(0), "x");
  EXPECT_EQ(request.options().client_request_id(), "label");
  EXPECT_EQ(request.options().service_tier(), v1::SERVICE_TIER_ULTRASPEED);
  EXPECT_TRUE(request.enable_thinking());
}

TEST(AnthropicRequest, ThinkingIsOffUnlessAskedFor) {
  EXPECT_TRUE(Parsed(Messages("")).has_enable_thinking());
  EXPECT_FALSE(Parsed(Messages("")).enable_thinking());
  EXPECT_FALSE(Parsed(Messages(R"("thinking":{"type":"disabled"})")).enable_thinking());
  EXPECT_TRUE(Parsed(Messages(R"("thinking":{"type":"adaptive"})")).enable_thinking());
}

TEST(AnthropicRequest, Tiers) {
  const auto tier = [](const char* fields) {
    return Parsed(Messages(fields)).options().service_tier();
  };
  EXPECT_EQ(tier(""), v1::SERVICE_TIER_UNSPECIFIED);
  EXPECT_EQ(tier(R"("service_tier":"auto")"), v1::SERVICE_TIER_UNSPECIFIED);
  EXPECT_EQ(tier(R"("service_tier":"standard_only")"), v1::SERVICE_TIER_STANDARD);
  EXPECT_EQ(tier(R"("service_tier":"priority")"), v1::SERVICE_TIER_ULTRASPEED);
  EXPECT_EQ(tier(R"("speed":"standard")"), v1::SERVICE_TIER_UNSPECIFIED);
  EXPECT_EQ(ErrorOf(Messages(R"("service_tier":"standard_only","speed":"fast")")),
            "speed is \"fast\"; it must be standard where service_tier is standard");
}

TEST(AnthropicRequest, WhatIsWrongIsNamed) {
  EXPECT_EQ(ErrorOf(R"({"model":"m","messages":[]})"),
            "max_tokens is missing; it must be a whole number");
  EXPECT_EQ(ErrorOf(R"({"model":"m","max_tokens":1})"), "messages is missing; it must be an array");
  for (const char* field :
       {R"("tools":[{"type":"bash_20250124","name":"bash"}])", R"("tool_choice":{"type":"some"})",
        R"("tool_choice":{"type":"tool"})", R"("mcp_servers":[{}])", R"("thinking":{"type":"on"})",
        R"("speed":"slow")", R"("stop_sequences":[1])"}) {
    const std::vector<std::string> quoted = absl::StrSplit(field, '"');
    EXPECT_TRUE(absl::StartsWith(ErrorOf(Messages(field)), quoted[1])) << ErrorOf(Messages(field));
  }
  const auto error = [](const char* messages) {
    return ErrorOf(absl::StrCat(R"({"model":"m","max_tokens":1,"messages":)", messages, "}"));
  };
  EXPECT_EQ(error(R"([{"role":"system","content":"a"}])"),
            "messages[0].role is \"system\"; it must be one of user, assistant");
  EXPECT_EQ(error(R"([{"role":"user","content":[{"type":"image","source":{}}]}])"),
            "messages[0].content[0].type is \"image\"; it must be one of text, tool_result");
  EXPECT_EQ(error(R"([{"role":"user","content":[{"type":"thinking","thinking":"a"}]}])"),
            "messages[0].content[0].type is \"thinking\"; it must be one of text, tool_result");
  EXPECT_EQ(error(R"([{"role":"user"}])"),
            "messages[0].content is missing; it must be a string or an array of blocks");
}

TEST(AnthropicRequest, RefusalsOfTheApiBehindUseTheCallersNames) {
  const auto call = ParseMessages(Messages(R"("system":"s")"));
  ASSERT_TRUE(call.ok());
  const auto param = [&](const char* message) {
    return ErrorOfStatus(absl::InvalidArgumentError(message), false, call->names, "").param;
  };
  EXPECT_EQ(param("messages[1].content has 0 bytes"), "messages[0].content");
  EXPECT_EQ(param("options.stop[2] has 0 bytes"), "stop_sequences[2]");
  EXPECT_EQ(param("options.client_request_id has 200 bytes"), "metadata.user_id");
}

v1::GenerateChunk TextChunk(const std::string& text) {
  v1::GenerateChunk chunk;
  chunk.set_request_id("id-1");
  chunk.set_model("m");
  chunk.set_text(text);
  chunk.set_service_tier(v1::SERVICE_TIER_STANDARD);
  chunk.mutable_usage()->set_prompt_tokens(10);
  chunk.mutable_usage()->set_cached_tokens(4);
  chunk.mutable_usage()->set_completion_tokens(6);
  return chunk;
}

v1::GenerateChunk LastChunk(const std::string& text, v1::FinishReason reason,
                            const std::string& matched_stop = "") {
  v1::GenerateChunk chunk = TextChunk(text);
  chunk.set_finish_reason(reason);
  chunk.set_matched_stop(matched_stop);
  return chunk;
}

struct Stream {
  std::vector<std::string> names;
  std::vector<json::value> data;

  void Add(const std::string& events) {
    for (const absl::string_view event : absl::StrSplit(events, "\n\n", absl::SkipEmpty())) {
      const std::vector<std::string> lines = absl::StrSplit(event, '\n');
      ASSERT_EQ(lines.size(), 2u) << event;
      names.push_back(lines[0].substr(std::string("event: ").size()));
      data.push_back(json::parse(lines[1].substr(std::string("data: ").size())));
      EXPECT_EQ(data.back().at("type").as_string().c_str(), names.back());
    }
  }
};

TEST(AnthropicReply, AStreamHasTheExactSequenceOfEvents) {
  const auto writer = NewMessageWriter({});
  Stream stream;
  stream.Add(writer->Events(TextChunk("<think>wh")));
  stream.Add(writer->Events(TextChunk("y</think>a")));
  stream.Add(writer->Ping());
  stream.Add(writer->Events(LastChunk("b", v1::FINISH_REASON_LENGTH)));
  EXPECT_THAT(stream.names,
              ElementsAre("message_start", "content_block_start", "content_block_delta",
                          "content_block_delta", "content_block_stop", "content_block_start",
                          "content_block_delta", "ping", "content_block_delta",
                          "content_block_stop", "message_delta", "message_stop"));
  EXPECT_EQ(stream.data[0].at("message"), json::parse(R"({"id":"msg_id-1","type":"message",
      "role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,
      "usage":{"input_tokens":6,"cache_creation_input_tokens":0,"cache_read_input_tokens":4,
      "output_tokens":0,"service_tier":"standard","speed":"standard"}})"));
  EXPECT_EQ(stream.data[1], json::parse(R"({"type":"content_block_start","index":0,
      "content_block":{"type":"thinking","thinking":"","signature":""}})"));
  EXPECT_EQ(stream.data[3], json::parse(R"({"type":"content_block_delta","index":0,
      "delta":{"type":"thinking_delta","thinking":"y"}})"));
  EXPECT_EQ(stream.data[5], json::parse(R"({"type":"content_block_start","index":1,
      "content_block":{"type":"text","text":""}})"));
  EXPECT_EQ(stream.data[8], json::parse(R"({"type":"content_block_delta","index":1,
      "delta":{"type":"text_delta","text":"b"}})"));
  EXPECT_EQ(stream.data[10].at("delta"),
            json::parse(R"({"stop_reason":"max_tokens","stop_sequence":null})"));
  EXPECT_EQ(stream.data[10].at("usage").at("output_tokens"), 6);
}

TEST(AnthropicReply, AnEmptyAnswerIsAMessageToo) {
  const auto writer = NewMessageWriter({});
  Stream stream;
  stream.Add(writer->Events(LastChunk("", v1::FINISH_REASON_STOP, "<|im_end|>")));
  EXPECT_THAT(stream.names, ElementsAre("message_start", "message_delta", "message_stop"));
  EXPECT_EQ(stream.data[1].at("delta").at("stop_reason"), "end_turn");
}

TEST(AnthropicReply, AWholeMessageAndItsStopSequence) {
  const auto writer = NewMessageWriter({"x", "y"});
  writer->Collect(TextChunk("<think>why</think>"));
  writer->Collect(LastChunk("a", v1::FINISH_REASON_STOP, "y"));
  const json::value body = json::parse(writer->Body());
  EXPECT_EQ(body.at("content"), json::parse(R"([{"type":"thinking","thinking":"why","signature":""},
                            {"type":"text","text":"a"}])"));
  EXPECT_EQ(body.at("stop_reason"), "stop_sequence");
  EXPECT_EQ(body.at("stop_sequence"), "y");
  EXPECT_EQ(body.at("usage").at("output_tokens"), 6);
}

}  // namespace
}  // namespace ultraspeed::router
