// What an HTTP client is answered, beside what a gRPC client is.
#include <gmock/gmock.h>

#include <boost/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "tests/cluster/http_cluster_fixture.h"

namespace ultraspeed {
namespace {

namespace json = boost::json;
using testing::GrpcAnswer;
using testing::HttpClusterTest;
using testing::HttpGetRequest;
using testing::HttpPost;
using testing::HttpResponse;
using testing::ParseSse;
using testing::SseEvents;

// ---- Strict tools: the bundled model was never taught to call, and calls as it is told ----

constexpr char kStrictFields[] = R"("name":"book","description":"Books a table.","strict":true,)";
constexpr char kStrictSchema[] = R"({"type":"object","properties":{
    "guest":{"type":"string","maxLength":12,"description":"who comes"},
    "people":{"type":"integer","minimum":1,"maximum":20},
    "place":{"enum":["inside","outside"]},
    "wishes":{"type":"array","items":{"type":"object","properties":{"dish":{"enum":["soup","fish"]},
        "hot":{"type":["boolean","null"]}},"required":["dish","hot"],"additionalProperties":false},"minItems":1,"maxItems":2},
    "note":{"anyOf":[{"type":"string","maxLength":5},{"type":"null"}]}},
  "required":["guest","people","place","wishes"],"additionalProperties":false})";

void ExpectABooking(const json::value& value) {
  const json::object& booking = value.as_object();
  EXPECT_LE(booking.at("guest").as_string().size(), 4u * 12u);
  EXPECT_GE(booking.at("people").to_number<int>(), 1);
  EXPECT_LE(booking.at("people").to_number<int>(), 20);
  const json::value& place = booking.at("place");
  EXPECT_TRUE(place == "inside" || place == "outside");
  const json::array& wishes = booking.at("wishes").as_array();
  EXPECT_TRUE(wishes.size() == 1 || wishes.size() == 2);
  for (const json::value& wish : wishes) {
    EXPECT_TRUE(wish.at("dish") == "soup" || wish.at("dish") == "fish");
    EXPECT_TRUE(wish.at("hot").is_bool() || wish.at("hot").is_null());
    EXPECT_EQ(wish.as_object().size(), 2u);
  }
  if (const json::value* note = booking.if_contains("note")) {
    EXPECT_TRUE(note->is_null() || note->is_string());
  }
  EXPECT_EQ(booking.size(), booking.contains("note") ? 5u : 4u);
}

TEST_F(HttpClusterTest, CallsOfStrictToolsKeepToTheirSchema) {
  for (const char* const speculation : {"true", "false"}) {
    for (const char* const choice :
         {R"("required")", R"({"type":"function","function":{"name":"book"}})"}) {
      const HttpResponse chat = AskChat(
          absl::StrCat(R"("max_tokens":300,"seed":5,"parallel_tool_calls":false,"speculation":)",
                       speculation, R"(,"tools":[{"type":"function","function":{)", kStrictFields,
                       R"("parameters":)", kStrictSchema, R"(}}],"tool_choice":)", choice));
      ASSERT_EQ(chat.status, 200) << chat.body;
      const json::value answer = chat.json().at("choices").at(0);
      EXPECT_EQ(answer.at("finish_reason"), "tool_calls");
      const json::value call = answer.at("message").at("tool_calls").at(0).at("function");
      EXPECT_EQ(call.at("name"), "book");
      ExpectABooking(json::parse(call.at("arguments").as_string()));
    }
  }
  const std::string ask = R"({"model":"tiny-mimo","seed":6,)";
  const HttpResponse responses = Ask(HttpPost(
      "/v1/responses",
      absl::StrCat(ask,
                   R"("input":"A table.","max_output_tokens":300,"parallel_tool_calls":false,)",
                   R"("tools":[{"type":"function",)", kStrictFields, R"("parameters":)",
                   kStrictSchema, R"(}],"tool_choice":"required"})"),
      open_key_));
  ASSERT_EQ(responses.status, 200) << responses.body;
  ExpectABooking(json::parse(responses.json().at("output").at(0).at("arguments").as_string()));
  const HttpResponse messages = Ask(HttpPost(
      "/v1/messages",
      absl::StrCat(ask, R"("messages":[{"role":"user","content":"A table."}],"max_tokens":300,)",
                   R"("tools":[{)", kStrictFields, R"("input_schema":)", kStrictSchema,
                   R"(}],"tool_choice":{"type":"any","disable_parallel_tool_use":true}})"),
      open_key_));
  ASSERT_EQ(messages.status, 200) << messages.body;
  EXPECT_EQ(messages.json().at("stop_reason"), "tool_use");
  ExpectABooking(messages.json().at("content").at(0).at("input"));
}

