// ultraspeed-router: wires keys, worker pool, service and server; serves until SIGTERM, then
// drains. Sub-commands `new-key` and `hash-key` write lines for the keys file. The only file of the
// router that reads flags.
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/config.h"
#include "common/limits.h"
#include "common/logging.h"
#include "common/metrics.h"
#include "common/server_main.h"
#include "common/status_macros.h"
#include "common/tls.h"
#include "common/uuid.h"
#include "google/protobuf/stubs/logging.h"
#include "grpcpp/ext/health_check_service_server_builder_option.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/server_builder.h"
#include "router/accounts_cache.h"
#include "router/admin_service.h"
#include "router/auth.h"
#include "router/http/http_server.h"
#include "router/in_process_rate_limiter.h"
#include "router/inference_service.h"
#include "router/outbox.h"
#include "router/redis_rate_limiter.h"
#include "router/request_queue.h"
#include "router/router_metrics.h"
#include "router/store.h"
#include "router/sweeper.h"
#include "router/worker_pool.h"

namespace ultraspeed::router {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(100);  // readiness, worker gauge, keys file
constexpr char kServiceName[] = "ultraspeed.v1.Inference";

struct Flags {
  std::string listen = "127.0.0.1:50051";
  std::vector<std::string> workers;
  std::string api_keys;
  std::string store;
  std::string pepper_file;
  bool no_auth = false;
  std::string auto_tier = "standard";
  std::string http_listen;
  std::string admin_listen;
  std::string admin_token_file;
  std::string metrics_listen;
  std::string ready_file;
  std::string log_level = "info";
  absl::Duration drain_timeout = absl::Seconds(60);
  absl::Duration load_interval = absl::Milliseconds(100);
  std::string outbox;
  std::string redis;
  int replicas = 1;
  absl::Duration stream_lease = absl::Seconds(30);
  absl::Duration queue_wait_max = absl::Seconds(60);
  absl::Duration worker_wait = absl::ZeroDuration();
  absl::Duration router_dead_after = absl::Seconds(15);
  absl::Duration request_lost_after = absl::Minutes(2);
  TlsOptions tls;
  TlsOptions http_tls;
  TlsOptions worker_tls;
};

// The flag table keeps the last of a repeated list; --worker may be repeated, so its values are
// joined first.
std::vector<std::string> JoinWorkerFlags(int argc, char** argv) {
  std::vector<std::string> words, workers;
  for (int i = 0; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--worker" && i + 1 < argc) {
      workers.push_back(argv[++i]);
    } else if (absl::StartsWith(word, "--worker=")) {
      workers.push_back(word.substr(std::string("--worker=").size()));
    } else {
      words.push_back(word);
    }
  }
  if (!workers.empty()) words.insert(words.begin() + 1, "--worker=" + absl::StrJoin(workers, ","));
  return words;
}

