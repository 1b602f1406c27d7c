// The worker's gRPC server: service, health, limits, and the order of shutting down.
//
// grpc.health.v1 names: "" and "ultraspeed.v1.Worker" and "readiness" follow SetServing; "liveness"
// is SERVING as long as the process lives. Thread: main's, except SetServing (any).
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/tls.h"
#include "worker/engine.h"
#include "worker/identity.h"
#include "worker/worker_service.h"

namespace grpc {
class Server;
}

namespace ultraspeed::worker {

class WorkerServer {
 public:
  // Listens at once, NOT_SERVING. `engine` is not owned. UNAVAILABLE: the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<WorkerServer>> Create(Engine& engine,
                                                              ModelIdentity identity,
                                                              const std::string& listen,
                                                              const TlsOptions& tls);
  ~WorkerServer();

  int port() const { return port_; }
  void SetServing(bool serving);

  // Refuses new requests, waits up to `drain_timeout` for running ones, ends the rest with
  // UNAVAILABLE and stops engine and server. Returns true when nothing had to be ended.
  bool Shutdown(absl::Duration drain_timeout);

 private:
  WorkerServer(Engine& engine, ModelIdentity identity);

  Engine& engine_;
  const ModelIdentity identity_;
  WorkerService service_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

}  // namespace ultraspeed::worker
