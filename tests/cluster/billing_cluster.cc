#include "tests/cluster/billing_cluster.h"

#include <signal.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/support/channel_arguments.h"
#include "router/api_key.h"
#include "router/redis_client.h"
#include "tests/cluster/eventually.h"
#include "tests/cluster/http_client.h"
#include "tests/router/store_fixture.h"

namespace ultraspeed::testing {
namespace {

constexpr char kPepper[] = "only for this test, 32 bytes long";
constexpr char kModel[] = "fake";
constexpr int32_t kFirstToken = 300;  // any ids of the vocabulary will do

const std::string& TokenizerJson() {
  static const std::string* const json = [] {
    std::ifstream file("models/tiny-mimo/tokenizer.json", std::ios::binary);
    return new std::string(std::istreambuf_iterator<char>(file), {});
  }();
  return *json;
}

std::string ToString(grpc::string_ref text) { return {text.data(), text.size()}; }

}  // namespace

FakeWorker::Script PacedScript(absl::Duration interval) {
  return [interval](const v1::WorkerGenerateRequest& request, grpc::ServerContext* context,
                    FakeWorker::Writer* writer) {
    const bool is_quiet = request.top_k() == kQuietTopK;
    const int64_t resumed = request.resumed_tokens();
    const int64_t num_tokens =
        is_quiet ? (request.max_tokens() + resumed) / 2 - resumed : request.max_tokens();
    v1::Usage usage;
    usage.set_prompt_tokens(request.prompt_token_ids_size());
    usage.set_cached_tokens(request.prompt_token_ids_size() / 3);
    while (usage.completion_tokens() < num_tokens) {
      if (!SleepUnlessCancelled(context, interval)) return grpc::Status::CANCELLED;
      v1::WorkerGenerateChunk chunk;
      for (int i = 0; i < kChunkTokens && usage.completion_tokens() < num_tokens; ++i) {
        chunk.add_token_ids(kFirstToken + i);
        usage.set_completion_tokens(usage.completion_tokens() + 1);
      }
      usage.set_draft_rounds(usage.draft_rounds() + 1);
      *chunk.mutable_usage() = usage;
      const bool is_last = !is_quiet && usage.completion_tokens() == num_tokens;
      if (is_last) chunk.set_finish_reason(v1::FINISH_REASON_LENGTH);
      if (!writer->Write(chunk)) return grpc::Status::CANCELLED;
    }
    if (!is_quiet) return grpc::Status::OK;
    SleepUnlessCancelled(context, absl::InfiniteDuration());
    return grpc::Status::CANCELLED;
  };
}

BillingCluster::~BillingCluster() {
  routers_.clear();
  workers_.clear();
  if (HasFailure()) temporary_.Keep();
}

void BillingCluster::SetUp() {
  ASSERT_TRUE(redis_.running()) << redis_.log();
  store_url_ = router::testing::NewStoreUrl(router::testing::Backend::kPostgres);
  ASSERT_NE(store_url_, "");
  auto store = router::OpenStore(store_url_);
  ASSERT_TRUE(store.ok()) << store.status();
  store_ = *std::move(store);
  std::ofstream(folder_ + "/pepper") << kPepper;
}

void BillingCluster::StopDatabase() { router::testing::StopPostgres(); }
void BillingCluster::StartDatabase() { router::testing::StartPostgres(); }

// ---- Processes ----

void BillingCluster::AddWorkers(int count, absl::Duration interval, int max_running_requests) {
  for (int i = 0; i < count; ++i) {
    workers_.push_back(std::make_unique<FakeWorker>(
        FakeWorker::Options{.model = kModel,
                            .tokenizer_json = TokenizerJson(),
                            .context_tokens = 1 << 20,
                            .max_running_requests = max_running_requests,
                            .script = PacedScript(interval)}));
  }
}

void BillingCluster::StartRouter(const std::vector<std::string>& more_flags) {
  const std::string name = absl::StrCat("router", routers_.size());
  std::vector<std::string> flags = {"--listen=127.0.0.1:0",
                                    "--metrics-listen=127.0.0.1:0",
                                    "--store=" + store_url_,
                                    "--pepper-file=" + folder_ + "/pepper",
                                    absl::StrCat("--outbox=", folder_, "/", name, ".outbox"),
                                    "--redis=" + redis_.url(),
                                    "--replicas=2",
                                    "--stream-lease=2s",
                                    "--router-dead-after=2s",
                                    "--request-lost-after=3s",
                                    "--auto-tier=ultraspeed"};
  for (const auto& worker : workers_) flags.push_back("--worker=" + worker->address());
  flags.insert(flags.end(), more_flags.begin(), more_flags.end());
  routers_.push_back(std::make_unique<Server>(folder_, name, "ultraspeed-router", flags));
  ASSERT_TRUE(routers_.back()->AwaitReady()) << routers_.back()->process().Log();
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // the client's window stays small
  stubs_.push_back(v1::Inference::NewStub(grpc::CreateCustomChannel(
      routers_.back()->address(), grpc::InsecureChannelCredentials(), arguments)));
  ASSERT_TRUE(Eventually(
      [&] {
        const std::string expected =
            absl::StrCat("ultraspeed_router_workers{state=\"ready\"} ", workers_.size());
        return MetricsOf(routers_.size() - 1).find(expected) != std::string::npos;
      },
      absl::Seconds(20)));
}

void BillingCluster::KillRouter(size_t idx) {
  routers_[idx]->process().Signal(SIGKILL);
  routers_[idx]->process().Wait(absl::Seconds(10));
}

std::string BillingCluster::MetricsOf(size_t router_idx) {
  return HttpGet(routers_[router_idx]->metrics_port(), "/metrics");
}

// ---- Tenants ----

router::Tenant BillingCluster::NewTenant(const std::string& id) {
  router::Tenant tenant;
  tenant.id = id;
  tenant.name = id;
  tenant.created = absl::FromUnixMillis(absl::ToUnixMillis(absl::Now()));
  tenant.terms = *router::UnrestrictedTerms();
  return tenant;
}

std::string BillingCluster::AddTenant(const router::Tenant& tenant) {
  const router::Act act{
      .who = "test", .what = "tenants.create", .target = tenant.id, .time = tenant.created};
  const absl::Status created = store_->CreateTenant(tenant, act);
  EXPECT_TRUE(created.ok()) << created;
  const auto key = router::GenerateApiKey();
  EXPECT_TRUE(key.ok());
  const absl::Status stored =
      store_->CreateKey({.id = key->id,
                         .tenant_id = tenant.id,
                         .label = "test",
                         .digest_hex = router::HashApiKey(key->key, kPepper),
                         .created = tenant.created,
                         .expires = std::nullopt,
                         .revoked = std::nullopt},
                        act);
  EXPECT_TRUE(stored.ok()) << stored;
  return key->key;
}

bool BillingCluster::AwaitKey(size_t router_idx, const std::string& key) {
  return Eventually(
      [&] {
        grpc::ClientContext context;
        context.AddMetadata("authorization", "Bearer " + key);
        v1::ListModelsResponse response;
        return stubs_[router_idx]->ListModels(&context, {}, &response).ok();
      },
      absl::Seconds(10));
}

// ---- Calls ----

v1::GenerateRequest BillingCluster::Request(int max_tokens, v1::ServiceTier tier) {
  v1::GenerateRequest request;
  request.set_model(kModel);
  request.set_prompt("def read_lines(path):");
  request.mutable_options()->set_max_tokens(max_tokens);
  request.mutable_options()->set_service_tier(tier);
  return request;
}

Answer BillingCluster::Call(size_t router_idx, const std::string& key,
                            const v1::GenerateRequest& request, const ClientPlan& plan) {
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer " + key);
  context.set_deadline(absl::ToChronoTime(absl::Now() + plan.deadline));
  auto reader = stubs_[router_idx]->Generate(&context, request);
  Answer answer;
  if (plan.cancel_after_chunks == 0) context.TryCancel();
  v1::GenerateChunk chunk;
  while (reader->Read(&chunk)) {
    answer.num_tokens += chunk.token_ids_size();
    answer.chunks.push_back(chunk);
    const bool is_quiet =
        plan.cancel_when_quiet && answer.num_tokens == request.options().max_tokens() / 2;
    if (is_quiet || static_cast<int>(answer.chunks.size()) == plan.cancel_after_chunks) {
      context.TryCancel();
      break;
    }
    absl::SleepFor(plan.read_delay);
  }
  answer.status = reader->Finish();
  for (const auto& [name, value] : context.GetServerInitialMetadata()) {
    answer.metadata.emplace(ToString(name), ToString(value));
  }
  const auto id = answer.metadata.find("x-request-id");
  if (id != answer.metadata.end()) answer.request_id = id->second;
  return answer;
}

// ---- Books ----

std::map<std::string, router::LedgerEntry> BillingCluster::ClosedEntries() {
  constexpr int kPageEntries = 1000;
  router::UsageQuery query;
  query.start = absl::Now() - absl::Hours(1);
  query.end = absl::Now() + absl::Hours(1);
  std::map<std::string, router::LedgerEntry> entries;
  std::optional<router::LedgerEntry> last;
  for (;;) {
    const auto page = store_->ListClosed(query, last, kPageEntries);
    EXPECT_TRUE(page.ok()) << page.status();
    if (!page.ok()) return entries;
    for (const router::LedgerEntry& entry : *page) {
      EXPECT_TRUE(entries.emplace(entry.opening.request_id, entry).second);
    }
    if (page->size() < kPageEntries) return entries;
    last = page->back();
  }
}

bool BillingCluster::AwaitNothingOpen(absl::Duration timeout) {
  return Eventually(
      [&] {
        const auto open = store_->ListOpen(absl::Now() + absl::Hours(1), 1);
        return open.ok() && open->empty();
      },
      timeout);
}

std::map<std::string, v1::TerminalRecord> BillingCluster::WorkerRecords() const {
  std::map<std::string, v1::TerminalRecord> all;
  for (const auto& worker : workers_) {
    for (auto& [id, record] : worker->records()) {
      v1::Usage& usage = *record.mutable_usage();
      usage.set_prompt_tokens(usage.prompt_tokens() - record.resumed_tokens());
      usage.set_completion_tokens(usage.completion_tokens() + record.resumed_tokens());
      v1::TerminalRecord& best = all[id];
      if (record.usage().completion_tokens() >= best.usage().completion_tokens()) best = record;
    }
  }
  return all;
}

bool BillingCluster::AwaitIdleWorkers() {
  return Eventually(
      [&] {
        return std::all_of(workers_.begin(), workers_.end(),
                           [](const auto& worker) { return worker->num_running() == 0; });
      },
      absl::Seconds(10));
}

int64_t BillingCluster::LeasesInRedis() {
  static const router::RedisScript script(R"lua(
local count = 0
for _, key in ipairs(redis.call('KEYS', '*')) do
  if redis.call('TYPE', key).ok == 'zset' then count = count + redis.call('ZCARD', key) end
end
return {count})lua");
  const auto connection = router::RedisConnection::Connect(
      *router::RedisAddress::Parse(redis_.url()), absl::Seconds(1));
  EXPECT_TRUE(connection.ok()) << connection.status();
  if (!connection.ok()) return -1;
  const auto counts = (*connection)->Run(script, {}, {});
  EXPECT_TRUE(counts.ok()) << counts.status();
  return counts.ok() ? counts->at(0) : -1;
}

}  // namespace ultraspeed::testing
