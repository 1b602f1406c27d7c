#include "router/http/routes.h"

#include <gtest/gtest.h>

#include "router/http/response_head.h"

namespace ultraspeed::router {
namespace {

TEST(Routes, PathsAndQueries) {
  EXPECT_EQ(ParseTarget("/v1/chat/completions").route, Route::kChatCompletions);
  EXPECT_EQ(ParseTarget("/v1/completions?beta=true").route, Route::kCompletions);
  EXPECT_EQ(ParseTarget("/v1/messages?beta=true").route, Route::kMessages);
  EXPECT_EQ(ParseTarget("/v1/responses").route, Route::kResponses);
  EXPECT_EQ(ParseTarget("/v1/messages/count_tokens").route, Route::kCountTokens);
  EXPECT_EQ(ParseTarget("/v1/models").route, Route::kModels);
  EXPECT_EQ(ParseTarget("/healthz").route, Route::kHealth);
  EXPECT_EQ(ParseTarget("/readyz").route, Route::kReady);
  const Target model = ParseTarget("/v1/models/xiaomi%2Fmimo+v2");
  EXPECT_EQ(model.route, Route::kModel);
  EXPECT_EQ(model.model, "xiaomi/mimo+v2");
  const Target usage = ParseTarget("/v1/usage?start=1&group_by=model&group_by=api%5Fkey&q=a+b");
  EXPECT_EQ(usage.route, Route::kUsage);
  EXPECT_EQ(usage.query.count("group_by"), 2u);
  EXPECT_EQ(usage.query.find("q")->second, "a b");
  EXPECT_EQ(std::next(usage.query.find("group_by"))->second, "api_key");
}

TEST(Routes, EverythingElseIsNothing) {
  for (const char* target : {"", "*", "/", "/v1", "/v1/chat/completions/", "/v1/models/",
                             "http://host/v1/models", "/v1/models/%", "/v1/models/%zz",
                             "/v1/models/%2", "/v1/usage?a=%", "/v1/../healthz", "//healthz"}) {
    EXPECT_EQ(ParseTarget(target).route, Route::kNone) << target;
  }
}

TEST(ResponseHead, OneThatNothingCanBreakOutOf) {
  ResponseHead head = {.status = 429, .body_bytes = 7};
  head.headers = {{"x-request-id", "id"}, {"x-bad", "a\r\nset-cookie: b"}, {"x-also", "\xff"}};
  EXPECT_EQ(head.ToString(),
            "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\n"
            "content-length: 7\r\nconnection: keep-alive\r\nx-request-id: id\r\n\r\n");
}

TEST(ResponseHead, Chunks) {
  EXPECT_EQ(Chunk(""), "");
  EXPECT_EQ(Chunk("0123456789abcdef!"), "11\r\n0123456789abcdef!\r\n");
}

TEST(ResponseHead, AnthropicsNamesOfLimits) {
  HttpHeaders headers = {{"x-request-id", "id"},
                         {"x-ratelimit-limit-requests", "60"},
                         {"x-ratelimit-remaining-requests", "59"},
                         {"x-ratelimit-reset-requests", "1m1.5s"}};
  AddAnthropicHeaders(absl::FromUnixSeconds(0), &headers);
  const HttpHeaders expected = {{"request-id", "id"},
                                {"anthropic-ratelimit-requests-limit", "60"},
                                {"anthropic-ratelimit-requests-remaining", "59"},
                                {"anthropic-ratelimit-requests-reset", "1970-01-01T00:01:01Z"}};
  EXPECT_EQ(HttpHeaders(headers.begin() + 4, headers.end()), expected);
}

}  // namespace
}  // namespace ultraspeed::router