absl::StatusOr<ParseOutcome> ParseFlags(int argc, char** argv, Flags* flags) {
  FlagTable table("ultraspeed-router",
                  "Takes text requests from tenants and places them on workers.");
  table.String("listen", &flags->listen, "host:port",
               "Where to serve gRPC; port 0 takes a free one");
  table.String(
      "http-listen", &flags->http_listen, "host:port",
      "Where to serve the OpenAI and Anthropic HTTP APIs, with the TLS of listen unless an "
      "http- flag says otherwise; none = nowhere");
  table.StringList("worker", &flags->workers, "host:port",
                   "Workers, comma-separated or the flag repeated");
  table.String("api-keys", &flags->api_keys, "file",
               "Lines `tenant key-id hash`; see `ultraspeed-router new-key`");
  table.String("store", &flags->store, "url",
               "Tenants, keys, prices and ledger: sqlite:PATH or postgresql://.. (instead of "
               "api-keys)");
  table.String("pepper-file", &flags->pepper_file, "file",
               "Secret of at least 16 bytes that the key hashes are made with");
  table.String("outbox", &flags->outbox, "file",
               "Where ledger writes wait while the store is away; its own for every router; needed "
               "with PostgreSQL");
  table.String("redis", &flags->redis, "url",
               "redis://[:password@]host[:port][/database]: limits shared by all routers; none = "
               "each router has its own");
  table.Int("replicas", &flags->replicas, {1, 1000}, "N",
            "Routers that share the limits: each grants 1/N of them while Redis is away");
  table.Duration("stream-lease", &flags->stream_lease,
                 "How long a dead router's streams count against the shared limits");
  table.Duration("queue-wait-max", &flags->queue_wait_max,
                 "How long a request may wait for its turn");
  table.Duration("worker-wait", &flags->worker_wait,
                 "How long a request, or a stream whose worker died, waits where its model has no "
                 "worker left, at most queue-wait-max; 0 = UNAVAILABLE at once");
  table.Duration("router-dead-after", &flags->router_dead_after,
                 "Silence after which another router settles what this one left open");
  table.Duration("request-lost-after", &flags->request_lost_after,
                 "After that, a dead router's request that no worker knows is closed free of "
                 "charge");
  table.Bool("no-auth", &flags->no_auth, "Serve without keys; allowed on loopback only");
  table.Choice("auto-tier", &flags->auto_tier, {"standard", "ultraspeed"},
               "Tier of requests that ask for none, or for AUTO: standard, or ultraspeed where the "
               "tenant may use it and there is room");
  table.String(
      "admin-listen", &flags->admin_listen, "host:port",
      "Where to serve the operators' API, best on loopback; none = nowhere; needs a store");
  table.String("admin-token-file", &flags->admin_token_file, "file",
               "Who may use it: lines `name token`, tokens of at least 32 characters");
  table.String("metrics-listen", &flags->metrics_listen, "host:port",
               "Where to serve /metrics; none = nowhere");
  table.String("ready-file", &flags->ready_file, "file",
               "Written with the ports as JSON once the router listens");
  table.Duration("drain-timeout", &flags->drain_timeout,
                 "How long running streams may go on after SIGTERM");
  table.Duration("load-interval", &flags->load_interval,
                 "How often each worker is asked for its load");
  table.Choice("log-level", &flags->log_level, {"debug", "info", "warning", "error"},
               "Lines below it are dropped");
  AddTlsFlags(table, "", "callers", &flags->tls);
  AddTlsFlags(table, "http-", "HTTP callers", &flags->http_tls);
  AddTlsFlags(table, "worker-", "the connections to workers", &flags->worker_tls);
  const std::vector<std::string> words = JoinWorkerFlags(argc, argv);
  std::vector<const char*> pointers;
  for (const std::string& word : words) pointers.push_back(word.c_str());
  auto outcome = table.Parse(static_cast<int>(pointers.size()), pointers.data());
  if (outcome.ok() && *outcome == ParseOutcome::kHelp) {
    std::cout << table.Help()
              << "\nsub-commands:\n  new-key  --pepper-file F [--tenant T] [--key-id I]\n      "
                 "Makes a key: the line for the "
                 "keys file on standard output, the key itself on standard error\n  hash-key "
                 "--pepper-file F [--tenant T] "
                 "[--key-id I] KEY\n      The line for a key that exists already\n";
  }
  return outcome;
}

LogLevel ParseLogLevel(const std::string& name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "warning") return LogLevel::kWarning;
  if (name == "error") return LogLevel::kError;
  return LogLevel::kInfo;
}

// Who may call: nobody in particular (--no-auth), the keys of a file, or the tenants of a store.
struct Accounts {
  std::unique_ptr<ApiKeys> key_file;
  std::unique_ptr<Store> store;
  std::unique_ptr<AccountsCache> cache;  // of the store

  const Authenticator* authenticator() const {
    if (cache != nullptr) return cache.get();
    return key_file.get();
  }
};

