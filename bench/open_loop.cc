#include "bench/open_loop.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

namespace ultraspeed::bench {

std::vector<DueRequest> PoissonSchedule(const std::vector<double>& requests_per_second,
                                        double ultraspeed_share, absl::Duration duration,
                                        uint64_t seed) {
  std::vector<DueRequest> schedule;
  for (size_t tenant = 0; tenant < requests_per_second.size(); ++tenant) {
    if (requests_per_second[tenant] <= 0) continue;
    std::seed_seq seeds = {seed, static_cast<uint64_t>(tenant)};
    std::mt19937_64 random(seeds);
    std::exponential_distribution<double> gap(requests_per_second[tenant]);
    std::bernoulli_distribution is_ultraspeed(ultraspeed_share);
    for (absl::Duration at = absl::Seconds(gap(random)); at < duration;
         at += absl::Seconds(gap(random))) {
      schedule.push_back(
          {.at = at, .tenant = static_cast<int>(tenant), .ultraspeed = is_ultraspeed(random)});
    }
  }
  std::stable_sort(schedule.begin(), schedule.end(),
                   [](const DueRequest& a, const DueRequest& b) { return a.at < b.at; });
  return schedule;
}

Quantiles QuantilesOf(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    const double rank = std::ceil(share * static_cast<double>(values.size()));
    return values[static_cast<size_t>(std::max(rank, 1.0)) - 1];
  };
  return {.p50 = at(.5), .p90 = at(.9), .p99 = at(.99), .max = values.back()};
}

double JainIndex(const std::vector<double>& values) {
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  const double squares = std::inner_product(values.begin(), values.end(), values.begin(), 0.0);
  if (squares == 0) return 1;
  return sum * sum / (static_cast<double>(values.size()) * squares);
}

std::vector<double> MaxMinShares(const std::vector<double>& demands, double total) {
  std::vector<size_t> order(demands.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return demands[a] < demands[b]; });
  std::vector<double> shares(demands.size());
  double left = total;
  for (size_t i = 0; i < order.size(); ++i) {
    const double equal = left / static_cast<double>(order.size() - i);
    shares[order[i]] = std::min(demands[order[i]], equal);
    left -= shares[order[i]];
  }
  return shares;
}

}  // namespace ultraspeed::bench
