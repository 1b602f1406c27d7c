// The engine's figures as prometheus series, ultraspeed_worker_*.
//
// Drafts are counted by their source, the drafter or the sequence's own text. Derived: acceptance
// rate = accepted_tokens / draft_tokens; mean acceptance length =
// tokens_per_round's mean. Thread: the engine thread; the series themselves may be read from any.
#pragma once

#include <array>
#include <map>

#include "common/metrics.h"
#include "worker/engine.h"

namespace ultraspeed::worker {

class WorkerMetrics : public EngineObserver {
 public:
  // `metrics` is not owned. `drafts_max`, of a round, bounds the positions of
  // accepted_per_position_total.
  WorkerMetrics(Metrics& metrics, int drafts_max);

  void OnRound(const RoundStats& stats) override;
  void OnFinish(const RequestStats& stats) override;
  void OnLoad(const EngineLoad& load) override;

 private:
  prometheus::Gauge& running_;
  prometheus::Gauge& waiting_;
  prometheus::Gauge& running_max_;
  prometheus::Gauge& kv_tokens_used_;
  prometheus::Gauge& kv_tokens_max_;
  prometheus::Gauge& tokens_per_second_;
  prometheus::Gauge& draining_;
  prometheus::Counter& prompt_tokens_;
  prometheus::Counter& cached_tokens_;
  prometheus::Counter& completion_tokens_;
  prometheus::Counter& rounds_;
  prometheus::Counter& rows_;
  struct DraftCounters {
    prometheus::Counter& verified;
    prometheus::Counter& accepted;
  };
  static DraftCounters CountersOf(Metrics& metrics, const char* source);
  DraftCounters of_drafter_, of_text_;
  std::vector<prometheus::Counter*> accepted_at_;  // [drafts_max]
  prometheus::Histogram& tokens_per_round_;
  prometheus::Histogram& round_seconds_;
  prometheus::Histogram& ttft_seconds_;
  prometheus::Histogram& time_per_output_token_seconds_;
  std::map<FinishReason, prometheus::Counter*> requests_;
  AcceptanceTotals last_;
};

}  // namespace ultraspeed::worker