absl::StatusOr<Accounts> OpenAccounts(const Flags& flags) {
  const int num_sources = !flags.api_keys.empty() + !flags.store.empty() + flags.no_auth;
  if (num_sources != 1) {
    return absl::InvalidArgumentError(
        "exactly one of store, api-keys and no-auth (on loopback) is needed");
  }
  Accounts accounts;
  if (flags.no_auth) {
    if (!IsLoopback(flags.listen)) {
      return absl::FailedPreconditionError(
          absl::StrCat("no-auth: allowed on loopback only, listen=", flags.listen));
    }
    if (!flags.http_listen.empty() && !IsLoopback(flags.http_listen)) {
      return absl::FailedPreconditionError(
          absl::StrCat("no-auth: allowed on loopback only, http-listen=", flags.http_listen));
    }
    Log(LogLevel::kWarning, "router.no_auth", {{"listen", flags.listen}});
    return accounts;
  }
  if (flags.pepper_file.empty()) {
    return absl::InvalidArgumentError("pepper-file: is needed with store and with api-keys");
  }
  ASSIGN_OR_RETURN(std::string pepper, ReadPepper(flags.pepper_file));
  if (!flags.api_keys.empty()) {
    ASSIGN_OR_RETURN(accounts.key_file,
                     ApiKeys::Create({.path = flags.api_keys, .pepper = std::move(pepper)}));
    return accounts;
  }
  if (absl::StartsWith(flags.store, "postgres") && flags.outbox.empty()) {
    return absl::InvalidArgumentError("outbox: is needed with a PostgreSQL store");
  }
  ASSIGN_OR_RETURN(accounts.store, OpenStore(flags.store));
  ASSIGN_OR_RETURN(accounts.cache, AccountsCache::Create({.store = accounts.store.get(),
                                                          .pepper = std::move(pepper)}));
  return accounts;
}

// Null without --admin-listen.
absl::StatusOr<std::unique_ptr<AdminServer>> StartAdmin(const Flags& flags, Store* store) {
  if (flags.admin_listen.empty()) return nullptr;
  if (store == nullptr) return absl::InvalidArgumentError("admin-listen: needs a store");
  ASSIGN_OR_RETURN(AdminTokens tokens, AdminTokens::Read(flags.admin_token_file));
  ASSIGN_OR_RETURN(std::string pepper, ReadPepper(flags.pepper_file));
  return AdminServer::Start(
      flags.admin_listen, flags.tls,
      {.store = store, .tokens = std::move(tokens), .pepper = std::move(pepper)});
}

// Null without --http-listen.
absl::StatusOr<std::unique_ptr<HttpServer>> StartHttp(const Flags& flags, grpc::Service* service,
                                                      const WorkerPool* pool, Metrics* metrics) {
  if (flags.http_listen.empty()) return nullptr;
  const TlsOptions& own = flags.http_tls;
  const bool has_own =
      own.insecure || !own.cert_file.empty() || !own.key_file.empty() || !own.ca_file.empty();
  const auto find_model = [pool](const std::string& name) {
    const auto model = pool->FindModel(name);
    return model.ok() ? ModelDetails{.weights_sha256 = (*model)->weights_sha256,
                                     .tokenizer = (*model)->tokenizer}
                      : ModelDetails();
  };
  return HttpServer::Start({.listen = flags.http_listen,
                            .tls = has_own ? own : flags.tls,
                            .service = service,
                            .find_model = find_model,
                            .metrics = metrics});
}

absl::StatusOr<std::unique_ptr<RateLimiter>> OpenLimiter(const Flags& flags, Metrics* metrics) {
  if (flags.redis.empty()) return std::make_unique<InProcessRateLimiter>(RealClock());
  ASSIGN_OR_RETURN(RedisAddress address, RedisAddress::Parse(flags.redis));
  return RedisRateLimiter::Create({.address = std::move(address),
                                   .replicas = flags.replicas,
                                   .lease_ttl = flags.stream_lease,
                                   .metrics = metrics});
}

void SetHealth(grpc::HealthCheckServiceInterface* health, bool ready) {
  if (health == nullptr) return;
  health->SetServingStatus("", ready);
  health->SetServingStatus("readiness", ready);
  health->SetServingStatus(kServiceName, ready);
  health->SetServingStatus("liveness", true);
}

