#include "common/grammar/constraint.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/grammar/combinators.h"
#include "tests/common/grammar/grammar_testing.h"
#include "tests/common/grammar/test_vocabulary.h"

namespace ultraspeed::grammar {
namespace {

const std::shared_ptr<const Vocabulary>& SmallVocabulary() {
  static const auto* const vocabulary = [] {
    std::vector<std::string> tokens;
    for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
    // Plain and cut characters, ends of strings with what may follow, marks, all of one kind.
    for (const char* token : {"abc",
                              "é",
                              "\xE2\x82",
                              "\x82\xAC",
                              "a\xE2",
                              "\x9F\x98\x80z",
                              "aé€",
                              "abcdefghijklmno",
                              "\",",
                              "\":",
                              "\"}",
                              "x\"}",
                              "\",\"",
                              "\": \"",
                              "x\",\n  \"",
                              "\\u00",
                              "\\\"",
                              "\\",
                              "d83d",
                              "<",
                              "</",
                              "a</b",
                              "</b>",
                              "</b",
                              "b></",
                              "true",
                              "tr",
                              "null",
                              "12",
                              "-1",
                              ".5",
                              "{\"",
                              "[[[[",
                              "]]",
                              "\n    ",
                              "        ",
                              "{}",
                              "[]",
                              ""}) {
      tokens.emplace_back(token);
    }
    const auto end_token = static_cast<int32_t>(tokens.size()) - 1;
    return new std::shared_ptr<const Vocabulary>(
        std::make_shared<Vocabulary>(std::move(tokens), std::vector<int32_t>{end_token, 0}));
  }();
  return *vocabulary;
}

// The mask of a state is what Advance takes, token by token, with another automaton.
void CheckMask(Constraint* constraint, Automaton* automaton, const Vocabulary& vocabulary,
               const State& state, const State& other, const std::string& where) {
  const auto mask = constraint->AllowedTokens(state);
  for (int32_t token = 0; token < vocabulary.num_tokens(); ++token) {
    const std::string bytes(vocabulary.bytes(token));
    const bool allowed = vocabulary.is_end(token)
                             ? other.can_end()
                             : !bytes.empty() && !automaton->Advance(other, bytes).is_dead();
    ASSERT_EQ(mask->Allows(token), allowed) << where << " then " << testing::PrintToString(bytes);
  }
}

void CheckMasksAlong(const std::shared_ptr<const Grammar>& grammar,
                     const std::shared_ptr<const Vocabulary>& vocabulary, const std::string& text,
                     int frames_max = limits::kGrammarFramesMax) {
  Constraint constraint(grammar, vocabulary, frames_max);
  Automaton automaton(grammar);
  State state = constraint.Start(), other = automaton.Start();
  CheckMask(&constraint, &automaton, *vocabulary, state, other, "");
  std::string before;
  for (const int32_t token : Tokenize(*vocabulary, text)) {
    const std::string bytes(vocabulary->bytes(token));
    before += bytes;
    state = constraint.Advance(state, token);
    other = automaton.Advance(other, bytes);
    ASSERT_FALSE(state.is_dead()) << before;
    ASSERT_EQ(state.can_end(), other.can_end());
    CheckMask(&constraint, &automaton, *vocabulary, state, other, before);
  }
  EXPECT_TRUE(state.can_end()) << text;
}

struct Example {
  const char* schema;
  const char* text;
};
const std::vector<Example>& Examples() {
  static const auto* const examples = new std::vector<Example>{
      {"{}", R"({"a":[1,-2.5e3,"x\n\u00e9\ud83d\ude00 é€"],"b":{"c":null,"d":[true,[[]]]}})"},
      {R"({"properties":{"name":{"type":"string","maxLength":12,"minLength":3},"age":{"type":"integer","minimum":7},
           "tags":{"items":{"enum":["red","reddish"]},"maxItems":2}},"required":["age"]})",
       "{\n  \"name\": \"Zo\xC3\xAB \xF0\x9F\x98\x80 xyz\",\n  \"age\": 42,\n  \"tags\": [\"red\", "
       "\"reddish\"],\n"
       "  \"nam\": \"other\", \"na\\\"\": []\n}"},
      {R"({"anyOf":[{"type":"object","properties":{"k":{"const":"a"},"s":{"type":"string"}},"required":["k","s"]},
           {"type":"object","properties":{"k":{"type":"string"},"t":{"$ref":"#"}},"required":["k","t"]}]})",
       R"({"k":"a","t":{"k":"bcd","t":{"k": "a", "s": "abc\"def"}}})"},
      {R"({"type":"array","items":{"type":"array","items":{"$ref":"#"}}})", "[[[[]],[]],[ ]]"},
      {R"({"type":"array","prefixItems":[{"pattern":"^.{2,14}$","type":"string"},
           {"pattern":"^[^x]*é.*$","type":"string"},{"pattern":"abc","type":"string","maxLength":20},
           {"format":"date-time","type":"string"},{"type":"number","minimum":-1.5,"exclusiveMaximum":12.25}]})",
       "[\"ab\\\"cé€ \xF0\x9F\x98\x80\",\"a\\n<é</b\",\"xx abcabc\\\"\","
       "\"2026-11-29T00:00:00.5Z\",12.125]"},
  };
  return *examples;
}

TEST(Constraint, MasksAreWhatAdvanceTakes) {
  for (const Example& example : Examples()) {
    const auto grammar = SchemaGrammar(example.schema);
    CheckMasksAlong(grammar, SmallVocabulary(), example.text);
    CheckMasksAlong(grammar, BundledVocabulary(), example.text);
  }
}

