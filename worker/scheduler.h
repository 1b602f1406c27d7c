// Which waiting request runs next, and what one round holds. Pure: no threads, no clock, no
// executor; the same inputs give the same plan.
//
// Ultraspeed sequences get rounds of their own, in a tiny batch; standard sequences share the other
// rounds. Those that decode in a round divide a block of rows, or several where the executor has
// them and their drafts are good enough, or have a row each if they are more: a sequence's later
// drafts are the least likely to be accepted, so the first ones of several are worth more than all
// of one. While both run,
// standard has a floor, counted in time: one part to kStandardFloorRounds parts for ultraspeed, in
// rounds of few rows, so that neither a crowd of standard sequences nor its long prompts slow an
// ultraspeed stream further. A long prompt is cut into chunks that ride beside the decoding
// sequences, so it never stalls them for more than one chunk. Thread: the engine thread.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "common/limits.h"
#include "worker/batch.h"
#include "worker/kv_cache.h"
#include "worker/request.h"
#include "worker/speculation.h"

namespace ultraspeed::worker {

struct SchedulerOptions {
  int max_batch_tokens = 512;   // rows of a round
  int draft_block_max = 1;      // 1 = no drafter
  int decode_blocks_max = 1;    // that sequences of a round divide
  bool looks_up_drafts = true;  // in sequences' own texts (lookup_drafter.h)
  int given_drafts_max = 0;     // of these; 0 = none
  DraftCosts draft_costs = kServedShapeDraftCost;
  int ultraspeed_batch_max = limits::kUltraspeedBatchMax;
  // While both tiers run, ultraspeed gets this many times the time of standard: so many rounds to
  // one when they last equally long. Also: admissions of ultraspeed in a row while standard waits.
  int standard_floor_rounds = limits::kStandardFloorRounds;
  // However long standard's rounds are, it gets one after so many without.
  int standard_floor_rounds_max = 8 * limits::kStandardFloorRounds;
  int prefill_tokens_per_round = limits::kPrefillTokensPerRound;
  int prefill_tokens_beside_ultraspeed = limits::kPrefillTokensBesideUltraspeed;
  // Of a standard round while ultraspeed runs; half of them for prompts if there are both.
  int standard_rows_beside_ultraspeed = limits::kPrefillTokensBesideUltraspeed;
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

  // How long the round took that was planned last: what the tiers' shares are counted in. Call it
  // after every round; zeros count as equally long.
  void RecordRound(absl::Duration duration);

 private:
  struct Groups;
  bool StandardTurn() const;
  void AddStandardRound(Groups& groups, Plan& plan);
  void AddDecodes(std::vector<Sequence*>& sequences, int count_max, Plan& plan, int& rows_left);
  void AddPrefills(std::vector<Sequence*>& sequences, int rows_left, Plan& plan);

  const SchedulerOptions options_;
  int64_t next_turn_ = 0;  // one per step planned: gives sequences a strict order of being served
  // While both tiers run:
  bool both_run_ = false;
  Tier last_tier_ = Tier::kStandard;  // of the round planned last
  int rounds_without_standard_ = 0;
  absl::Duration ultraspeed_time_ = absl::ZeroDuration();      // less what standard has used of it
  absl::Duration standard_round_time_ = absl::ZeroDuration();  // of its last round, or a guess
  int admissions_without_standard_ = 0;
};

}  // namespace ultraspeed::worker
