#include "worker/engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace ultraspeed::worker {
namespace {

constexpr double kAcceptanceFade = 0.05;  // weight of the newest decode step in the reported mean
constexpr absl::Duration kIdleReport = absl::Seconds(1);  // RateMeter's span: the rate is 0 by then

int DraftBlock(const ModelConfig& config) { return std::min(config.draft_block(), kDraftBlockMax); }

SchedulerOptions ForExecutor(SchedulerOptions options, const Executor& executor) {
  options.draft_block_max = DraftBlock(executor.config());
  options.decode_blocks_max = executor.decode_blocks();
  options.given_drafts_max = executor.given_drafts_max();
  options.max_batch_tokens = executor.max_batch_tokens();
  return options;
}

RequestBounds BoundsOf(const Executor& executor) {
  const int64_t kv_tokens = int64_t{executor.num_pages()} * executor.page_tokens();
  return {.context_tokens = std::min(executor.config().context_tokens, kv_tokens),
          .vocabulary = executor.vocabulary_used()};
}

int64_t TenthOf(absl::Duration time) { return time / absl::Milliseconds(100); }

}  // namespace

void RateMeter::Add(absl::Duration now, int64_t count) {
  const int64_t index = TenthOf(now);
  Bucket& bucket = buckets_[index % kBuckets];
  if (bucket.index != index) bucket = {.index = index, .count = 0};
  bucket.count += count;
}

double RateMeter::PerSecond(absl::Duration now) const {
  const int64_t newest = TenthOf(now);
  int64_t sum = 0;
  for (const Bucket& bucket : buckets_) {
    if (bucket.index > newest - kBuckets) sum += bucket.count;
  }
  return static_cast<double>(sum);
}

Engine::Engine(std::unique_ptr<Executor> executor, EngineOptions options, const Clock& clock,
               EngineObserver* observer)
    : executor_(std::move(executor)),
      options_(options),
      clock_(clock),
      observer_(observer),
      bounds_(BoundsOf(*executor_)),
      kv_(executor_->max_sequences(), executor_->num_pages(), executor_->page_tokens()),
      prefixes_(kv_, executor_->num_snapshots()),
      scheduler_(ForExecutor(options.scheduler, *executor_)) {
  load_.running_max = executor_->max_sequences();
  load_.kv_tokens_max = kv_.tokens_max();
}

Engine::~Engine() { Stop(); }

void Engine::Start() {
  KERNELS_CHECK(thread_.joinable(), ==, false);
  thread_ = std::thread([this] { Run(); });
}

void Engine::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) {
    thread_.join();
  } else {
    EndAll(FinishReason::kShutdown);
  }
}

void Engine::WaitReady() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&ready_));
}

absl::Status Engine::Submit(RequestSpec spec, std::shared_ptr<TokenSink> sink) {
  if (absl::Status status = ValidateRequest(spec, bounds_); !status.ok()) return status;
  auto sequence = std::make_unique<Sequence>(std::move(spec), std::move(sink), clock_.Monotonic());
  const std::string& id = sequence->spec().id;
  absl::MutexLock lock(&mutex_);
  if (load_.draining || stopping_) return absl::UnavailableError("the worker is draining");
  if (live_ids_.count(id) != 0)
    return absl::AlreadyExistsError(absl::StrCat("request_id=", id, ": is running already"));
  const int live_max = load_.running_max + options_.waiting_max;
  if (static_cast<int>(live_ids_.size()) >= live_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("requests running and waiting: ", live_ids_.size(), "; at most ", live_max));
  }
  live_ids_.insert(id);
  inbox_.push_back(std::move(sequence));
  return absl::OkStatus();
}

bool Engine::Cancel(const std::string& id) {
  absl::MutexLock lock(&mutex_);
  if (live_ids_.count(id) == 0) return false;
  cancels_.insert(id);
  return true;
}

void Engine::Drain() {
  absl::MutexLock lock(&mutex_);
  load_.draining = true;
}

bool Engine::WaitIdle(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return live_ids_.empty(); };
  return mutex_.AwaitWithTimeout(absl::Condition(&idle), timeout);
}

EngineLoad Engine::Load() const {
  absl::MutexLock lock(&mutex_);
  return LoadLocked();
}

