// The OpenAI shapes, both ways, without any I/O.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "router/http/openai_lists.h"
#include "router/http/openai_reply.h"
#include "router/http/openai_request.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

ReplyContext Context() {
  return {.created_unix_s = 1700000000, .find_model = [](const std::string&) {
            return ModelDetails{.weights_sha256 = "0123456789abcdef", .tokenizer = nullptr};
          }};
}

std::string Chat(const std::string& more) {
  return absl::StrCat(R"({"model":"m","messages":[{"role":"user","content":"hi"}])",
                      more.empty() ? "" : ",", more, "}");
}

v1::ChatRequest ParsedChat(const std::string& body) {
  const auto call = ParseChatCompletion(body, Context());
  EXPECT_TRUE(call.ok()) << call.status() << "\n" << body;
  return call.ok() ? std::get<v1::ChatRequest>(call->request) : v1::ChatRequest();
}

std::string ChatError(const std::string& body) {
  const auto call = ParseChatCompletion(body, Context());
  EXPECT_EQ(call.status().code(), absl::StatusCode::kInvalidArgument) << body;
  return std::string(call.status().message());
}

// ---- Requests ----

TEST(OpenAiRequest, EveryFieldArrives) {
  const v1::ChatRequest request = ParsedChat(R"({
      "model": "m",
      "messages": [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "reasoning_content": "why"},
        {"role": "tool", "tool_call_id": "1", "content": "d"},
        {"role": "assistant", "content": null},
        {"role": "user", "content": "\u00e9\ud83d\ude42"}],
      "max_completion_tokens": 5, "temperature": 0.5, "top_p": 0.25, "top_k": 7, "seed": -1,
      "stop": ["x", "y"], "service_tier": "priority", "logprobs": true, "top_logprobs": 3,
      "user": "label", "speculation": false, "ignore_eos": true,
      "chat_template_kwargs": {"enable_thinking": true, "other": 1},
      "n": 1, "tools": [], "tool_choice": "none", "response_format": {"type": "text"},
      "presence_penalty": 0, "logit_bias": {}, "modalities": ["text"], "nobody_knows": {"a": 1}})");
  EXPECT_EQ(request.model(), "m");
  ASSERT_EQ(request.messages_size(), 6);
  EXPECT_EQ(request.messages(0).role(), v1::ROLE_SYSTEM);
  EXPECT_EQ(request.messages(1).content(), "a\nb");
  EXPECT_EQ(request.messages(2).reasoning_content(), "why");
  EXPECT_EQ(request.messages(3).role(), v1::ROLE_TOOL);
  EXPECT_EQ(request.messages(4).content(), "");
  EXPECT_EQ(request.messages(5).content(), "é🙂");
  const v1::GenerateOptions& options = request.options();
  EXPECT_EQ(options.max_tokens(), 5);
  EXPECT_FLOAT_EQ(options.sampling().temperature(), 0.5f);
  EXPECT_FLOAT_EQ(options.sampling().top_p(), 0.25f);
  EXPECT_EQ(options.sampling().top_k(), 7);
  EXPECT_EQ(options.sampling().seed(), ~uint64_t{0});
  EXPECT_EQ(options.stop_size(), 2);
  EXPECT_EQ(options.service_tier(), v1::SERVICE_TIER_ULTRASPEED);
  EXPECT_EQ(options.logprobs(), 3);
  EXPECT_EQ(options.client_request_id(), "label");
  EXPECT_FALSE(options.speculation());
  EXPECT_TRUE(options.ignore_eos());
  EXPECT_TRUE(request.enable_thinking());
}

TEST(OpenAiRequest, WhatIsAbsentOrNullIsLeftToTheServer) {
  const v1::ChatRequest request = ParsedChat(
      Chat(R"("temperature":null,"max_tokens":null,"stop":null,"seed":null,"stream":null)"));
  EXPECT_FALSE(request.options().has_max_tokens());
  EXPECT_FALSE(request.options().sampling().has_temperature());
  EXPECT_FALSE(request.options().sampling().has_seed());
  EXPECT_FALSE(request.options().has_logprobs());
  EXPECT_FALSE(request.options().has_speculation());
  EXPECT_FALSE(request.has_enable_thinking());
  EXPECT_EQ(request.options().service_tier(), v1::SERVICE_TIER_UNSPECIFIED);
}

