// A prometheus registry, its HTTP endpoint, and the bucket lists that every histogram of the system
// uses.
//
// Thread: any. Counters, gauges and histograms live as long as the Metrics object; look them up
// once and keep the reference. The buckets are finer than the usual ones because at 1,000 tokens/s
// every observation would land in the first bucket of those. An objective's threshold must equal a
// bucket edge.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace prometheus {
class Exposer;
}

namespace ultraspeed {

using MetricLabels = std::map<std::string, std::string>;
using MetricBuckets = std::vector<double>;

// Seconds, except where the name says otherwise.
extern const MetricBuckets kTimePerOutputTokenBuckets;
extern const MetricBuckets kInterChunkBuckets;
extern const MetricBuckets kTokensPerRoundBuckets;  // tokens
extern const MetricBuckets kTimeToFirstTokenBuckets;
extern const MetricBuckets kQueueWaitBuckets;
extern const MetricBuckets kRequestDurationBuckets;
extern const MetricBuckets kTokensPerSecondBuckets;  // tokens per second of one request

class Metrics {
 public:
  Metrics();
  ~Metrics();

  // Serves /metrics at host:port from now on; port 0 takes a free one. Returns the bound port.
  absl::StatusOr<int> Serve(const std::string& listen);

  // The same name and labels return the same object.
  prometheus::Counter& Counter(const std::string& name, const std::string& help,
                               const MetricLabels& labels = {});
  prometheus::Gauge& Gauge(const std::string& name, const std::string& help,
                           const MetricLabels& labels = {});
  prometheus::Histogram& Histogram(const std::string& name, const std::string& help,
                                   const MetricBuckets& buckets, const MetricLabels& labels = {});

  prometheus::Registry& registry() { return *registry_; }
  // The page that /metrics would show.
  std::string Text() const;

 private:
  std::shared_ptr<prometheus::Registry> registry_;
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace ultraspeed
