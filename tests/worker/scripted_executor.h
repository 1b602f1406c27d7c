// An Executor without a model: what follows a token is a pure function of (seed, position, token),
// and how many drafts are accepted is a script. It checks the engine's side of executor.h on every
// call and aborts when the engine breaks it.
//
// Thread: as Executor; the hook and the counters may be read between rounds or through atomics.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "kernels/check.h"
#include "worker/executor.h"
#include "worker/request.h"

namespace ultraspeed::worker {

struct ScriptedOptions {
  int max_sequences = 4;
  int max_batch_tokens = 64;
  int page_tokens = 8;
  int num_pages = 64;
  int vocabulary = 1000;
  int64_t context_tokens = 512;
  int draft_block = 8;  // 1 = no drafter
  int given_drafts_max = 0;
  int num_snapshots = 0;
  int decode_blocks = 1;
  bool weighs_drafts = false;  // what it says; it verifies all
};

// The target's choice at `position`, given the token before it.
inline int32_t ScriptedToken(uint64_t seed, int64_t position, int32_t previous, int vocabulary) {
  uint64_t x = seed * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(position) * 0xBF58476D1CE4E5B9u +
               static_cast<uint64_t>(previous);
  x ^= x >> 31;
  x *= 0x94D049BB133111EBu;
  x ^= x >> 29;
  return static_cast<int32_t>(x % static_cast<uint64_t>(vocabulary));
}

// What the engine must produce for `spec`, one token at a time.
inline std::vector<int32_t> ExpectedTokens(const RequestSpec& spec, int vocabulary) {
  std::vector<int32_t> tokens;
  int32_t previous = spec.prompt.back();
  for (int64_t i = 0; i < spec.max_tokens; ++i) {
    previous = ScriptedToken(spec.sampling.seed, static_cast<int64_t>(spec.prompt.size()) + i,
                             previous, vocabulary);
    tokens.push_back(previous);
    if (std::count(spec.stop_token_ids.begin(), spec.stop_token_ids.end(), previous) > 0) break;
  }
  return tokens;
}

class ScriptedExecutor : public Executor {
 public:
  using AcceptScript = std::function<int(int num_drafted)>;

  explicit ScriptedExecutor(const ScriptedOptions& options)
      : options_(options),
        slots_(options.max_sequences),
        snapshots_(options.num_snapshots),
        pages_(options.num_pages, std::vector<int32_t>(options.page_tokens, -1)) {
    config_.name = "scripted";
    config_.context_tokens = options.context_tokens;
    config_.vocabulary = options.vocabulary;
    config_.eos_token_ids = {7};
    config_.default_temperature = 0.5f;
    config_.default_top_p = 0.9f;
    if (options.draft_block > 1) {
      config_.drafter.num_layers = 1;
      config_.drafter.block_size = options.draft_block;
    }
  }

  const ModelConfig& config() const override { return config_; }
  int max_sequences() const override { return options_.max_sequences; }
  int max_batch_tokens() const override { return options_.max_batch_tokens; }
  int page_tokens() const override { return options_.page_tokens; }
  int num_pages() const override { return options_.num_pages; }
  int vocabulary_used() const override { return options_.vocabulary; }
  std::string device() const override { return "scripted"; }
  int num_snapshots() const override { return options_.num_snapshots; }
  int decode_blocks() const override { return options_.decode_blocks; }
  int given_drafts_max() const override { return options_.given_drafts_max; }
  bool weighs_drafts() const override { return options_.weighs_drafts; }
  void ResetSlot(int slot) override { slots_.at(slot).clear(); }
  void SaveSnapshot(int snapshot, int slot, int64_t position) override {
    const std::vector<int32_t>& kv = slots_.at(slot);
    const auto computed = static_cast<int64_t>(kv.size());
    KERNELS_CHECK(position, >=, int64_t{1});
    KERNELS_CHECK(position % options_.page_tokens, ==, int64_t{0});
    KERNELS_CHECK(position, <=, computed);
    KERNELS_CHECK(computed - position, <=,
                  std::max(options_.page_tokens, options_.max_batch_tokens));
    snapshots_.at(snapshot).assign(kv.begin(), kv.begin() + position);
  }
  void LoadSnapshot(int snapshot, int slot, int64_t position) override {
    KERNELS_CHECK(position, ==, static_cast<int64_t>(snapshots_.at(snapshot).size()));
    slots_.at(slot) = snapshots_.at(snapshot);
    num_loads.fetch_add(1);
  }

  RoundResult Run(const Round& round) override {
    if (before_round) before_round(round);
    RoundResult result;
    int num_rows = 0;
    std::set<int> slots;
    std::set<int32_t> written;  // pages; no other sequence may have them
    for (const SequenceStep& step : round.steps) {
      KERNELS_CHECK(slots.insert(step.slot).second, ==, true);
      for (int i = static_cast<int>(step.computed / options_.page_tokens); i < step.num_pages; ++i)
        KERNELS_CHECK(written.insert(step.pages[i]).second, ==, true);
    }
    for (const SequenceStep& step : round.steps) {
      for (int64_t i = 0; i < step.computed / options_.page_tokens; ++i)
        KERNELS_CHECK(written.count(step.pages[i]), ==, size_t{0});
      num_rows += step.rows();
      result.sequences.push_back(RunStep(step));
    }
    KERNELS_CHECK(num_rows, >=, 1);
    KERNELS_CHECK(num_rows, <=, options_.max_batch_tokens);
    num_rounds.fetch_add(1);
    return result;
  }