// ---- The same answers as by gRPC ----

TEST_F(HttpClusterTest, CompletionsSayWhatGrpcSays) {
  const GrpcAnswer expected = GrpcCompletion();
  ASSERT_FALSE(expected.text.empty());
  const HttpResponse whole = AskCompletion(kSameOptions);
  ASSERT_EQ(whole.status, 200) << whole.body;
  const json::value body = whole.json();
  EXPECT_EQ(body.at("choices").at(0).at("text").as_string().c_str(), expected.text);
  EXPECT_EQ(body.at("choices").at(0).at("finish_reason"), "length");
  EXPECT_EQ(body.at("ultraspeed").at("seed"), 4711);
  ExpectUsage(body.at("usage"), expected.last.usage());
  EXPECT_EQ(body.at("id").as_string().c_str(), "cmpl-" + whole.header("x-request-id"));
  EXPECT_EQ(whole.header("x-service-tier"), "standard");

  const HttpResponse streamed = AskCompletion(
      absl::StrCat(kSameOptions, R"(,"stream":true,"stream_options":{"include_usage":true},)"
                                 R"("service_tier":"ultraspeed")"));
  ASSERT_TRUE(streamed.is_complete) << streamed.body;
  EXPECT_EQ(streamed.header("x-service-tier"), "ultraspeed");
  const SseEvents events = ParseSse(streamed.body);
  EXPECT_EQ(events.Joined("text"), expected.text);
  ASSERT_GE(events.data.size(), 3u);
  EXPECT_EQ(events.data.back(), "[DONE]");
  const json::value usage = json::parse(events.data[events.data.size() - 2]);
  EXPECT_TRUE(usage.at("choices").as_array().empty());
  ExpectUsage(usage.at("usage"), expected.last.usage());
  EXPECT_EQ(usage.at("service_tier"), "ultraspeed");
}

TEST_F(HttpClusterTest, ChatSaysWhatGrpcSays) {
  const GrpcAnswer expected = GrpcChat();
  ASSERT_FALSE(expected.text.empty());
  const HttpResponse whole = AskChat(kSameOptions);
  ASSERT_EQ(whole.status, 200) << whole.body;
  const json::value message = whole.json().at("choices").at(0).at("message");
  EXPECT_EQ(message.at("content").as_string().c_str(), expected.text);
  ExpectUsage(whole.json().at("usage"), expected.last.usage());
  EXPECT_EQ(whole.json().at("service_tier"), "default");

  const HttpResponse streamed = AskChat(absl::StrCat(kSameOptions, R"(,"stream":true)"));
  const SseEvents events = ParseSse(streamed.body);
  EXPECT_EQ(events.Joined("content"), expected.text);
  EXPECT_EQ(json::parse(events.data[0]).at("choices").at(0).at("delta").at("role"), "assistant");
  EXPECT_EQ(json::parse(events.data[0]).at("system_fingerprint"),
            whole.json().at("system_fingerprint"));
}

