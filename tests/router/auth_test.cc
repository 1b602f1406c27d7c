#include "router/auth.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace ultraspeed::router {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kPepper[] = "a pepper of some length";

class ApiKeysTest : public ::testing::Test {
 protected:
  ApiKeysTest() : path_(absl::StrCat(::testing::TempDir(), "/api_keys_", getpid())) {}
  ~ApiKeysTest() override { std::remove(path_.c_str()); }

  // Renamed into place, as operators should do it: the inode changes even within the clock's grain.
  void Write(absl::string_view text) {
    const std::string next = path_ + ".next";
    std::ofstream(next) << text;
    std::rename(next.c_str(), path_.c_str());
  }
  static std::string Line(absl::string_view tenant, absl::string_view id, absl::string_view key) {
    return absl::StrCat(tenant, " ", id, " ", HashApiKey(key, kPepper), "\n");
  }
  absl::StatusOr<std::unique_ptr<ApiKeys>> Create() { return ApiKeys::Create({path_, kPepper}); }

  const std::string path_;
};

TEST_F(ApiKeysTest, KnowsEachKey) {
  Write("# keys\n\n" + Line("acme", "k1", "us-one") + "  " + Line("beta", "k2", "us-two"));
  const auto keys = Create();
  ASSERT_TRUE(keys.ok()) << keys.status();
  EXPECT_EQ((*keys)->num_keys(), 2);
  const auto tenant = (*keys)->Authenticate("us-two");
  ASSERT_TRUE(tenant.ok());
  EXPECT_EQ(tenant->tenant, "beta");
  EXPECT_EQ(tenant->key_id, "k2");
}

TEST_F(ApiKeysTest, EveryFailureReadsTheSame) {
  Write(Line("acme", "k1", "us-one"));
  const auto keys = Create();
  ASSERT_TRUE(keys.ok());
  const absl::Status expected = (*keys)->Authenticate("").status();
  EXPECT_EQ(expected.code(), absl::StatusCode::kUnauthenticated);
  for (const std::string& key :
       {std::string("us-two"), std::string("us-on"), std::string("us-one "),
        HashApiKey("us-one", kPepper), std::string(100000, 'x'), std::string("us-one\0", 7)}) {
    EXPECT_EQ((*keys)->Authenticate(key).status(), expected);
  }
}

TEST_F(ApiKeysTest, ReloadsWhenTheFileChanges) {
  Write(Line("acme", "k1", "us-one"));
  const auto keys = Create();
  ASSERT_TRUE(keys.ok());
  EXPECT_TRUE((*keys)->ReloadIfChanged().ok());
  Write(Line("acme", "k2", "us-two"));
  EXPECT_TRUE((*keys)->ReloadIfChanged().ok());
  EXPECT_FALSE((*keys)->Authenticate("us-one").ok());
  EXPECT_TRUE((*keys)->Authenticate("us-two").ok());
}

TEST_F(ApiKeysTest, ABrokenReloadKeepsTheOldKeys) {
  Write(Line("acme", "k1", "us-one"));
  const auto keys = Create();
  ASSERT_TRUE(keys.ok());
  Write("nonsense\n");
  EXPECT_EQ((*keys)->ReloadIfChanged().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE((*keys)->Authenticate("us-one").ok());
  std::remove(path_.c_str());
  EXPECT_EQ((*keys)->ReloadIfChanged().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE((*keys)->Authenticate("us-one").ok());
}

TEST_F(ApiKeysTest, FaultsNameTheLineAndNeverItsText) {
  const std::string good = Line("acme", "k1", "us-one");
  for (const std::string& bad :
       {std::string("acme us-secret\n"), std::string("acme k2 us-secret\n"),
        "ac/me k2 " + HashApiKey("us-secret", kPepper) + "\n",
        "acme k\x01 " + HashApiKey("us-secret", kPepper) + "\n", good}) {
    Write(good + bad);
    const absl::Status status = Create().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("line 2"));
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("secret")));
  }
}

TEST_F(ApiKeysTest, MissingFileAndShortPepperAreRefused) {
  EXPECT_EQ(Create().status().code(), absl::StatusCode::kNotFound);
  Write("");
  EXPECT_EQ(ApiKeys::Create({path_, "short"}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ApiKeys::Create({"", kPepper}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ultraspeed::router
