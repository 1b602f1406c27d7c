#include "worker/worker_server.h"

#include <grpcpp/ext/health_check_service_server_builder_option.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/server_main.h"
#include "common/status_macros.h"

namespace ultraspeed::worker {
namespace {

constexpr int kKeepaliveTimeMs =
    20'000;  // a peer that vanished is noticed within kKeepaliveTimeMs + kKeepaliveTimeoutMs
constexpr int kKeepaliveTimeoutMs = 10'000;
constexpr int kPingIntervalMinMs = 5'000;                  // peers that ping more often are cut off
constexpr absl::Duration kServerGrace = absl::Seconds(2);  // for the last chunks to leave

}  // namespace

WorkerServer::WorkerServer(Engine& engine, ModelIdentity identity)
    : engine_(engine),
      identity_(std::move(identity)),
      service_(engine, identity_, [this] { SetServing(false); }) {}

WorkerServer::~WorkerServer() {
  if (server_ != nullptr) Shutdown(absl::ZeroDuration());
}

absl::StatusOr<std::unique_ptr<WorkerServer>> WorkerServer::Create(Engine& engine,
                                                                   ModelIdentity identity,
                                                                   const std::string& listen,
                                                                   const TlsOptions& tls) {
  std::unique_ptr<WorkerServer> server(new WorkerServer(engine, std::move(identity)));
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ServerCredentials> credentials,
                   CreateServerCredentials(tls, listen));
  HoldGrpc();
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(limits::kGrpcMessageBytesMax);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, limits::kGrpcMetadataBytesMax);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, limits::kGrpcConcurrentStreamsMax);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kPingIntervalMinMs);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // two workers on one port is a mistake
  builder.AddListeningPort(listen, credentials, &server->port_);
  builder.RegisterService(&server->service_);
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr || server->port_ == 0) {
    return absl::UnavailableError(absl::StrCat("listen=", listen, ": cannot bind"));
  }
  server->server_->GetHealthCheckService()->SetServingStatus("liveness", true);
  server->SetServing(false);
  return server;
}

void WorkerServer::SetServing(bool serving) {
  for (const char* name : {"", "readiness", "ultraspeed.v1.Worker"}) {
    server_->GetHealthCheckService()->SetServingStatus(name, serving);
  }
}

bool WorkerServer::Shutdown(absl::Duration drain_timeout) {
  SetServing(false);
  engine_.Drain();
  const bool drained = engine_.WaitIdle(drain_timeout);
  engine_.Stop();
  server_->Shutdown(absl::ToChronoTime(absl::Now() + kServerGrace));
  server_->Wait();
  server_.reset();
  return drained;
}

}  // namespace ultraspeed::worker
