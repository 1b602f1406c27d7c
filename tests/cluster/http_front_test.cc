// The HTTP front as a server: what it refuses, connections, money, metrics and logs, rolling
// updates.
#include <gmock/gmock.h>
#include <signal.h>

#include <boost/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/cluster/http_cluster_fixture.h"

namespace ultraspeed {
namespace {

namespace json = boost::json;
using testing::BinFile;
using ::testing::HasSubstr;
using testing::HttpClusterTest;
using testing::HttpConnection;
using testing::HttpGetRequest;
using testing::HttpPost;
using testing::HttpResponse;
using ::testing::Not;
using testing::ParseSse;
using testing::Process;

// ---- What is wrong is told ----

TEST_F(HttpClusterTest, EveryRefusalHasItsStatusAndNamesItsField) {
  const struct {
    const char* fields;
    int status;
    const char* param;
    const char* code;
  } kCases[] = {
      {R"("max_tokens":0)", 400, "max_tokens", nullptr},
      {R"("max_completion_tokens":0)", 400, "max_completion_tokens", nullptr},
      {R"("max_tokens":100000)", 400, "max_tokens", nullptr},
      {R"("max_tokens":8190)", 400, "max_tokens", "context_length_exceeded"},
      {R"("temperature":2.5)", 400, "temperature", nullptr},
      {R"("top_p":0)", 400, "top_p", nullptr},
      {R"("top_k":-1)", 400, "top_k", nullptr},
      {R"("logprobs":true,"top_logprobs":9)", 400, "top_logprobs", nullptr},
      {R"("stop":"")", 400, "stop[0]", nullptr},
      {R"("stop":["1","2","3","4","5","6","7","8","9"])", 400, "stop", nullptr},
      {R"("user":"a\u0007")", 400, "user", nullptr},
      {R"("tools":[{}])", 400, "tools[0].type", nullptr},
      {R"("tools":[{"type":"function","function":{"name":"a b"}}])", 400, "tools[0].function.name",
       nullptr},
      {R"("tools":[{"type":"function","function":{"name":"a","strict":true,"parameters":)"
       R"({"properties":{"b":{"type":"integer","not":{}}}}}}])",
       400, "tools[0].function.parameters.properties.b", nullptr},
      {R"("tool_choice":"required")", 400, "tool_choice", nullptr},
      {R"("response_format":{"type":"grammar"})", 400, "response_format.type", nullptr},
      {R"("ignore_eos":true,"response_format":{"type":"json_object"})", 400, "ignore_eos", nullptr},
      {R"("response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"not":{}}}})",
       400, "response_format.json_schema.schema", nullptr},
      {R"("model":"other")", 404, nullptr, "model_not_found"},
      {R"("messages":[])", 400, "messages", nullptr},
      {R"("messages":[{"role":"system","content":"a"}])", 400, "messages[0].role", nullptr},
      {R"("messages":[{"role":"assistant","content":""}])", 400, "messages[0].content", nullptr},
  };
  for (const auto& one : kCases) {
    const HttpResponse response = AskChat(one.fields);
    EXPECT_EQ(response.status, one.status) << one.fields << response.body;
    const json::object error = response.json().at("error").as_object();
    EXPECT_EQ(error.size(), 4u);
    EXPECT_EQ(error.at("param"),
              one.param == nullptr ? json::value(nullptr) : json::value(one.param))
        << response.body;
    EXPECT_EQ(error.at("code"), one.code == nullptr ? json::value(nullptr) : json::value(one.code))
        << response.body;
    EXPECT_THAT(error.at("message").as_string().c_str(), Not(HasSubstr("options.")));
  }
}

TEST_F(HttpClusterTest, KeysComeInThreeHeaders) {
  for (const char* header : {"Authorization: Bearer ", "api-key: ", "x-api-key: "}) {
    const std::string request =
        absl::StrCat("GET /v1/models HTTP/1.1\r\nHost: a\r\n", header, open_key_, "\r\n\r\n");
    EXPECT_EQ(Ask(request).status, 200) << header;
  }
  for (const char* header :
       {"Authorization: Bearer us-wrong", "api-key: x", "x-api-key: \xff\xfe", "x-api-key:"}) {
    const HttpResponse refused =
        Ask(absl::StrCat("GET /v1/models HTTP/1.1\r\nHost: a\r\n", header, "\r\n\r\n"));
    EXPECT_EQ(refused.status, 401) << header;
    EXPECT_EQ(refused.header("www-authenticate"), "Bearer");
  }
}