TEST(OpenAiRequest, Thinking) {
  EXPECT_TRUE(ParsedChat(Chat(R"("thinking":{"type":"enabled"})")).enable_thinking());
  const v1::ChatRequest off = ParsedChat(Chat(R"("thinking":{"type":"disabled"})"));
  EXPECT_TRUE(off.has_enable_thinking() && !off.enable_thinking());
  EXPECT_EQ(ChatError(Chat(R"("thinking":{})")),
            "thinking.type is missing; it must be enabled, adaptive or disabled");
}

TEST(OpenAiRequest, ServiceTiers) {
  const auto tier = [](const char* name) {
    return ParsedChat(Chat(absl::StrCat("\"service_tier\":\"", name, "\"")))
        .options()
        .service_tier();
  };
  EXPECT_EQ(tier("auto"), v1::SERVICE_TIER_UNSPECIFIED);
  EXPECT_EQ(tier("default"), v1::SERVICE_TIER_STANDARD);
  EXPECT_EQ(tier("standard"), v1::SERVICE_TIER_STANDARD);
  EXPECT_EQ(tier("priority"), v1::SERVICE_TIER_ULTRASPEED);
  EXPECT_EQ(tier("ultraspeed"), v1::SERVICE_TIER_ULTRASPEED);
}

TEST(OpenAiRequest, WhatCannotBeHonouredIsRefusedByName) {
  for (const char* field :
       {R"("tools":[{"type":"web_search"}])", R"("tool_choice":"sometimes")",
        R"("tool_choice":{"type":"function"})", R"("functions":[{}])", R"("n":2)", R"("best_of":2)",
        R"("frequency_penalty":0.1)", R"("presence_penalty":-1)", R"("logit_bias":{"1":2})",
        R"("response_format":{"type":"grammar"})", R"("echo":true)", R"("suffix":"x")",
        R"("modalities":["text","audio"])", R"("audio":{"voice":"a"})"}) {
    const std::string name =
        std::string(absl::string_view(field).substr(1, absl::string_view(field).find('"', 1) - 1));
    EXPECT_TRUE(absl::StartsWith(ChatError(Chat(field)), name)) << ChatError(Chat(field));
  }
}

TEST(OpenAiRequest, WrongTypesNameFieldValueAndBound) {
  const struct {
    const char* field;
    const char* message;
  } kCases[] = {
      {R"("temperature":"hot")", "temperature is \"hot\"; it must be a number"},
      {R"("max_tokens":1.5)",
       "max_tokens is 1.5E0; it must be a whole number of -2147483648..2147483647"},
      {R"("max_tokens":4294967296)",
       "max_tokens is 4294967296; it must be a whole number of -2147483648..2147483647"},
      {R"("max_tokens":1,"max_completion_tokens":1)",
       "max_tokens is 1; it must be absent where max_completion_tokens is given"},
      {R"("top_k":true)", "top_k is true; it must be a whole number of -2147483648..2147483647"},
      {R"("seed":1e300)",
       "seed is 1E300; it must be a whole number of -9223372036854775808..18446744073709551615"},
      {R"("stop":7)", "stop is 7; it must be a string or an array of strings"},
      {R"("stop":["a",7])", "stop[1] is 7; it must be a string"},
      {R"("stream":"yes")", "stream is \"yes\"; it must be true or false"},
      {R"("service_tier":"gold")",
       "service_tier is \"gold\"; it must be one of auto, default, standard, priority, ultraspeed"},
      {R"("stream_options":[])", "stream_options is an array of 0; it must be an object"},
      {R"("top_logprobs":2)", "top_logprobs is 2; it must be absent unless logprobs is true"},
      {R"("user":5)", "user is 5; it must be a string"},
  };
  for (const auto& one : kCases) EXPECT_EQ(ChatError(Chat(one.field)), one.message);
}

