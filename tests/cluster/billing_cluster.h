// The whole paid product on loopback, for tests: real router processes, a real PostgreSQL, a real
// Redis, and fake workers in this process whose timing is scripted. Thread contract: Call and the
// getters from any thread, the rest from the test's.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "router/store.h"
#include "tests/cluster/process.h"
#include "tests/cluster/redis_server.h"
#include "tests/fake_worker/fake_worker.h"
#include "tests/temporary_folder.h"
#include "ultraspeed/v1/inference.grpc.pb.h"

namespace ultraspeed::testing {

// A request with this top_k generates half of its tokens and then says nothing until it is
// cancelled: what was sent by then is exactly known.
inline constexpr int32_t kQuietTopK = 7;
inline constexpr int kChunkTokens = 4;

// Writes kChunkTokens every `interval` until max_tokens; a third of the prompt was cached.
FakeWorker::Script PacedScript(absl::Duration interval);

// What a client saw of one call.
struct Answer {
  grpc::Status status;
  std::string request_id;  // of the metadata; empty: none came
  std::multimap<std::string, std::string> metadata;
  int64_t num_tokens = 0;  // read
  std::vector<v1::GenerateChunk> chunks;

  const v1::GenerateChunk& last() const { return chunks.back(); }
};

// How a client behaves.
struct ClientPlan {
  int cancel_after_chunks = -1;    // -1: never
  bool cancel_when_quiet = false;  // with kQuietTopK: when half of max_tokens came
  absl::Duration read_delay = absl::ZeroDuration();
  absl::Duration deadline = absl::Seconds(30);
};

class BillingCluster : public ::testing::Test {
 protected:
  ~BillingCluster() override;
  void SetUp() override;

  void AddWorkers(int count, absl::Duration interval, int max_running_requests = 8);
  // REQUIRES: workers.
  void StartRouter(const std::vector<std::string>& more_flags = {});
  // Ends the router as kill -9 does; its stub stays.
  void KillRouter(size_t idx);
  void StopDatabase();
  void StartDatabase();

  // Entitled to both tiers, no limits, no budget.
  static router::Tenant NewTenant(const std::string& id);
  // Creates it and returns a key for it. Do it before routers start, or AwaitKey.
  std::string AddTenant(const router::Tenant& tenant);
  bool AwaitKey(size_t router_idx, const std::string& key);

  static v1::GenerateRequest Request(int max_tokens,
                                     v1::ServiceTier tier = v1::SERVICE_TIER_STANDARD);
  Answer Call(size_t router_idx, const std::string& key, const v1::GenerateRequest& request,
              const ClientPlan& plan = {});

  // Every closed entry, by request id.
  std::map<std::string, router::LedgerEntry> ClosedEntries();
  bool AwaitNothingOpen(absl::Duration timeout);
  // By request id, as the bill counts: resumed tokens as completion. Of a request that was placed
  // twice, the placement that got further.
  std::map<std::string, v1::TerminalRecord> WorkerRecords() const;
  bool AwaitIdleWorkers();
  // Streams that the limiter in Redis counts as running.
  int64_t LeasesInRedis();
  std::string MetricsOf(size_t router_idx);

  TemporaryFolder temporary_;
  const std::string folder_ = temporary_.path();
  std::string store_url_;
  std::unique_ptr<router::Store> store_;
  RedisServer redis_;
  std::vector<std::unique_ptr<FakeWorker>> workers_;
  std::vector<std::unique_ptr<Server>> routers_;
  std::vector<std::unique_ptr<v1::Inference::Stub>> stubs_;
};

}  // namespace ultraspeed::testing
