#include "router/api_key.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"

namespace ultraspeed::router {
namespace {

using ::testing::MatchesRegex;

TEST(HashApiKeyTest, IsHmacSha256) {
  // RFC 4231, test case 2.
  EXPECT_EQ(HashApiKey("what do ya want for nothing?", "Jefe"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
}

TEST(GenerateApiKeyTest, KeysDifferAndNameTheirId) {
  std::set<std::string> keys;
  for (int i = 0; i < 100; ++i) {
    const auto made = GenerateApiKey();
    ASSERT_TRUE(made.ok());
    EXPECT_THAT(made->key, MatchesRegex("us-[a-z2-7]{8}-[0-9a-f]{32}"));
    EXPECT_EQ(ApiKeyIdOf(made->key), made->id);
    keys.insert(made->key);
  }
  EXPECT_EQ(keys.size(), 100u);
}

TEST(ApiKeyFromHeadersTest, BearerFirstThenApiKey) {
  EXPECT_EQ(ApiKeyFromHeaders("Bearer us-1", "us-2"), "us-1");
  EXPECT_EQ(ApiKeyFromHeaders("bearer  us-1 ", ""), "us-1");
  EXPECT_EQ(ApiKeyFromHeaders("", "us-2"), "us-2");
  EXPECT_EQ(ApiKeyFromHeaders("Basic abc", "us-2"), "");
  EXPECT_EQ(ApiKeyFromHeaders("", ""), "");
}

TEST(ApiKeyIdOfTest, OtherFormsHaveNone) {
  EXPECT_EQ(ApiKeyIdOf("us-abcdefgh-00112233445566778899aabbccddeeff"), "abcdefgh");
  EXPECT_EQ(ApiKeyIdOf("us-abcdefg!-00112233445566778899aabbccddeeff"), "");
  EXPECT_EQ(ApiKeyIdOf("us-abcdefgh_00112233445566778899aabbccddeeff"), "");
  EXPECT_EQ(ApiKeyIdOf("us-abcdefgh-00112233445566778899aabbccddeef"), "");
  EXPECT_EQ(ApiKeyIdOf("us-00112233445566778899aabbccddeeff"), "");
  EXPECT_EQ(ApiKeyIdOf(""), "");
}

TEST(ReadPepperTest, TakesALongEnoughFileWithoutItsLineEnd) {
  const std::string path = absl::StrCat(::testing::TempDir(), "/pepper_", getpid());
  const auto Write = [&](absl::string_view text) { std::ofstream(path) << text; };
  Write("0123456789abcdef\n");
  EXPECT_EQ(*ReadPepper(path), "0123456789abcdef");
  Write("short\n");
  EXPECT_EQ(ReadPepper(path).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReadPepper(path + ".none").status().code(), absl::StatusCode::kFailedPrecondition);
  std::remove(path.c_str());
}

}  // namespace
}  // namespace ultraspeed::router
