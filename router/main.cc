// ultraspeed-router: wires keys, worker pool, service and server; serves until SIGTERM, then
// drains. Sub-commands `new-key` and `hash-key` write lines for the keys file. The only file of the
// router that reads flags.
#include <iostream>
#include <memory>
#include <string>
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
#include "google/protobuf/stubs/logging.h"
#include "grpcpp/ext/health_check_service_server_builder_option.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/server_builder.h"
#include "router/auth.h"
#include "router/inference_service.h"
#include "router/router_metrics.h"
#include "router/worker_pool.h"

namespace ultraspeed::router {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(100);  // readiness, worker gauge, keys file
constexpr char kServiceName[] = "ultraspeed.v1.Inference";

struct Flags {
  std::string listen = "127.0.0.1:50051";
  std::vector<std::string> workers;
  std::string api_keys;
  std::string pepper_file;
  bool no_auth = false;
  std::string auto_tier = "standard";
  std::string metrics_listen;
  std::string ready_file;
  std::string log_level = "info";
  absl::Duration drain_timeout = absl::Seconds(60);
  absl::Duration load_interval = absl::Milliseconds(100);
  TlsOptions tls;
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
  table.StringList("worker", &flags->workers, "host:port",
                   "Workers, comma-separated or the flag repeated");
  table.String("api-keys", &flags->api_keys, "file",
               "Lines `tenant key-id hash`; see `ultraspeed-router new-key`");
  table.String("pepper-file", &flags->pepper_file, "file",
               "Secret of at least 16 bytes that the key hashes are made with");
  table.Bool("no-auth", &flags->no_auth, "Serve without keys; allowed on loopback only");
  table.Choice("auto-tier", &flags->auto_tier, {"standard", "ultraspeed"},
               "Tier of requests that ask for none, or for AUTO");
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

absl::StatusOr<std::unique_ptr<ApiKeys>> LoadKeys(const Flags& flags) {
  if (flags.no_auth) {
    if (!flags.api_keys.empty())
      return absl::InvalidArgumentError("no-auth: not together with api-keys");
    if (!IsLoopback(flags.listen)) {
      return absl::FailedPreconditionError(
          absl::StrCat("no-auth: allowed on loopback only, listen=", flags.listen));
    }
    Log(LogLevel::kWarning, "router.no_auth", {{"listen", flags.listen}});
    return std::unique_ptr<ApiKeys>();
  }
  if (flags.api_keys.empty() || flags.pepper_file.empty()) {
    return absl::InvalidArgumentError(
        "api-keys and pepper-file are needed (or no-auth on loopback)");
  }
  ASSIGN_OR_RETURN(std::string pepper, ReadPepper(flags.pepper_file));
  return ApiKeys::Create({.path = flags.api_keys, .pepper = std::move(pepper)});
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
  ASSIGN_OR_RETURN(const std::unique_ptr<ApiKeys> keys, LoadKeys(flags));
  ASSIGN_OR_RETURN(const auto credentials, CreateServerCredentials(flags.tls, flags.listen));
  Metrics metrics;
  RouterMetrics router_metrics(&metrics);
  ReadyPorts ports;
  if (!flags.metrics_listen.empty()) {
    ASSIGN_OR_RETURN(ports.metrics_port, metrics.Serve(flags.metrics_listen));
  }
  WorkerPool::Options pool_options;
  pool_options.addresses = flags.workers;
  pool_options.tls = flags.worker_tls;
  pool_options.load_interval = flags.load_interval;
  ASSIGN_OR_RETURN(const std::unique_ptr<WorkerPool> pool,
                   WorkerPool::Create(std::move(pool_options)));
  InferenceService service({.pool = pool.get(),
                            .keys = keys.get(),
                            .metrics = &router_metrics,
                            .clock = &RealClock(),
                            .auto_tier = flags.auto_tier == "ultraspeed"
                                             ? v1::SERVICE_TIER_ULTRASPEED
                                             : v1::SERVICE_TIER_STANDARD});

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
  RETURN_IF_ERROR(AnnounceReady("ultraspeed-router", ports, flags.ready_file));

  while (!shutdown.WaitFor(kTick)) {
    SetHealth(health, pool->AnyReady());
    const auto counts = pool->CountStates();
    for (int state = 0; state < kNumWorkerStates; ++state) {
      router_metrics.SetWorkers(WorkerStateName(static_cast<WorkerState>(state)), counts[state]);
    }
    if (keys != nullptr) {
      if (const absl::Status status = keys->ReloadIfChanged(); !status.ok()) {
        Log(LogLevel::kError, "router.api_keys", {{"message", std::string(status.message())}});
      }
    }
  }
  // GOAWAY to every client, so new calls go to another replica; running streams finish until the
  // deadline.
  Log(LogLevel::kInfo, "router.draining",
      {{"timeout_s", absl::ToDoubleSeconds(flags.drain_timeout)}});
  SetHealth(health, false);
  server->Shutdown(absl::ToChronoTime(absl::Now() + flags.drain_timeout));
  server->Wait();
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
    ASSIGN_OR_RETURN(key, GenerateApiKey());
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