TEST_F(HttpClusterTest, LimitsAndBudgetsAreTold) {
  const HttpResponse first = AskCompletion(R"("max_tokens":1)", tight_key_);
  EXPECT_EQ(first.status, 200) << first.body;
  EXPECT_EQ(first.header("x-ratelimit-limit-requests"), "2");
  EXPECT_EQ(first.header("x-ratelimit-remaining-requests"), "1");
  EXPECT_THAT(first.header("x-ratelimit-reset-requests"), HasSubstr("s"));
  AskCompletion(R"("max_tokens":1)", tight_key_);
  const HttpResponse refused = AskCompletion(R"("max_tokens":1)", tight_key_);
  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(refused.json().at("error").at("code"), "rate_limit_exceeded");
  EXPECT_THAT(refused.header("retry-after"), Not(""));
  EXPECT_EQ(refused.header("x-ratelimit-remaining-requests"), "0");

  const HttpResponse poor = AskCompletion(R"("max_tokens":1000)", poor_key_);
  EXPECT_EQ(poor.status, 402);
  EXPECT_EQ(poor.json().at("error").at("code"), "insufficient_quota");
}

TEST_F(HttpClusterTest, WhatIsNoRequestIsRefusedAndTheRouterGoesOn) {
  const std::string key = absl::StrCat("Authorization: Bearer ", open_key_, "\r\n");
  const struct {
    std::string request;
    int status;
  } kCases[] = {
      {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 404},
      {"GET /v1/chat/completions HTTP/1.1\r\nHost: a\r\n\r\n", 405},
      {"DELETE /v1/models HTTP/1.1\r\nHost: a\r\n\r\n", 405},
      {"GET /healthz HTTP/1.1\r\n\r\n", 400},
      {"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
      {"GET /healthz HTTP/3.0\r\nHost: a\r\n\r\n", 400},
      {"garbage\r\n\r\n", 400},
      {std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 15), 400},
      {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400},
      {"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + std::string(70000, 'x') + "\r\n\r\n", 431},
      {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n", 413},
      {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: "
       "6\r\n\r\n{}",
       400},
      {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n{}", 400},
      {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n{}", 400},
      {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: "
       "2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
       400},
      {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
      {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nExpect: miracles\r\n\r\n", 417},
      {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: "
       "2\r\n\r\n{}",
       415},
      {"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: "
       "2\r\n\r\n{}",
       415},
      {HttpPost("/v1/completions", "{\"model\":\"\xff\"}", open_key_), 400},
      {HttpPost("/v1/completions", std::string(100000, '['), open_key_), 400},
      {HttpPost("/v1/completions", "", open_key_), 400},
  };
  for (const auto& one : kCases) {
    const HttpResponse response = Ask(one.request);
    EXPECT_EQ(response.status, one.status) << one.request.substr(0, 200) << response.body;
    EXPECT_TRUE(response.is_complete);
    EXPECT_EQ(response.json().at("error").as_object().size(), 4u) << response.body;
    EXPECT_THAT(response.header("x-request-id"), Not(""));
  }
  EXPECT_EQ(Ask("DELETE /v1/models HTTP/1.1\r\nHost: a\r\n\r\n").header("allow"), "GET, HEAD");
  EXPECT_EQ(AskCompletion(R"("max_tokens":1)").status, 200);
  EXPECT_FALSE(router_->process().HasEnded());
}

// ---- Connections ----

TEST_F(HttpClusterTest, OneConnectionServesManyRequests) {
  HttpConnection connection(router_->http_port());
  // A stream, then two requests at once, then one without a body.
  const std::string stream =
      HttpPost("/v1/completions",
               R"({"model":"tiny-mimo","prompt":"a","max_tokens":3,"stream":true})", open_key_);
  ASSERT_TRUE(connection.Send(stream));
  const HttpResponse streamed = connection.Receive();
  EXPECT_TRUE(streamed.is_complete);
  EXPECT_EQ(streamed.header("connection"), "keep-alive");
  ASSERT_TRUE(connection.Send(stream + HttpGetRequest("/v1/models", open_key_)));
  EXPECT_EQ(ParseSse(connection.Receive().body).data.back(), "[DONE]");
  EXPECT_EQ(connection.Receive().json().at("object"), "list");
  ASSERT_TRUE(connection.Send("\r\nHEAD /v1/models HTTP/1.1\r\nHost: a\r\nx-api-key: " + open_key_ +
                              "\r\n\r\n"));
  const HttpResponse head = connection.Receive(absl::Seconds(5), true);
  EXPECT_EQ(head.status, 200);
  EXPECT_THAT(head.header("content-length"), Not("0"));
  // A refusal does not end the connection either.
  ASSERT_TRUE(connection.Send(HttpPost("/v1/completions", "{}", open_key_)));
  EXPECT_EQ(connection.Receive().status, 400);
  ASSERT_TRUE(connection.Send("GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
  EXPECT_EQ(connection.Receive().header("connection"), "close");
  EXPECT_TRUE(connection.IsClosed(absl::Seconds(3)));
}

TEST_F(HttpClusterTest, BodiesMayComeInPiecesAndOnDemand) {
  const std::string head =
      absl::StrCat("POST /v1/completions HTTP/1.1\r\nHost: a\r\nx-api-key: ", open_key_, "\r\n");
  const std::string body = R"({"model":"tiny-mimo","prompt":"a","max_tokens":2})";
  HttpConnection chunked(router_->http_port());
  chunked.Send(head + "Transfer-Encoding: chunked\r\n\r\n");
  for (const char c : body) chunked.Send(absl::StrCat("1;x=y\r\n", std::string(1, c), "\r\n"));
  chunked.Send("0\r\nTrailer: x\r\n\r\n");
  EXPECT_EQ(chunked.Receive().status, 200);

  HttpConnection expecting(router_->http_port());
  expecting.Send(
      absl::StrCat(head, "Expect: 100-continue\r\nContent-Length: ", body.size(), "\r\n\r\n"));
  EXPECT_EQ(expecting.Receive(absl::Seconds(5)).status, 100);
  expecting.Send(body);
  EXPECT_EQ(expecting.Receive().status, 200);

  HttpConnection old(router_->http_port());
  const std::string stream = R"({"model":"tiny-mimo","prompt":"a","max_tokens":2,"stream":true})";
  old.Send(absl::StrCat("POST /v1/completions HTTP/1.0\r\nx-api-key: ", open_key_,
                        "\r\nContent-Length: ", stream.size(), "\r\n\r\n", stream));
  const HttpResponse until_close = old.Receive();
  EXPECT_EQ(until_close.header("transfer-encoding"), "");
  EXPECT_EQ(ParseSse(until_close.body).data.back(), "[DONE]");
}

TEST_F(HttpClusterTest, AClientThatLeavesFreesTheSlotWithinARound) {
  HttpConnection connection(router_->http_port());
  connection.Send(LongCompletion());
  EXPECT_THAT(connection.ReceiveUntil("\"text\""), HasSubstr("\"text\""));
  EXPECT_EQ(NumRunning(), 1);
  const absl::Time left = absl::Now();
  connection.Close();
  EXPECT_TRUE(Eventually([] { return NumRunning() == 0; }));
  EXPECT_LT(absl::Now() - left, absl::Milliseconds(500));
}

// ---- Money, metrics, logs ----

TEST_F(HttpClusterTest, ARequestIsBilledAsUsual) {
  const std::string key = NewTenant("billed", "");
  ASSERT_TRUE(Eventually([&] { return Ask(HttpGetRequest("/v1/models", key)).status == 200; }));
  const json::value answer = AskCompletion(kSameOptions, key).json();
  EXPECT_EQ(AskCompletion(R"("max_tokens":0)", key).status, 400);  // costs nothing
  json::value usage;
  ASSERT_TRUE(Eventually([&] {
    usage =
        Ask(HttpGetRequest("/v1/usage?bucket_width=1d&group_by=model,service_tier", key)).json();
    return !usage.at("data").as_array().empty();
  }));
  const json::value& row = usage.at("data").at(0).at("results").at(0);
  EXPECT_EQ(row.at("num_model_requests"), 1);
  EXPECT_EQ(row.at("input_tokens"), answer.at("usage").at("prompt_tokens"));
  EXPECT_EQ(row.at("output_tokens"), answer.at("usage").at("completion_tokens"));
  EXPECT_EQ(row.at("model"), "tiny-mimo");
  EXPECT_EQ(row.at("service_tier"), "standard");
  EXPECT_GT(row.at("cost_nanodollars").to_number<int64_t>(), 0);
  const HttpResponse refused = Ask(HttpGetRequest("/v1/usage?bucket_width=1y", key));
  EXPECT_EQ(refused.status, 400);
  EXPECT_EQ(refused.json().at("error").at("param"), "bucket_width");
}

TEST_F(HttpClusterTest, MetricsCountAndLogsKeepSecrets) {
  const HttpResponse response = Ask(HttpPost(
      "/v1/completions", R"({"model":"tiny-mimo","prompt":"xylophone_sentinel","max_tokens":2})",
      open_key_, "X-Client-Request-Id: my-label\r\n"));
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(
      Ask(HttpPost("/v1/completions", R"({"prompt":"xylophone_sentinel"})", open_key_)).status,
      400);
  EXPECT_TRUE(Eventually([] {
    return absl::StrContains(router_->process().Log(), "\"client_request_id\":\"my-label\"");
  }));
  EXPECT_THAT(router_->process().Log(), Not(HasSubstr("xylophone_sentinel")));
  EXPECT_THAT(router_->process().Log(), Not(HasSubstr(open_key_)));
  const std::string metrics = testing::HttpGet(router_->metrics_port(), "/metrics");
  EXPECT_THAT(metrics, HasSubstr("ultraspeed_router_http_connections "));
  EXPECT_THAT(
      metrics,
      HasSubstr("ultraspeed_router_http_requests_total{code=\"200\",route=\"completions\"}"));
}

// ---- Rolling updates ----

TEST_F(HttpClusterTest, SigtermLetsRunningStreamsFinish) {
  const auto router = StartRouter("router-that-ends");
  ASSERT_TRUE(Eventually(
      [&] { return absl::StrContains(testing::HttpGet(router->http_port(), "/readyz"), "ok"); }));
  HttpConnection idle(router->http_port()), streaming(router->http_port());
  idle.Send(HttpGetRequest("/healthz", ""));
  EXPECT_EQ(idle.Receive().status, 200);
  streaming.Send(HttpPost("/v1/completions",
                          absl::StrCat(R"({"model":"tiny-mimo","prompt":")", kCode,
                                       R"(","max_tokens":150,"ignore_eos":true,"stream":true})"),
                          open_key_));
  std::string received = streaming.ReceiveUntil("\"text\"");
  router->process().Signal(SIGTERM);
  EXPECT_TRUE(idle.IsClosed(absl::Seconds(5)));
  received += streaming.ReceiveUntil("[DONE]");
  EXPECT_THAT(received, HasSubstr("\"finish_reason\":\"length\""));
  EXPECT_THAT(received, HasSubstr("[DONE]"));
  streaming.Close();
  EXPECT_EQ(router->process().Wait(absl::Seconds(10)), 0) << router->process().Log();
}

TEST_F(HttpClusterTest, TheRouterRefusesToListenOpenByMistake) {
  const auto status_of = [&](std::vector<std::string> flags) {
    flags.insert(flags.begin(), {BinFile("ultraspeed-router"), "--worker=127.0.0.1:1",
                                 "--listen=127.0.0.1:0", "--http-listen=0.0.0.0:0"});
    return Process(temporary_->path(), "router", flags).Wait(absl::Seconds(10));
  };
  EXPECT_EQ(status_of({"--no-auth"}), 1);
  EXPECT_EQ(status_of({"--store=sqlite:" + temporary_->path() + "/store.db",
                       "--pepper-file=" + temporary_->path() + "/pepper"}),
            1);  // off loopback without TLS
}

}  // namespace
}  // namespace ultraspeed
