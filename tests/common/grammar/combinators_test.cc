#include "common/grammar/combinators.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/common/grammar/grammar_testing.h"

namespace ultraspeed::grammar {
namespace {

std::shared_ptr<const Grammar> Built(const GrammarBuilder& builder, RuleId root) {
  const auto grammar = builder.Build(root, "grammar");
  EXPECT_TRUE(grammar.ok()) << grammar.status();
  return *grammar;
}

TEST(Combinators, SequenceChoice) {
  GrammarBuilder b;
  const RuleId ab = Literal(&b, "ab");
  const auto grammar =
      Built(b, Sequence(&b, {ab, Choice(&b, {Literal(&b, "1"), Literal(&b, "12"), ab})}));
  for (const char* text : {"ab1", "ab12", "abab"}) {
    EXPECT_TRUE(Accepts(grammar, text)) << text;
  }
  for (const char* text : {"", "ab", "1", "ab3", "ab1a", "ababab"}) {
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
  for (const std::string mark : {"</parameter>", "<", "ababac", "\xC3\xA9x", "aab"}) {
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

// Characters of the mark count until it is whole, by code points.
TEST(Combinators, TextUntilOfSomeLength) {
  for (const uint32_t min : {0u, 2u}) {
    for (const uint32_t max : {2u, 5u}) {
      GrammarBuilder b;
      const auto grammar = Built(b, TextUntil(&b, "</b>", {min, max}));
      for (const auto& [text, num_characters] : {std::pair("", 0u),
                                                 {"a", 1u},
                                                 {"</", 2u},
                                                 {"é€", 2u},
                                                 {"</b", 3u},
                                                 {"<</b<", 5u},
                                                 {"</b</b", 6u}}) {
        EXPECT_EQ(Accepts(grammar, absl::StrCat(text, "</b>")),
                  min <= num_characters && num_characters <= max)
            << text << " " << min << ".." << max;
      }
    }
  }
}

TEST(Combinators, TextUntilThatDoesNotBeginWith) {
  GrammarBuilder b;
  const auto grammar = Built(b, TextUntil(&b, "</b>", {}, "[ 1"));
  for (const char* text : {"</b>", "x[1 </b>", "<[</b>", "</b</b>", "é1</b>"})
    EXPECT_TRUE(Accepts(grammar, text)) << text;
  for (const char* text : {"[</b>", " </b>", "1x</b>"})
    EXPECT_EQ(NumAccepted(grammar, text), 0u) << text;
}

}  // namespace
}  // namespace ultraspeed::grammar
