// Which worker gets the next request: a pure function of a snapshot. Called by WorkerPool under its
// lock; no state, no clock, no randomness of its own, so every decision can be replayed in a test.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace ultraspeed::router {

// What the policy may know of one worker. Counts are >= 0.
struct WorkerCandidate {
  bool eligible = false;       // ready, serves the model, and was not tried for this request yet
  bool load_is_stale = false;  // the last load report is older than limits allow: counts as loaded
  // What the last report counted, running and waiting, beyond this router's own: the other
  // routers'.
  int64_t other_requests = 0;
  int64_t own_requests = 0;          // placed by this router and not over yet; always up to date
  int64_t max_running_requests = 0;  // 0 = unknown
};

// Requests that would be ahead of or beside a new one.
int64_t CandidateLoad(const WorkerCandidate& candidate);

// Index of the eligible worker with the least load. A fresh report with a free slot beats a full
// worker, and any fresh report beats a stale one. Ties go to the first tied index at or after
// `preferred` modulo the number of candidates. nullopt if none is eligible.
std::optional<int> ChooseWorker(const std::vector<WorkerCandidate>& candidates, uint64_t preferred);

// Which worker a prompt prefers: the same for every router and for all prompts of a tenant that
// begin alike, so that a worker that is no busier than others has computed their beginning before.
uint64_t PreferredWorker(absl::string_view tenant, absl::Span<const int32_t> prompt);

}  // namespace ultraspeed::router
