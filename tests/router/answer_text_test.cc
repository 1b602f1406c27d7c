#include "router/answer_text.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "tests/router/test_tokenizer.h"

namespace ultraspeed::router {
namespace {

constexpr char kRequestId[] = "01a22671-bd63-7d1e-8baa-e21440574bfa";
constexpr char kCall[] =
    "<tool_call>\n<function=f>\n<parameter=x>1</parameter>\n</function>\n</tool_call>";

ToolUse Tools() { return {.types = {{"f", {}}}}; }

// Every chunk joined. `reason`: how the worker ends, unless the text ends before; UNSPECIFIED: not.
struct Answer {
  v1::GenerateChunk joined;
  int num_tokens = 0;  // taken
};

void Join(const v1::GenerateChunk& chunk, v1::GenerateChunk* joined) {
  joined->mutable_text()->append(chunk.text());
  joined->set_finish_reason(chunk.finish_reason());
  joined->set_matched_stop(chunk.matched_stop());
  for (const v1::ToolCallDelta& delta : chunk.tool_calls()) {
    if (delta.id().empty()) {
      ASSERT_EQ(delta.index(), joined->tool_calls_size() - 1);
      joined->mutable_tool_calls(delta.index())->mutable_arguments()->append(delta.arguments());
    } else {
      ASSERT_EQ(delta.index(), joined->tool_calls_size());
      *joined->add_tool_calls() = delta;
    }
  }
}

Answer Read(const std::string& text, std::optional<ToolUse> tools,
            std::vector<std::string> stop = {}, v1::FinishReason reason = v1::FINISH_REASON_STOP,
            int tokens_per_chunk = 1) {
  const Tokenizer& tokenizer = TestTokenizer();
  AnswerText answer(&tokenizer, std::move(stop), std::move(tools), kRequestId);
  const int32_t think = *tokenizer.TokenId("<think>");
  const int32_t think_end = *tokenizer.TokenId("</think>");
  Answer result;
  bool in_thought = false;
  v1::GenerateChunk chunk;
  const std::vector<int32_t> ids = *tokenizer.Encode(text, SpecialTokens::kParse);
  for (const int32_t id : ids) {
    if (id == think) in_thought = true;
    if (id == think_end) in_thought = false;
    ++result.num_tokens;
    const bool ended = answer.Append(id, in_thought, &chunk);
    if (ended || result.num_tokens % tokens_per_chunk == 0) {
      Join(chunk, &result.joined);
      chunk.Clear();
    }
    if (ended) return result;
  }
  answer.Finish(reason, *tokenizer.TokenId("<|im_end|>"), &chunk);
  Join(chunk, &result.joined);
  return result;
}

TEST(AnswerText, WithoutToolsACallIsText) {
  const Answer answer = Read(kCall, std::nullopt);
  EXPECT_EQ(answer.joined.text(), kCall);
  EXPECT_EQ(answer.joined.tool_calls_size(), 0);
  EXPECT_EQ(answer.joined.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(answer.joined.matched_stop(), "<|im_end|>");
}

TEST(AnswerText, ThePromptMayHaveBegunTheText) {
  const Tokenizer& tokenizer = TestTokenizer();
  AnswerText answer(&tokenizer, {}, std::nullopt, kRequestId, "<think>");
  v1::GenerateChunk chunk;
  const std::vector<int32_t> ids = *tokenizer.Encode("why</think>a", SpecialTokens::kParse);
  for (const int32_t id : ids) EXPECT_FALSE(answer.Append(id, true, &chunk));
  answer.Finish(v1::FINISH_REASON_LENGTH, 0, &chunk);
  EXPECT_EQ(chunk.text(), "<think>why</think>a");

  AnswerText empty(&tokenizer, {}, std::nullopt, kRequestId, "<think>");
  chunk.Clear();
  empty.Finish(v1::FINISH_REASON_LENGTH, 0, &chunk);
  EXPECT_EQ(chunk.text(), "<think>");

  AnswerText stopped(&tokenizer, {"think>"}, std::nullopt, kRequestId, "<think>");
  chunk.Clear();
  EXPECT_TRUE(stopped.Append(tokenizer.Encode("a", SpecialTokens::kAsText)->front(), true, &chunk));
  EXPECT_EQ(chunk.text(), "<");
  EXPECT_EQ(chunk.matched_stop(), "think>");
}

TEST(AnswerText, CallsBehindText) {
  const std::string text = absl::StrCat("I look.\n", kCall, "\n", kCall, "\n \n");
  for (const int tokens_per_chunk : {1, 3, 1000}) {
    const Answer answer = Read(text, Tools(), {}, v1::FINISH_REASON_STOP, tokens_per_chunk);
    EXPECT_EQ(answer.joined.text(), "I look.\n");
    ASSERT_EQ(answer.joined.tool_calls_size(), 2);
    EXPECT_EQ(answer.joined.tool_calls(0).id(), "call_01a22671bd637d1e8baae21440574bfa0");
    EXPECT_EQ(answer.joined.tool_calls(1).id(), "call_01a22671bd637d1e8baae21440574bfa1");
    EXPECT_EQ(answer.joined.tool_calls(1).name(), "f");
    EXPECT_EQ(answer.joined.tool_calls(1).arguments(), R"({"x":1})");
    EXPECT_EQ(answer.joined.finish_reason(), v1::FINISH_REASON_TOOL_CALLS);
  }
}

TEST(AnswerText, TextBehindACallIsTextWithTheSpaceBefore) {
  EXPECT_EQ(Read(absl::StrCat(kCall, "\n \nDone. \n"), Tools()).joined.text(), "\n \nDone. \n");
}

TEST(AnswerText, ACallInAThoughtIsAThought) {
  const std::string thought = absl::StrCat("<think>I would say ", kCall, "</think>");
  const Answer answer = Read(absl::StrCat(thought, kCall), Tools());
  EXPECT_EQ(answer.joined.text(), thought);
  EXPECT_EQ(answer.joined.tool_calls_size(), 1);
}

TEST(AnswerText, WhatIsNoCallIsText) {
  const std::string text = "a<tool_call>{\"name\": \"f\"}</tool_call> b";
  const Answer answer = Read(text, Tools());
  EXPECT_EQ(answer.joined.text(), text);
  EXPECT_EQ(answer.joined.finish_reason(), v1::FINISH_REASON_STOP);
}

TEST(AnswerText, OneCallOnlyIfTheCallerWantsNoMore) {
  ToolUse tools = Tools();
  tools.parallel_calls = false;
  const Answer one = Read(kCall, tools);
  const Answer answer = Read(absl::StrCat(kCall, kCall), tools);
  EXPECT_EQ(answer.num_tokens, one.num_tokens);
  EXPECT_EQ(answer.joined.tool_calls_size(), 1);
  EXPECT_EQ(answer.joined.finish_reason(), v1::FINISH_REASON_TOOL_CALLS);
}

TEST(AnswerText, StopStringsAreLookedForInTextOnly) {
  const Answer answer = Read(absl::StrCat("ab", kCall, "xfunctiony"), Tools(), {"function"});
  EXPECT_EQ(answer.joined.text(), "abx");
  EXPECT_EQ(answer.joined.tool_calls(0).arguments(), R"({"x":1})");
  EXPECT_EQ(answer.joined.matched_stop(), "function");
  // What began before a call does not go on behind it, and is not lost.
  EXPECT_EQ(Read(absl::StrCat("func", kCall, "tion"), Tools(), {"function"}).joined.text(),
            "function");
}

TEST(AnswerText, ACallThatIsCutStaysOpen) {
  const std::string begun = "<tool_call>\n<function=f>\n<parameter=x>12";
  const Answer cut = Read(begun, Tools(), {}, v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(cut.joined.tool_calls(0).arguments(), R"({"x":)");
  EXPECT_EQ(cut.joined.finish_reason(), v1::FINISH_REASON_LENGTH);
  // A model that ends in the middle has said what it had to say.
  const Answer ended = Read(begun, Tools());
  EXPECT_EQ(ended.joined.tool_calls(0).arguments(), R"({"x":12})");
  EXPECT_EQ(ended.joined.finish_reason(), v1::FINISH_REASON_TOOL_CALLS);
  EXPECT_EQ(Read("<tool_call>\n<func", Tools(), {}, v1::FINISH_REASON_LENGTH).joined.text(),
            "<tool_call>\n<func");
}

TEST(AnswerText, APromptMayHaveBegunTheCall) {
  ToolUse tools = Tools();
  tools.opening = "\n<function=f>\n";
  const Answer named = Read("<parameter=x>1</parameter>\n</function>\n</tool_call>", tools);
  EXPECT_EQ(named.joined.text(), "");
  ASSERT_EQ(named.joined.tool_calls_size(), 1);
  EXPECT_EQ(named.joined.tool_calls(0).name(), "f");
  EXPECT_EQ(named.joined.tool_calls(0).arguments(), R"({"x":1})");
  EXPECT_EQ(Read("", tools).joined.tool_calls(0).arguments(), "{}");
  tools.opening = "";
  EXPECT_EQ(Read("\n<function=g></function></tool_call>", tools).joined.tool_calls(0).name(), "g");
  EXPECT_EQ(Read("Sorry.", tools).joined.text(), "Sorry.");
}

TEST(AnswerText, MarksInAValueAreItsText) {
  const std::string value = "print('<tool_call>', '</tool_call>')\n";
  const Answer answer = Read(absl::StrCat("<tool_call><function=f><parameter=x>", value,
                                          "</parameter></function></tool_call>"),
                             Tools());
  ASSERT_EQ(answer.joined.tool_calls_size(), 1);
  EXPECT_EQ(answer.joined.tool_calls(0).arguments(),
            std::string(R"({"x":"print('<tool_call>', '</tool_call>')\n"})"));
}

TEST(AnswerText, MarksThatAreMissingOrSaidTwice) {
  const Answer answer = Read(
      "<tool_call>\n<tool_call><function=f></function><tool_call><function=g><parameter=x>1"
      "</parameter>\n</tool_call></tool_call>",
      Tools());
  ASSERT_EQ(answer.joined.tool_calls_size(), 2);
  EXPECT_EQ(answer.joined.tool_calls(0).name(), "f");
  EXPECT_EQ(answer.joined.tool_calls(1).arguments(), R"({"x":1})");
  EXPECT_EQ(answer.joined.text(), "</tool_call>");
}

TEST(AnswerText, HalfACharacterBeforeACallIsReplaced) {
  const Tokenizer& tokenizer = TestTokenizer();
  AnswerText answer(&tokenizer, {}, Tools(), kRequestId);
  v1::GenerateChunk chunk;
  const std::vector<int32_t> ids = *tokenizer.Encode("\xE4\xB8\xAD", SpecialTokens::kAsText);
  if (ids.size() < 2) GTEST_SKIP() << "this tokenizer has one token for the character";
  answer.Append(ids[0], false, &chunk);
  answer.Append(*tokenizer.TokenId("<tool_call>"), false, &chunk);
  EXPECT_EQ(chunk.text(), "\xEF\xBF\xBD");
}

}  // namespace
}  // namespace ultraspeed::router