absl::Status Serve(const Flags& flags) {
  ShutdownSignal shutdown;
  google::protobuf::SetLogHandler(
      nullptr);  // a caller's bad UTF-8 is answered and counted, not printed
  SetLogLevel(ParseLogLevel(flags.log_level));
  ASSIGN_OR_RETURN(const Accounts accounts, OpenAccounts(flags));
  ASSIGN_OR_RETURN(const auto credentials, CreateServerCredentials(flags.tls, flags.listen));
  Metrics metrics;
  RouterMetrics router_metrics(&metrics);
  ReadyPorts ports;
  if (!flags.metrics_listen.empty()) {
    ASSIGN_OR_RETURN(ports.metrics_port, metrics.Serve(flags.metrics_listen));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<RateLimiter> limiter, OpenLimiter(flags, &metrics));
  const std::string router_id = NewUuidV7();
  std::unique_ptr<Outbox> outbox;
  if (accounts.store != nullptr) {
    ASSIGN_OR_RETURN(
        outbox,
        Outbox::Create({.store = accounts.store.get(), .path = flags.outbox, .metrics = &metrics}));
  }
  const Admission admission({.limiter = limiter.get(),
                             .limiter_blocks = !flags.redis.empty(),
                             .store = accounts.store.get(),
                             .accounts = accounts.cache.get(),
                             .outbox = outbox.get(),
                             .router_id = router_id});
  if (flags.worker_wait > flags.queue_wait_max) {
    return absl::InvalidArgumentError(absl::StrCat(
        "worker-wait=", absl::FormatDuration(flags.worker_wait),
        ": must be at most queue-wait-max=", absl::FormatDuration(flags.queue_wait_max)));
  }
  RequestQueue::Options queue_options{.metrics = &metrics};
  queue_options.bounds.wait_max = flags.queue_wait_max;
  RequestQueue queue(queue_options);
  WorkerPool::Options pool_options;
  pool_options.addresses = flags.workers;
  pool_options.tls = flags.worker_tls;
  pool_options.load_interval = flags.load_interval;
  pool_options.on_capacity = [&queue](const std::string& model, const QueueCapacity& capacity) {
    queue.SetCapacity(model, capacity);
  };
  ASSIGN_OR_RETURN(const std::unique_ptr<WorkerPool> pool,
                   WorkerPool::Create(std::move(pool_options)));
  std::optional<Sweeper> sweeper;
  if (accounts.store != nullptr) {
    sweeper.emplace(Sweeper::Options{.store = accounts.store.get(),
                                     .pool = pool.get(),
                                     .router_id = router_id,
                                     .dead_after = flags.router_dead_after,
                                     .lost_after = flags.request_lost_after,
                                     .metrics = &metrics});
  }
  InferenceService service({.pool = pool.get(),
                            .queue = &queue,
                            .admission = &admission,
                            .keys = accounts.authenticator(),
                            .metrics = &router_metrics,
                            .store = accounts.store.get(),
                            .clock = &RealClock(),
                            .auto_may_be_ultraspeed = flags.auto_tier == "ultraspeed",
                            .worker_wait = flags.worker_wait});

  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  builder.AddListeningPort(flags.listen, credentials, &ports.port);
  builder.RegisterService(&service);
  builder.SetMaxReceiveMessageSize(limits::kGrpcMessageBytesMax);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, limits::kGrpcMetadataBytesMax);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, limits::kGrpcConcurrentStreamsMax);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS,
                             30000);  // a client that vanished holds no slot for long
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || ports.port == 0) {
    return absl::UnavailableError(absl::StrCat("listen=", flags.listen, ": cannot bind"));
  }
  grpc::HealthCheckServiceInterface* const health = server->GetHealthCheckService();
  SetHealth(health, false);
  ASSIGN_OR_RETURN(const std::unique_ptr<AdminServer> admin,
                   StartAdmin(flags, accounts.store.get()));
  if (admin != nullptr) ports.admin_port = admin->port();
  ASSIGN_OR_RETURN(const std::unique_ptr<HttpServer> http,
                   StartHttp(flags, &service, pool.get(), &metrics));
  if (http != nullptr) ports.http_port = http->port();
  RETURN_IF_ERROR(AnnounceReady("ultraspeed-router", ports, flags.ready_file));

  while (!shutdown.WaitFor(kTick)) {
    SetHealth(health, pool->AnyReady());
    if (http != nullptr) http->SetReady(pool->AnyReady());
    const auto counts = pool->CountStates();
    for (int state = 0; state < kNumWorkerStates; ++state) {
      router_metrics.SetWorkers(WorkerStateName(static_cast<WorkerState>(state)), counts[state]);
    }
    if (outbox != nullptr) router_metrics.SetOutboxWrites(outbox->depth());
    if (accounts.key_file != nullptr) {
      if (const absl::Status status = accounts.key_file->ReloadIfChanged(); !status.ok()) {
        Log(LogLevel::kError, "router.api_keys", {{"message", std::string(status.message())}});
      }
    }
  }
  // GOAWAY to every gRPC client, HTTP connections close after their answers: new calls go to
  // another replica; running streams finish until the deadline.
  Log(LogLevel::kInfo, "router.draining",
      {{"timeout_s", absl::ToDoubleSeconds(flags.drain_timeout)}});
  SetHealth(health, false);
  const absl::Time deadline = absl::Now() + flags.drain_timeout;
  if (http != nullptr) http->StopAccepting();
  server->Shutdown(absl::ToChronoTime(deadline));
  server->Wait();
  if (http != nullptr) http->Drain(deadline);
  Log(LogLevel::kInfo, "router.stopped");
  return absl::OkStatus();
}

