#include "worker/worker_metrics.h"

#include <string>

namespace ultraspeed::worker {

WorkerMetrics::WorkerMetrics(Metrics& metrics, int drafts_max)
    : running_(metrics.Gauge("ultraspeed_worker_running", "Requests that hold a slot")),
      waiting_(metrics.Gauge("ultraspeed_worker_waiting", "Accepted requests without a slot")),
      running_max_(metrics.Gauge("ultraspeed_worker_running_max", "Slots")),
      kv_tokens_used_(metrics.Gauge("ultraspeed_worker_kv_tokens_used",
                                    "KV tokens reserved by running requests")),
      kv_tokens_max_(metrics.Gauge("ultraspeed_worker_kv_tokens_max", "KV tokens that fit")),
      tokens_per_second_(metrics.Gauge("ultraspeed_worker_tokens_per_second",
                                       "Tokens committed in the last second")),
      draining_(metrics.Gauge("ultraspeed_worker_draining", "1 while new requests are refused")),
      prompt_tokens_(metrics.Counter("ultraspeed_worker_prompt_tokens_total",
                                     "Prompt tokens of ended requests")),
      cached_tokens_(metrics.Counter("ultraspeed_worker_cached_tokens_total",
                                     "Of the prompt tokens, those that had been computed before")),
      completion_tokens_(metrics.Counter("ultraspeed_worker_completion_tokens_total",
                                         "Completion tokens of ended requests")),
      rounds_(metrics.Counter("ultraspeed_worker_rounds_total", "Rounds run")),
      rows_(metrics.Counter("ultraspeed_worker_rows_total",
                            "Rows run: prompt tokens, anchors and drafts")),
      of_drafter_(CountersOf(metrics, "drafter")),
      of_text_(CountersOf(metrics, "text")),
      tokens_per_round_(metrics.Histogram("ultraspeed_worker_tokens_per_round",
                                          "Tokens that one sequence commits in one decode round",
                                          kTokensPerRoundBuckets)),
      round_seconds_(metrics.Histogram("ultraspeed_worker_round_seconds", "Duration of a round",
                                       kInterChunkBuckets)),
      ttft_seconds_(metrics.Histogram("ultraspeed_worker_ttft_seconds",
                                      "Arrival at the worker to first token",
                                      kTimeToFirstTokenBuckets)),
      time_per_output_token_seconds_(metrics.Histogram(
          "ultraspeed_worker_time_per_output_token_seconds",
          "Decode time of a request per token after its first event", kTimePerOutputTokenBuckets)) {
  for (int position = 1; position <= drafts_max; ++position) {
    accepted_at_.push_back(&metrics.Counter("ultraspeed_worker_accepted_per_position_total",
                                            "Accepted drafts by place in the block",
                                            {{"position", std::to_string(position)}}));
  }
  const auto add_requests = [&](FinishReason reason, const char* name) {
    requests_[reason] = &metrics.Counter("ultraspeed_worker_requests_total", "Ended requests",
                                         {{"finish_reason", name}});
  };
  add_requests(FinishReason::kStop, "stop");
  add_requests(FinishReason::kLength, "length");
  add_requests(FinishReason::kCancelled, "cancelled");
  add_requests(FinishReason::kShutdown, "shutdown");
}

WorkerMetrics::DraftCounters WorkerMetrics::CountersOf(Metrics& metrics, const char* source) {
  return {.verified = metrics.Counter("ultraspeed_worker_draft_tokens_total", "Drafts verified",
                                      {{"source", source}}),
          .accepted = metrics.Counter("ultraspeed_worker_accepted_tokens_total",
                                      "Drafts that were accepted", {{"source", source}})};
}

void WorkerMetrics::OnRound(const RoundStats& stats) {
  rounds_.Increment();
  rows_.Increment(stats.num_rows);
  round_seconds_.Observe(absl::ToDoubleSeconds(stats.duration));
  for (const int tokens : stats.decode_tokens) tokens_per_round_.Observe(tokens);
  const AcceptanceTotals& now = *stats.acceptance;
  const auto count = [](DraftCounters& counters, const AcceptanceTotals::Drafts& drafts,
                        const AcceptanceTotals::Drafts& before) {
    counters.verified.Increment(static_cast<double>(drafts.verified - before.verified));
    counters.accepted.Increment(static_cast<double>(drafts.accepted - before.accepted));
  };
  count(of_drafter_, now.of_drafter, last_.of_drafter);
  count(of_text_, now.of_text, last_.of_text);
  for (size_t i = 0; i < accepted_at_.size(); ++i) {
    accepted_at_[i]->Increment(static_cast<double>(now.accepted_at[i] - last_.accepted_at[i]));
  }
  last_ = now;
}

void WorkerMetrics::OnFinish(const RequestStats& stats) {
  prompt_tokens_.Increment(static_cast<double>(stats.usage.prompt_tokens));
  cached_tokens_.Increment(static_cast<double>(stats.usage.cached_tokens));
  completion_tokens_.Increment(static_cast<double>(stats.usage.completion_tokens));
  requests_.at(stats.finish)->Increment();
  if (stats.time_to_first_token > absl::ZeroDuration())
    ttft_seconds_.Observe(absl::ToDoubleSeconds(stats.time_to_first_token));
  if (stats.time_per_output_token > absl::ZeroDuration()) {
    time_per_output_token_seconds_.Observe(absl::ToDoubleSeconds(stats.time_per_output_token));
  }
}

void WorkerMetrics::OnLoad(const EngineLoad& load) {
  running_.Set(load.running);
  waiting_.Set(load.waiting);
  running_max_.Set(load.running_max);
  kv_tokens_used_.Set(static_cast<double>(load.kv_tokens_used));
  kv_tokens_max_.Set(static_cast<double>(load.kv_tokens_max));
  tokens_per_second_.Set(load.tokens_per_second);
  draining_.Set(load.draining ? 1 : 0);
}

}  // namespace ultraspeed::worker
