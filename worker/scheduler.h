// Which waiting request runs next, and what one round holds. Pure: no threads, no clock, no
// executor; the same inputs give the same plan.
//
// Ultraspeed sequences get rounds of their own, in a tiny batch with full blocks; standard
// sequences share the other rounds, and get one after at most kStandardFloorRounds rounds without.
// A long prompt is cut into chunks that ride beside the decoding sequences, so it never stalls them
// for more than one chunk. Thread: the engine thread.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "common/limits.h"
#include "worker/batch.h"
#include "worker/kv_cache.h"
#include "worker/request.h"
#include "worker/speculation.h"

namespace ultraspeed::worker {

struct SchedulerOptions {
  int max_batch_tokens = 512;  // rows of a round
  int draft_block_max = 1;     // 1 = no drafter
  DraftCost draft_cost = kServedShapeDraftCost;
  int ultraspeed_batch_max = limits::kUltraspeedBatchMax;
  int standard_floor_rounds = limits::kStandardFloorRounds;
  int prefill_tokens_per_round = limits::kPrefillTokensPerRound;
  int prefill_tokens_beside_ultraspeed = limits::kPrefillTokensBesideUltraspeed;
};

// One round and whose steps it holds.
struct Plan {
  std::vector<Sequence*> sequences;  // [S], same order as round.steps
  Round round;

  bool empty() const { return sequences.empty(); }
};

class Scheduler {
 public:
  using Waiting = std::deque<std::unique_ptr<Sequence>>;
  using Running = std::vector<std::unique_ptr<Sequence>>;

  explicit Scheduler(const SchedulerOptions& options);

  // Takes the next request out of `waiting`, or null when the one whose turn it is does not fit
  // yet. Ultraspeed before standard (but after standard_floor_rounds of them in a row one standard
  // request), then higher priority, then first come. Nothing overtakes a request that waits for
  // memory, so it cannot starve.
  std::unique_ptr<Sequence> Admit(Waiting& waiting, const KvCache& kv);

  // Never empty while a sequence runs. Marks the chosen sequences as served.
  Plan PlanRound(const Running& running);

 private:
  struct Groups;
  void AddDecodes(std::vector<Sequence*>& sequences, int count_max, int block_max, Plan& plan,
                  int& rows_left);
  void AddPrefills(std::vector<Sequence*>& sequences, int rows_left, Plan& plan);

  const SchedulerOptions options_;
  int64_t next_turn_ = 0;  // one per step planned: gives sequences a strict order of being served
  int rounds_without_standard_ = 0;
  int admissions_without_standard_ = 0;
};

}  // namespace ultraspeed::worker