EngineLoad Engine::LoadLocked() const {
  EngineLoad load = load_;
  load.running = static_cast<int>(running_ids_.size());
  load.waiting = static_cast<int>(live_ids_.size() - running_ids_.size());
  load.tokens_per_second = rate_.PerSecond(clock_.Monotonic());
  return load;
}

std::vector<std::string> Engine::RunningIds() const {
  absl::MutexLock lock(&mutex_);
  return running_ids_;
}

void Engine::Run() {
  WarmUp();
  {
    absl::MutexLock lock(&mutex_);
    ready_ = true;
  }
  bool idle_reported = true;
  const auto wake = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !inbox_.empty() || !cancels_.empty();
  };
  while (true) {
    if (Step()) idle_reported = false;
    bool report = false;
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) break;
      if (running_.empty() && waiting_.empty()) {
        const bool woken = mutex_.AwaitWithTimeout(
            absl::Condition(&wake), idle_reported ? absl::InfiniteDuration() : kIdleReport);
        report = !woken;
      }
    }
    if (report && observer_ != nullptr) observer_->OnLoad(Load());
    idle_reported = idle_reported || report;
  }
  EndAll(FinishReason::kShutdown);
}

bool Engine::Step() {
  DrainInbox();
  SaveSnapshots();
  AdmitWaiting();
  const bool any_ended = !emissions_.empty();
  const Plan plan = scheduler_.PlanRound(running_);
  Emit();  // what was cancelled does not wait for the round
  if (plan.empty()) return any_ended;
  RunRound(plan);
  Emit();
  SaveSnapshots();
  return true;
}

void Engine::WarmUp() {
  // Two prompt tokens, then one round with the largest block: every kernel and every page of
  // weights has been touched once.
  const int block = std::min<int>(DraftBlock(executor_->config()), bounds_.context_tokens - 2);
  const std::vector<int32_t> tokens(2, 0);
  std::vector<int32_t> pages;
  for (int page = 0;
       page < executor_->num_pages() && page * executor_->page_tokens() < 2 + kDraftBlockMax;
       ++page)
    pages.push_back(page);
  executor_->ResetSlot(0);
  SequenceStep step{.slot = 0,
                    .computed = 0,
                    .tokens = tokens.data(),
                    .num_tokens = 2,
                    .sample = true,
                    .block = 1,
                    .pages = pages.data(),
                    .num_pages = static_cast<int>(pages.size()),
                    .sampling = {},
                    .logprobs = -1};
  const RoundResult prefill = executor_->Run({.steps = {step}});
  if (block >= 1) {
    const int32_t anchor = prefill.sequences[0].chosen[0].token;
    step.computed = 2;
    step.tokens = &anchor;
    step.num_tokens = 1;
    step.block = block;
    executor_->Run({.steps = {step}});
  }
  executor_->ResetSlot(0);
}

void Engine::DrainInbox() {
  std::set<std::string> cancels;
  {
    absl::MutexLock lock(&mutex_);
    for (auto& sequence : inbox_) waiting_.push_back(std::move(sequence));
    inbox_.clear();
    cancels.swap(cancels_);
  }
  if (cancels.empty()) return;
  const auto end_cancelled = [&](auto& sequences) {
    for (auto it = sequences.begin(); it != sequences.end();) {
      if (cancels.count((*it)->spec().id) == 0) {
        ++it;
        continue;
      }
      std::unique_ptr<Sequence> sequence = std::move(*it);
      it = sequences.erase(it);
      TokenEvent terminal = sequence->End(FinishReason::kCancelled);
      End(std::move(sequence), std::move(terminal));
    }
  };
  end_cancelled(waiting_);
  end_cancelled(running_);
}

void Engine::AdmitWaiting() {
  while (std::unique_ptr<Sequence> sequence = scheduler_.Admit(waiting_, kv_)) {
    Place(*sequence);
    running_.push_back(std::move(sequence));
  }
  // With nothing running all memory is free, and ValidateRequest let in nothing larger.
  KERNELS_CHECK((running_.empty() && !waiting_.empty()), ==, false);
}

