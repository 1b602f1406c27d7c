// deploy/kubernetes, as far as one machine goes: the real programs with the flags of the manifests,
// where only names and addresses of the cluster stand for those of the test. Mutual TLS, PostgreSQL
// and Redis are real.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <yaml-cpp/yaml.h>

#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "tests/cluster/eventually.h"
#include "tests/cluster/postgres_server.h"
#include "tests/cluster/process.h"
#include "tests/cluster/redis_server.h"
#include "tests/common/certificate.h"
#include "tests/temporary_folder.h"

namespace ultraspeed::testing {
namespace {

using ::testing::HasSubstr;

constexpr char kRouter[] = "deploy/kubernetes/router.yaml";
constexpr char kWorkerCpu[] = "deploy/kubernetes/worker-cpu.yaml";
constexpr char kWorkerGpu[] = "deploy/kubernetes/worker-gpu.yaml";

struct Container {
  std::string image;
  std::vector<std::string> flags;
  std::set<int> ports;
  std::vector<int> probed_ports;
  std::vector<std::string> mounts;
  int replicas = 0;
};

// Of the one workload in the file.
Container ContainerOf(const std::string& path) {
  Container container;
  for (const YAML::Node& document : YAML::LoadAllFromFile(path)) {
    const YAML::Node spec = document["spec"];
    if (!spec["template"]) continue;
    const YAML::Node containers = spec["template"]["spec"]["containers"];
    EXPECT_EQ(container.replicas, 0) << path << " has two workloads";
    EXPECT_EQ(containers.size(), 1u);
    const YAML::Node node = containers[0];
    container.replicas = spec["replicas"].as<int>();
    container.image = node["image"].as<std::string>();
    container.flags = node["args"].as<std::vector<std::string>>();
    for (const YAML::Node& port : node["ports"])
      container.ports.insert(port["containerPort"].as<int>());
    for (const char* name : {"startupProbe", "readinessProbe", "livenessProbe"}) {
      for (const auto& how : node[name]) {  // a TCP or HTTP probe, and its times
        if (how.second.IsMap()) container.probed_ports.push_back(how.second["port"].as<int>());
      }
    }
    for (const YAML::Node& mount : node["volumeMounts"])
      container.mounts.push_back(mount["mountPath"].as<std::string>());
  }
  return container;
}

class ManifestTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(folder_ + "/pepper") << "a pepper of some length";
    std::ofstream(folder_ + "/admin-tokens") << "alice 0123456789abcdef0123456789abcdef\n";
  }

  // What stands in a manifest for what only a cluster has.
  std::vector<std::string> Localized(const Container& container) const {
    std::vector<std::string> flags;
    for (const std::string& flag : container.flags) {
      std::string local = absl::StrReplaceAll(
          flag, {{"/tls/tls.crt", certificate_.cert_file()},
                 {"/tls/tls.key", certificate_.key_file()},
                 {"/tls/ca.crt", certificate_.cert_file()},
                 {"=/keys/", absl::StrCat("=", folder_, "/")},
                 {"=/outbox/", absl::StrCat("=", folder_, "/")},
                 {"=/cache", "=" + folder_},
                 {"=/models/", "=models/"},
                 {"=/weights/mimo-v2.5-pro", "=models/tiny-mimo"},
                 {"postgresql://ultraspeed@postgres/ultraspeed", database_},
                 {"redis://redis:6379", redis_ == nullptr ? "" : redis_->url()}});
      if (absl::StartsWith(flag, "--worker=")) local = "--worker=" + workers_;
      if (absl::StrContains(flag, "listen="))
        local = absl::StrCat(flag.substr(0, flag.find('=') + 1), "127.0.0.1:0");
      flags.push_back(std::move(local));
    }
    return flags;
  }

  int Run(const std::string& name, std::vector<std::string> command, std::string* output) {
    Process process(folder_, name, std::move(command));
    const int status = process.Wait(absl::Seconds(30));
    *output = absl::StrCat(process.Output(), process.Log());
    return status;
  }
  int Client(std::vector<std::string> words, std::string* output) {
    words.insert(words.begin(), BinFile("ultraspeed"));
    words.push_back("--tls-ca=" + certificate_.cert_file());
    return Run("client", std::move(words), output);
  }

  const TemporaryFolder temporary_;
  const std::string folder_ = temporary_.path();
  const Certificate certificate_;
  std::string database_;
  std::string workers_;
  std::unique_ptr<RedisServer> redis_;
};

TEST_F(ManifestTest, PortsAndPathsAreThoseOfTheFlags) {
  for (const char* path : {kRouter, kWorkerCpu, kWorkerGpu}) {
    SCOPED_TRACE(path);
    const Container container = ContainerOf(path);
    std::set<int> listened;
    for (const std::string& flag : container.flags) {
      const std::vector<std::string> halves = absl::StrSplit(flag, absl::MaxSplits('=', 1));
      ASSERT_EQ(halves.size(), 2u) << flag;
      if (absl::StrContains(halves[0], "listen") && !absl::StrContains(halves[1], "127.0.0.1"))
        listened.insert(std::stoi(halves[1].substr(halves[1].find(':') + 1)));
      if (halves[1][0] != '/') continue;
      const bool is_mounted =
          absl::StartsWith(halves[1], "/models/") ||  // in the image
          std::any_of(container.mounts.begin(), container.mounts.end(),
                      [&](const std::string& mount) { return absl::StartsWith(halves[1], mount); });
      EXPECT_TRUE(is_mounted) << flag;
    }
    EXPECT_EQ(container.ports, listened);
    EXPECT_GE(container.probed_ports.size(), 2u);
    for (const int port : container.probed_ports) EXPECT_EQ(listened.count(port), 1u) << port;
  }
  // Both kinds of worker are the ones that the router is told of.
  const Container router = ContainerOf(kRouter);
  for (const char* path : {kWorkerCpu, kWorkerGpu}) {
    std::vector<std::string> names;
    for (int i = 0; i < ContainerOf(path).replicas; ++i)
      names.push_back(absl::StrCat("ultraspeed-worker-", i, ".ultraspeed-worker:50061"));
    EXPECT_THAT(router.flags, ::testing::Contains("--worker=" + absl::StrJoin(names, ",")));
  }
  EXPECT_THAT(router.flags, ::testing::Contains(absl::StrCat("--replicas=", router.replicas)));
}

