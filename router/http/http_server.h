// The router's HTTP/1.1 listener: OpenAI's and Anthropic's endpoints, translated into calls of the
// gRPC API of this very process, which authenticates, limits, bills and queues them like any other.
//
// Sources: RFC 9110, RFC 9112, WHATWG HTML ("Server-sent events"), OpenAI and Anthropic API
// references. Surprising:
//   * Once a stream waits `ping_interval` for its first token, its head goes out with status 200
//     so that idle hops keep the connection; what fails later is an event in the stream.
//   * The calls go to a gRPC server of this object's own, without a port: its end would break every
//     call within the process at once, where the public server lets its own finish.
//   * A client that closes its sending side is taken for one that left: its call is cancelled.
//   * Of a stream that is cut, gRPC's side has counted at most one chunk as sent that the client
//     did not get.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/limits.h"
#include "common/metrics.h"
#include "common/tls.h"
#include "router/http/translation.h"

namespace grpc {
class Service;
}

namespace ultraspeed::router {

// Thread contract: Start and the destructor on one thread, the rest from any. Owns
// limits::kHttpThreads I/O threads; a connection's state belongs to its strand.
class HttpServer {
 public:
  struct Options {
    std::string listen = {};  // host:port; port 0 takes a free one
    TlsOptions tls = {};
    grpc::Service* service = nullptr;       // ultraspeed.v1.Inference; outlives this object
    FindModelDetails find_model = nullptr;  // called on the I/O threads
    Metrics* metrics = nullptr;

    absl::Duration header_timeout = absl::Seconds(limits::kHttpHeaderTimeoutS);
    absl::Duration body_timeout = absl::Seconds(limits::kHttpBodyTimeoutS);
    absl::Duration idle_timeout = absl::Seconds(limits::kHttpIdleTimeoutS);
    absl::Duration write_timeout = absl::Seconds(limits::kHttpWriteTimeoutS);
    absl::Duration ping_interval = absl::Seconds(limits::kHttpPingIntervalS);
    int connections_max = limits::kHttpConnectionsMax;
  };

  // Serves from now on. INVALID_ARGUMENT: `listen` or a TLS file is none; FAILED_PRECONDITION: off
  // loopback without TLS; UNAVAILABLE: cannot bind.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(Options options);
  // Cuts what is still open.
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  int port() const;
  // What /readyz says: 200, or 503. False at first.
  void SetReady(bool ready);
  // Takes no new connection, closes idle ones, and every other after the answer under way.
  void StopAccepting();
  // After StopAccepting: waits until every connection is closed. At `deadline` ends the calls that
  // still run, and a moment later the connections.
  void Drain(absl::Time deadline);
  // False when `timeout` passed before every connection was closed.
  bool AwaitIdle(absl::Duration timeout);

 private:
  class Listener;

  explicit HttpServer(std::unique_ptr<Listener> listener);

  std::unique_ptr<Listener> listener_;
};

}  // namespace ultraspeed::router
