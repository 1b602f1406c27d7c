#include "router/routing_policy.h"

#include <cstddef>
#include <tuple>

namespace ultraspeed::router {
namespace {

constexpr size_t kBeginningTokens = 64;  // more than most system prompts share by chance

// FNV-1a: the same on every machine.
uint64_t Mix(uint64_t hash, uint8_t byte) { return (hash ^ byte) * 0x100000001B3u; }

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

std::optional<int> ChooseWorker(const std::vector<WorkerCandidate>& candidates,
                                uint64_t preferred) {
  std::optional<int> best;
  const size_t num_candidates = candidates.size();
  for (size_t step = 0; step < num_candidates; ++step) {
    const size_t idx = (preferred + step) % num_candidates;
    if (!candidates[idx].eligible) continue;
    if (!best || Rank(candidates[idx]) < Rank(candidates[*best])) best = static_cast<int>(idx);
  }
  return best;
}

uint64_t PreferredWorker(absl::string_view tenant, absl::Span<const int32_t> prompt) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const char c : tenant) hash = Mix(hash, static_cast<uint8_t>(c));
  for (const int32_t token : prompt.subspan(0, kBeginningTokens)) {
    for (int shift = 0; shift < 32; shift += 8)
      hash = Mix(hash, static_cast<uint8_t>(static_cast<uint32_t>(token) >> shift));
  }
  return hash ^ hash >> 32;
}

}  // namespace ultraspeed::router
