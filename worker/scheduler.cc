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
  int rows_left = options_.max_batch_tokens;
  const bool floor_reached = rounds_without_standard_ >= options_.standard_floor_rounds;
  if (!groups.ultraspeed.empty() && (groups.standard.empty() || !floor_reached)) {
    Groups::Tier& tier = groups.ultraspeed;
    AddDecodes(tier.decodes, options_.ultraspeed_batch_max, options_.draft_block_max, plan,
               rows_left);
    const int prefill_rows =
        tier.decodes.empty() ? rows_left : options_.prefill_tokens_beside_ultraspeed;
    AddPrefills(tier.prefills, std::min(rows_left, prefill_rows), plan);
    rounds_without_standard_ = groups.standard.empty() ? 0 : rounds_without_standard_ + 1;
  } else {
    Groups::Tier& tier = groups.standard;
    // About one block of rows for all of them: speculation pays when few decode, batching when many
    // do.
    const int num_decodes = static_cast<int>(tier.decodes.size());
    const int block_max = std::max(1, options_.draft_block_max / std::max(1, num_decodes));
    AddDecodes(tier.decodes, num_decodes, block_max, plan, rows_left);
    const int prefill_rows = !groups.ultraspeed.empty() ? options_.prefill_tokens_beside_ultraspeed
                             : num_decodes > 0          ? options_.prefill_tokens_per_round
                                                        : rows_left;
    AddPrefills(tier.prefills, std::min(rows_left, prefill_rows), plan);
    rounds_without_standard_ = 0;
  }
  KERNELS_CHECK(plan.empty(), ==, false);
  return plan;
}

void Scheduler::AddDecodes(std::vector<Sequence*>& sequences, int count_max, int block_max,
                           Plan& plan, int& rows_left) {
  int num_added = 0;
  for (Sequence* sequence : sequences) {
    if (num_added == count_max || rows_left == 0) break;
    const RequestSpec& spec = sequence->spec();
    // No more tokens than may still be committed.
    const int64_t tokens_left = sequence->max() - sequence->committed();
    const int bound = static_cast<int>(std::min<int64_t>({block_max, rows_left, tokens_left}));
    const int block = spec.speculation ? ChooseBlock(sequence->speculation.acceptance(), bound,
                                                     options_.draft_cost)
                                       : 1;
    plan.sequences.push_back(sequence);
    plan.round.steps.push_back({.slot = sequence->lease.slot,
                                .computed = sequence->computed(),
                                .tokens = sequence->tokens_to_compute(),
                                .num_tokens = 1,
                                .sample = true,
                                .block = block,
                                .pages = sequence->lease.pages.data(),
                                .num_pages = static_cast<int>(sequence->lease.pages.size()),
                                .sampling = spec.sampling,
                                .logprobs = spec.logprobs});
    sequence->last_turn = next_turn_++;
    rows_left -= block;
    ++num_added;
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
                                .logprobs = sequence->spec().logprobs});
    sequence->last_turn = next_turn_++;
    rows_left -= num_tokens;
  }
}

}  // namespace ultraspeed::worker
