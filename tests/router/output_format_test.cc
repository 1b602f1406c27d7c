#include "router/output_format.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "common/limits.h"
#include "router/validation.h"

namespace ultraspeed::router {
namespace {

const ModelFacts kFacts = {"tiny", 4096, 4088, 0.75f, 0.9f, true};
constexpr char kSchema[] = R"({"type":"object","properties":{"age":{"type":"integer"}}})";

v1::ChatRequest AChat() {
  v1::ChatRequest request;
  request.set_model("tiny");
  v1::ChatMessage* message = request.add_messages();
  message->set_role(v1::ROLE_USER);
  message->set_content("Hello");
  request.mutable_options()->mutable_output_format()->set_json_schema(kSchema);
  return request;
}

std::string ErrorOf(const std::function<void(v1::GenerateOptions*)>& spoil) {
  v1::GenerateRequest request;
  request.set_model("tiny");
  request.set_prompt("Hello");
  spoil(request.mutable_options());
  const absl::Status status = ValidateGenerate(request, kFacts).status();
  EXPECT_EQ(status.ok() ? absl::StatusCode::kInvalidArgument : status.code(),
            absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

std::string SchemaError(const std::string& schema) {
  return ErrorOf([&](auto* o) { o->mutable_output_format()->set_json_schema(schema); });
}

TEST(OutputFormat, RefusalsNameFieldValueAndBound) {
  EXPECT_EQ(ErrorOf([](auto* o) { o->mutable_output_format(); }),
            "options.output_format is empty; it must be json_object or json_schema");
  EXPECT_EQ(ErrorOf([](auto* o) { o->mutable_output_format()->set_json_object(false); }),
            "options.output_format.json_object is false; it must be true");
  for (const bool has_schema : {false, true}) {
    EXPECT_EQ(ErrorOf([&](auto* o) {
                has_schema ? o->mutable_output_format()->set_json_schema(kSchema)
                           : o->mutable_output_format()->set_json_object(true);
                o->set_ignore_eos(true);
              }),
              "options.ignore_eos is true; it must be false where there is an output format");
  }
  EXPECT_EQ(SchemaError(""),
            "options.output_format.json_schema has 0 bytes; it must have 1..131072");
  EXPECT_EQ(SchemaError(std::string(limits::kSchemaBytesMax + 1, ' ')),
            "options.output_format.json_schema has 131073 bytes; it must have 1..131072");
  EXPECT_EQ(SchemaError("{").find("options.output_format.json_schema: is not valid JSON in UTF-8"),
            0u);
  EXPECT_EQ(SchemaError(R"({"properties":{"age":{"type":"integer","not":{}}}})"),
            "options.output_format.json_schema.properties.age: \"not\" is not supported");
}

TEST(OutputFormat, WhatIsAcceptedIsKept) {
  EXPECT_EQ(SchemaError(kSchema), "");
  v1::ChatRequest request = AChat();
  auto params = ValidateChat(request, kFacts);
  ASSERT_TRUE(params.ok()) << params.status();
  EXPECT_EQ(params->generation.output_format->json_schema(), kSchema);
  request.mutable_options()->mutable_output_format()->set_json_object(true);
  EXPECT_TRUE(ValidateChat(request, kFacts)->generation.output_format->json_object());
  request.mutable_options()->clear_output_format();
  EXPECT_FALSE(ValidateChat(request, kFacts)->generation.output_format.has_value());
}

TEST(OutputFormat, NotBesideToolsThatMayBeCalled) {
  v1::ChatRequest request = AChat();
  request.add_tools()->set_name("f");
  EXPECT_EQ(ValidateChat(request, kFacts).status().message(),
            "options.output_format is json_schema; it must be absent where tools has 1 entries and "
            "tool_choice is not none");
  request.set_tool_choice(v1::TOOL_CHOICE_REQUIRED);
  EXPECT_FALSE(ValidateChat(request, kFacts).ok());
  request.set_tool_choice(v1::TOOL_CHOICE_NONE);
  EXPECT_TRUE(ValidateChat(request, kFacts).ok());
}

TEST(OutputFormat, NotOfAnAnswerThatHasBegun) {
  v1::ChatRequest request = AChat();
  v1::ChatMessage* begun = request.add_messages();
  begun->set_role(v1::ROLE_ASSISTANT);
  begun->set_content("{");
  request.mutable_options()->mutable_output_format()->set_json_object(true);
  EXPECT_EQ(ValidateChat(request, kFacts).status().message(),
            "options.output_format is json_object; it must be absent where the answer is begun");
  *request.add_messages() = AChat().messages(0);
  EXPECT_TRUE(ValidateChat(request, kFacts).ok());
}

}  // namespace
}  // namespace ultraspeed::router
