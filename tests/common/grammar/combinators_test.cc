#include "common/grammar/combinators.h"

#include <gtest/gtest.h>

#include <string>

#include "common/grammar/json_rules.h"
#include "tests/common/grammar/grammar_testing.h"

namespace ultraspeed::grammar {
namespace {

std::shared_ptr<const Grammar> Built(const GrammarBuilder& builder, RuleId root) {
  const auto grammar = builder.Build(root, "grammar");
  EXPECT_TRUE(grammar.ok()) << grammar.status();
  return *grammar;
}

TEST(Combinators, SequenceChoiceOptional) {
  GrammarBuilder b;
  const RuleId ab = Literal(&b, "ab");
  const auto grammar = Built(
      b,
      Sequence(&b, {ab, Choice(&b, {Literal(&b, "1"), Literal(&b, "12"), ab}), Optional(&b, ab)}));
  for (const char* text : {"ab1", "ab12", "abab", "ab1ab", "ab12ab", "ababab"}) {
    EXPECT_TRUE(Accepts(grammar, text)) << text;
  }
  for (const char* text : {"", "ab", "1", "ab3", "ab1a", "abababab"}) {
    EXPECT_FALSE(Accepts(grammar, text)) << text;
  }
}

TEST(Combinators, OneOf) {
  GrammarBuilder b;
  const auto grammar = Built(b, OneOf(&b, {"get", "get_all", "set", ""}));
  for (const char* text : {"", "get", "get_all", "set"})
    EXPECT_TRUE(Accepts(grammar, text)) << text;
  for (const char* text : {"g", "get_", "sets", "getget"})
    EXPECT_FALSE(Accepts(grammar, text)) << text;
}

TEST(Combinators, Repeat) {
  for (const uint32_t min : {0u, 1u, 3u}) {
    for (const uint32_t max : {3u, 7u, CountRange::kUnbounded}) {
      GrammarBuilder b;
      const auto grammar = Built(b, Repeat(&b, Literal(&b, "xy"), {min, max}));
      std::string text;
      for (uint32_t count = 0; count < 10; ++count, text += "xy") {
        EXPECT_EQ(Accepts(grammar, text), min <= count && count <= max)
            << min << " " << max << " " << count;
        EXPECT_FALSE(Accepts(grammar, text + "x"));
      }
    }
  }
}

// A part that may be empty, or several of which make one.
TEST(Combinators, RepeatOfAmbiguousParts) {
  GrammarBuilder b;
  const RuleId part = Choice(&b, {Literal(&b, "a"), Literal(&b, "aa"), Literal(&b, "")});
  const auto grammar = Built(b, Repeat(&b, part, {2, 3}));
  for (int length = 0; length < 9; ++length) {
    EXPECT_EQ(Accepts(grammar, std::string(length, 'a')), length <= 6) << length;
  }
}

TEST(Combinators, TextUntil) {
  for (const std::string mark : {"</parameter>", "<", "ababac", "\xC3\xA9x", "aa"}) {
    GrammarBuilder b;
    const auto grammar = Built(b, TextUntil(&b, mark));
    for (const std::string text :
         {"", "a", "<<", "abab", "</paramete", "<</param</parameter", "line\nline\"", "é",
          "\xC3\xA8", "ab\xE2\x82\xAC", "aabaabab", "\xC3\xA9", "€é"}) {
      const std::string whole = text + mark;
      // Of overlapping marks the first one ends it.
      const bool is_first = whole.find(mark) == text.size();
      EXPECT_EQ(Accepts(grammar, whole), is_first) << text << " until " << mark;
      if (is_first) {
        EXPECT_FALSE(Accepts(grammar, whole + "a"));
        EXPECT_EQ(NumAccepted(grammar, text), text.size()) << text << " until " << mark;
      }
    }
    EXPECT_FALSE(Accepts(grammar, "\xC3" + mark));
    EXPECT_FALSE(Accepts(grammar, "\xFF" + mark));
  }
}

TEST(Combinators, AToolCall) {
  GrammarBuilder b;
  JsonRules json(&b);
  const RuleId parameter =
      Sequence(&b, {Literal(&b, "<parameter="),
                    Choice(&b, {Sequence(&b, {Literal(&b, "text>"), TextUntil(&b, "</parameter>")}),
                                Sequence(&b, {Literal(&b, "count>"), json.Integer(0, 9),
                                              Literal(&b, "</parameter>")})}),
                    Literal(&b, "\n")});
  const auto grammar =
      Built(b, Sequence(&b, {Literal(&b, "<function=f>\n"), Repeat(&b, parameter, {1, 2}),
                             Literal(&b, "</function>")}));
  EXPECT_TRUE(Accepts(grammar,
                      "<function=f>\n<parameter=text>a <b> "
                      "\"</parameter>\n<parameter=count>7</parameter>\n</function>"));
  EXPECT_FALSE(Accepts(grammar, "<function=f>\n</function>"));
  EXPECT_FALSE(Accepts(grammar, "<function=f>\n<parameter=count>17</parameter>\n</function>"));
}

TEST(Combinators, ASchemaInsideOfAGrammar) {
  GrammarBuilder b;
  const auto schema = AddJsonSchema(&b, R"({"type":"array","items":{"type":"null"}})", "schema");
  ASSERT_TRUE(schema.ok());
  const auto grammar = Built(b, Sequence(&b, {Literal(&b, "<"), *schema, Literal(&b, ">")}));
  EXPECT_TRUE(Accepts(grammar, "<[null, null]>"));
  EXPECT_FALSE(Accepts(grammar, "<[null, 1]>"));
}

}  // namespace
}  // namespace ultraspeed::grammar
