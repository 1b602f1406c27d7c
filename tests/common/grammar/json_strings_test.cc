#include "common/grammar/json_strings.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/common/grammar/grammar_testing.h"

namespace ultraspeed::grammar {
namespace {

namespace json = boost::json;

const std::shared_ptr<const Grammar>& Strings() {
  static const auto* const grammar =
      new std::shared_ptr<const Grammar>(SchemaGrammar(R"({"type":"string"})"));
  return *grammar;
}

bool IsString(const std::string& inside) { return Accepts(Strings(), "\"" + inside + "\""); }

TEST(JsonStrings, Escapes) {
  for (const char* text : {R"(\"\\\/\b\f\n\r\t)", R"(\u0000\u00e9\uFFFF)", R"(\ud7ff\uE000)",
                           R"(\uD83D\uDE00)", R"(\uDBFF\udfff)", "\x7F"}) {
    EXPECT_TRUE(IsString(text)) << text;
  }
  for (const char* text :
       {R"(\)", R"(\x)", R"(\u12)", R"(\u12g4)", R"(\uD83D)", R"(\uD83Dx)", R"(\uD83D\n)",
        R"(\uD83D\u0041)", R"(\uDE00)", R"(\U0041)", "a\nb", "\t", "\x1F", "a\"b"}) {
    EXPECT_FALSE(IsString(text)) << text;
  }
  EXPECT_FALSE(IsString(std::string(1, '\0')));
}

// Against Boost.JSON, which checks UTF-8 too.
TEST(JsonStrings, Utf8) {
  std::mt19937 random(7);
  const auto is_valid = [](const std::string& text) {
    boost::system::error_code error;
    json::parse(json::string_view(text), error);
    return !error;
  };
  const unsigned char kBytes[] = {'a',  0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF,
                                  0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED,
                                  0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF};
  int num_valid = 0;
  for (int i = 0; i < 200'000; ++i) {
    std::string text = "\"";
    for (int length = 1 + random() % 4; length > 0; --length) {
      text += static_cast<char>(kBytes[random() % std::size(kBytes)]);
    }
    text += '"';
    num_valid += is_valid(text);
    ASSERT_EQ(Accepts(Strings(), text), is_valid(text)) << testing::PrintToString(text);
  }
  EXPECT_GT(num_valid, 1000);
}

TEST(JsonStrings, NoPrefixOfACharacterIsDead) {
  EXPECT_EQ(NumAccepted(Strings(), "\"\xF0\x9F\x98"), 4u);
  EXPECT_EQ(NumAccepted(Strings(), "\"\xF0\x8F"), 2u);  // overlong
  EXPECT_EQ(NumAccepted(Strings(), "\"\xED\xA0"), 2u);  // a surrogate
  EXPECT_EQ(NumAccepted(Strings(), "\"\xF4\x90"), 2u);  // above U+10FFFF
  EXPECT_EQ(NumAccepted(Strings(), "\"\xC3\""), 2u);    // cut
  EXPECT_EQ(NumAccepted(Strings(), "\"\xC3\xA9\""), 5u);
}

TEST(JsonStrings, Except) {
  GrammarBuilder builder;
  const std::vector<std::string> texts = {"a", "abc", "é", "\"", "", "tab\t", "\x01"};
  const auto built = builder.Build(JsonStringExcept(&builder, texts), "strings");
  ASSERT_TRUE(built.ok());
  for (const char* text : {"ab", "abcd", "b", "è", "éa", R"(\\)", R"(\"\")", "tab", R"(tab\n)",
                           "\xC3\xA9\xC3\xA9", "\xC4\xA9"}) {
    EXPECT_TRUE(Accepts(*built, absl::StrCat("\"", text, "\""))) << text;
  }
  for (const char* text : {"a", "abc", "é", R"(\")", "", R"(tab\t)", R"(\u0061)", R"(\/)",
                           R"(\u0001)", "\xC3", "\xC3\"", "\x01"}) {
    EXPECT_FALSE(Accepts(*built, absl::StrCat("\"", text, "\""))) << text;
  }
}

}  // namespace
}  // namespace ultraspeed::grammar
