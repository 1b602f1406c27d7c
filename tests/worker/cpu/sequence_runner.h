// Drives an executor the way the engine does, one or several sequences, for tests that compare ways
// to the same tokens.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "worker/executor.h"

namespace ultraspeed::worker {

struct RunPlan {
  std::vector<int32_t> prompt = {};
  int num_new_tokens = 32;
  int block = 1;
  float reach_min = 0;
  int chunk = 512;  // prompt rows of one step
  kernels::SamplingSpec sampling = {};
  int slot = 0;
};

// One sequence in flight: a few ordered integers over its tokens.
class RunningSequence {
 public:
  RunningSequence(Executor& executor, const RunPlan& plan)
      : RunningSequence(executor, plan, nullptr, 0, 0) {}
  // Begins with the first `position` tokens of `begun`, of which `snapshot` was saved.
  RunningSequence(Executor& executor, const RunPlan& plan, const RunningSequence& begun,
                  int snapshot, int64_t position)
      : RunningSequence(executor, plan, &begun, snapshot, position) {}

  bool done() const {
    return static_cast<int>(tokens_.size() - plan_.prompt.size()) >= plan_.num_new_tokens;
  }
  int num_rounds() const { return num_rounds_; }
  int64_t computed() const { return computed_; }

  SequenceStep Step() const {
    SequenceStep step;
    step.slot = plan_.slot;
    step.computed = computed_;
    step.tokens = &tokens_[static_cast<size_t>(computed_)];
    const auto left = static_cast<int>(static_cast<int64_t>(tokens_.size()) - computed_);
    step.num_tokens = std::min(left, plan_.chunk);
    step.sample = step.num_tokens == left;
    step.block =
        left == 1 && computed_ >= static_cast<int64_t>(plan_.prompt.size()) ? plan_.block : 1;
    step.reach_min = plan_.reach_min;
    step.pages = pages_.data();
    step.num_pages = static_cast<int>(pages_.size());
    step.sampling = plan_.sampling;
    return step;
  }

  void Take(const SequenceStep& step, const SequenceResult& result) {
    computed_ += step.num_tokens + result.num_accepted;
    for (const ChosenToken& chosen : result.chosen) tokens_.push_back(chosen.token);
    if (static_cast<int64_t>(tokens_.size()) - static_cast<int64_t>(plan_.prompt.size()) > 1)
      ++num_rounds_;
  }

  // Without the prompt, cut to num_new_tokens.
  std::vector<int32_t> output() const {
    std::vector<int32_t> out(tokens_.begin() + static_cast<ptrdiff_t>(plan_.prompt.size()),
                             tokens_.end());
    out.resize(static_cast<size_t>(plan_.num_new_tokens));
    return out;
  }

 private:
  RunningSequence(Executor& executor, const RunPlan& plan, const RunningSequence* begun,
                  int snapshot, int64_t position)
      : executor_(executor), plan_(plan), tokens_(plan.prompt) {
    const auto room =
        static_cast<int>(plan.prompt.size()) + plan.num_new_tokens + 2 * kDraftBlockMax;
    const int num_pages = (room + executor.page_tokens() - 1) / executor.page_tokens();
    pages_.resize(static_cast<size_t>(num_pages));
    // Pages of the slots interleave, so a mixed-up page table cannot pass unseen.
    for (int i = 0; i < num_pages; ++i) {
      pages_[static_cast<size_t>(i)] =
          (i * executor.max_sequences() + plan.slot) % executor.num_pages();
    }
    if (begun == nullptr) {
      executor.ResetSlot(plan.slot);
      return;
    }
    std::copy_n(begun->pages_.begin(), position / executor.page_tokens(), pages_.begin());
    executor.LoadSnapshot(snapshot, plan.slot, position);
    computed_ = position;
  }

  Executor& executor_;
  const RunPlan plan_;
  std::vector<int32_t> tokens_;
  std::vector<int32_t> pages_;
  int64_t computed_ = 0;
  int num_rounds_ = 0;
};

// All plans side by side in the same rounds; plan i joins in round i * stagger.
inline std::vector<std::vector<int32_t>> RunTogether(Executor& executor,
                                                     const std::vector<RunPlan>& plans,
                                                     int stagger = 0) {
  std::vector<RunningSequence> sequences;
  sequences.reserve(plans.size());
  for (const RunPlan& plan : plans) sequences.emplace_back(executor, plan);
  for (int round_idx = 0;; ++round_idx) {
    Round round;
    std::vector<RunningSequence*> active;
    bool waiting = false;
    for (size_t i = 0; i < sequences.size(); ++i) {
      if (sequences[i].done()) continue;
      waiting = true;
      if (round_idx < static_cast<int>(i) * stagger) continue;
      round.steps.push_back(sequences[i].Step());
      active.push_back(&sequences[i]);
    }
    if (!waiting) break;
    if (active.empty()) continue;
    const RoundResult result = executor.Run(round);
    for (size_t i = 0; i < active.size(); ++i) active[i]->Take(round.steps[i], result.sequences[i]);
  }
  std::vector<std::vector<int32_t>> outputs;
  for (const RunningSequence& sequence : sequences) outputs.push_back(sequence.output());
  return outputs;
}

inline std::vector<int32_t> RunAlone(Executor& executor, const RunPlan& plan) {
  return RunTogether(executor, {plan})[0];
}

}  // namespace ultraspeed::worker
