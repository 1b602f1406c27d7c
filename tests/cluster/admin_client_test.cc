// `ultraspeed admin` against a real router with a SQLite store: what operators type and what they
// see.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <csignal>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "tests/cluster/eventually.h"
#include "tests/cluster/process.h"
#include "tests/temporary_folder.h"

namespace ultraspeed::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;

class AdminClientTest : public ::testing::Test {
 protected:
  struct Ran {
    int exit_status = 0;
    std::string output;
    std::string log;
  };

  void SetUp() override {
    std::ofstream(folder_ + "/pepper") << "a pepper of some length";
    std::ofstream(folder_ + "/tokens") << "alice 0123456789abcdef0123456789abcdef\n";
    router_ = std::make_unique<Server>(
        folder_, "router", "ultraspeed-router",
        std::vector<std::string>{"--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0",
                                 "--worker=127.0.0.1:1", "--store=sqlite:" + folder_ + "/store.db",
                                 "--pepper-file=" + folder_ + "/pepper",
                                 "--admin-token-file=" + folder_ + "/tokens"});
    ASSERT_TRUE(router_->AwaitReady()) << router_->process().Log();
    ASSERT_NE(router_->admin_port(), 0);
  }
  Ran Run(std::vector<std::string> command, const std::string& api_key = "") {
    command.insert(command.begin(), BinFile("ultraspeed"));
    Process process(folder_, "client", std::move(command), {{"ULTRASPEED_API_KEY", api_key}});
    Ran ran;
    ran.exit_status = process.Wait(absl::Seconds(20));
    ran.output = process.Output();
    ran.log = process.Log();
    return ran;
  }
  Ran Admin(std::vector<std::string> words) {
    words.insert(words.begin(), "admin");
    words.push_back(absl::StrCat("--server=127.0.0.1:", router_->admin_port()));
    words.push_back(absl::StrCat("--token-file=", folder_, "/tokens"));
    return Run(std::move(words));
  }
  int ExitStatusOfModels(const std::string& api_key) {
    return Run({"models", "--server=" + router_->address()}, api_key).exit_status;
  }

  const TemporaryFolder temporary_;
  const std::string folder_ = temporary_.path();
  std::unique_ptr<Server> router_;
};

TEST_F(AdminClientTest, AKeyOpensTheRouterUntilItIsRevokedOrItsTenantSuspended) {
  Ran ran = Admin({"tenants", "create", "acme", "--name=Acme GmbH",
                   "--entitlements=tiny-*:standard,tiny-*:ultraspeed:400",
                   "--limits=ultraspeed:concurrent_streams=2", "--monthly-budget=12.50"});
  ASSERT_EQ(ran.exit_status, 0) << ran.log;
  EXPECT_THAT(ran.output, HasSubstr("tiny-*:standard,tiny-*:ultraspeed:400"));
  EXPECT_THAT(ran.output, HasSubstr("$12.50"));

  ran = Admin({"keys", "create", "acme", "--label=ci", "--expires-in=1h"});
  ASSERT_EQ(ran.exit_status, 0) << ran.log;
  EXPECT_THAT(ran.output, MatchesRegex("us-[a-z2-7]{8}-[0-9a-f]{32}\n"));
  const std::string key(absl::StripAsciiWhitespace(ran.output));
  const auto Becomes = [&](int exit_status) {
    return Eventually([&] { return ExitStatusOfModels(key) == exit_status; }, absl::Seconds(5));
  };
  EXPECT_TRUE(Becomes(0));
  ASSERT_EQ(Admin({"tenants", "suspend", "acme"}).exit_status, 0);
  EXPECT_TRUE(Becomes(4));
  ASSERT_EQ(Admin({"tenants", "resume", "acme"}).exit_status, 0);
  EXPECT_TRUE(Becomes(0));

  ran = Admin({"keys", "list", "acme", "--json"});
  const boost::json::value keys = boost::json::parse(ran.output);
  EXPECT_EQ(keys.at("keys").at(0).at("label").as_string(), "ci");
  const std::string id(keys.at("keys").at(0).at("id").as_string().c_str());
  ASSERT_EQ(Admin({"keys", "revoke", id}).exit_status, 0);
  EXPECT_TRUE(Becomes(4));

  ran = Admin({"audit", "list"});
  EXPECT_THAT(ran.output, HasSubstr("alice  keys.revoke     " + id));
  EXPECT_THAT(ran.output, Not(HasSubstr(key.substr(12))));
  EXPECT_THAT(router_->process().Log(), Not(HasSubstr(key.substr(12))));
}

TEST_F(AdminClientTest, PricesAreDollarsPerMillionExactly) {
  Ran ran = Admin({"prices", "add", "--model=tiny-mimo", "--tier=standard", "--input=0.43",
                   "--cached-input=0.0036", "--output=0.870000001", "--json"});
  ASSERT_EQ(ran.exit_status, 0) << ran.log;
  const boost::json::value price = boost::json::parse(ran.output);
  EXPECT_EQ(price.at("input").as_string(), "430000000");
  EXPECT_EQ(price.at("cached_input").as_string(), "3600000");
  EXPECT_EQ(price.at("output").as_string(), "870000001");
  ran = Admin({"prices", "list"});
  EXPECT_THAT(ran.output, HasSubstr("$0.0036  $0.870000001"));
  EXPECT_THAT(ran.output, HasSubstr("$1.29   $0.0108"));  // the seeded ultraspeed price
}

TEST_F(AdminClientTest, AnEmptyLedgerIsAnEmptyFile) {
  EXPECT_EQ(boost::json::parse(Admin({"usage", "export", "--format=json"}).output),
            boost::json::array());
  EXPECT_THAT(Admin({"usage", "export"}).output, HasSubstr("cost_nanodollars\r\n"));
  EXPECT_THAT(Admin({"usage", "query"}).output, HasSubstr("$0.00"));
}

TEST_F(AdminClientTest, ExitStatusTellsWhatWentWrong) {
  EXPECT_EQ(Admin({"tenants", "create", "a b"}).exit_status, 3);
  EXPECT_EQ(Admin({"prices", "add", "--model=*", "--tier=standard", "--input=1.0000000001",
                   "--cached-input=0", "--output=0"})
                .exit_status,
            3);
  EXPECT_EQ(Admin({"tenants", "show", "nobody"}).exit_status, 5);
  EXPECT_EQ(Admin({"tenants", "create"}).exit_status, 2);
  EXPECT_EQ(Admin({"tenants", "explode"}).exit_status, 2);
  EXPECT_EQ(Admin({"audit", "list", "--limit=0"}).exit_status, 2);
  std::ofstream(folder_ + "/tokens") << "alice 00000000000000000000000000000000\n";
  EXPECT_EQ(Admin({"tenants", "list"}).exit_status, 4);
  router_->process().Signal(SIGTERM);
  EXPECT_EQ(router_->process().Wait(absl::Seconds(10)), 0);
  EXPECT_EQ(Admin({"tenants", "list"}).exit_status, 7);
}

}  // namespace
}  // namespace ultraspeed::testing