TEST(Constraint, MasksOfTextUntilAMark) {
  for (const char* mark : {"</b>", "abc", "<<a", "\n"}) {
    for (const CountRange range : {CountRange(), CountRange{3, 15}}) {
      GrammarBuilder builder;
      const RuleId text = TextUntil(&builder, mark, range, "[");
      const auto grammar =
          *builder.Build(Sequence(&builder, {text, Literal(&builder, "<>")}), "grammar");
      CheckMasksAlong(grammar, SmallVocabulary(), absl::StrCat("abd</ <</é €<b", mark, "<>"));
      CheckMasksAlong(grammar, BundledVocabulary(), absl::StrCat("abd</ <</é €<b", mark, "<>"));
    }
  }
}

// As many tokens as the served model has: those that are allowed together are found together.
TEST(Constraint, MasksOfALargeVocabulary) {
  const auto grammar =
      SchemaGrammar(R"({"type":"object","properties":{"an":{"type":"string","maxLength":20}}})");
  CheckMasksAlong(grammar, LargeVocabulary(), R"({"an":"in do","and":[]})");
}

// At the last levels the depth decides.
TEST(Constraint, MasksDeepInside) {
  const std::string text = absl::StrCat(std::string(63, '['), "1", std::string(63, ']'));
  CheckMasksAlong(SchemaGrammar("{}"), SmallVocabulary(), text);
}

TEST(Constraint, ForgettingStatesChangesNothing) {
  for (const Example& example : Examples()) {
    CheckMasksAlong(SchemaGrammar(example.schema), SmallVocabulary(), example.text, 3);
  }
}

TEST(Constraint, StatesOutliveTheirTable) {
  Constraint constraint(AnyJsonObject(), SmallVocabulary(), 3);
  std::vector<State> states = {constraint.Start()};
  const std::string text = R"({"a":[{"b":1}]})";
  for (const char c : text) {
    states.push_back(constraint.Advance(states.back(), static_cast<unsigned char>(c)));
  }
  for (size_t from = 0; from < text.size(); ++from) {
    State state = states[from];
    for (const char c : text.substr(from))
      state = constraint.Advance(state, static_cast<unsigned char>(c));
    EXPECT_TRUE(state.can_end()) << from;
  }
}

TEST(Constraint, EndTokens) {
  Constraint constraint(SchemaGrammar(R"({"enum":[1,12]})"), SmallVocabulary());
  const int32_t end_token = SmallVocabulary()->num_tokens() - 1;
  State state = constraint.Start();
  EXPECT_FALSE(constraint.AllowedTokens(state)->Allows(end_token));
  EXPECT_TRUE(constraint.Advance(state, end_token).is_dead());
  state = constraint.Advance(state, '1');
  EXPECT_TRUE(constraint.AllowedTokens(state)->Allows(end_token));
  EXPECT_TRUE(constraint.AllowedTokens(state)->Allows(0));
  EXPECT_TRUE(constraint.AllowedTokens(state)->Allows('2'));
  EXPECT_TRUE(constraint.Advance(state, end_token).can_end());
  state = constraint.Advance(state, '2');
  EXPECT_FALSE(constraint.AllowedTokens(state)->Allows('2'));
  EXPECT_TRUE(constraint.AllowedTokens(state)->Allows(end_token));
}

TEST(Constraint, NothingIsAllowedInADeadState) {
  Constraint constraint(AnyJsonObject(), SmallVocabulary());
  EXPECT_EQ(*constraint.AllowedTokens(State()), TokenMask(SmallVocabulary()->num_tokens()));
  EXPECT_TRUE(constraint.Advance(State(), '{').is_dead());
  EXPECT_TRUE(constraint.Advance(constraint.Start(), '[').is_dead());
}

TEST(Constraint, MasksAreShared) {
  Constraint constraint(AnyJsonObject(), SmallVocabulary());
  const auto after = [&](const std::string& text) {
    State state = constraint.Start();
    for (const char c : text) state = constraint.Advance(state, static_cast<unsigned char>(c));
    return constraint.AllowedTokens(state);
  };
  EXPECT_EQ(after(R"({"a)"), after(R"({"abc)"));
  EXPECT_EQ(after(R"({"a":1,)"), after(R"({"abc":17,)"));
  EXPECT_NE(after(R"({"a":1,)"), after(R"({"abc":)"));
}

// A branch that was tried is thrown away: the state before it goes on as if nothing had been.
TEST(Constraint, BranchesAreForgotten) {
  Constraint constraint(SchemaGrammar(R"({"enum":["abc"]})"), SmallVocabulary());
  const State begun = constraint.Advance(constraint.Start(), '"');
  EXPECT_TRUE(constraint.Advance(constraint.Advance(begun, 'a'), 'x').is_dead());
  State state = begun;
  for (const char c : {'a', 'b', 'c', '"'}) {
    EXPECT_TRUE(constraint.AllowedTokens(state)->Allows(c));
    EXPECT_FALSE(constraint.AllowedTokens(state)->Allows('x'));
    state = constraint.Advance(state, c);
  }
  EXPECT_TRUE(state.can_end());
}

TEST(Constraint, ManyThreads) {
  Constraint constraint(AnyJsonObject(), SmallVocabulary(), 20);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&constraint, i] {
      const std::string text = absl::StrCat(R"({"key)", i, R"(":[1,"x",{}]})");
      for (int round = 0; round < 50; ++round) {
        State state = constraint.Start();
        for (const char c : text) {
          ASSERT_TRUE(constraint.AllowedTokens(state)->Allows(static_cast<unsigned char>(c)));
          state = constraint.Advance(state, static_cast<unsigned char>(c));
        }
        ASSERT_TRUE(state.can_end());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace ultraspeed::grammar
