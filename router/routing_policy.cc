#include "router/routing_policy.h"

#include <cstddef>
#include <tuple>

namespace ultraspeed::router {
namespace {

// Lower is better, compared left to right.
std::tuple<bool, bool, int64_t> Rank(const WorkerCandidate& candidate) {
  const int64_t load = CandidateLoad(candidate);
  const bool full = candidate.max_running_requests > 0 && load >= candidate.max_running_requests;
  return {candidate.load_is_stale, full, load};
}

}  // namespace

int64_t CandidateLoad(const WorkerCandidate& candidate) {
  return candidate.other_requests + candidate.own_requests;
}

std::optional<int> ChooseWorker(const std::vector<WorkerCandidate>& candidates, uint64_t turn) {
  std::optional<int> best;
  const size_t num_candidates = candidates.size();
  for (size_t step = 0; step < num_candidates; ++step) {
    const size_t idx = (turn + step) % num_candidates;
    if (!candidates[idx].eligible) continue;
    if (!best || Rank(candidates[idx]) < Rank(candidates[*best])) best = static_cast<int>(idx);
  }
  return best;
}

}  // namespace ultraspeed::router
