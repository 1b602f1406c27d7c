// Output formats in the shapes of each API, without any I/O.
#include "router/http/format_fields.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "router/http/anthropic_request.h"
#include "router/http/openai_request.h"
#include "router/http/responses_request.h"

namespace ultraspeed::router {
namespace {

ReplyContext AnyContext() {
  return {.created_unix_s = 0, .find_model = [](const std::string&) { return ModelDetails(); }};
}

using ParseFields = absl::StatusOr<TranslatedCall> (*)(const std::string& fields);

absl::StatusOr<TranslatedCall> ParseChat(const std::string& fields) {
  return ParseChatCompletion(
      absl::StrCat(R"({"model":"m","messages":[{"role":"user","content":"u"}],)", fields, "}"),
      AnyContext());
}
absl::StatusOr<TranslatedCall> ParseLegacy(const std::string& fields) {
  return ParseCompletion(absl::StrCat(R"({"model":"m","prompt":"p",)", fields, "}"), AnyContext());
}
absl::StatusOr<TranslatedCall> ParseResponses(const std::string& fields) {
  return ParseResponse(absl::StrCat(R"({"model":"m","input":"u",)", fields, "}"), AnyContext());
}
std::string MessagesBody(const std::string& fields) {
  return absl::StrCat(R"({"model":"m","max_tokens":5,"messages":[{"role":"user","content":"u"}],)",
                      fields, "}");
}
absl::StatusOr<TranslatedCall> ParseAnthropicMessages(const std::string& fields) {
  return ParseMessages(MessagesBody(fields));
}
absl::StatusOr<TranslatedCall> ParseAnthropicCount(const std::string& fields) {
  return ParseCountTokens(MessagesBody(fields));
}

// "object", "none", or the schema.
std::string FormatOf(ParseFields parse, const std::string& fields) {
  auto call = parse(fields);
  EXPECT_TRUE(call.ok()) << call.status() << fields;
  if (!call.ok() || !call->options()->has_output_format()) return "none";
  const v1::OutputFormat& format = call->options()->output_format();
  return format.json_object() ? "object" : format.json_schema();
}

// The order of properties is that of the answer.
constexpr char kSchema[] =
    R"({"type":"object","properties":{"z":{"type":"string"},"a":{"maximum":1.5}}})";
constexpr char kSchemaText[] =
    R"({"type":"object","properties":{"z":{"type":"string"},"a":{"maximum":1.5E0}}})";

TEST(FormatFields, EveryShapeArrives) {
  for (const ParseFields parse : {ParseChat, ParseLegacy}) {
    EXPECT_EQ(FormatOf(parse, R"("response_format":null)"), "none");
    EXPECT_EQ(FormatOf(parse, R"("response_format":{"type":"text"})"), "none");
    EXPECT_EQ(FormatOf(parse, R"("response_format":{"type":"json_object"})"), "object");
    for (const char* strict :
         {R"("strict":true,)", R"("strict":false,)", R"("strict":null,)", ""}) {
      EXPECT_EQ(FormatOf(parse, absl::StrCat(R"("response_format":{"type":"json_schema",)",
                                             R"("json_schema":{"name":"A_-9",)", strict,
                                             R"("description":"d","schema":)", kSchema, "}}")),
                kSchemaText);
    }
  }
  EXPECT_EQ(FormatOf(ParseResponses, R"("text":{"verbosity":"low"})"), "none");
  EXPECT_EQ(FormatOf(ParseResponses, R"("text":{"format":{"type":"text"}})"), "none");
  EXPECT_EQ(FormatOf(ParseResponses, R"("text":{"format":{"type":"json_object"}})"), "object");
  EXPECT_EQ(FormatOf(ParseResponses,
                     absl::StrCat(R"("text":{"format":{"type":"json_schema",)",
                                  R"("name":"n","strict":true,"schema":)", kSchema, "}}")),
            kSchemaText);
  const std::string format = absl::StrCat(R"({"type":"json_schema","schema":)", kSchema, "}");
  for (const ParseFields parse : {ParseAnthropicMessages, ParseAnthropicCount}) {
    EXPECT_EQ(FormatOf(parse, absl::StrCat(R"("output_config":{"format":)", format, "}")),
              kSchemaText);
    EXPECT_EQ(FormatOf(parse, absl::StrCat(R"("output_format":)", format)), kSchemaText);
    EXPECT_EQ(FormatOf(parse, R"("output_config":{"effort":"low"},"output_format":null)"), "none");
  }
}

TEST(FormatFields, WhatIsWrongNamesFieldValueAndBound) {
  const struct {
    ParseFields parse;
    const char* fields;
    const char* message;
  } kCases[] = {
      {ParseChat, R"("response_format":"json")",
       "response_format is \"json\"; it must be an object"},
      {ParseChat, R"("response_format":{})",
       "response_format.type is missing; it must be text, json_object or json_schema"},
      {ParseLegacy, R"("response_format":{"type":"grammar"})",
       "response_format.type is \"grammar\"; it must be one of text, json_object, json_schema"},
      {ParseChat, R"("response_format":{"type":"json_schema"})",
       "response_format.json_schema is missing; it must be an object"},
      {ParseChat, R"("response_format":{"type":"json_schema","json_schema":{"schema":{}}})",
       "response_format.json_schema.name is missing; it must be 1..64 of a-z, A-Z, 0-9, _ and -"},
      {ParseChat,
       R"("response_format":{"type":"json_schema","json_schema":{"name":"a b","schema":{}}})",
       "response_format.json_schema.name is \"a b\"; it must be 1..64 of a-z, A-Z, 0-9, _ and -"},
      {ParseChat,
       R"("response_format":{"type":"json_schema","json_schema":{"name":7,"schema":{}}})",
       "response_format.json_schema.name is 7; it must be a string"},
      {ParseChat, R"("response_format":{"type":"json_schema","json_schema":{"name":"n"}})",
       "response_format.json_schema.schema is missing; it must be an object"},
      {ParseChat,
       R"("response_format":{"type":"json_schema","json_schema":{"name":"n","schema":true}})",
       "response_format.json_schema.schema is true; it must be an object"},
      {ParseChat,
       R"("response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{},"strict":1}})",
       "response_format.json_schema.strict is 1; it must be true or false"},
      {ParseResponses, R"("text":{"format":{"type":"json"}})",
       "text.format.type is \"json\"; it must be one of text, json_object, json_schema"},
      {ParseResponses, R"("text":{"format":[]})",
       "text.format is an array of 0; it must be an object"},
      {ParseResponses, R"("text":{"format":{"type":"json_schema","schema":{}}})",
       "text.format.name is missing; it must be 1..64 of a-z, A-Z, 0-9, _ and -"},
      {ParseResponses, R"("text":{"format":{"type":"json_schema","name":"n"}})",
       "text.format.schema is missing; it must be an object"},
      {ParseAnthropicMessages, R"("output_config":{"format":{"schema":{}}})",
       "output_config.format.type is missing; it must be json_schema"},
      {ParseAnthropicMessages, R"("output_config":{"format":{"type":"text"}})",
       "output_config.format.type is \"text\"; it must be one of json_schema"},
      {ParseAnthropicMessages, R"("output_config":{"format":{"type":"json_schema"}})",
       "output_config.format.schema is missing; it must be an object"},
      {ParseAnthropicMessages, R"("output_format":{"type":"json_schema","schema":[]})",
       "output_format.schema is an array of 0; it must be an object"},
      {ParseAnthropicCount,
       R"("output_config":{"format":{"type":"json_schema","schema":{}}},)"
       R"("output_format":{"type":"json_schema","schema":{}})",
       "output_format is an object; it must be absent where output_config.format is given"},
  };
  for (const auto& one : kCases) EXPECT_EQ(one.parse(one.fields).status().message(), one.message);
  const std::string long_name =
      absl::StrCat(R"("text":{"format":{"type":"json_schema","schema":{},"name":")",
                   std::string(65, 'n'), "\"}}");
  EXPECT_FALSE(ParseResponses(long_name).ok());
}

