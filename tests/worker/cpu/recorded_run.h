// Runs of an executor that keep every choice with its log-probabilities, so that two runs can be
// compared bit for bit.
#pragma once

#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/worker/cpu/sequence_runner.h"

namespace ultraspeed::worker {

struct RecordedRun {
  std::vector<ChosenToken> chosen;  // [num_new_tokens]
  int num_rounds = 0;               // that chose something
  int num_drafted = 0;              // drafts that were verified, of all rounds
  int num_accepted = 0;             // of them
};

// Sequences side by side in the same rounds; every choice comes with `logprobs` alternatives.
inline std::vector<RecordedRun> RecordToEnd(Executor& executor,
                                            std::vector<RunningSequence>& sequences, int logprobs) {
  std::vector<RecordedRun> runs(sequences.size());
  for (;;) {
    Round round;
    std::vector<size_t> active;
    for (size_t i = 0; i < sequences.size(); ++i) {
      if (sequences[i].done()) continue;
      active.push_back(i);
      round.steps.push_back(sequences[i].Step());
      round.steps.back().logprobs = logprobs;
    }
    if (active.empty()) break;
    const RoundResult result = executor.Run(round);
    for (size_t i = 0; i < active.size(); ++i) {
      const SequenceResult& sequence = result.sequences[i];
      sequences[active[i]].Take(round.steps[i], sequence);
      RecordedRun& run = runs[active[i]];
      run.chosen.insert(run.chosen.end(), sequence.chosen.begin(), sequence.chosen.end());
      run.num_rounds += sequence.chosen.empty() ? 0 : 1;
      run.num_drafted += sequence.num_drafted;
      run.num_accepted += sequence.num_accepted;
    }
  }
  return runs;
}

// Likewise, from their beginning.
inline std::vector<RecordedRun> RecordTogether(Executor& executor,
                                               const std::vector<RunPlan>& plans,
                                               int logprobs = 4) {
  std::vector<RunningSequence> sequences;
  sequences.reserve(plans.size());
  for (const RunPlan& plan : plans) sequences.emplace_back(executor, plan);
  std::vector<RecordedRun> runs = RecordToEnd(executor, sequences, logprobs);
  for (size_t i = 0; i < plans.size(); ++i)
    runs[i].chosen.resize(static_cast<size_t>(plans[i].num_new_tokens));
  return runs;
}

inline RecordedRun Record(Executor& executor, const RunPlan& plan, int logprobs = 4) {
  return RecordTogether(executor, {plan}, logprobs)[0];
}

inline uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// "" if every token, alternative and log-probability has the same bits; else the first that
// differs.
inline std::string Difference(const RecordedRun& a, const RecordedRun& b) {
  if (a.chosen.size() != b.chosen.size())
    return absl::StrCat(a.chosen.size(), " against ", b.chosen.size(), " tokens");
  for (size_t i = 0; i < a.chosen.size(); ++i) {
    const ChosenToken &x = a.chosen[i], &y = b.chosen[i];
    if (x.token != y.token) return absl::StrCat("token ", i, " is ", x.token, " against ", y.token);
    if (Bits(x.logprob) != Bits(y.logprob))
      return absl::StrCat("logprob of token ", i, " is ", x.logprob, " against ", y.logprob);
    if (x.top_tokens != y.top_tokens) return absl::StrCat("alternatives of token ", i, " differ");
    for (size_t k = 0; k < x.top_logprobs.size(); ++k) {
      if (Bits(x.top_logprobs[k]) == Bits(y.top_logprobs[k])) continue;
      return absl::StrCat("logprob of alternative ", k, " of token ", i, " is ", x.top_logprobs[k],
                          " against ", y.top_logprobs[k]);
    }
  }
  return "";
}

// What a sequence that begins with the first `border` tokens of `begun`, from a snapshot of it,
// differs in from one that computes them: "". It runs in a slot that other text has used.
inline std::string DifferenceFromSnapshot(Executor& executor, const RunPlan& plan,
                                          const RunningSequence& begun, int snapshot,
                                          int64_t border, int logprobs) {
  Record(executor,
         {.prompt = {plan.prompt.rbegin(), plan.prompt.rend()},
          .num_new_tokens = 20,
          .slot = plan.slot},
         0);
  std::vector<RunningSequence> sequences;
  sequences.emplace_back(executor, plan, begun, snapshot, border);
  RecordedRun resumed = RecordToEnd(executor, sequences, logprobs)[0];
  resumed.chosen.resize(static_cast<size_t>(plan.num_new_tokens));
  RunPlan whole = plan;
  whole.slot = plan.slot + 1;
  return Difference(resumed, Record(executor, whole, logprobs));
}

// Pages 0..num_pages of the executor in order, for a single sequence.
inline std::vector<int32_t> AllPages(const Executor& executor) {
  std::vector<int32_t> pages(static_cast<size_t>(executor.num_pages()));
  std::iota(pages.begin(), pages.end(), 0);
  return pages;
}

}  // namespace ultraspeed::worker
