#include "worker/scheduler.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace ultraspeed::worker {

// Running sequences by tier and phase. Decodes: least recently served first. Prefills: in order of
// admission.
struct Scheduler::Groups {
  struct Tier {
    std::vector<Sequence*> decodes;
    std::vector<Sequence*> prefills;
    bool empty() const { return decodes.empty() && prefills.empty(); }
  };
  Tier ultraspeed;
  Tier standard;

  explicit Groups(const Running& running) {
    for (const auto& sequence : running) {
      Tier& tier = sequence->spec().tier == worker::Tier::kUltraspeed ? ultraspeed : standard;
      (sequence->is_decoding() ? tier.decodes : tier.prefills).push_back(sequence.get());
    }
    for (Tier* tier : {&ultraspeed, &standard}) {
      std::stable_sort(
          tier->decodes.begin(), tier->decodes.end(),
          [](const Sequence* a, const Sequence* b) { return a->last_turn < b->last_turn; });
    }
  }
};

Scheduler::Scheduler(const SchedulerOptions& options) : options_(options) {
  KERNELS_CHECK(options.draft_block_max, >=, 1);
  KERNELS_CHECK(options.draft_block_max, <=, kDraftBlockMax);
  KERNELS_CHECK(options.max_batch_tokens, >=, options.draft_block_max);
  KERNELS_CHECK(options.ultraspeed_batch_max, >=, 1);
  KERNELS_CHECK(options.standard_floor_rounds, >=, 1);
  KERNELS_CHECK(options.standard_floor_rounds_max, >=, options.standard_floor_rounds);
  KERNELS_CHECK(options.standard_rows_beside_ultraspeed, >=, 2);
  KERNELS_CHECK(options.prefill_tokens_per_round, >=, 1);
  KERNELS_CHECK(options.prefill_tokens_beside_ultraspeed, >=, 1);
}

std::unique_ptr<Sequence> Scheduler::Admit(Waiting& waiting, const KvCache& kv) {
  const auto is_standard = [](const auto& sequence) {
    return sequence->spec().tier == Tier::kStandard;
  };
  const bool standard_waits = std::any_of(waiting.begin(), waiting.end(), is_standard);
  const bool standard_turn =
      standard_waits && admissions_without_standard_ >= options_.standard_floor_rounds;
  // min_element keeps the first of equals: first come, first served.
  const auto before = [&](const auto& a, const auto& b) {
    if (is_standard(a) != is_standard(b)) return is_standard(a) == standard_turn;
    return a->spec().priority > b->spec().priority;
  };
  const auto next = std::min_element(waiting.begin(), waiting.end(), before);
  if (next == waiting.end() || !kv.CanAcquire((*next)->max())) return nullptr;
  std::unique_ptr<Sequence> admitted = std::move(*next);
  waiting.erase(next);
  admissions_without_standard_ =
      standard_waits && !is_standard(admitted) ? admissions_without_standard_ + 1 : 0;
  return admitted;
}

Plan Scheduler::PlanRound(const Running& running) {
  Plan plan;
  if (running.empty()) return plan;
  Groups groups(running);
  const bool both_ran = both_run_;
  both_run_ = !groups.ultraspeed.empty() && !groups.standard.empty();
  if (!both_ran) {
    rounds_without_standard_ = 0;
    ultraspeed_time_ = absl::ZeroDuration();
  }
  const bool standard = groups.ultraspeed.empty() || (both_run_ && both_ran && StandardTurn());
  last_tier_ = standard ? Tier::kStandard : Tier::kUltraspeed;
  if (standard) {
    AddStandardRound(groups, plan);
    rounds_without_standard_ = 0;
  } else {
    Groups::Tier& tier = groups.ultraspeed;
    int rows_left = options_.max_batch_tokens;
    AddDecodes(tier.decodes, options_.ultraspeed_batch_max, plan, rows_left);
    const int prefill_rows =
        tier.decodes.empty() ? rows_left : options_.prefill_tokens_beside_ultraspeed;
    AddPrefills(tier.prefills, std::min(rows_left, prefill_rows), plan);
    ++rounds_without_standard_;
  }
  KERNELS_CHECK(plan.empty(), ==, false);
  return plan;
}

bool Scheduler::StandardTurn() const {
  return rounds_without_standard_ >= options_.standard_floor_rounds_max ||
         ultraspeed_time_ >= options_.standard_floor_rounds * standard_round_time_;
}

void Scheduler::RecordRound(absl::Duration duration) {
  if (!both_run_) return;
  const absl::Duration counted = std::max(duration, absl::Nanoseconds(1));
  if (last_tier_ == Tier::kStandard) {
    standard_round_time_ = counted;
    ultraspeed_time_ -= options_.standard_floor_rounds * counted;
  } else {
    ultraspeed_time_ += counted;
    if (standard_round_time_ == absl::ZeroDuration()) standard_round_time_ = counted;
  }
}