TEST(OpenAiRequest, BadMessagesNameTheirPlace) {
  const auto error = [](const char* messages) {
    return ChatError(absl::StrCat(R"({"model":"m","messages":)", messages, "}"));
  };
  EXPECT_EQ(error("7"), "messages is 7; it must be an array");
  EXPECT_EQ(error("null"), "messages is missing; it must be an array");
  EXPECT_EQ(error("[1]"), "messages[0] is no object; it must be one");
  EXPECT_EQ(error(R"([{"content":"a"}])"),
            "messages[0].role is missing; it must be one of system, developer, user, assistant, "
            "tool");
  EXPECT_EQ(error(R"([{"role":"user","content":5}])"),
            "messages[0].content is 5; it must be a string or an array of text parts");
  EXPECT_EQ(error(R"([{"role":"user","content":[{"type":"image_url","image_url":{}}]}])"),
            "messages[0].content[0].type is \"image_url\"; it must be one of text");
  EXPECT_EQ(error(R"([{"role":"assistant","content":"a","function_call":{"name":"f"}}])"),
            "messages[0].function_call is an object; this server does not support it");
  EXPECT_EQ(ChatError(R"({"messages":[]})"), "model is missing; it must be the name of a model");
}

TEST(OpenAiRequest, BodiesThatAreNoObject) {
  for (const char* body : {"", " ", "{", "[]", "\"a\"", "{}{}", "{\"model\":\"\xff\"}",
                           "{\"model\":\"\\ud800\"}", "{'a':1}", "nonsense", "{\"a\":1,}"}) {
    EXPECT_TRUE(absl::StartsWith(ChatError(body), "body is ")) << ChatError(body);
  }
  const std::string deep = std::string(100000, '[');
  EXPECT_TRUE(absl::StrContains(ChatError(Chat("\"x\":" + deep)), "nested deeper than 64"));
  // No more of a long value is quoted than one can read, and no half of a character.
  std::string longest = "\"service_tier\":\"";
  for (int i = 0; i < 1000; ++i) longest += "é";
  const std::string error = ChatError(Chat(longest + "\""));
  EXPECT_LT(error.size(), 200u);
  EXPECT_TRUE(absl::StrContains(error, "é..;")) << error;
}

// Whatever a body says, the answer is a call, or an error that names what is wrong.
TEST(OpenAiRequest, DamagedBodiesAreRefusedOrUnderstood) {
  std::mt19937_64 random(20261128);
  const std::string good =
      Chat(R"("stop":["a","b"],"temperature":0.5,"stream_options":{"include_usage":true},"seed":7,)"
           R"("logprobs":true,"top_logprobs":2,"tools":[],"service_tier":"auto","max_tokens":5)");
  int num_refused = 0;
  for (int i = 0; i < 5000; ++i) {
    std::string body = good;
    for (int changes = 1 + static_cast<int>(random() % 3); changes > 0; --changes) {
      constexpr absl::string_view kBytes = "{}[]\",:0-e.\\ntfu \xff";
      body[random() % body.size()] = kBytes[random() % kBytes.size()];
    }
    for (const auto& call : {ParseChatCompletion(body, Context()).status(),
                             ParseCompletion(body, Context()).status()}) {
      num_refused += !call.ok();
      EXPECT_TRUE(call.ok() || !call.message().empty());
    }
  }
  EXPECT_GT(num_refused, 5000);  // a chat is no completion
}

TEST(OpenAiRequest, Completions) {
  const auto call = ParseCompletion(R"({"model":"m","prompt":"p","logprobs":2})", Context());
  ASSERT_TRUE(call.ok()) << call.status();
  const auto& request = std::get<v1::GenerateRequest>(call->request);
  EXPECT_EQ(request.prompt(), "p");
  EXPECT_EQ(request.options().max_tokens(), 16);  // OpenAI's default
  EXPECT_EQ(request.options().logprobs(), 2);
  const auto prompt_error = [](const char* prompt) {
    return std::string(
        ParseCompletion(absl::StrCat(R"({"model":"m","prompt":)", prompt, "}"), Context())
            .status()
            .message());
  };
  EXPECT_TRUE(ParseCompletion(R"({"model":"m","prompt":["p"]})", Context()).ok());
  EXPECT_EQ(prompt_error(R"(["a","b"])"), "prompt has 2 strings; it must have 1");
  EXPECT_EQ(prompt_error("[1,2]"), "prompt[0] is 1; it must be a string");
  EXPECT_EQ(prompt_error("null"), "prompt is missing; it must be a string");
}

// ---- Replies ----

