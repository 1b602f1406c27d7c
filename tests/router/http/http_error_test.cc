#include "router/http/http_error.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <string>

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

const FieldNames kNames = {.renames = {{"options.sampling.", ""},
                                       {"options.max_tokens", "max_completion_tokens"},
                                       {"options.", ""}}};

json::value OpenAi(const absl::Status& status, bool admitted = false) {
  return json::parse(
      ErrorBody(ErrorOfStatus(status, admitted, kNames, "id-1"), Dialect::kOpenAi, "id-1"));
}

int CodeOf(const absl::Status& status, Dialect dialect, bool admitted = false) {
  return HttpStatusOf(ErrorOfStatus(status, admitted, {}, "id-1").kind, dialect);
}

TEST(HttpError, EveryGrpcStatusHasItsHttpStatusInBothDialects) {
  const struct {
    absl::Status status;
    int openai;
    int anthropic;
  } kCases[] = {
      {absl::InvalidArgumentError("m"), 400, 400},
      {absl::OutOfRangeError("m"), 400, 400},
      {absl::FailedPreconditionError("model=x: cannot chat"), 400, 400},
      {absl::FailedPreconditionError("monthly budget: 1 nano-dollars spent"), 402, 402},
      {absl::UnauthenticatedError("m"), 401, 401},
      {absl::PermissionDeniedError("m"), 403, 403},
      {absl::NotFoundError("m"), 404, 404},
      {absl::ResourceExhaustedError("m"), 429, 429},
      {absl::UnavailableError("m"), 503, 529},
      {absl::DeadlineExceededError("m"), 504, 504},
      {absl::CancelledError("m"), 499, 499},
      {absl::UnimplementedError("m"), 501, 501},
      {absl::InternalError("m"), 500, 500},
      {absl::UnknownError("m"), 500, 500},
      {absl::DataLossError("m"), 500, 500},
      {absl::AbortedError("m"), 500, 500},
  };
  for (const auto& one : kCases) {
    EXPECT_EQ(CodeOf(one.status, Dialect::kOpenAi), one.openai) << one.status;
    EXPECT_EQ(CodeOf(one.status, Dialect::kAnthropic), one.anthropic) << one.status;
  }
  EXPECT_EQ(CodeOf(absl::ResourceExhaustedError("m"), Dialect::kOpenAi, true), 503);
  EXPECT_EQ(CodeOf(absl::ResourceExhaustedError("m"), Dialect::kAnthropic, true), 529);
}

TEST(HttpError, OpenAiBodiesHaveAllFourKeys) {
  const json::value refused =
      OpenAi(absl::InvalidArgumentError("options.sampling.temperature is 3; it must be 0..2"));
  const json::object& error = refused.at("error").as_object();
  EXPECT_EQ(error.size(), 4u);
  EXPECT_EQ(error.at("message"), "temperature is 3; it must be 0..2");
  EXPECT_EQ(error.at("type"), "invalid_request_error");
  EXPECT_EQ(error.at("param"), "temperature");
  EXPECT_TRUE(error.at("code").is_null());

  const json::value unknown = OpenAi(absl::NotFoundError("model x: not here"));
  EXPECT_EQ(unknown.at("error").at("code"), "model_not_found");
  EXPECT_TRUE(unknown.at("error").at("param").is_null());
}

TEST(HttpError, FieldsHaveTheNamesOfTheCaller) {
  const auto param = [](const char* message) {
    return OpenAi(absl::InvalidArgumentError(message)).at("error").at("param");
  };
  EXPECT_EQ(param("options.max_tokens is 0; it must be 1..8191"), "max_completion_tokens");
  EXPECT_EQ(param("options.stop[1] has 0 bytes; it must have 1..128"), "stop[1]");
  EXPECT_EQ(param("messages[2].content is not UTF-8 at byte 3"), "messages[2].content");
  EXPECT_EQ(param("service_tier=ultraspeed: this tenant may not"), "service_tier");
  EXPECT_EQ(param("messages have 9 bytes together"), "messages");
  EXPECT_TRUE(param("the prompt has 9000 tokens").is_null());
  EXPECT_TRUE(param("deadline").is_null());
}

TEST(HttpError, MessagesAreCalledAsTheCallerDid) {
  const FieldNames names = {.messages = {"system", "messages[0]", "messages[1]", "messages[1]"},
                            .parts = {{"].name", "].function.name"}}};
  const auto message = [&](const char* text) {
    return ErrorOfStatus(absl::InvalidArgumentError(text), false, names, "").message;
  };
  EXPECT_EQ(message("messages[3].content has 0 bytes"), "messages[1].content has 0 bytes");
  EXPECT_EQ(message("tools[2].name has 0 bytes"), "tools[2].function.name has 0 bytes");
  EXPECT_EQ(message("messages[0].content is not UTF-8"), "system is not UTF-8");
}

TEST(HttpError, APromptThatIsTooLongHasItsOwnCode) {
  const json::value body = OpenAi(
      absl::InvalidArgumentError("the prompt has 9000 tokens; with the model's context of 8192 "
                                 "tokens it must have 1..8191"));
  EXPECT_EQ(body.at("error").at("code"), "context_length_exceeded");
}

TEST(HttpError, InternalTextsStayInside) {
  const json::value body = OpenAi(absl::InternalError("null pointer at worker.cc:7"));
  EXPECT_EQ(body.at("error").at("message"), "internal error (request id-1)");
}

TEST(HttpError, AnthropicBodiesAndEvents) {
  const HttpError error = ErrorOfStatus(absl::UnavailableError("no worker"), false, {}, "id-1");
  const json::value body = json::parse(ErrorBody(error, Dialect::kAnthropic, "id-1"));
  EXPECT_EQ(body, json::parse(R"({"type":"error","error":{"type":"overloaded_error",)"
                              R"("message":"no worker"},"request_id":"id-1"})"));
  const std::string event = ErrorEvent(error, Dialect::kAnthropic, "id-1");
  EXPECT_EQ(event.find("event: error\ndata: {"), 0u);
  EXPECT_EQ(event.substr(event.size() - 2), "\n\n");
  EXPECT_EQ(ErrorEvent(error, Dialect::kOpenAi, "id-1").find("data: {\"error\":"), 0u);
}

}  // namespace
}  // namespace ultraspeed::router
