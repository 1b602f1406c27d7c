#include "common/grammar/json_schema.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/common/grammar/grammar_testing.h"

namespace ultraspeed::grammar {
namespace {

struct Case {
  const char* schema;
  std::vector<std::string> accepted;
  std::vector<std::string> refused;
};

void Check(const std::vector<Case>& cases) {
  for (const Case& one : cases) {
    const auto grammar = SchemaGrammar(one.schema);
    if (grammar == nullptr) continue;
    for (const std::string& text : one.accepted) {
      EXPECT_EQ(NumAccepted(grammar, text), text.size() + 1) << one.schema << "\n" << text;
    }
    for (const std::string& text : one.refused) {
      EXPECT_FALSE(Accepts(grammar, text)) << one.schema << "\n" << text;
    }
  }
}

TEST(JsonSchema, Types) {
  Check({
      {R"({"type":"string"})",
       {R"("")", R"("a b")"},
       {"", "a", R"("a)", "1", R"("a" )", R"( "a")"}},
      {R"({"type":"boolean"})", {"true", "false"}, {"True", "t", "null", "truefalse"}},
      {R"({"type":"null"})", {"null"}, {"nul", "0"}},
      {R"({"type":["string","null"]})", {"null", R"("x")"}, {"1", "[]"}},
      {R"({"type":"integer"})",
       {"0", "-0", "7", "-12", "999999999999999999"},
       {"", "-", "01", "1.0", "1e2", "+1", "1000000000000000000"}},
      {R"({"type":"number"})",
       {"0", "-0.5", "12.25", "1e5", "1E+05", "3.0e-12", "0.0"},
       {"", ".5", "1.", "1e", "1e+", "00", "-", "0x1", "1e100", "NaN", "1.0000000000000000000"}},
      {R"({"type":"array"})", {"[]", "[1,\"a\",[],{}]"}, {"[", "[1", "[1,]", "[,]", "{}", "[1 2]"}},
      {R"({"type":"object"})",
       {"{}", R"({"a":1})", R"({"a":{"b":[null]},"c":true})"},
       {"{", "[]", R"({"a"})", R"({"a":})", R"({"a":1,})", R"({a:1})", R"({,"a":1})"}},
      {"{}", {"1", "\"a\"", "null", "{\"a\":[1]}", "[[[]]]"}, {"", "x", "1,", "[1]]"}},
      {"true", {"1", "{}"}, {""}},
      {R"({"description":"anything","x-order":3})", {"1", "{}"}, {""}},
  });
}

}  // namespace
}  // namespace ultraspeed::grammar
