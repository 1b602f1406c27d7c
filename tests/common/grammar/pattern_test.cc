#include "common/grammar/pattern.h"

#include <gtest/gtest.h>

#include <random>
#include <regex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/grammar/json_literal.h"
#include "common/grammar/matching_string.h"
#include "common/limits.h"
#include "tests/common/grammar/grammar_testing.h"

namespace ultraspeed::grammar {
namespace {

std::shared_ptr<const Grammar> StringsOf(absl::string_view pattern, CountRange length = {}) {
  const auto parsed = ParsePattern(pattern);
  EXPECT_TRUE(parsed.ok()) << pattern << " " << parsed.status();
  if (!parsed.ok()) return nullptr;
  int steps_left = limits::kSchemaAutomatonStepsMax;
  const auto texts = FindPattern(*parsed, length, &steps_left);
  EXPECT_TRUE(texts.ok()) << pattern << " " << texts.status();
  if (!texts.ok()) return nullptr;
  GrammarBuilder builder;
  const auto grammar = builder.Build(MatchingString(&builder, *texts), "pattern");
  EXPECT_TRUE(grammar.ok()) << pattern << " " << grammar.status();
  return grammar.ok() ? *grammar : nullptr;
}

bool Matches(absl::string_view pattern, absl::string_view text) {
  const auto strings = StringsOf(pattern);
  return strings != nullptr && Accepts(strings, QuotedJson(text));
}

TEST(Pattern, Anchors) {
  for (const char* text : {"abc", "xabc", "abcx", "xabcx"}) EXPECT_TRUE(Matches("abc", text));
  EXPECT_FALSE(Matches("abc", "ab"));
  EXPECT_TRUE(Matches("^abc", "abcx"));
  EXPECT_FALSE(Matches("^abc", "xabc"));
  EXPECT_TRUE(Matches("abc$", "xabc"));
  EXPECT_FALSE(Matches("abc$", "abcx"));
  EXPECT_TRUE(Matches("^a|b$", "xb"));
  EXPECT_TRUE(Matches("^a|b$", "ax"));
  EXPECT_FALSE(Matches("^a|b$", "xax"));
  EXPECT_TRUE(Matches("(^a$|^bc$)", "bc"));
  EXPECT_FALSE(Matches("(^a$|^bc$)", "abc"));
  EXPECT_TRUE(Matches("^$", ""));
  EXPECT_TRUE(Matches("$^", ""));
  EXPECT_FALSE(Matches("^$", "a"));
  EXPECT_TRUE(Matches("", "anything\n"));
  EXPECT_TRUE(Matches("a^|b", "b"));
}

TEST(Pattern, CharactersAndTheirSpelling) {
  const auto all = StringsOf("^[^b]$");
  EXPECT_TRUE(Accepts(all, R"("\"")"));
  EXPECT_TRUE(Accepts(all, R"("\\")"));
  EXPECT_TRUE(Accepts(all, R"("\n")"));
  EXPECT_FALSE(Accepts(all, "\"\n\""));
  EXPECT_FALSE(Accepts(all, R"("\u0061")"));
  EXPECT_FALSE(Accepts(all, R"("\/")"));
  EXPECT_TRUE(Accepts(all, R"("/")"));
  EXPECT_TRUE(Accepts(all, "\"é\""));
  EXPECT_TRUE(Accepts(all, "\"\xF0\x9F\x98\x80\""));
  EXPECT_FALSE(Accepts(all, "\"b\""));
  EXPECT_FALSE(Accepts(all, "\"\xED\xA0\x80\""));  // a surrogate
  EXPECT_FALSE(Accepts(all, "\"\xC3\""));
  EXPECT_TRUE(Matches(R"(^\x41\u00e9\uD83D\uDE00\u{1F600}\t\f\0?$)", "Aé😀😀\t\f"));
  EXPECT_TRUE(Matches(R"(^\.\/\-\[\]$)", "./-[]"));
  EXPECT_TRUE(Matches(R"(^[\]\-a-c^]+$)", "]-b^"));
  EXPECT_TRUE(Matches(R"(^[a-]+[-b]$)", "a-b"));
  EXPECT_TRUE(Matches(R"(^\d\D\w\W\s\S$)", "1x_- y"));
  EXPECT_FALSE(Matches(R"(^\S$)", "\u3000"));
  EXPECT_TRUE(Matches(R"(^\S$)", "漢"));
  EXPECT_FALSE(Matches("^.$", "\n"));
  EXPECT_TRUE(Matches("^[^]$", "\n"));
  EXPECT_TRUE(Matches("^(?:a)(?<name>b)(?P<other>c)$", "abc"));
  EXPECT_TRUE(Matches("^a}]$", "a}]"));
}

// Ranges that begin and end inside of every length of UTF-8.
TEST(Pattern, RangesOfCodePoints) {
  std::mt19937 random(3);
  const uint32_t kPlaces[] = {0x20,   0x7F,   0x80,   0x7FF,   0x800,   0xFFF,   0x1000,  0xCFFF,
                              0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x3FFFF, 0x40000, 0xFFFFF, 0x10FFFF};
  const auto near = [&] {
    const uint32_t place = kPlaces[random() % std::size(kPlaces)] + random() % 130;
    return std::min<uint32_t>(place, kCodePointMax);
  };
  const auto utf8 = [](uint32_t c) {
    std::string text;
    if (c < 0x80) return std::string(1, static_cast<char>(c));
    if (c >= 0x10000) text += static_cast<char>(0xF0 | c >> 18);
    if (c >= 0x800)
      text +=
          static_cast<char>((c < 0x10000 ? 0xE0 : 0x80) | (c >> 12 & (c < 0x10000 ? 0xF : 0x3F)));
    text += static_cast<char>((c < 0x800 ? 0xC0 : 0x80) | (c >> 6 & (c < 0x800 ? 0x1F : 0x3F)));
    return text + static_cast<char>(0x80 | (c & 0x3F));
  };
  const auto is_surrogate = [](uint32_t c) { return 0xD800 <= c && c <= 0xDFFF; };
  for (int i = 0; i < 200; ++i) {
    uint32_t first = near(), last = near();
    if (first > last) std::swap(first, last);
    const auto strings =
        StringsOf(absl::StrCat("^[\\u{", absl::Hex(first), "}-\\u{", absl::Hex(last), "}]$"));
    if (strings == nullptr) continue;
    for (int j = 0; j < 50; ++j) {
      const uint32_t c =
          j % 2 == 0 ? near() : (random() % 2 == 0 ? first : last) + random() % 3 - 1;
      if (c > kCodePointMax || c < 0x20 || is_surrogate(c)) continue;
      EXPECT_EQ(Accepts(strings, QuotedJson(utf8(c))), first <= c && c <= last)
          << first << " " << last << " " << c;
    }
  }
}

TEST(Pattern, LengthsCountToo) {
  const auto strings = StringsOf("^(ab)+$", {3, 5});
  EXPECT_TRUE(Accepts(strings, R"("abab")"));
  EXPECT_FALSE(Accepts(strings, R"("ab")"));
  EXPECT_EQ(NumAccepted(strings, R"("ababa)"), 5u);  // no way into what would be too long
  EXPECT_TRUE(Accepts(StringsOf("a", {0, 2}), R"("éa")"));
  EXPECT_FALSE(Accepts(StringsOf("a", {0, 2}), R"("ééa")"));
  EXPECT_TRUE(Accepts(StringsOf("a", {4, CountRange::kUnbounded}), R"("aaaaaaaaa")"));
  EXPECT_FALSE(Accepts(StringsOf("a", {4, CountRange::kUnbounded}), R"("aaa")"));
}

std::string RandomPattern(int depth, std::mt19937* random) {
  const auto pick = [random](int n) { return static_cast<int>((*random)() % n); };
  switch (pick(depth > 0 ? 8 : 4)) {
    case 0:
      return "a";
    case 1:
      return "b";
    case 2:
      return pick(2) == 0 ? "." : "[^a]";
    case 3:
      return pick(2) == 0 ? "[ab]" : "c";
    case 4:
      return absl::StrCat(RandomPattern(depth - 1, random), RandomPattern(depth - 1, random));
    case 5:
      return absl::StrCat("(", RandomPattern(depth - 1, random), "|",
                          RandomPattern(depth - 1, random), ")");
    case 6: {
      constexpr const char* kQuantifiers[] = {"*", "+", "?", "{2}", "{1,3}", "{2,}", "*?"};
      return absl::StrCat("(?:", RandomPattern(depth - 1, random), ")", kQuantifiers[pick(7)]);
    }
    default: {
      constexpr const char* kAnchored[] = {"^", "$"};
      const int which = pick(3);
      return absl::StrCat(which == 0 ? kAnchored[0] : "", RandomPattern(depth - 1, random),
                          which == 1 ? kAnchored[1] : "");
    }
  }
}

// Against the standard library's, over short texts of few letters.
TEST(Pattern, MatchesAsTheStandardLibrary) {
  std::vector<std::string> texts = {""};
  for (size_t i = 0; texts[i].size() < 4; ++i) {
    for (const char c : absl::string_view("abc")) texts.push_back(texts[i] + c);
  }
  int num_matches = 0, num_others = 0;
  for (unsigned seed = 0; seed < 400; ++seed) {
    std::mt19937 random(seed);
    const std::string pattern = RandomPattern(4, &random);
    const std::regex regex(pattern);
    const auto parsed = ParsePattern(pattern);
    ASSERT_TRUE(parsed.ok()) << pattern;
    int steps_left = limits::kSchemaAutomatonStepsMax;
    const auto automaton = FindPattern(*parsed, {}, &steps_left);
    ASSERT_TRUE(automaton.ok()) << pattern;
    GrammarBuilder builder;
    const auto grammar = builder.Build(MatchingString(&builder, *automaton), "pattern");
    for (const std::string& text : texts) {
      const bool expected = std::regex_search(text, regex);
      (expected ? num_matches : num_others) += 1;
      const bool found = grammar.ok() && Accepts(*grammar, QuotedJson(text));
      ASSERT_EQ(found, expected) << pattern << " " << text;
    }
  }
  EXPECT_GT(num_matches, 1000);
  EXPECT_GT(num_others, 1000);
}

TEST(Pattern, ErrorsSayWhere) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"a)", "nothing to close at character 1"},
      {"(a", "no end of a group at character 2"},
      {"*a", "nothing to repeat at character 0"},
      {"a|+", "nothing to repeat at character 2"},
      {"^*", "nothing to repeat at character 2"},
      {"a{2", "no end of a repetition at character 3"},
      {"a{x}", "no number at character 2"},
      {"a{3,2}", "a repetition from more to less at character 6"},
      {"a{5000}", "a repetition beyond 4096 at character 6"},
      {"[a", "no end of a class at character 2"},
      {"[b-a]", "a range from more to less at character 4"},
      {R"([\d-z])", "no range of characters at character 5"},
      {"(?!a)", "this kind of group is not supported, at character 0"},
      {"é(?<=a)", "this kind of group is not supported, at character 1"},
      {R"((a)\1)", R"("\1" is not supported, at character 4)"},
      {R"(\p{L})", R"("\p" is not supported, at character 1)"},
      {R"(a\)", "nothing behind a backslash at character 2"},
      {R"(\u12)", "no hexadecimal number at character 4"},
      {R"(\uD83D\u0041)", "half of a pair of surrogates at character 12"},
      {R"(\u{110000})", "no code point at character 10"},
      {"(?<ab", "no end of a group's name at character 5"},
  };
  for (const auto& [pattern, error] : cases) {
    const auto parsed = ParsePattern(pattern);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << pattern;
    EXPECT_EQ(parsed.status().message(), error) << pattern;
  }
  const std::string deep(limits::kPatternDepthMax + 1, '(');
  EXPECT_FALSE(ParsePattern(deep).ok());
}

TEST(Pattern, IsBounded) {
  for (const char* pattern : {"a.{40}", "((a?){60}){60}", "(|){5000}", "((|){60}){80}",
                              "(a{64}){65}", "[ab]*a[ab]{30}c"}) {
    const auto parsed = ParsePattern(pattern);
    if (!parsed.ok()) continue;
    int steps_left = limits::kSchemaAutomatonStepsMax;
    EXPECT_FALSE(FindPattern(*parsed, {}, &steps_left).ok()) << pattern;
  }
}

}  // namespace
}  // namespace ultraspeed::grammar