  AcceptScript accept = [](int num_drafted) {
    return num_drafted;
  };  // default: every draft is accepted
  std::function<void(const Round&)> before_round;
  std::atomic<int> num_rounds{0};
  std::atomic<int> num_loads{0};

 private:
  SequenceResult RunStep(const SequenceStep& step) {
    std::vector<int32_t>& kv = slots_.at(step.slot);  // tokens whose KV the slot holds
    KERNELS_CHECK(step.num_tokens, >=, 1);
    KERNELS_CHECK(step.block, >=, 1);
    KERNELS_CHECK(step.block, <=, options_.draft_block);
    KERNELS_CHECK(step.num_drafts, <=, options_.given_drafts_max);
    if (step.chosen_max() > 1) KERNELS_CHECK(step.num_tokens, ==, 1);
    if (step.chosen_max() > 1) KERNELS_CHECK(step.sample, ==, true);
    KERNELS_CHECK(step.computed, ==, static_cast<int64_t>(kv.size()));
    KERNELS_CHECK(step.computed + step.rows(), <=, int64_t{step.num_pages} * options_.page_tokens);
    for (int64_t i = 0; i < step.computed; ++i) KERNELS_CHECK(PageToken(step, i), ==, kv[i]);
    kv.insert(kv.end(), step.tokens, step.tokens + step.num_tokens);
    SequenceResult result;
    if (!step.sample) {
      WritePages(step, kv);
      return result;
    }
    result.num_drafted = step.chosen_max() - 1;
    result.took_own = step.brings_drafts();
    if (step.wants_drafts()) result.num_accepted = accept(result.num_drafted);
    for (int i = 0; i <= result.num_accepted; ++i) {
      const int32_t token = ScriptedToken(step.sampling.seed, static_cast<int64_t>(kv.size()),
                                          kv.back(), options_.vocabulary);
      ChosenToken chosen{.token = token, .logprob = -0.5f, .top_tokens = {}, .top_logprobs = {}};
      for (int k = 0; k < step.logprobs; ++k) {
        chosen.top_tokens.push_back(k);
        chosen.top_logprobs.push_back(-1.0f - static_cast<float>(k));
      }
      result.chosen.push_back(std::move(chosen));
      if (i < step.num_drafts && step.drafts[i] == token) ++result.num_accepted;
      if (i < result.num_accepted) kv.push_back(token);  // the last one is the next anchor
    }
    WritePages(step, kv);
    return result;
  }
  int32_t& PageToken(const SequenceStep& step, int64_t position) {
    return pages_.at(step.pages[position / options_.page_tokens])
        .at(position % options_.page_tokens);
  }
  // Rejected drafts leave something else behind.
  void WritePages(const SequenceStep& step, const std::vector<int32_t>& kv) {
    const auto computed = static_cast<int64_t>(kv.size());
    for (int64_t i = step.computed; i < computed; ++i) PageToken(step, i) = kv[i];
    for (int64_t i = computed; i < step.computed + step.rows(); ++i) PageToken(step, i) = -2;
  }

  const ScriptedOptions options_;
  ModelConfig config_;
  std::vector<std::vector<int32_t>> slots_;      // tokens whose KV it holds
  std::vector<std::vector<int32_t>> snapshots_;  // likewise
  std::vector<std::vector<int32_t>> pages_;      // [num_pages, page_tokens]
};

// Keeps everything that one request was sent.
class RecordingSink : public TokenSink {
 public:
  void OnTokens(TokenEvent event) override {
    KERNELS_CHECK(num_terminal, ==, 0);  // nothing may follow the terminal event
    for (const ChosenToken& chosen : event.tokens) tokens.push_back(chosen.token);
    usage = event.usage;
    KERNELS_CHECK(usage.completion_tokens, ==, static_cast<int64_t>(tokens.size()));
    if (event.finish != FinishReason::kNone) {
      finish = event.finish;
      stop_token = event.stop_token;
      ++num_terminal;
    }
    ++num_events;
  }

  std::vector<int32_t> tokens;
  UsageCounts usage;
  FinishReason finish = FinishReason::kNone;
  int32_t stop_token = -1;
  int num_events = 0;
  int num_terminal = 0;
};

inline RequestSpec MakeSpec(const std::string& id, int num_prompt_tokens, int64_t max_tokens,
                            Tier tier = Tier::kStandard) {
  RequestSpec spec;
  spec.id = id;
  for (int i = 0; i < num_prompt_tokens; ++i) spec.prompt.push_back((i * 37 + 11) % 1000);
  spec.max_tokens = max_tokens;
  spec.tier = tier;
  spec.sampling.seed = 42;
  return spec;
}

}  // namespace ultraspeed::worker