TEST(FormatFields, RefusalsOfTheApiBehindUseTheCallersNames) {
  const struct {
    ParseFields parse;
    const char* fields;
    const char* format;
    const char* schema;
  } kCases[] = {
      {ParseChat, R"("top_k":1)", "response_format", "response_format.json_schema.schema"},
      {ParseLegacy, R"("top_k":1)", "response_format", "response_format.json_schema.schema"},
      {ParseResponses, R"("top_k":1)", "text.format", "text.format.schema"},
      {ParseAnthropicMessages, R"("output_config":{"format":{"type":"json_schema","schema":{}}})",
       "output_config.format", "output_config.format.schema"},
      {ParseAnthropicMessages, R"("output_format":{"type":"json_schema","schema":{}})",
       "output_format", "output_format.schema"},
  };
  for (const auto& one : kCases) {
    const auto call = one.parse(one.fields);
    ASSERT_TRUE(call.ok()) << call.status();
    const auto told = [&](const char* message) {
      return ErrorOfStatus(absl::InvalidArgumentError(message), false, call->names, "");
    };
    HttpError error = told("options.output_format is json_schema; it must be absent");
    EXPECT_EQ(error.param, one.format);
    EXPECT_EQ(error.message, absl::StrCat(one.format, " is json_schema; it must be absent"));
    error = told("options.output_format.json_schema.properties.age: \"x\" is not supported");
    EXPECT_EQ(error.param, absl::StrCat(one.schema, ".properties.age"));
    EXPECT_EQ(error.message, absl::StrCat(one.schema, ".properties.age: \"x\" is not supported"));
    // A property may be called anything.
    error = told("options.output_format.json_schema.properties.é e: \"x\" is not supported");
    EXPECT_EQ(error.param, one.schema);
    EXPECT_EQ(error.message, absl::StrCat(one.schema, ".properties.é e: \"x\" is not supported"));
    EXPECT_EQ(told("options.ignore_eos is true; it must be false").param, "ignore_eos");
  }
}

TEST(FormatFields, AResponseRepeatsItsFormat) {
  const std::string text =
      R"({"format":{"type":"json_schema","name":"n","schema":{"z":1,"a":2}},"verbosity":"low"})";
  const auto call = ParseResponses(absl::StrCat("\"text\":", text));
  ASSERT_TRUE(call.ok()) << call.status();
  v1::GenerateChunk last;
  last.set_finish_reason(v1::FINISH_REASON_STOP);
  call->reply->Collect(last);
  EXPECT_EQ(boost::json::serialize(boost::json::parse(call->reply->Body()).at("text")), text);
}

}  // namespace
}  // namespace ultraspeed::router