TEST_F(HttpClusterTest, MessagesSayWhatGrpcSays) {
  const GrpcAnswer expected = GrpcChat();
  const auto ask = [&](const char* more) {
    return Ask(absl::StrReplaceAll(
        HttpPost("/v1/messages",
                 absl::StrCat(R"({"model":"tiny-mimo","messages":[{"role":"user","content":")",
                              kQuestion, "\"}],", kSameOptions, more, "}"),
                 open_key_),
        {{"Authorization: Bearer", "x-api-key:"}}));
  };
  const HttpResponse whole = ask("");
  ASSERT_EQ(whole.status, 200) << whole.body;
  EXPECT_EQ(whole.json().at("content").at(0).at("text").as_string().c_str(), expected.text);
  EXPECT_EQ(whole.json().at("usage").at("output_tokens"),
            expected.last.usage().completion_tokens());
  EXPECT_EQ(whole.json().at("stop_reason"), "max_tokens");
  EXPECT_EQ(whole.header("request-id"), whole.header("x-request-id"));
  EXPECT_EQ(whole.header("anthropic-ratelimit-requests-limit"),
            whole.header("x-ratelimit-limit-requests"));

  const SseEvents events = ParseSse(ask(R"(,"stream":true,"speed":"fast")").body);
  ASSERT_GE(events.names.size(), 6u);
  EXPECT_EQ(events.names.front(), "message_start");
  EXPECT_EQ(events.names.back(), "message_stop");
  std::string text;
  for (const std::string& data : events.data) {
    const json::value event = json::parse(data);
    if (event.at("type") == "content_block_delta") {
      text += event.at("delta").at("text").as_string().c_str();
    }
    if (event.at("type") == "message_delta") {
      EXPECT_EQ(event.at("usage").at("speed"), "fast");
    }
  }
  EXPECT_EQ(text, expected.text);

  const HttpResponse refused = ask(R"(,"temperature":3)");
  EXPECT_EQ(refused.status, 400);
  EXPECT_EQ(refused.json().at("error").at("type"), "invalid_request_error");
  EXPECT_EQ(refused.json().at("request_id").as_string().c_str(), refused.header("request-id"));
}

TEST_F(HttpClusterTest, LogprobsSpellTheText) {
  const json::value chat =
      AskChat(R"("max_tokens":12,"temperature":0,"logprobs":true,"top_logprobs":2)").json();
  const json::value& choice = chat.at("choices").at(0);
  std::string spelled;
  for (const json::value& token : choice.at("logprobs").at("content").as_array()) {
    for (const json::value& byte : token.at("bytes").as_array()) {
      spelled += static_cast<char>(byte.to_number<int>());
    }
    ASSERT_EQ(token.at("top_logprobs").as_array().size(), 2u);
    EXPECT_EQ(token.at("top_logprobs").at(0).at("token"), token.at("token"));  // greedy
  }
  EXPECT_EQ(spelled, choice.at("message").at("content").as_string().c_str());

  const json::value text = AskCompletion(R"("max_tokens":12,"temperature":0,"logprobs":1)").json();
  const json::value& logprobs = text.at("choices").at(0).at("logprobs");
  spelled.clear();
  for (size_t i = 0; i < logprobs.at("tokens").as_array().size(); ++i) {
    EXPECT_EQ(logprobs.at("text_offset").at(i), spelled.size());
    spelled += logprobs.at("tokens").at(i).as_string().c_str();
  }
  EXPECT_EQ(spelled, text.at("choices").at(0).at("text").as_string().c_str());
}

TEST_F(HttpClusterTest, ModelsAndHealth) {
  const json::value models = Ask(HttpGetRequest("/v1/models", open_key_)).json();
  EXPECT_EQ(models.at("data").at(0).at("id"), "tiny-mimo");
  EXPECT_EQ(Ask(HttpGetRequest("/v1/models/tiny%2Dmimo", open_key_)).json(),
            models.at("data").at(0));
  EXPECT_EQ(Ask(HttpGetRequest("/v1/models/other", open_key_)).status, 404);
  EXPECT_EQ(Ask(HttpGetRequest("/v1/models", "")).status, 401);
  EXPECT_EQ(Ask(HttpGetRequest("/healthz", "")).body, "ok\n");
}

}  // namespace
}  // namespace ultraspeed