void Engine::Place(Sequence& sequence) {
  sequence.speculation = SpeculationState(drafting_.acceptance());
  // At least the last token of the prompt has to run: it chooses the first new one.
  const PrefixMatch match =
      prefixes_.Find(sequence.spec().cache_scope,
                     sequence.tokens().first(static_cast<size_t>(sequence.prompt_tokens()) - 1));
  sequence.lease = kv_.Begin(match.pages);
  prefixes_.MakeRoom(kv_.PagesFor(sequence.max()) - static_cast<int64_t>(match.pages.size()));
  kv_.Extend(sequence.lease, sequence.max());
  sequence.shared_tokens = match.num_known;
  if (match.num_tokens == 0) {
    executor_->ResetSlot(sequence.lease.slot);
    return;
  }
  executor_->LoadSnapshot(match.snapshot, sequence.lease.slot, match.num_tokens);
  sequence.StartAt(match.num_tokens);
}

void Engine::RunRound(const Plan& plan) {
  const absl::Duration started_at = clock_.Monotonic();
  RoundResult result = executor_->Run(plan.round);
  const absl::Duration now = clock_.Monotonic();
  KERNELS_CHECK(result.sequences.size(), ==, plan.sequences.size());
  scheduler_.RecordRound(now - started_at);
  ReportRound(plan, result, now - started_at);
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    Sequence& sequence = *plan.sequences[i];
    const SequenceStep& step = plan.round.steps[i];
    SequenceResult& outcome = result.sequences[i];
    KERNELS_CHECK(outcome.chosen.empty(), ==, !step.sample);
    KERNELS_CHECK(static_cast<int>(outcome.chosen.size()), <=,
                  outcome.took_own ? step.chosen_max() : step.block);
    if (step.sample && !outcome.took_own) {
      sequence.speculation.Record(step.block - 1, outcome.num_accepted);
      drafting_.Record(step.block - 1, outcome.num_accepted);
    }
    sequence.lookup.Record(outcome.chosen);
    TokenEvent event = sequence.Advance(step.num_tokens, std::move(outcome));
    KeepPrompt(sequence, step.computed);
    if (event.tokens.empty()) continue;
    if (sequence.first_event_tokens == 0) {
      sequence.first_token_at = now;
      sequence.first_event_tokens = static_cast<int64_t>(event.tokens.size());
    }
    sequence.last_token_at = now;
    if (event.finish == FinishReason::kNone) {
      emissions_.push_back({&sequence, std::move(event)});
      continue;
    }
    const auto found = std::find_if(running_.begin(), running_.end(), [&](const auto& running) {
      return running.get() == &sequence;
    });
    std::unique_ptr<Sequence> ended = std::move(*found);
    running_.erase(found);
    End(std::move(ended), std::move(event));
  }
}

void Engine::KeepPrompt(const Sequence& sequence, int64_t computed_before) {
  const int64_t page = kv_.page_tokens();
  // Where the prompt parts from a known one, and where it ends for somebody who repeats it.
  for (const int64_t border :
       {sequence.shared_tokens, (sequence.prompt_tokens() - 1) / page * page}) {
    if (computed_before < border && border <= sequence.computed()) Keep(sequence, border);
  }
}

void Engine::Keep(const Sequence& sequence, int64_t num_tokens) {
  const int snapshot = prefixes_.Keep(sequence.spec().cache_scope,
                                      sequence.tokens().first(static_cast<size_t>(num_tokens)),
                                      sequence.lease.pages);
  if (snapshot >= 0) pending_snapshots_.push_back({snapshot, sequence.lease.slot, num_tokens});
}

void Engine::SaveSnapshots() {
  for (const PendingSnapshot& pending : pending_snapshots_)
    executor_->SaveSnapshot(pending.snapshot, pending.slot, pending.position);
  pending_snapshots_.clear();
}

void Engine::End(std::unique_ptr<Sequence> sequence, TokenEvent terminal) {
  if (sequence->lease.slot >= 0) {
    const int64_t whole_pages = sequence->computed() / kv_.page_tokens() * kv_.page_tokens();
    if (whole_pages > 0 && terminal.finish != FinishReason::kShutdown) Keep(*sequence, whole_pages);
    kv_.Release(sequence->lease);
  }
  emissions_.push_back({sequence.get(), std::move(terminal)});
  ended_.push_back(std::move(sequence));
}

void Engine::EndAll(FinishReason reason) {
  DrainInbox();
  const auto end_all = [&](auto& sequences) {
    while (!sequences.empty()) {
      std::unique_ptr<Sequence> sequence = std::move(sequences.back());
      sequences.pop_back();
      TokenEvent terminal = sequence->End(reason);
      End(std::move(sequence), std::move(terminal));
    }
  };
  end_all(waiting_);
  end_all(running_);
  Emit();
}

