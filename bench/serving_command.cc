#include "bench/serving_command.h"

#include <iostream>
#include <string>
#include <vector>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/time/time.h"
#include "bench/http_bench.h"
#include "bench/serving.h"
#include "common/status_macros.h"

ABSL_FLAG(std::string, target, "127.0.0.1:50051", "serving, http: the router");
ABSL_FLAG(std::string, http_target, "127.0.0.1:8080", "http: the same router's --http-listen");
ABSL_FLAG(std::string, api_key_file, "",
          "serving, http: one tenant a line, \"key\" or \"name key\"; the first one floods");
ABSL_FLAG(std::string, served_model, "",
          "serving: model name; empty = the router's only one (http: tiny-mimo)");
ABSL_FLAG(std::string, prompt, "def fibonacci(n):", "serving, http: the prompt of every request");
ABSL_FLAG(double, requests_per_second, 10, "serving: of all tenants together, Poisson arrivals");
ABSL_FLAG(double, flood, 1,
          "serving: above 1, a second phase in which the first tenant asks so many times as much");
ABSL_FLAG(double, ultraspeed_share, 0, "serving: part of the requests that ask for ultraspeed");
ABSL_FLAG(absl::Duration, duration, absl::Seconds(30), "serving: length of a phase");
ABSL_FLAG(absl::Duration, request_timeout, absl::Seconds(60),
          "serving: deadline of a request, from when it was due");
ABSL_FLAG(std::string, tls_ca, "", "serving: CA file of the router's certificate");
ABSL_FLAG(bool, insecure, false, "serving: no TLS off loopback");
ABSL_DECLARE_FLAG(int, max_tokens);
ABSL_DECLARE_FLAG(int, repeats);

namespace ultraspeed::bench {

absl::Status RunServing(bool json) {
  ServingOptions options;
  options.target = absl::GetFlag(FLAGS_target);
  options.tls.ca_file = absl::GetFlag(FLAGS_tls_ca);
  options.tls.insecure = absl::GetFlag(FLAGS_insecure);
  options.model = absl::GetFlag(FLAGS_served_model);
  options.prompt = absl::GetFlag(FLAGS_prompt);
  options.max_tokens = absl::GetFlag(FLAGS_max_tokens);
  options.requests_per_second = absl::GetFlag(FLAGS_requests_per_second);
  options.flood_factor = absl::GetFlag(FLAGS_flood);
  options.ultraspeed_share = absl::GetFlag(FLAGS_ultraspeed_share);
  options.duration = absl::GetFlag(FLAGS_duration);
  options.request_timeout = absl::GetFlag(FLAGS_request_timeout);
  if (absl::GetFlag(FLAGS_api_key_file).empty())
    return absl::InvalidArgumentError("--api_key_file is required: the tenants of the load");
  ASSIGN_OR_RETURN(options.tenants, ReadTenants(absl::GetFlag(FLAGS_api_key_file)));
  ASSIGN_OR_RETURN(const boost::json::object report, MeasureServing(options));
  if (json) {
    std::cout << report << std::endl;
  } else {
    PrintServing(report, std::cout);
  }
  return absl::OkStatus();
}

absl::Status RunHttp(bool json) {
  if (absl::GetFlag(FLAGS_api_key_file).empty())
    return absl::InvalidArgumentError("--api_key_file is required: the key of the requests");
  ASSIGN_OR_RETURN(const std::vector<ServingTenant> tenants,
                   ReadTenants(absl::GetFlag(FLAGS_api_key_file)));
  if (tenants.empty()) return absl::InvalidArgumentError("--api_key_file: 0 keys, must be 1");
  HttpBenchOptions options;
  options.grpc_target = absl::GetFlag(FLAGS_target);
  options.http_target = absl::GetFlag(FLAGS_http_target);
  options.api_key = tenants[0].api_key;
  if (const std::string model = absl::GetFlag(FLAGS_served_model); !model.empty()) {
    options.model = model;
  }
  options.prompt = absl::GetFlag(FLAGS_prompt);
  options.max_tokens = absl::GetFlag(FLAGS_max_tokens);
  options.repeats = absl::GetFlag(FLAGS_repeats);
  ASSIGN_OR_RETURN(const boost::json::object report, MeasureHttp(options));
  if (json) {
    std::cout << report << std::endl;
  } else {
    PrintHttp(report, std::cout);
  }
  return absl::OkStatus();
}

}  // namespace ultraspeed::bench
