#include "worker/output_formats.h"

#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace ultraspeed::worker {
namespace {

// Tokens 0..3 are {"a":1}, 4 and 5 end a text, 6 has no bytes.
constexpr char kTokenizer[] = R"({"model": {"vocab": {"{": 0, "\"a\":": 1, "1": 2, "}": 3}},
                                  "added_tokens": [{"id": 4}, {"id": 5}, {"id": 6}]})";
constexpr char kEnds[] = "stop_token_ids: 4 stop_token_ids: 5 ";

v1::WorkerGenerateRequest Request(const std::string& text) {
  v1::WorkerGenerateRequest request;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &request)) << text;
  return request;
}

class OutputFormatsTest : public testing::Test {
 protected:
  absl::StatusOr<OutputGrammar> GrammarOf(const std::string& request) {
    return formats_.GrammarOf(Request(request));
  }

  OutputFormats formats_{kTokenizer, 7, {4, 5, 99}};  // the last one is never sampled
};

TEST_F(OutputFormatsTest, WithoutAFormatAnythingGoes) {
  const auto grammar = GrammarOf("");
  ASSERT_TRUE(grammar.ok()) << grammar.status();
  EXPECT_EQ(grammar->constraint, nullptr);
}

TEST_F(OutputFormatsTest, RequestsWithTheSameSchemaShareAConstraint) {
  const std::string request =
      std::string(kEnds) + R"(output_format { json_schema: "{\"type\":\"object\"}" })";
  const auto first = GrammarOf(request), second = GrammarOf(request);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->constraint, second->constraint);
  EXPECT_EQ(first->after_token, -1);
  const auto object = GrammarOf(std::string(kEnds) + "output_format { json_object: true }");
  ASSERT_TRUE(object.ok()) << object.status();
  EXPECT_NE(object->constraint, first->constraint);
}

// The text of the bytes above is an object, and then only an end may come.
TEST_F(OutputFormatsTest, TokensAreTheTokenizers) {
  const auto grammar = GrammarOf(std::string(kEnds) +
                                 "output_format { json_object: true } "
                                 "output_format_after_token_id: 6");
  ASSERT_TRUE(grammar.ok()) << grammar.status();
  OutputConstraint constraint(*grammar);
  EXPECT_FALSE(constraint.AllowedTokens({})[0]->Allows(5));  // thoughts do not end the output
  for (const int32_t token : {6, 0, 1, 2, 3}) {
    EXPECT_TRUE(constraint.AllowedTokens({})[0]->Allows(token)) << token;
    constraint.Commit(token);
  }
  const auto masks = constraint.AllowedTokens({});
  for (int32_t token = 0; token < 7; ++token)
    EXPECT_EQ(masks[0]->Allows(token), token == 4 || token == 5) << token;
}

TEST_F(OutputFormatsTest, RefusalsNameTheField) {
  const auto message = [&](const std::string& request) {
    const absl::Status status = GrammarOf(request).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(message("output_format_after_token_id: 1"),
            "output_format_after_token_id: there is no output_format");
  EXPECT_EQ(message(std::string(kEnds) + "output_format {}"),
            "output_format: must have one of json_object and json_schema");
  EXPECT_EQ(message(std::string(kEnds) + "output_format { json_object: false }"),
            "output_format.json_object=false: must be true");
  EXPECT_EQ(message("stop_token_ids: 4 output_format { json_object: true }"),
            "stop_token_ids: with output_format, must hold 5, which ends the model's texts");
  EXPECT_EQ(message(std::string(kEnds) + R"(output_format { json_schema: "{\"not\":{}}" })"),
            "output_format.json_schema: \"not\" is not supported");
  for (const char* const token : {"-1", "4", "7"}) {
    EXPECT_EQ(
        message(std::string(kEnds) + "output_format { json_object: true } " +
                "output_format_after_token_id: " + token),
        std::string("output_format_after_token_id=") + token + ": must be in 0..6 and end no text");
  }
}

constexpr char kCalls[] =
    "begin_token_id: 6 end_token_id: 3 thought_begin_token_id: 1 thought_end_token_id: 2 ";

TEST_F(OutputFormatsTest, CallsOfStrictTools) {
  const auto calls = [&](const std::string& tools) {
    return GrammarOf(absl::StrCat("tool_calls { ", kCalls, tools, " }"));
  };
  const auto first = calls(R"(tools { name: "f" strict: true parameters_json: "{}" })");
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(first->calls.has_value());
  EXPECT_EQ(first->calls->begin, 6);
  EXPECT_EQ(first->calls->end, 3);
  EXPECT_EQ(first->calls->thought_begin, 1);
  EXPECT_EQ(first->calls->thought_end, 2);
  for (int32_t token = 0; token < 7; ++token)
    EXPECT_EQ(first->calls->only_end->Allows(token), token == 3) << token;
  const auto same =
      calls(R"(tools { name: "f" strict: true parameters_json: "{}" description: "d" })");
  EXPECT_EQ(same->constraint, first->constraint);
  const auto free = calls(R"(tools { name: "f" })"), other = calls(R"(tools { name: "g" })");
  EXPECT_NE(free->constraint, first->constraint);
  EXPECT_NE(other->constraint, free->constraint);
}

TEST_F(OutputFormatsTest, RefusalsOfToolCallsNameTheField) {
  const auto message = [&](const std::string& request) {
    return std::string(GrammarOf(request).status().message());
  };
  EXPECT_EQ(message("tool_calls {}"), "tool_calls.tools: 0 tools; must be 1..128");
  EXPECT_EQ(message("tool_calls { tools {} begin_token_id: 5 }"),
            "tool_calls.begin_token_id=5: must be in 0..6 and end no text");
  EXPECT_EQ(message("tool_calls { tools {} begin_token_id: 6 end_token_id: 6 }"),
            "tool_calls.end_token_id=6: must differ from the other three");
  EXPECT_EQ(message(std::string(kEnds) + "output_format { json_object: true } tool_calls {}"),
            "tool_calls: must be absent where there is an output_format");
  EXPECT_EQ(message(absl::StrCat("tool_calls { ", kCalls,
                                 R"(tools { strict: true parameters_json: "{\"if\":1}" } })")),
            "tool_calls.tools[0].parameters_json: \"if\" is not supported");
}

TEST(OutputFormatsOfOtherTokenizersTest, AreRefusedWhenAskedFor) {
  OutputFormats formats("tt", 7, {4});
  EXPECT_TRUE(formats.GrammarOf(Request("")).ok());
  EXPECT_EQ(formats.GrammarOf(Request("stop_token_ids: 4 output_format { json_object: true }"))
                .status()
                .message(),
            "output_format: not with this model: tokenizer.json: is not JSON");
  EXPECT_EQ(formats.GrammarOf(Request("tool_calls {}")).status().message(),
            "tool_calls: not with this model: tokenizer.json: is not JSON");
}

}  // namespace
}  // namespace ultraspeed::worker