v1::GenerateChunk TextChunk(const std::string& text) {
  v1::GenerateChunk chunk;
  chunk.set_request_id("id-1");
  chunk.set_model("m");
  chunk.set_text(text);
  chunk.set_service_tier(v1::SERVICE_TIER_ULTRASPEED);
  chunk.set_seed(18446744073709551615u);
  chunk.mutable_usage()->set_prompt_tokens(10);
  chunk.mutable_usage()->set_cached_tokens(4);
  chunk.mutable_usage()->set_completion_tokens(6);
  chunk.mutable_usage()->set_draft_rounds(3);
  return chunk;
}

v1::GenerateChunk LastChunk(const std::string& text,
                            v1::FinishReason reason = v1::FINISH_REASON_STOP) {
  v1::GenerateChunk chunk = TextChunk(text);
  chunk.set_finish_reason(reason);
  chunk.mutable_timing()->set_tokens_per_second(1000);
  chunk.mutable_timing()->set_ttft_ms(12.5);
  chunk.set_billed_tier(v1::SERVICE_TIER_STANDARD);
  chunk.set_billed_reason("speed_promise");
  return chunk;
}

// The JSON of every event; "[DONE]" as a string.
std::vector<json::value> Events(const std::string& text) {
  std::vector<json::value> events;
  EXPECT_TRUE(text.empty() || absl::EndsWith(text, "\n\n")) << text;
  for (const absl::string_view event : absl::StrSplit(text, "\n\n", absl::SkipEmpty())) {
    EXPECT_TRUE(absl::StartsWith(event, "data: ")) << event;
    const std::string data(event.substr(6));
    events.push_back(data == "[DONE]" ? json::value("[DONE]") : json::parse(data));
  }
  return events;
}

TEST(OpenAiReply, AChatStream) {
  const auto writer = NewChatCompletionWriter({.include_usage = true}, Context());
  std::vector<json::value> events = Events(writer->Events(TextChunk("<think>why</thi")));
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0], json::parse(R"({"id":"chatcmpl-id-1","object":"chat.completion.chunk",
      "created":1700000000,"model":"m","service_tier":"priority",
      "system_fingerprint":"fp_0123456789","usage":null,"choices":[{"index":0,
      "delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]})"));
  const auto delta = [](const json::value& event) { return event.at("choices").at(0).at("delta"); };
  EXPECT_EQ(delta(events[1]), json::parse(R"({"reasoning_content":"why"})"));
  events = Events(writer->Events(TextChunk("nk>a")));
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(delta(events[0]), json::parse(R"({"content":"a"})"));
  EXPECT_EQ(writer->Events(TextChunk("")), "");  // nothing to say

  events = Events(writer->Events(LastChunk("b", v1::FINISH_REASON_LENGTH)));
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(delta(events[0]), json::parse(R"({"content":"b"})"));
  EXPECT_EQ(delta(events[1]), json::object());
  EXPECT_EQ(events[1].at("choices").at(0).at("finish_reason"), "length");
  const json::value& speed = events[1].at("ultraspeed");
  EXPECT_EQ(speed.at("tokens_per_second").as_double(), 1000);
  EXPECT_EQ(speed.at("tokens_per_round").as_double(), 2);
  EXPECT_EQ(speed.at("billed_tier"), "standard");
  EXPECT_EQ(speed.at("billed_reason"), "speed_promise");
  EXPECT_EQ(speed.at("seed").to_number<uint64_t>(), 18446744073709551615u);
  EXPECT_TRUE(events[2].at("choices").as_array().empty());
  EXPECT_EQ(events[2].at("usage").at("total_tokens"), 16);
  EXPECT_EQ(events[2].at("usage").at("prompt_tokens_details").at("cached_tokens"), 4);
  EXPECT_EQ(events[3], "[DONE]");
}

TEST(OpenAiReply, UsageIsToldOnlyWhenAskedFor) {
  const auto plain = NewChatCompletionWriter({}, Context());
  for (const json::value& event : Events(plain->Events(LastChunk("a")))) {
    EXPECT_FALSE(event.is_object() && event.as_object().contains("usage")) << event;
  }
  const auto continuous = NewCompletionWriter({.continuous_usage = true}, Context());
  const std::vector<json::value> events = Events(continuous->Events(TextChunk("")));
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].at("usage").at("completion_tokens"), 6);
}

