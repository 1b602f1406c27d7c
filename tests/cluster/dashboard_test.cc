// The dashboard and the alerts against a real Prometheus that scrapes the real programs: every
// query of the dashboard finds data, every alert is evaluated.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <boost/json.hpp>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "tests/cluster/eventually.h"
#include "tests/cluster/http_client.h"
#include "tests/cluster/process.h"
#include "tests/temporary_folder.h"

namespace ultraspeed {
namespace {

using testing::BinFile;
using testing::Eventually;
using testing::FindProgram;
using testing::Process;
using testing::Server;

constexpr char kDashboard[] = "deploy/grafana/ultraspeed.json";
constexpr char kRules[] = "deploy/prometheus/ultraspeed.rules.yml";
constexpr char kKey[] = "us-0123456789abcdef0123456789abcdef";

std::string UrlEncoded(const std::string& text) {
  std::string encoded;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    encoded += absl::StrCat("%", absl::Hex(byte, absl::kZeroPad2));
  }
  return encoded;
}

class DashboardTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(testing::WriteKeyFiles(folder_, kKey));
    worker_ = std::make_unique<Server>(
        folder_, "worker", "ultraspeed-worker",
        std::vector<std::string>{"--model=models/tiny-mimo", "--listen=127.0.0.1:0", "--threads=1",
                                 "--draft-cost=served-shape"});  // so that it drafts
    ASSERT_TRUE(worker_->AwaitReady()) << worker_->process().Log();
    router_ = std::make_unique<Server>(
        folder_, "router", "ultraspeed-router",
        std::vector<std::string>{"--listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0",
                                 "--http-listen=127.0.0.1:0", "--api-keys=" + folder_ + "/keys",
                                 "--pepper-file=" + folder_ + "/pepper",
                                 "--worker=" + worker_->address()});
    ASSERT_TRUE(router_->AwaitReady()) << router_->process().Log();
    ASSERT_NO_FATAL_FAILURE(StartPrometheus());
  }
  void TearDown() override {
    if (prometheus_ != nullptr) {
      prometheus_->Signal(SIGTERM);
      prometheus_->Wait(absl::Seconds(20));
    }
    router_.reset();
    worker_.reset();
    if (HasFailure()) temporary_.Keep();
  }

  void StartPrometheus() {
    const std::string config = folder_ + "/prometheus.yml";
    std::ofstream(config) << absl::StrCat(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [\"",
        std::filesystem::absolute(kRules).string(),
        "\"]\nscrape_configs:\n- job_name: ultraspeed\n  static_configs:\n  - targets: "
        "[\"127.0.0.1:",
        router_->metrics_port(), "\", \"127.0.0.1:", worker_->metrics_port(), "\"]\n");
    port_ = testing::FreePort();
    prometheus_ = std::make_unique<Process>(
        folder_, "prometheus",
        std::vector<std::string>{FindProgram("prometheus"), "--config.file=" + config,
                                 "--storage.tsdb.path=" + folder_ + "/tsdb",
                                 absl::StrCat("--web.listen-address=127.0.0.1:", port_)});
    ASSERT_TRUE(Eventually(
        [&] { return testing::HttpGet(port_, "/-/ready").find("Ready") != std::string::npos; },
        absl::Seconds(30)))
        << prometheus_->Log();
  }

  // A stream of the tier, and a request by HTTP.
  void Generate(const std::string& tier) {
    Process client(folder_, "client",
                   {BinFile("ultraspeed"), "generate", "--server=" + router_->address(),
                    "--tier=" + tier, "--max-tokens=200", "--ignore-eos", "def main():"},
                   {{"ULTRASPEED_API_KEY", kKey}});
    EXPECT_EQ(client.Wait(absl::Seconds(60)), 0) << client.Log();
    EXPECT_EQ(testing::HttpGet(router_->http_port(), "/healthz"), "ok\n");
  }

  // "data" of an answer of Prometheus; null and a failure if it is an error.
  boost::json::value Ask(const std::string& path) const {
    const std::string body = testing::HttpGet(port_, path);
    boost::system::error_code error;
    const boost::json::value answer = boost::json::parse(body, error);
    if (error || !answer.is_object() || answer.at("status") != "success") {
      ADD_FAILURE() << path << ": " << body;
      return nullptr;
    }
    return answer.at("data");
  }
  boost::json::value Query(const std::string& expression) const {
    return Ask("/api/v1/query?query=" + UrlEncoded(expression));
  }
  // With a number.
  size_t NumSeries(const std::string& expression) const {
    const boost::json::value data = Query(expression);
    if (!data.is_object()) return 0;
    const boost::json::array& series = data.at("result").as_array();
    return static_cast<size_t>(std::count_if(series.begin(), series.end(), [](const auto& one) {
      return one.at("value").at(1) != "NaN";
    }));
  }

  TemporaryFolder temporary_;
  const std::string folder_ = temporary_.path();
  std::unique_ptr<Server> worker_, router_;
  std::unique_ptr<Process> prometheus_;
  int port_ = 0;
};