// `new-key` and `hash-key`.
absl::Status MakeKeyLine(int argc, char** argv) {
  const bool is_new = absl::string_view(argv[1]) == "new-key";
  std::string pepper_file, tenant = "default", key_id = "key-1";
  std::vector<std::string> words;
  FlagTable table(absl::StrCat("ultraspeed-router ", argv[1]), "Makes a line for the keys file.");
  table.String("pepper-file", &pepper_file, "file", "Secret of at least 16 bytes");
  table.String("tenant", &tenant, "name", "Whom the key belongs to");
  table.String("key-id", &key_id, "name", "What logs and usage call the key");
  table.Positional("KEY", &words, "The key to hash (hash-key only)");
  ASSIGN_OR_RETURN(const ParseOutcome outcome, table.Parse(argc - 1, argv + 1));
  if (outcome == ParseOutcome::kHelp) {
    std::cout << table.Help();
    return absl::OkStatus();
  }
  if (words.size() != (is_new ? 0u : 1u)) {
    return absl::InvalidArgumentError(is_new ? "new-key takes no KEY" : "hash-key takes one KEY");
  }
  for (const std::string& word : {tenant, key_id}) {
    if (word.empty() || word.find_first_of(" \t\r\n") != std::string::npos || word[0] == '#') {
      return absl::InvalidArgumentError("tenant and key-id: must be words without blanks");
    }
  }
  ASSIGN_OR_RETURN(const std::string pepper, ReadPepper(pepper_file));
  std::string key = is_new ? "" : words[0];
  if (is_new) {
    ASSIGN_OR_RETURN(const NewApiKey made, GenerateApiKey());
    key = made.key;
    std::cerr << key << "\n";
  }
  std::cout << tenant << " " << key_id << " " << HashApiKey(key, pepper) << "\n";
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  absl::Status status;
  if (argc > 1 &&
      (absl::string_view(argv[1]) == "new-key" || absl::string_view(argv[1]) == "hash-key")) {
    status = MakeKeyLine(argc, argv);
  } else {
    Flags flags;
    const auto outcome = ParseFlags(argc, argv, &flags);
    if (outcome.ok() && *outcome == ParseOutcome::kHelp) return 0;
    status = outcome.ok() ? Serve(flags) : outcome.status();
  }
  if (status.ok()) return 0;
  std::cerr << "ultraspeed-router: " << status.message() << "\n";
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

}  // namespace
}  // namespace ultraspeed::router

int main(int argc, char** argv) { return ultraspeed::router::Main(argc, argv); }
