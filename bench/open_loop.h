// The arithmetic of a load test: when requests are due, and what the results mean. Pure.
//
// Open loop: a request is due when the schedule says so, whether or not earlier ones have been
// answered, and its times count from then. A tester that waits for answers slows down with the
// system and hides its queue (coordinated omission).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"

namespace ultraspeed::bench {

struct DueRequest {
  absl::Duration at;  // from the start
  int tenant = 0;     // index into the rates
  bool ultraspeed = false;
};

// Poisson arrivals, each tenant with its own rate and its own stream of random numbers, so that a
// change of one tenant's rate leaves the others' requests as they were. In order of time.
std::vector<DueRequest> PoissonSchedule(const std::vector<double>& requests_per_second,
                                        double ultraspeed_share, absl::Duration duration,
                                        uint64_t seed);

struct Quantiles {
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
  double max = 0;
};
// All zero without values. The smallest value that so many percent do not exceed.
Quantiles QuantilesOf(std::vector<double> values);

// Jain's index of fairness, 1/n (one has everything) to 1 (all the same). 1 without values.
double JainIndex(const std::vector<double>& values);

// How `total` is shared max-min fairly: nobody gets more than it demands, and nobody could get more
// without one who has no more than it getting less. [tenants]
std::vector<double> MaxMinShares(const std::vector<double>& demands, double total);

}  // namespace ultraspeed::bench