// Title of the panel -> its queries, as Grafana would send them.
std::map<std::string, std::vector<std::string>> QueriesOf(const std::string& dashboard) {
  std::map<std::string, std::vector<std::string>> queries;
  const boost::json::value parsed = boost::json::parse(testing::ReadWholeFile(dashboard));
  for (const boost::json::value& panel : parsed.at("panels").as_array()) {
    if (panel.at("type") == "row") continue;
    for (const boost::json::value& target : panel.at("targets").as_array()) {
      queries[std::string(panel.at("title").as_string())].push_back(absl::StrReplaceAll(
          std::string(target.at("expr").as_string()), {{"$__rate_interval", "1m"}}));
    }
  }
  return queries;
}

TEST_F(DashboardTest, EveryPanelFindsData) {
  const std::map<std::string, std::vector<std::string>> queries = QueriesOf(kDashboard);
  ASSERT_GE(queries.size(), 15u);
  // A counter is born by its first event and has a rate from the next one on; router and worker are
  // scraped each in its own time.
  for (const char* tier : {"ultraspeed", "standard"}) Generate(tier);
  ASSERT_TRUE(Eventually(
      [&] {
        return NumSeries("ultraspeed_router_requests_total > 0") >= 2 &&
               NumSeries("ultraspeed_worker_tokens_per_round_count > 0") >= 1;
      },
      absl::Seconds(30)));
  for (const char* tier : {"ultraspeed", "standard"}) Generate(tier);
  for (const auto& [title, expressions] : queries) {
    for (const std::string& expression : expressions) {
      EXPECT_TRUE(Eventually([&] { return NumSeries(expression) > 0; }, absl::Seconds(15)))
          << title << ": " << expression;
    }
  }
  EXPECT_EQ(NumSeries("ultraspeed_metric_that_does_not_exist"), 0u);
}

TEST_F(DashboardTest, AlertsAreLoadedAndQuietButForASlowMachine) {
  for (const char* tier : {"ultraspeed", "standard"}) Generate(tier);
  std::set<std::string> healthy, alerts;
  ASSERT_TRUE(Eventually(
      [&] {
        const boost::json::value data = Ask("/api/v1/rules");
        healthy.clear();
        alerts.clear();
        for (const boost::json::value& group : data.at("groups").as_array()) {
          for (const boost::json::value& rule : group.at("rules").as_array()) {
            const std::string name(rule.at("name").as_string());
            alerts.insert(name);
            if (rule.at("health") == "ok") healthy.insert(name);
          }
        }
        return !alerts.empty() && healthy == alerts;
      },
      absl::Seconds(30)));
  EXPECT_GE(alerts.size(), 7u);
  EXPECT_EQ(NumSeries("ALERTS{alertname!=\"UltraSpeedTierSlow\"}"), 0u);
}

// Every alert has its own case in the rules' test file, and Prometheus' test runner passes it.
TEST(AlertRulesTest, PromtoolPassesTheirTests) {
  const TemporaryFolder folder;
  Process promtool(
      folder.path(), "promtool",
      {FindProgram("promtool"), "test", "rules", "deploy/prometheus/ultraspeed.rules_test.yml"});
  EXPECT_EQ(promtool.Wait(absl::Seconds(30)), 0) << promtool.Output() << promtool.Log();
  Process config(folder.path(), "promtool-config",
                 {FindProgram("promtool"), "check", "config", "deploy/prometheus/prometheus.yml"});
  EXPECT_EQ(config.Wait(absl::Seconds(30)), 0) << config.Output() << config.Log();
}

}  // namespace
}  // namespace ultraspeed
