// ultraspeed-bench http: what HTTP costs beside gRPC, on one running router that serves both.
//
// Starts nothing. One request at a time, in turns by gRPC and by HTTP (the same prompt, seed and
// number of tokens, so the same work), timed where the caller stands: sending to first text, and
// sending to the end. In the clear only, so on loopback.
#pragma once

#include <boost/json.hpp>
#include <ostream>
#include <string>

#include "absl/status/statusor.h"

namespace ultraspeed::bench {

struct HttpBenchOptions {
  std::string grpc_target = "127.0.0.1:50051";
  std::string http_target;  // host:port, the host an IPv4 address
  std::string api_key;
  std::string model = "tiny-mimo";
  std::string prompt = "def fibonacci(n):";
  int max_tokens = 64;
  int repeats = 20;  // of each
};

// {"grpc":{..},"http":{..}} with quantiles in ms, and tokens per second of the medians.
absl::StatusOr<boost::json::object> MeasureHttp(const HttpBenchOptions& options);

void PrintHttp(const boost::json::object& report, std::ostream& out);

}  // namespace ultraspeed::bench
