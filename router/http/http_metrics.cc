#include "router/http/http_metrics.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace ultraspeed::router {

HttpMetrics::HttpMetrics(Metrics* metrics)
    : metrics_(metrics),
      connections_(metrics->Gauge("ultraspeed_router_http_connections", "Open HTTP connections")),
      refused_connections_(
          metrics->Counter("ultraspeed_router_http_refused_connections_total",
                           "HTTP connections closed at once because too many were open")),
      write_timeouts_(metrics->Counter("ultraspeed_router_http_write_timeouts_total",
                                       "HTTP connections cut because the client did not read")) {}

void HttpMetrics::RequestEnded(Route route, int status) {
  metrics_
      ->Counter("ultraspeed_router_http_requests_total", "HTTP requests that ended, by status code",
                {{"route", std::string(RouteName(route))}, {"code", absl::StrCat(status)}})
      .Increment();
}

}  // namespace ultraspeed::router
