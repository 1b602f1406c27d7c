#include "router/generation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ultraspeed::router {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int32_t kVocabulary = 100;
constexpr ReasoningMarks kThoughtMarks = {.begin = 90, .end = 91};

v1::WorkerGenerateRequest Request(int max_tokens) {
  v1::WorkerGenerateRequest request;
  request.set_request_id("r");
  for (const int32_t id : {10, 11, 12}) request.add_prompt_token_ids(id);
  request.set_max_tokens(max_tokens);
  request.set_seed(7);
  request.set_logprobs(-1);
  request.mutable_output_format()->set_json_schema("{}");
  request.set_output_format_after_token_id(kThoughtMarks.end);
  request.mutable_tool_calls()->set_begun_tokens(2);
  return request;
}

v1::WorkerGenerateChunk Chunk(const std::vector<int32_t>& ids) {
  v1::WorkerGenerateChunk chunk;
  chunk.mutable_token_ids()->Add(ids.begin(), ids.end());
  return chunk;
}

v1::Usage Counts(int64_t prompt, int64_t cached, int64_t completion, int64_t rounds) {
  v1::Usage usage;
  usage.set_prompt_tokens(prompt);
  usage.set_cached_tokens(cached);
  usage.set_completion_tokens(completion);
  usage.set_draft_rounds(rounds);
  return usage;
}

void Take(Generation& generation, const std::vector<int32_t>& ids) {
  for (const int32_t id : ids) generation.TakeToken(id);
}

TEST(GenerationTest, TheNextWorkerIsAskedForTheRest) {
  Generation generation(Request(10), kVocabulary, kThoughtMarks);
  EXPECT_FALSE(generation.has_tokens());
  Take(generation, {20, 21, 22, 23});
  EXPECT_TRUE(generation.placement_has_tokens());
  generation.Resume();
  EXPECT_FALSE(generation.placement_has_tokens());
  EXPECT_TRUE(generation.has_tokens());
  const v1::WorkerGenerateRequest& request = generation.request();
  EXPECT_THAT(request.prompt_token_ids(), ElementsAre(10, 11, 12, 20, 21, 22, 23));
  EXPECT_EQ(request.max_tokens(), 6);
  EXPECT_EQ(request.resumed_tokens(), 4);
  EXPECT_EQ(request.request_id(), "r");
  EXPECT_EQ(request.seed(), 7u);
  EXPECT_EQ(request.output_format().json_schema(), "{}");
  EXPECT_EQ(request.output_format_after_token_id(), 91);
  EXPECT_EQ(request.tool_calls().begun_tokens(), 2);

  Take(generation, {24});
  generation.Resume();
  EXPECT_THAT(generation.request().prompt_token_ids(), ElementsAre(10, 11, 12, 20, 21, 22, 23, 24));
  EXPECT_EQ(generation.request().max_tokens(), 5);
  EXPECT_EQ(generation.request().resumed_tokens(), 5);
  EXPECT_FALSE(generation.is_complete());
  Take(generation, {1, 2, 3, 4, 5});
  EXPECT_TRUE(generation.is_complete());
  EXPECT_EQ(generation.usage().completion_tokens(), 10);
}

TEST(GenerationTest, UsageIsThatOfOneRequest) {
  Generation generation(Request(10), kVocabulary, kThoughtMarks);
  generation.TakeCounts(Counts(3, 2, 4, 2));
  Take(generation, {20, 21, 22, 23});
  EXPECT_TRUE(generation.Agrees(Counts(3, 2, 4, 2)));
  EXPECT_FALSE(generation.Agrees(Counts(3, 2, 5, 2)));
  EXPECT_FALSE(generation.Agrees(Counts(4, 2, 4, 2)));
  generation.Resume();
  generation.TakeCounts(Counts(7, 6, 2, 1));
  Take(generation, {24, 25});
  EXPECT_TRUE(generation.Agrees(Counts(7, 6, 2, 1)));
  EXPECT_EQ(generation.usage().prompt_tokens(), 3);
  EXPECT_EQ(generation.usage().cached_tokens(), 2);
  EXPECT_EQ(generation.usage().completion_tokens(), 6);
  EXPECT_EQ(generation.usage().draft_rounds(), 3);
  // Counts are cumulative within a placement.
  generation.TakeCounts(Counts(7, 6, 4, 2));
  EXPECT_EQ(generation.usage().draft_rounds(), 4);
}

TEST(GenerationTest, ThoughtsAreCountedOnceOverAllPlacements) {
  Generation generation(Request(20), kVocabulary, kThoughtMarks);
  Take(generation, {20, 90, 21, 22});
  EXPECT_EQ(generation.usage().reasoning_tokens(), 3);
  generation.Resume();
  EXPECT_EQ(generation.usage().reasoning_tokens(), 3);
  Take(generation, {23, 91, 24});
  EXPECT_EQ(generation.usage().reasoning_tokens(), 5);
  generation.Resume();  // the thought has ended
  Take(generation, {25, 26});
  EXPECT_EQ(generation.usage().reasoning_tokens(), 5);
  v1::Usage worker_usage = Counts(10, 0, 2, 1);
  worker_usage.set_reasoning_tokens(2);
  generation.TakeCounts(worker_usage);
  EXPECT_EQ(generation.usage().reasoning_tokens(), 5) << "a worker's word on it is not asked for";
}

TEST(GenerationTest, APromptMayHaveOpenedAThought) {
  v1::WorkerGenerateRequest request = Request(10);
  request.add_prompt_token_ids(90);
  request.add_prompt_token_ids(13);
  Generation generation(request, kVocabulary, kThoughtMarks);
  EXPECT_EQ(generation.usage().reasoning_tokens(), 0);
  Take(generation, {20, 91, 21});
  EXPECT_EQ(generation.usage().reasoning_tokens(), 2);
}

TEST(GenerationTest, WhatNoWorkerMaySendIsNamed) {
  Generation generation(Request(3), kVocabulary, kThoughtMarks);
  EXPECT_TRUE(generation.Check(Chunk({0, 99})).ok());
  EXPECT_THAT(generation.Check(Chunk({100})).message(), HasSubstr("token id 100"));
  EXPECT_THAT(generation.Check(Chunk({-1})).message(), HasSubstr("token id -1"));
  EXPECT_THAT(generation.Check(Chunk({1, 2, 3, 4})).message(), HasSubstr("4 tokens, more than"));
  Take(generation, {1, 2});
  EXPECT_TRUE(generation.Check(Chunk({3})).ok());
  EXPECT_FALSE(generation.Check(Chunk({3, 4})).ok());
  generation.Resume();
  EXPECT_TRUE(generation.Check(Chunk({3})).ok());
  EXPECT_FALSE(generation.Check(Chunk({3, 4})).ok());

  v1::WorkerGenerateRequest with_logprobs = Request(3);
  with_logprobs.set_logprobs(0);
  const Generation wants_logprobs(with_logprobs, kVocabulary, kThoughtMarks);
  EXPECT_THAT(wants_logprobs.Check(Chunk({1})).message(), HasSubstr("0 logprobs for 1 tokens"));
}

}  // namespace
}  // namespace ultraspeed::router
