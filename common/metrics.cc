#include "common/metrics.h"

#include <prometheus/exposer.h>
#include <prometheus/text_serializer.h>

#include <exception>

#include "absl/strings/str_cat.h"
#include "common/limits.h"

namespace ultraspeed {

const MetricBuckets kTimePerOutputTokenBuckets = {.00025, .0005, .00075, .001, .00125, .0015, .002,
                                                  .0025,  .003,  .004,   .005, .0075,  .01,   .015,
                                                  .025,   .05,   .1,     .25,  .5,     1,     2.5};
const MetricBuckets kInterChunkBuckets = {.001, .002, .003,  .004, .005, .006, .007,
                                          .008, .010, .0125, .015, .02,  .03,  .05,
                                          .1,   .25,  .5,    1,    2.5,  5,    10};
const MetricBuckets kTokensPerRoundBuckets = {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32};
const MetricBuckets kTimeToFirstTokenBuckets = {.001, .005, .01, .02, .04, .06, .08, .1,  .15,
                                                .2,   .25,  .3,  .4,  .5,  .75, 1,   2.5, 5,
                                                7.5,  10,   20,  40,  80,  160, 640, 2560};
const MetricBuckets kQueueWaitBuckets = {.0005, .001, .0025, .005, .01, .025, .05, .1,
                                         .25,   .5,   1,     2.5,  5,   10,   30,  60};
const MetricBuckets kRequestDurationBuckets = {.01, .025, .05, .1,  .2,  .3,  .5,   .8,  1,
                                               1.5, 2,    2.5, 5,   10,  15,  20,   30,  40,
                                               50,  60,   120, 240, 480, 960, 1920, 7680};
const MetricBuckets kTokensPerSecondBuckets = {25,  50,  100, 200,  300,  400,  500,  600,
                                               700, 800, 900, 1000, 1100, 1200, 1500, 2000};

Metrics::Metrics() : registry_(std::make_shared<prometheus::Registry>()) {}
Metrics::~Metrics() = default;

absl::StatusOr<int> Metrics::Serve(const std::string& listen) {
  // The library throws on a port in use or an address it cannot read.
  try {
    exposer_ = std::make_unique<prometheus::Exposer>(listen, limits::kMetricsThreads);
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("metrics-listen=", listen, ": ", error.what()));
  }
  exposer_->RegisterCollectable(registry_);
  return exposer_->GetListeningPorts().front();
}

prometheus::Counter& Metrics::Counter(const std::string& name, const std::string& help,
                                      const MetricLabels& labels) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(*registry_).Add(labels);
}

prometheus::Gauge& Metrics::Gauge(const std::string& name, const std::string& help,
                                  const MetricLabels& labels) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(*registry_).Add(labels);
}

prometheus::Histogram& Metrics::Histogram(const std::string& name, const std::string& help,
                                          const MetricBuckets& buckets,
                                          const MetricLabels& labels) {
  return prometheus::BuildHistogram()
      .Name(name)
      .Help(help)
      .Register(*registry_)
      .Add(labels, buckets);
}

std::string Metrics::Text() const {
  return prometheus::TextSerializer().Serialize(registry_->Collect());
}

}  // namespace ultraspeed
