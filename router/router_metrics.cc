#include "router/router_metrics.h"

namespace ultraspeed::router {
namespace {

// The target is below one millisecond, so most edges are.
const MetricBuckets kOverheadBuckets = {.00005, .0001, .0002, .0003, .0005, .00075, .001, .0015,
                                        .002,   .003,  .005,  .01,   .025,  .05,    .1,   1};

}  // namespace

absl::string_view TierName(v1::ServiceTier tier) {
  switch (tier) {
    case v1::SERVICE_TIER_STANDARD:
      return "standard";
    case v1::SERVICE_TIER_ULTRASPEED:
      return "ultraspeed";
    default:
      return "none";
  }
}

RouterMetrics::RouterMetrics(Metrics* metrics)
    : metrics_(metrics),
      active_streams_(metrics->Gauge("ultraspeed_router_active_streams",
                                     "Generate and Chat calls that run now")),
      placement_retries_(
          metrics->Counter("ultraspeed_router_placement_retries_total",
                           "Requests offered to another worker before their first token")),
      resumed_streams_(metrics->Counter(
          "ultraspeed_router_resumed_streams_total",
          "Streams that another worker was asked to continue after theirs had failed")),
      worker_protocol_errors_(
          metrics->Counter("ultraspeed_router_worker_protocol_errors_total",
                           "Worker streams whose counts or order broke the contract")),
      overhead_(metrics->Histogram(
          "ultraspeed_router_first_token_overhead_seconds",
          "The router's own share of time to first token: arrival to dispatch, and first "
          "worker chunk to write",
          kOverheadBuckets)),
      outbox_writes_(metrics->Gauge("ultraspeed_router_outbox_writes",
                                    "Ledger writes that the store has not taken yet")) {
  for (const auto tier : {v1::SERVICE_TIER_STANDARD, v1::SERVICE_TIER_ULTRASPEED}) {
    const MetricLabels labels = {{"tier", std::string(TierName(tier))}};
    ForTier(tier) = {
        .ttft = &metrics->Histogram("ultraspeed_router_ttft_seconds",
                                    "Arrival at the router to first token",
                                    kTimeToFirstTokenBuckets, labels),
        .time_per_output_token =
            &metrics->Histogram("ultraspeed_router_time_per_output_token_seconds",
                                "Mean time per token after the first chunk, one value per request",
                                kTimePerOutputTokenBuckets, labels),
        .inter_chunk =
            &metrics->Histogram("ultraspeed_router_inter_chunk_seconds",
                                "Time between worker chunks; one chunk carries several tokens",
                                kInterChunkBuckets, labels),
        .tokens_per_second = &metrics->Histogram("ultraspeed_router_tokens_per_second",
                                                 "Decode speed of one request, tokens per second",
                                                 kTokensPerSecondBuckets, labels),
        .prompt_tokens = &metrics->Counter("ultraspeed_router_prompt_tokens_total",
                                           "Prompt tokens of streams that sent a token", labels),
        .completion_tokens =
            &metrics->Counter("ultraspeed_router_completion_tokens_total",
                              "Tokens sent, and the one that completed a stop string", labels)};
  }
}

RouterMetrics::PerTier& RouterMetrics::ForTier(v1::ServiceTier tier) {
  return tiers_[tier == v1::SERVICE_TIER_ULTRASPEED ? 1 : 0];
}

void RouterMetrics::CountRequest(absl::string_view method, absl::StatusCode code,
                                 absl::string_view tier) {
  metrics_
      ->Counter("ultraspeed_router_requests_total", "Calls that ended, by status code",
                {{"method", std::string(method)},
                 {"code", absl::StatusCodeToString(code)},
                 {"tier", std::string(tier)}})
      .Increment();
}

void RouterMetrics::StreamEnded(const StreamRecord& record) {
  active_streams_.Decrement();
  CountRequest(record.method, record.code, TierName(record.tier));
  if (!record.ttft) return;
  PerTier& tier = ForTier(record.tier);
  tier.prompt_tokens->Increment(static_cast<double>(record.prompt_tokens));
  tier.completion_tokens->Increment(static_cast<double>(record.completion_tokens));
  tier.ttft->Observe(absl::ToDoubleSeconds(*record.ttft));
  if (record.overhead) overhead_.Observe(absl::ToDoubleSeconds(*record.overhead));
  if (!record.time_per_output_token) return;
  const double seconds = absl::ToDoubleSeconds(*record.time_per_output_token);
  tier.time_per_output_token->Observe(seconds);
  if (seconds > 0) tier.tokens_per_second->Observe(1 / seconds);
}

void RouterMetrics::UnaryEnded(absl::string_view method, absl::StatusCode code) {
  CountRequest(method, code, "none");
}

void RouterMetrics::ChunkInterval(v1::ServiceTier tier, absl::Duration interval) {
  ForTier(tier).inter_chunk->Observe(absl::ToDoubleSeconds(interval));
}

void RouterMetrics::SetWorkers(absl::string_view state, int count) {
  metrics_
      ->Gauge("ultraspeed_router_workers", "Workers by state as this router sees them",
              {{"state", std::string(state)}})
      .Set(count);
}

}  // namespace ultraspeed::router