TEST(OpenAiReply, AWholeChatAnswer) {
  const auto writer = NewChatCompletionWriter({.own_tier_names = true}, Context());
  writer->Collect(TextChunk("<think>wh"));
  writer->Collect(TextChunk("y</think>a"));
  writer->Collect(LastChunk("b"));
  json::value body = json::parse(writer->Body());
  body.as_object().erase("ultraspeed");
  EXPECT_EQ(body, json::parse(R"({"id":"chatcmpl-id-1","object":"chat.completion",
      "created":1700000000,"model":"m","service_tier":"ultraspeed",
      "system_fingerprint":"fp_0123456789","choices":[{"index":0,"message":{"role":"assistant",
      "content":"ab","refusal":null,"reasoning_content":"why"},"logprobs":null,
      "finish_reason":"stop"}],"usage":{"prompt_tokens":10,"completion_tokens":6,"total_tokens":16,
      "prompt_tokens_details":{"cached_tokens":4,"audio_tokens":0},
      "completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,
      "accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}})"));
}

TEST(OpenAiReply, CompletionsKeepThinkMarkersAsText) {
  const auto writer = NewCompletionWriter({}, Context());
  writer->Collect(LastChunk("<think>a</think>"));
  const json::value body = json::parse(writer->Body());
  EXPECT_EQ(body.at("id"), "cmpl-id-1");
  EXPECT_EQ(body.at("object"), "text_completion");
  EXPECT_EQ(body.at("choices").at(0).at("text"), "<think>a</think>");
}

// ---- Lists ----

TEST(OpenAiLists, Models) {
  v1::ListModelsResponse models;
  v1::Model* model = models.add_models();
  model->set_name("m");
  model->set_context_tokens(8192);
  model->set_workers_ready(2);
  model->add_tiers(v1::SERVICE_TIER_STANDARD);
  model->add_tiers(v1::SERVICE_TIER_ULTRASPEED);
  const json::value one = json::parse(*ModelBody(models, "m", 7));
  EXPECT_EQ(one, json::parse(R"({"id":"m","object":"model","created":7,"owned_by":"ultraspeed",
      "context_tokens":8192,"workers_ready":2,"tiers":["standard","ultraspeed"]})"));
  EXPECT_EQ(json::parse(ModelListBody(models, 7)).at("data").at(0), one);
  EXPECT_EQ(ModelBody(models, "x", 7).status().code(), absl::StatusCode::kNotFound);
}

TEST(OpenAiLists, Usage) {
  const auto request = ParseUsageQuery({{"start", "3600"},
                                        {"end", "1970-01-01T02:00:00Z"},
                                        {"bucket_width", "1m"},
                                        {"group_by", "model,api_key"}});
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->start().seconds(), 3600);
  EXPECT_EQ(request->end().seconds(), 7200);
  EXPECT_EQ(request->group_by_size(), 2);
  for (const char* bad : {"yesterday", "", "999999999999999"}) {
    const auto refused = ParseUsageQuery({{"start", bad}});
    EXPECT_TRUE(absl::StartsWith(refused.status().message(), "start=")) << refused.status();
  }

  v1::GetUsageResponse usage;
  for (const char* model : {"a", "b"}) {
    auto* bucket = usage.add_buckets();
    bucket->mutable_start()->set_seconds(3600);
    bucket->set_model(model);
    bucket->set_requests(3);
    bucket->set_cost_nanodollars(5);
    bucket->mutable_usage()->set_prompt_tokens(9);
  }
  const json::value body = json::parse(UsageBody(usage, *request));
  ASSERT_EQ(body.at("data").as_array().size(), 1u);
  const json::value& bucket = body.at("data").at(0);
  EXPECT_EQ(bucket.at("start_time"), 3600);
  EXPECT_EQ(bucket.at("end_time"), 3660);
  EXPECT_EQ(bucket.at("results").at(1).at("model"), "b");
  EXPECT_EQ(bucket.at("results").at(0).at("input_tokens"), 9);
  EXPECT_EQ(bucket.at("results").at(0).at("cost_nanodollars"), 5);
  EXPECT_TRUE(bucket.at("results").at(0).at("service_tier").is_null());
}

}  // namespace
}  // namespace ultraspeed::router
