#include "worker/request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/worker/scripted_executor.h"

namespace ultraspeed::worker {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr RequestBounds kBounds{.context_tokens = 100, .vocabulary = 1000};

SequenceResult Chosen(std::vector<int32_t> tokens, int num_drafted) {
  SequenceResult result;
  for (const int32_t token : tokens)
    result.chosen.push_back({.token = token, .logprob = 0, .top_tokens = {}, .top_logprobs = {}});
  result.num_drafted = num_drafted;
  result.num_accepted = static_cast<int>(tokens.size()) - 1;
  return result;
}

TEST(ValidateRequestTest, AcceptsTheBounds) {
  RequestSpec spec = MakeSpec(std::string(64, 'a'), 99, 1);
  spec.sampling = {.temperature = 2.0f, .top_k = 1000, .top_p = 1.0f, .seed = 0};
  spec.logprobs = 8;
  spec.priority = -100;
  spec.resumed_tokens = 98;
  EXPECT_TRUE(ValidateRequest(spec, kBounds).ok()) << ValidateRequest(spec, kBounds);
  EXPECT_TRUE(ValidateRequest(MakeSpec("a", 1, 99), kBounds).ok());
}

TEST(ValidateRequestTest, NamesFieldAndBound) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  struct Case {
    const char* name;
    void (*spoil)(RequestSpec&);
    const char* field;
    const char* bound;
  };
  const Case cases[] = {
      {"no id", [](RequestSpec& s) { s.id = ""; }, "request_id", "1..64"},
      {"long id", [](RequestSpec& s) { s.id = std::string(65, 'a'); }, "request_id", "1..64"},
      {"odd id", [](RequestSpec& s) { s.id = "a\nb"; }, "request_id", "letters"},
      {"no prompt", [](RequestSpec& s) { s.prompt.clear(); }, "prompt_token_ids", "1..99"},
      {"long prompt", [](RequestSpec& s) { s.prompt.assign(100, 1); }, "prompt_token_ids", "1..99"},
      {"negative id", [](RequestSpec& s) { s.prompt[2] = -1; }, "prompt_token_ids[2]=-1", "0..999"},
      {"id past vocabulary", [](RequestSpec& s) { s.prompt[0] = 1000; }, "prompt_token_ids[0]=1000",
       "0..999"},
      {"no tokens", [](RequestSpec& s) { s.max_tokens = 0; }, "max_tokens=0", "1..90"},
      {"negative tokens", [](RequestSpec& s) { s.max_tokens = -5; }, "max_tokens=-5", "1..90"},
      {"too many tokens", [](RequestSpec& s) { s.max_tokens = 91; }, "max_tokens=91", "1..90"},
      {"cold", [](RequestSpec& s) { s.sampling.temperature = -0.1f; }, "temperature", "0..2"},
      {"hot", [](RequestSpec& s) { s.sampling.temperature = 2.1f; }, "temperature", "0..2"},
      {"top_p 0", [](RequestSpec& s) { s.sampling.top_p = 0; }, "top_p=0", "(0, 1]"},
      {"top_p 1.1", [](RequestSpec& s) { s.sampling.top_p = 1.1f; }, "top_p=1.1", "(0, 1]"},
      {"top_k -1", [](RequestSpec& s) { s.sampling.top_k = -1; }, "top_k=-1", "0..1000"},
      {"top_k past vocabulary", [](RequestSpec& s) { s.sampling.top_k = 1001; }, "top_k=1001",
       "0..1000"},
      {"logprobs -2", [](RequestSpec& s) { s.logprobs = -2; }, "logprobs=-2", "-1..8"},
      {"logprobs 9", [](RequestSpec& s) { s.logprobs = 9; }, "logprobs=9", "-1..8"},
      {"priority", [](RequestSpec& s) { s.priority = 101; }, "priority=101", "-100..100"},
      {"stop id",
       [](RequestSpec& s) {
         s.stop_token_ids = {7, 1000};
       },
       "stop_token_ids[1]=1000", "0..999"},
      {"stop count", [](RequestSpec& s) { s.stop_token_ids.assign(65, 7); }, "stop_token_ids",
       "at most 64"},
      {"resumed", [](RequestSpec& s) { s.resumed_tokens = 10; }, "resumed_tokens=10", "0..9"},
      {"resumed negative", [](RequestSpec& s) { s.resumed_tokens = -1; }, "resumed_tokens=-1",
       "0..9"},
  };
  for (const Case& test_case : cases) {
    SCOPED_TRACE(test_case.name);
    RequestSpec spec = MakeSpec("id", 10, 5);
    ASSERT_TRUE(ValidateRequest(spec, kBounds).ok());
    test_case.spoil(spec);
    const absl::Status status = ValidateRequest(spec, kBounds);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(test_case.field));
    EXPECT_THAT(std::string(status.message()), HasSubstr(test_case.bound));
  }
  RequestSpec spec = MakeSpec("id", 10, 5);
  spec.sampling.temperature = nan;
  EXPECT_THAT(std::string(ValidateRequest(spec, kBounds).message()), HasSubstr("temperature=nan"));
  spec = MakeSpec("id", 10, 5);
  spec.sampling.top_p = nan;
  EXPECT_THAT(std::string(ValidateRequest(spec, kBounds).message()), HasSubstr("top_p=nan"));
}

