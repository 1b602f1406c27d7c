#include "worker/model/vocabulary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/temporary_folder.h"
#include "tests/worker/model/synthetic_checkpoint.h"

namespace ultraspeed::worker {
namespace {

using testing::HasSubstr;

absl::StatusOr<int> Count(const std::string& json, int vocabulary = 10) {
  const TemporaryFolder folder;
  WriteBytes(folder.path() + "/tokenizer.json", json);
  return CountUsedTokens(folder.path(), vocabulary);
}

TEST(UsedTokensTest, CountsToTheHighestIdOfEitherList) {
  EXPECT_EQ(*Count(R"({"model":{"vocab":{"a":0,"b":5}}})"), 6);
  EXPECT_EQ(*Count(R"({"model":{"vocab":{"a":0,"b":5}},"added_tokens":[{"id":8,"content":"x"}]})"),
            9);
  EXPECT_EQ(*Count(R"({"model":{"vocab":{"a":9}},"added_tokens":[{"id":2}]})"), 10);
}

TEST(UsedTokensTest, RefusesWhatIsNotATokenizer) {
  for (const char* json :
       {"", "[]", "{}", R"({"model":7})", R"({"model":{}})", R"({"model":{"vocab":[]}})",
        R"({"model":{"vocab":{}}})", R"({"model":{"vocab":{"bad":10}}})",
        R"({"model":{"vocab":{"bad":-1}}})", R"({"model":{"vocab":{"bad":"1"}}})",
        R"({"model":{"vocab":{"bad":1.5}}})", R"({"model":{"vocab":{"bad":18446744073709551615}}})",
        R"({"model":{"vocab":{"a":1}},"added_tokens":[{}]})",
        R"({"model":{"vocab":{"a":1}},"added_tokens":[7]})",
        R"({"model":{"vocab":{"a":1}},"added_tokens":[{"id":10}]})"}) {
    SCOPED_TRACE(json);
    const absl::Status status = Count(json).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("tokenizer.json"));
  }
  EXPECT_THAT(std::string(Count(R"({"model":{"vocab":{"bad":10}}})").status().message()),
              HasSubstr("token \"bad\" has id 10"));
}

TEST(UsedTokensTest, AMissingFileIsNotFound) {
  const TemporaryFolder folder;
  EXPECT_EQ(CountUsedTokens(folder.path(), 10).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace ultraspeed::worker
