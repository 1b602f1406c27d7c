#include "bench/decode_loop.h"

#include <algorithm>
#include <chrono>
#include <numeric>

namespace ultraspeed::bench {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int64_t BytesRead(const DecodeOptions& options) {
  return options.statistics ? options.statistics->target_bytes + options.statistics->drafter_bytes
                            : 0;
}

}  // namespace

DecodeOutcome Decode(worker::Executor& executor, const std::vector<int32_t>& prompt,
                     const DecodeOptions& options) {
  std::vector<int32_t> pages(executor.num_pages());
  std::iota(pages.begin(), pages.end(), 0);
  executor.ResetSlot(0);

  worker::Round round;
  worker::SequenceStep& step = round.steps.emplace_back();
  step.pages = pages.data();
  step.num_pages = static_cast<int>(pages.size());
  step.sampling = options.sampling;

  DecodeOutcome outcome;
  std::vector<int32_t> committed = prompt;
  while (!step.sample) {
    step.tokens = committed.data() + step.computed;
    step.num_tokens =
        std::min<int64_t>(executor.max_batch_tokens(), committed.size() - step.computed);
    step.sample = step.computed + step.num_tokens == static_cast<int64_t>(committed.size());
    const worker::RoundResult result = executor.Run(round);
    step.computed += step.num_tokens;
    for (const worker::ChosenToken& chosen : result.sequences[0].chosen)
      committed.push_back(chosen.token);
  }

  const std::vector<int32_t>& stops = executor.config().eos_token_ids;
  const auto is_stop = [&](int32_t token) {
    return std::count(stops.begin(), stops.end(), token) > 0;
  };
  const size_t size_max = prompt.size() + options.max_tokens;
  bool stopped = is_stop(committed.back());
  const int64_t bytes_before = BytesRead(options);
  const Clock::time_point decode_start = Clock::now();
  while (!stopped && committed.size() < size_max) {
    step.tokens = &committed.back();
    step.num_tokens = 1;
    step.block = options.block;
    const worker::SequenceResult result = executor.Run(round).sequences[0];
    step.computed += 1 + result.num_accepted;
    outcome.rounds += 1;
    for (const worker::ChosenToken& chosen : result.chosen) {
      if (stopped || committed.size() >= size_max) break;  // surplus of the last round
      committed.push_back(chosen.token);
      stopped = is_stop(chosen.token);
    }
  }
  outcome.decode_seconds = SecondsSince(decode_start);
  outcome.weight_bytes = BytesRead(options) - bytes_before;
  outcome.tokens.assign(committed.begin() + prompt.size(), committed.end());
  return outcome;
}

}  // namespace ultraspeed::bench