TEST(SequenceTest, PrefillInChunksThenDecode) {
  Sequence sequence(MakeSpec("id", 10, 20), nullptr, absl::ZeroDuration());
  EXPECT_EQ(sequence.pending(), 10);
  EXPECT_FALSE(sequence.is_decoding());
  EXPECT_TRUE(sequence.Advance(6, {}).tokens.empty());
  EXPECT_EQ(sequence.computed(), 6);
  EXPECT_EQ(sequence.Advance(4, Chosen({100}, 0)).usage.completion_tokens, 1);
  EXPECT_TRUE(sequence.is_decoding());
  EXPECT_EQ(sequence.computed(), 10);
  EXPECT_EQ(sequence.committed(), 11);
  const TokenEvent event = sequence.Advance(1, Chosen({101, 102, 103}, 7));
  EXPECT_EQ(event.tokens.size(), 3u);
  EXPECT_EQ(event.usage.draft_rounds, 2);
  EXPECT_EQ(sequence.computed(), 13) << "anchor and two accepted drafts";
  EXPECT_EQ(sequence.pending(), 1);
  EXPECT_EQ(*sequence.tokens_to_compute(), 103);
}

TEST(SequenceTest, StopTokenEndsAndDropsWhatFollows) {
  RequestSpec spec = MakeSpec("id", 4, 20);
  spec.stop_token_ids = {7, 9};
  Sequence sequence(spec, nullptr, absl::ZeroDuration());
  sequence.Advance(4, Chosen({1}, 0));
  const TokenEvent event = sequence.Advance(1, Chosen({2, 9, 3, 7}, 7));
  EXPECT_EQ(event.finish, FinishReason::kStop);
  EXPECT_EQ(event.stop_token, 9);
  ASSERT_EQ(event.tokens.size(), 2u);
  EXPECT_EQ(event.tokens[1].token, 9);
  EXPECT_EQ(event.usage.completion_tokens, 3) << "the stop token is counted";
}

TEST(SequenceTest, MaxTokensEndsWithLength) {
  Sequence sequence(MakeSpec("id", 4, 3), nullptr, absl::ZeroDuration());
  EXPECT_EQ(sequence.Advance(4, Chosen({1}, 0)).finish, FinishReason::kNone);
  const TokenEvent event = sequence.Advance(1, Chosen({2, 3}, 1));
  EXPECT_EQ(event.finish, FinishReason::kLength);
  EXPECT_EQ(event.usage.completion_tokens, 3);
}

TEST(SequenceTest, StopWinsOverLength) {
  RequestSpec spec = MakeSpec("id", 4, 1);
  spec.stop_token_ids = {7};
  Sequence sequence(spec, nullptr, absl::ZeroDuration());
  EXPECT_EQ(sequence.Advance(4, Chosen({7}, 0)).finish, FinishReason::kStop);
}

TEST(SequenceDeathTest, MoreTokensThanKnownAborts) {
  Sequence sequence(MakeSpec("id", 4, 3), nullptr, absl::ZeroDuration());
  EXPECT_DEATH(sequence.Advance(5, {}), "KERNELS_CHECK");
  EXPECT_DEATH(sequence.Advance(3, Chosen({1}, 0)), "KERNELS_CHECK")
      << "a token before the newest cannot be followed";
}

}  // namespace
}  // namespace ultraspeed::worker