void Scheduler::AddStandardRound(Groups& groups, Plan& plan) {
  Groups::Tier& tier = groups.standard;
  const bool beside_ultraspeed = !groups.ultraspeed.empty();
  const int num_decodes = static_cast<int>(tier.decodes.size());
  const int rows = beside_ultraspeed ? std::min(options_.max_batch_tokens,
                                                options_.standard_rows_beside_ultraspeed)
                                     : options_.max_batch_tokens;
  const int decode_rows = beside_ultraspeed && !tier.prefills.empty() ? rows / 2 : rows;
  int decode_rows_left = decode_rows;
  AddDecodes(tier.decodes, num_decodes, plan, decode_rows_left);
  const int rows_left = rows - (decode_rows - decode_rows_left);
  const int prefill_rows =
      beside_ultraspeed || num_decodes == 0 ? rows_left : options_.prefill_tokens_per_round;
  AddPrefills(tier.prefills, std::min(rows_left, prefill_rows), plan);
}

void Scheduler::AddDecodes(std::vector<Sequence*>& sequences, int count_max, Plan& plan,
                           int& rows_left) {
  const int count = std::min({count_max, static_cast<int>(sequences.size()), rows_left});
  if (count == 0) return;
  std::vector<Drafting> drafting;
  std::vector<absl::Span<const int32_t>> looked_up;
  int64_t tokens_max = 0;
  for (int i = 0; i < count; ++i) {
    Sequence& sequence = *sequences[static_cast<size_t>(i)];
    tokens_max = std::max(tokens_max, sequence.committed());
    // No more tokens than may still be committed.
    const int64_t tokens_left = sequence.max() - sequence.committed();
    const int64_t bound = sequence.spec().speculation ? tokens_left : 1;
    const int rows_max = static_cast<int>(std::min<int64_t>(bound, kDraftBlockMax));
    const int lookups_max = options_.looks_up_drafts ? options_.given_drafts_max : 0;
    looked_up.push_back(
        sequence.lookup.Propose(sequence.tokens(), std::min(rows_max - 1, lookups_max)));
    drafting.push_back({.acceptance = sequence.speculation.acceptance(),
                        .bound = rows_max,
                        .looked_up = sequence.lookup.proposal()});
  }
  const DraftCost cost = options_.draft_costs.At(tokens_max);
  const std::vector<RowShare> division = DivideRows(drafting,
                                                    {.block_max = options_.draft_block_max,
                                                     .blocks_max = options_.decode_blocks_max,
                                                     .rows_max = rows_left,
                                                     .looked_up_max = options_.given_drafts_max},
                                                    cost);
  const double reach_min = ReachMin(drafting, division, options_.draft_block_max, cost);
  for (int i = 0; i < count; ++i) {
    Sequence* const sequence = sequences[static_cast<size_t>(i)];
    const RequestSpec& spec = sequence->spec();
    const RowShare& share = division[static_cast<size_t>(i)];
    plan.sequences.push_back(sequence);
    plan.round.steps.push_back({.slot = sequence->lease.slot,
                                .computed = sequence->computed(),
                                .tokens = sequence->tokens_to_compute(),
                                .num_tokens = 1,
                                .sample = true,
                                .block = share.block,
                                .drafts = looked_up[static_cast<size_t>(i)].data(),
                                .num_drafts = share.looked_up,
                                .reach_min = static_cast<float>(reach_min),
                                .pages = sequence->lease.pages.data(),
                                .num_pages = static_cast<int>(sequence->lease.pages.size()),
                                .sampling = spec.sampling,
                                .logprobs = spec.logprobs,
                                .constraint = sequence->constraint()});
    sequence->last_turn = next_turn_++;
    rows_left -= share.rows();
  }
}

void Scheduler::AddPrefills(std::vector<Sequence*>& sequences, int rows_left, Plan& plan) {
  for (Sequence* sequence : sequences) {
    if (rows_left == 0) break;
    const int num_tokens = static_cast<int>(std::min<int64_t>(rows_left, sequence->pending()));
    plan.sequences.push_back(sequence);
    plan.round.steps.push_back({.slot = sequence->lease.slot,
                                .computed = sequence->computed(),
                                .tokens = sequence->tokens_to_compute(),
                                .num_tokens = num_tokens,
                                .sample = num_tokens == sequence->pending(),
                                .block = 1,
                                .pages = sequence->lease.pages.data(),
                                .num_pages = static_cast<int>(sequence->lease.pages.size()),
                                .sampling = sequence->spec().sampling,
                                .logprobs = sequence->spec().logprobs,
                                .constraint = sequence->constraint()});
    sequence->last_turn = next_turn_++;
    rows_left -= num_tokens;
  }
}

}  // namespace ultraspeed::worker
