// The bundled model's own tokenizer and template, against ids from the library that it was trained
// with.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <functional>

#include "absl/strings/str_split.h"
#include "router/chat_template.h"
#include "router/tokenizer.h"
#include "tests/router/test_tokenizer.h"

namespace ultraspeed::router {
namespace {

std::unique_ptr<Tokenizer> Bundled() {
  auto tokenizer = Tokenizer::Create(ReadTestFile("models/tiny-mimo/tokenizer.json"));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

TEST(BundledTokenizerTest, AgreesWithTheReferenceLibrary) {
  const std::unique_ptr<Tokenizer> tokenizer = Bundled();
  ASSERT_NE(tokenizer, nullptr);
  int num_cases = 0;
  const std::string cases = ReadTestFile(std::string(kFixtures) + "tiny_mimo_cases.jsonl");
  for (const absl::string_view line : absl::StrSplit(cases, '\n', absl::SkipEmpty())) {
    const boost::json::value value = boost::json::parse({line.data(), line.size()});
    const std::string text = boost::json::value_to<std::string>(value.at("text"));
    const auto ids = [&](const char* key) {
      return boost::json::value_to<std::vector<int32_t>>(value.at(key));
    };
    EXPECT_EQ(*tokenizer->Encode(text, SpecialTokens::kAsText), ids("as_text")) << line;
    EXPECT_EQ(*tokenizer->Encode(text, SpecialTokens::kParse), ids("parsed")) << line;
    ++num_cases;
  }
  EXPECT_GE(num_cases, 200);
}

// Calls `check` for every line of a file of JSON objects; the number of lines.
int ForEachLine(const std::string& path,
                const std::function<void(const boost::json::object&)>& check) {
  int num_lines = 0;
  const std::string text = ReadTestFile(path);
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    SCOPED_TRACE(std::string(line));
    check(boost::json::parse({line.data(), line.size()}).as_object());
    ++num_lines;
  }
  return num_lines;
}

TEST(BundledTokenizerTest, AgreesWithTheExportedGoldens) {
  const std::unique_ptr<Tokenizer> tokenizer = Bundled();
  ASSERT_NE(tokenizer, nullptr);
  const int num_cases = ForEachLine(
      "models/tiny-mimo/golden/tokenizer.jsonl", [&](const boost::json::object& golden) {
        const std::string text = boost::json::value_to<std::string>(golden.at("text"));
        EXPECT_EQ(*tokenizer->Encode(text, SpecialTokens::kParse),
                  boost::json::value_to<std::vector<int32_t>>(golden.at("ids")));
      });
  EXPECT_GE(num_cases, 100);
}

std::string TextOf(const boost::json::object& message, const char* key) {
  const boost::json::value* value = message.if_contains(key);
  return value == nullptr || value->is_null() ? "" : boost::json::value_to<std::string>(*value);
}

ChatRole RoleOf(const std::string& role) {
  if (role == "system") return ChatRole::kSystem;
  if (role == "assistant") return ChatRole::kAssistant;
  if (role == "tool") return ChatRole::kTool;
  EXPECT_EQ(role, "user");
  return ChatRole::kUser;
}

TEST(BundledTokenizerTest, RendersTheExportedConversations) {
  const std::unique_ptr<Tokenizer> tokenizer = Bundled();
  ASSERT_NE(tokenizer, nullptr);
  const auto chat_template = ChatTemplate::Create("mimo_v2", *tokenizer);
  ASSERT_TRUE(chat_template.ok()) << chat_template.status();
  const int num_cases = ForEachLine(
      "models/tiny-mimo/golden/chat_template.jsonl", [&](const boost::json::object& golden) {
        std::vector<ChatTurn> turns;
        for (const boost::json::value& value : golden.at("messages").as_array()) {
          const boost::json::object& message = value.as_object();
          turns.push_back({RoleOf(TextOf(message, "role")), TextOf(message, "content"),
                           TextOf(message, "reasoning_content")});
        }
        EXPECT_EQ(chat_template->Render(turns, golden.at("enable_thinking").as_bool()),
                  TextOf(golden, "text"));
      });
  EXPECT_GE(num_cases, 10);
}

TEST(BundledTokenizerTest, ServesTheChatTemplate) {
  const std::unique_ptr<Tokenizer> tokenizer = Bundled();
  ASSERT_NE(tokenizer, nullptr);
  const auto chat_template = ChatTemplate::Create("mimo_v2", *tokenizer);
  ASSERT_TRUE(chat_template.ok()) << chat_template.status();
  const std::vector<ChatTurn> turns = {{ChatRole::kUser, "Write a function.", ""}};
  const auto ids = EncodeSegments(*tokenizer, chat_template->Segments(turns, false));
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(
      *ids,
      *tokenizer->Encode(
          "<|im_start|>system\nYou are MiMo, a helpful AI assistant engineered by Xiaomi.<|im_end|>"
          "<|im_start|>user\nWrite a function.<|im_end|><|im_start|>assistant\n<think></think>",
          SpecialTokens::kParse));
}

}  // namespace
}  // namespace ultraspeed::router