TEST_F(ManifestTest, ARequestGoesThroughRouterAndWorker) {
  PostgresServer postgres;
  ASSERT_EQ(postgres.error(), "");
  database_ = postgres.NewDatabase();
  redis_ = std::make_unique<RedisServer>();
  ASSERT_TRUE(redis_->running()) << redis_->log();

  Server worker(folder_, "worker", "ultraspeed-worker", Localized(ContainerOf(kWorkerCpu)));
  ASSERT_TRUE(worker.AwaitReady()) << worker.process().Log();
  workers_ = worker.address();
  const Container manifest = ContainerOf(kRouter);
  Server router(folder_, "router", manifest.image, Localized(manifest));
  ASSERT_TRUE(router.AwaitReady()) << router.process().Log();

  // As the kubelet probes: https, whatever the certificate says.
  const std::string probe = absl::StrCat(
      "import ssl, urllib.request as r; c = ssl._create_unverified_context()\n"
      "print(r.urlopen('https://127.0.0.1:",
      router.http_port(), "/readyz', context=c).status)");
  std::string output;
  EXPECT_TRUE(Eventually(
      [&] {
        return Run("probe", {FindProgram("python3"), "-c", probe}, &output) == 0;
      },
      absl::Seconds(20)))
      << output << router.process().Log();
  EXPECT_THAT(output, HasSubstr("200"));

  const auto admin = [&](std::vector<std::string> words) {
    words.insert(words.begin(), "admin");
    words.push_back(absl::StrCat("--server=127.0.0.1:", router.admin_port()));
    words.push_back("--token-file=" + folder_ + "/admin-tokens");
    return Client(std::move(words), &output);
  };
  ASSERT_EQ(admin({"tenants", "create", "acme", "--entitlements=tiny-*:standard"}), 0) << output;
  ASSERT_EQ(admin({"keys", "create", "acme"}), 0) << output;
  const std::string key = output.substr(0, output.find('\n'));
  EXPECT_TRUE(Eventually(
      [&] {
        return Client({"generate", "--server=" + router.address(), "--api-key=" + key,
                       "--max-tokens=8", "--json", "def f(x):"},
                      &output) == 0;
      },
      absl::Seconds(10)))
      << output;
  EXPECT_THAT(output, HasSubstr("\"completion_tokens\":8"));

  // Who has no certificate of the cluster's is no router.
  EXPECT_NE(Client({"models", "--server=" + worker.address(), "--deadline=1s"}, &output), 0);

  router.process().Signal(SIGTERM);
  EXPECT_EQ(router.process().Wait(absl::Seconds(20)), 0);
  worker.process().Signal(SIGTERM);
  EXPECT_EQ(worker.process().Wait(absl::Seconds(20)), 0);
}

// Its flags are read to the end; only the GPUs are missing.
TEST_F(ManifestTest, TheGpuWorkerFailsForWantOfGpusOnly) {
  std::vector<std::string> command = Localized(ContainerOf(kWorkerGpu));
  command.insert(command.begin(), BinFile("ultraspeed-worker"));
  std::string output;
  EXPECT_EQ(Run("worker", command, &output), 1);
  EXPECT_THAT(output, HasSubstr("CUDA"));
  EXPECT_THAT(output, ::testing::Not(HasSubstr("--")));
}

// What the GPU worker is told to keep fits beside the weights.
TEST_F(ManifestTest, TheGpuWorkersTokensFitItsPlan) {
  int64_t kv_tokens = 0;
  int64_t sequences = 0;
  for (const std::string& flag : ContainerOf(kWorkerGpu).flags) {
    if (absl::StartsWith(flag, "--kv-tokens=")) kv_tokens = std::stoll(flag.substr(12));
    if (absl::StartsWith(flag, "--max-sequences=")) sequences = std::stoll(flag.substr(16));
  }
  ASSERT_GT(sequences, 0);
  std::string output;
  ASSERT_EQ(Run("plan",
                {BinFile("ultraspeed-worker"), "--plan", "--json", "--gpus=8",
                 "--model=shape:mimo-v2.5-pro"},
                &output),
            0)
      << output;
  const YAML::Node plan = YAML::Load(output);  // JSON is YAML
  bool found = false;
  for (const YAML::Node& row : plan["contexts"]) {
    if (row["context_tokens"].as<int64_t>() != kv_tokens / sequences) continue;
    found = true;
    EXPECT_GE(row["sequences"].as<int64_t>(), sequences);
  }
  EXPECT_TRUE(found) << "the plan has no row for " << kv_tokens / sequences << " tokens";
}

}  // namespace
}  // namespace ultraspeed::testing
