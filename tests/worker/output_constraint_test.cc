#include "worker/output_constraint.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "common/grammar/json_schema.h"
#include "common/grammar/tool_calls.h"
#include "worker/token_bytes.h"

namespace ultraspeed::worker {
namespace {

// Tokens: the bytes themselves, then these.
constexpr int32_t kThoughtsEnd = 256, kEnd = 257, kYes = 258, kNo = 259, kNumTokens = 260;

std::shared_ptr<const grammar::TokenMask> AllButTheEnd() {
  grammar::TokenMask mask(kNumTokens);
  for (int32_t token = 0; token < kNumTokens; ++token) mask.Allow(token);
  mask.Forbid(kEnd);
  return std::make_shared<const grammar::TokenMask>(std::move(mask));
}

// "yes" or "no", as JSON.
OutputGrammar YesOrNo(int32_t after_token) {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  for (const char* const token : {"", "", "\"yes\"", "\"no"}) tokens.emplace_back(token);
  const auto grammar = grammar::FromJsonSchema(R"({"enum": ["yes", "no"]})", "schema");
  EXPECT_TRUE(grammar.ok()) << grammar.status();
  return {.constraint = std::make_shared<grammar::Constraint>(
              *grammar, std::make_shared<const grammar::Vocabulary>(std::move(tokens),
                                                                    std::vector<int32_t>{kEnd})),
          .after_token = after_token,
          .before = after_token < 0 ? nullptr : AllButTheEnd()};
}

std::vector<int32_t> Allowed(const grammar::TokenMask& mask) {
  std::vector<int32_t> tokens;
  for (int32_t token = 0; token < kNumTokens; ++token) {
    if (mask.Allows(token)) tokens.push_back(token);
  }
  return tokens;
}

using Tokens = std::vector<int32_t>;

TEST(OutputConstraintTest, FollowsWhatIsCommitted) {
  OutputConstraint constraint(YesOrNo(/*after_token=*/-1));
  const auto allowed = [&] { return Allowed(*constraint.AllowedTokens({}).at(0)); };
  EXPECT_EQ(allowed(), (Tokens{'"', kYes, kNo}));
  constraint.Commit(kNo);
  EXPECT_EQ(allowed(), (Tokens{'"'}));
  constraint.Commit('"');
  EXPECT_EQ(allowed(), (Tokens{kEnd}));
  EXPECT_FALSE(constraint.is_dead());
  constraint.Commit('x');
  EXPECT_TRUE(constraint.is_dead());
}

// A row for each draft that may be committed, and one.
TEST(OutputConstraintTest, DraftsEndWithTheFirstThatIsNotAllowed) {
  const OutputConstraint constraint(YesOrNo(/*after_token=*/-1));
  EXPECT_EQ(constraint.AllowedTokens({}).size(), 1u);
  const auto masks = constraint.AllowedTokens({'"', 'n', 'o', 'x', '"'});
  ASSERT_EQ(masks.size(), 4u);
  EXPECT_EQ(Allowed(*masks[1]), (Tokens{'n', 'y'}));
  EXPECT_EQ(Allowed(*masks[2]), (Tokens{'o'}));
  EXPECT_EQ(Allowed(*masks[3]), (Tokens{'"'}));
  const auto to_the_end = constraint.AllowedTokens({kYes, kEnd});
  ASSERT_EQ(to_the_end.size(), 3u);
  EXPECT_EQ(Allowed(*to_the_end[1]), (Tokens{kEnd}));
}

// Before the token that ends them everything goes, except the end.
TEST(OutputConstraintTest, ThoughtsAreFreeButDoNotEndTheOutput) {
  OutputConstraint constraint(YesOrNo(kThoughtsEnd));
  constraint.Commit('x');
  EXPECT_EQ(Allowed(*constraint.AllowedTokens({}).at(0)), Allowed(*AllButTheEnd()));
  EXPECT_EQ(constraint.AllowedTokens({'y', kEnd, 'z'}).size(), 2u);
  const auto masks = constraint.AllowedTokens({'y', kThoughtsEnd, kYes, 'z'});
  ASSERT_EQ(masks.size(), 4u);
  EXPECT_EQ(Allowed(*masks[1]), Allowed(*AllButTheEnd()));
  EXPECT_EQ(Allowed(*masks[2]), (Tokens{'"', kYes, kNo}));
  EXPECT_EQ(Allowed(*masks[3]), (Tokens{kEnd}));
  constraint.Commit(kThoughtsEnd);
  EXPECT_EQ(Allowed(*constraint.AllowedTokens({}).at(0)), (Tokens{'"', kYes, kNo}));
}

// ---- Calls ----

constexpr int32_t kCallBegin = kYes, kCallEnd = kNo, kThoughtBegin = 'T';

// Calls of f, which has one parameter.
OutputGrammar Calls() {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  tokens.resize(kNumTokens);
  const auto grammar = grammar::FromTools(
      {{"f", true, R"({"properties":{"a":{"type":"boolean"}},"required":["a"]})"}}, "tools");
  EXPECT_TRUE(grammar.ok()) << grammar.status();
  grammar::TokenMask only_end(kNumTokens);
  only_end.Allow(kCallEnd);
  OutputGrammar output;
  output.constraint = std::make_shared<grammar::Constraint>(
      *grammar,
      std::make_shared<const grammar::Vocabulary>(std::move(tokens), std::vector<int32_t>{kEnd}));
  output.calls = {.begin = kCallBegin,
                  .end = kCallEnd,
                  .thought_begin = kThoughtBegin,
                  .thought_end = kThoughtsEnd,
                  .only_end = std::make_shared<const grammar::TokenMask>(std::move(only_end))};
  return output;
}

const std::string kBody = "\n<function=f>\n<parameter=a>true</parameter>\n</function>\n";

void CommitAll(absl::string_view text, OutputConstraint* constraint) {
  for (const char c : text) constraint->Commit(c);
}

TEST(OutputConstraintTest, CallsAreHeldAndTextIsFree) {
  OutputConstraint constraint(Calls());
  const auto mask = [&] { return constraint.AllowedTokens({}).at(0); };
  for (int call = 0; call < 2; ++call) {
    CommitAll("any <function=g> text", &constraint);
    constraint.Commit(kCallEnd);  // ends nothing
    EXPECT_EQ(mask(), nullptr);
    constraint.Commit(kCallBegin);
    EXPECT_EQ(Allowed(*mask()), (Tokens{'\n'}));
    CommitAll(kBody.substr(0, kBody.find("rue<")), &constraint);
    EXPECT_EQ(Allowed(*mask()), (Tokens{'r'}));
    constraint.Commit('r');
    CommitAll(kBody.substr(kBody.find("ue<")), &constraint);
    EXPECT_EQ(Allowed(*mask()), (Tokens{kCallEnd}));  // no end of the text
    constraint.Commit(kCallEnd);
  }
  EXPECT_EQ(mask(), nullptr);
  EXPECT_FALSE(constraint.is_dead());
  constraint.Commit(kEnd);
  EXPECT_FALSE(constraint.is_dead());
  for (const int32_t wrong : {kEnd, kCallBegin, kCallEnd, int32_t{'x'}}) {
    OutputConstraint held(Calls());
    held.Commit(kCallBegin);
    held.Commit(wrong);
    EXPECT_TRUE(held.is_dead());
  }
}

TEST(OutputConstraintTest, NoCallBeginsInAThought) {
  OutputConstraint constraint(Calls());
  for (const int32_t token : {kThoughtBegin, kCallBegin, int32_t{'x'}, kCallEnd}) {
    constraint.Commit(token);
    EXPECT_EQ(constraint.AllowedTokens({}).at(0), nullptr);
  }
  constraint.Commit(kThoughtsEnd);
  constraint.Commit(kCallBegin);
  EXPECT_EQ(Allowed(*constraint.AllowedTokens({}).at(0)), (Tokens{'\n'}));
}

TEST(OutputConstraintTest, DraftsGoIntoCallsAndOutOfThem) {
  const OutputConstraint constraint(Calls());
  Tokens drafts = {'x', kCallBegin};
  for (const char c : kBody) drafts.push_back(c);
  for (const int32_t token : {kCallEnd, int32_t{'y'}, kEnd}) drafts.push_back(token);
  const auto masks = constraint.AllowedTokens(drafts);
  ASSERT_EQ(masks.size(), drafts.size() + 1);
  for (size_t i = 0; i < masks.size(); ++i) {
    const bool is_held = 2 <= i && i <= kBody.size() + 2;
    EXPECT_EQ(masks[i] != nullptr, is_held) << i;
    if (!is_held) continue;
    EXPECT_TRUE(masks[i]->Allows(drafts[i])) << i;
    EXPECT_FALSE(masks[i]->Allows(kEnd)) << i;
  }
  EXPECT_EQ(Allowed(*masks[kBody.size() + 2]), (Tokens{kCallEnd}));
  EXPECT_EQ(constraint.AllowedTokens({'x', kCallBegin, kCallEnd, 'y'}).size(), 3u);
  EXPECT_EQ(constraint.AllowedTokens({kCallBegin, '\n', '<', 'g', 'u'}).size(), 4u);
}

TEST(TokenBytesTest, AreTheVocabularysAndNoAddedTokens) {
  const auto bytes = ReadTokenBytes(
      R"({"model": {"vocab": {"a": 0, "Ġthe": 1, "Ċ": 2, "<think>": 3, "é": 4, "far": 99}},
          "added_tokens": [{"id": 3, "content": "<think>"}, {"id": 99}]})",
      6);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ(*bytes, (std::vector<std::string>{"a", " the", "\n", "", "\xE9", ""}));
}

TEST(TokenBytesTest, NameWhatIsMalformed) {
  const auto message = [](const char* text) {
    return std::string(ReadTokenBytes(text, 4).status().message());
  };
  EXPECT_EQ(message("tt"), "tokenizer.json: is not JSON");
  EXPECT_EQ(message("[]"), "tokenizer.json: model.vocab: must be an object");
  EXPECT_EQ(message(R"({"model": {"vocab": {"a": 0, "▁the": 1}}})"),
            "tokenizer.json: model.vocab: token 1 is not spelled in the byte-level alphabet");
}

}  // namespace
}  // namespace ultraspeed::worker
