// Every number that the router publishes, by name (ultraspeed_router_*). Filled by StreamRelay and
// InferenceService at the end of a request, by main for worker states.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "ultraspeed/v1/inference.pb.h"

namespace ultraspeed::router {

// "standard", "ultraspeed", or "none" before a tier was decided.
absl::string_view TierName(v1::ServiceTier tier);

// What one stream was, told once when it is over.
struct StreamRecord {
  absl::string_view method;  // Generate | Chat
  v1::ServiceTier tier = v1::SERVICE_TIER_UNSPECIFIED;
  absl::StatusCode code = absl::StatusCode::kOk;
  int64_t prompt_tokens = 0;           // sent, and so billed
  int64_t completion_tokens = 0;       // likewise
  std::optional<absl::Duration> ttft;  // absent: no token came
  std::optional<absl::Duration>
      time_per_output_token;               // absent: fewer than two chunks of tokens came
  std::optional<absl::Duration> overhead;  // the router's own share of ttft
};

// Thread contract: every method may be called from any thread.
class RouterMetrics {
 public:
  explicit RouterMetrics(Metrics* metrics);

  void StreamStarted() { active_streams_.Increment(); }
  void StreamEnded(const StreamRecord& record);
  void UnaryEnded(absl::string_view method, absl::StatusCode code);
  void ChunkInterval(v1::ServiceTier tier, absl::Duration interval);
  void PlacementRetried() { placement_retries_.Increment(); }
  void StreamResumed() { resumed_streams_.Increment(); }
  void WorkerProtocolError() { worker_protocol_errors_.Increment(); }
  void SetWorkers(absl::string_view state, int count);
  void SetOutboxWrites(int64_t count) { outbox_writes_.Set(static_cast<double>(count)); }

 private:
  struct PerTier {
    prometheus::Histogram* ttft;
    prometheus::Histogram* time_per_output_token;
    prometheus::Histogram* inter_chunk;
    prometheus::Histogram* tokens_per_second;
    prometheus::Counter* prompt_tokens;
    prometheus::Counter* completion_tokens;
  };

  PerTier& ForTier(v1::ServiceTier tier);
  void CountRequest(absl::string_view method, absl::StatusCode code, absl::string_view tier);

  Metrics* metrics_;
  std::array<PerTier, 2> tiers_;  // standard, ultraspeed
  prometheus::Gauge& active_streams_;
  prometheus::Counter& placement_retries_;
  prometheus::Counter& resumed_streams_;
  prometheus::Counter& worker_protocol_errors_;
  prometheus::Histogram& overhead_;
  prometheus::Gauge& outbox_writes_;
};

}  // namespace ultraspeed::router
