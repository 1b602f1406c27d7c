// What the HTTP front publishes (ultraspeed_router_http_*). Tokens, speeds and limits are counted
// where every request passes, in RouterMetrics.
#pragma once

#include "absl/strings/string_view.h"
#include "common/metrics.h"
#include "router/http/routes.h"

namespace ultraspeed::router {

// Thread contract: every method may be called from any thread.
class HttpMetrics {
 public:
  explicit HttpMetrics(Metrics* metrics);

  void ConnectionOpened() { connections_.Increment(); }
  void ConnectionClosed() { connections_.Decrement(); }
  void ConnectionRefused() { refused_connections_.Increment(); }
  // A client that did not read for the write timeout, or did not end a TLS handshake.
  void WriteTimedOut() { write_timeouts_.Increment(); }
  // `status`: what went out; 499 if the client left before an answer began.
  void RequestEnded(Route route, int status);

 private:
  Metrics* const metrics_;
  prometheus::Gauge& connections_;
  prometheus::Counter& refused_connections_;
  prometheus::Counter& write_timeouts_;
};

}  // namespace ultraspeed::router