void Engine::Emit() {
  EngineLoad load;
  {
    absl::MutexLock lock(&mutex_);
    for (const Emission& emission : emissions_) {
      rate_.Add(clock_.Monotonic(), static_cast<int64_t>(emission.event.tokens.size()));
      if (emission.event.finish == FinishReason::kNone) continue;
      const std::string& id = emission.sequence->spec().id;
      live_ids_.erase(id);
      cancels_.erase(id);  // came too late
      load_.prompt_tokens_total += emission.event.usage.prompt_tokens;
      load_.completion_tokens_total += emission.event.usage.completion_tokens;
      ++load_.requests_total;
    }
    running_ids_.clear();
    for (const auto& sequence : running_) running_ids_.push_back(sequence->spec().id);
    load_.kv_tokens_used = kv_.tokens_used();
    load_.mean_acceptance_length = mean_acceptance_length_;
    load = LoadLocked();
  }
  for (Emission& emission : emissions_) {
    if (emission.event.finish != FinishReason::kNone)
      ReportFinish(*emission.sequence, emission.event);
    emission.sequence->sink().OnTokens(std::move(emission.event));
  }
  emissions_.clear();
  ended_.clear();
  if (observer_ != nullptr) observer_->OnLoad(load);
}

void Engine::ReportRound(const Plan& plan, const RoundResult& result, absl::Duration duration) {
  RoundStats stats{.num_sequences = static_cast<int>(plan.sequences.size()),
                   .num_rows = 0,
                   .duration = duration,
                   .acceptance = &acceptance_};
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    const SequenceStep& step = plan.round.steps[i];
    const SequenceResult& outcome = result.sequences[i];
    stats.num_rows += step.num_tokens + outcome.num_drafted;
    acceptance_.Record(outcome);
    if (!plan.sequences[i]->is_decoding()) continue;
    const int num_chosen = static_cast<int>(outcome.chosen.size());
    stats.decode_tokens.push_back(num_chosen);
    mean_acceptance_length_ += (mean_acceptance_length_ == 0 ? 1.0 : kAcceptanceFade) *
                               (num_chosen - mean_acceptance_length_);
  }
  if (observer_ != nullptr) observer_->OnRound(stats);
}

void Engine::ReportFinish(const Sequence& sequence, const TokenEvent& event) {
  if (observer_ == nullptr) return;
  RequestStats stats{.usage = event.usage, .finish = event.finish};
  if (sequence.first_event_tokens > 0)
    stats.time_to_first_token = sequence.first_token_at - sequence.submitted_at();
  const int64_t later_tokens = event.usage.completion_tokens - sequence.first_event_tokens;
  if (later_tokens > 0) {
    stats.time_per_output_token =
        (sequence.last_token_at - sequence.first_token_at) / static_cast<double>(later_tokens);
  }
  observer_->OnFinish(stats);
}

void Engine::CheckIntegrity() const {
  kv_.CheckIntegrity();
  prefixes_.CheckIntegrity();
  KERNELS_CHECK(pending_snapshots_.size(), ==, size_t{0});
  std::set<int32_t> pages;
  std::set<int> slots;
  for (const auto& sequence : running_) {
    KERNELS_CHECK(sequence->lease.slot, >=, 0);
    KERNELS_CHECK(slots.insert(sequence->lease.slot).second, ==, true);
    KERNELS_CHECK(sequence->pending(), >=, 1);
    pages.insert(sequence->lease.pages.begin(), sequence->lease.pages.end());
  }
  KERNELS_CHECK(static_cast<int64_t>(pages.size()) * kv_.page_tokens(), ==, kv_.tokens_used());
  KERNELS_CHECK(static_cast<int>(running_.size()), ==, kv_.num_slots() - kv_.slots_free());
  absl::MutexLock lock(&mutex_);
  KERNELS_CHECK(live_ids_.size(), ==, running_.size() + waiting_.size() + inbox_.size());
  KERNELS_CHECK(emissions_.size() + ended_.size(), ==, size_t{0});
  for (const std::string& id : cancels_) KERNELS_CHECK(live_ids_.count(id), ==, size_t{1});
}

}  // namespace ultraspeed::worker
