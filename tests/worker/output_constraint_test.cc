#include "worker/output_constraint.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "common/grammar/json_schema.h"
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
