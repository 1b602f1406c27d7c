// ultraspeed-bench serving: load on a running router from many tenants at once, and how each fared.
//
// Starts nothing. Open loop (bench/open_loop.h): time to first token counts from when a request was
// due, and how late the tester itself was is reported. With a flood factor it runs two phases, the
// same but for the first tenant, which asks so many times as much in the second.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/tls.h"

namespace ultraspeed::bench {

struct ServingTenant {
  std::string name;
  std::string api_key;
};

// One tenant a line: "key" or "name key"; empty lines and lines that begin with # are skipped.
absl::StatusOr<std::vector<ServingTenant>> ReadTenants(const std::string& file);

struct ServingOptions {
  std::string target = "127.0.0.1:50051";
  TlsOptions tls;
  std::vector<ServingTenant> tenants;  // at least one
  std::string model;                   // empty: the only one there is
  std::string prompt = "def fibonacci(n):";
  int max_tokens = 64;                          // every request asks for exactly so many
  double requests_per_second = 10;              // of all tenants together, before the flood
  double flood_factor = 1;                      // of the first tenant; above 1: a second phase
  double ultraspeed_share = 0;                  // of each tenant's requests, 0..1
  absl::Duration duration = absl::Seconds(30);  // of each phase
  absl::Duration request_timeout = absl::Seconds(60);
  uint64_t seed = 20261123;

  // INVALID_ARGUMENT names flag, value and bound.
  absl::Status Validate() const;
};

absl::StatusOr<boost::json::object> MeasureServing(const ServingOptions& options);

void PrintServing(const boost::json::object& report, std::ostream& out);

}  // namespace ultraspeed::bench
