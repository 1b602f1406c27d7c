// The engine: owner of every running request and of the executor, on one thread of its own.
//
// Submit, Cancel, Drain and the load report are called by the service from any thread and only
// leave messages; the engine thread sees them at the next round boundary. It then runs rounds at
// its own pace: drain inbox -> schedule -> run -> emit -> retire. What ended sequences and prompts
// have computed is kept for requests that begin alike (prefix_cache.h), as long as nobody needs the
// memory. It sleeps when idle. Bounds: at most Executor::max_sequences() requests run, and at most
// that many plus waiting_max are accepted and not ended.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/limits.h"
#include "worker/executor.h"
#include "worker/kv_cache.h"
#include "worker/prefix_cache.h"
#include "worker/request.h"
#include "worker/scheduler.h"

namespace ultraspeed::worker {

struct EngineOptions {
  int waiting_max = limits::kWaitingRequestsMax;
  SchedulerOptions scheduler = {};  // draft_block_max, decode_blocks_max, given_drafts_max and
                                    // max_batch_tokens are the executor's
};

// What GetLoad reports.
struct EngineLoad {
  int running = 0;
  int waiting = 0;
  int running_max = 0;
  int64_t kv_tokens_used = 0;
  int64_t kv_tokens_max = 0;
  double tokens_per_second = 0;  // committed over the last second
  double mean_acceptance_length =
      0;  // tokens per sequence and decode round, recent rounds; 0 before the first
  bool draining = false;
  uint64_t prompt_tokens_total = 0;  // of ended requests
  uint64_t completion_tokens_total = 0;
  uint64_t requests_total = 0;
};

struct RoundStats {
  int num_sequences = 0;
  int num_rows = 0;
  absl::Duration duration;
  std::vector<int> decode_tokens = {};           // tokens chosen per decoding sequence
  const AcceptanceTotals* acceptance = nullptr;  // since start; valid during the call
};

struct RequestStats {
  UsageCounts usage;
  FinishReason finish = FinishReason::kNone;
  absl::Duration time_to_first_token = {};  // Submit to first token; zero when there was none
  absl::Duration time_per_output_token =
      {};  // of the tokens after the first event; zero when there were none
};

// Metrics. Called on the engine thread.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  virtual void OnRound(const RoundStats& stats) = 0;
  virtual void OnFinish(const RequestStats& stats) = 0;
  virtual void OnLoad(const EngineLoad& load) = 0;  // after every round that ran, and once when the
                                                    // engine falls idle
};

// Tokens of about the last second, in tenths. Pure; the owner locks.
class RateMeter {
 public:
  void Add(absl::Duration now, int64_t count);
  double PerSecond(absl::Duration now) const;

 private:
  static constexpr int kBuckets = 10;
  struct Bucket {
    int64_t index = -1;  // tenth of a second since the clock's origin
    int64_t count = 0;
  };
  std::array<Bucket, kBuckets> buckets_{};
};

class Engine {
 public:
  // `clock` and `observer` (may be null) are not owned.
  Engine(std::unique_ptr<Executor> executor, EngineOptions options, const Clock& clock,
         EngineObserver* observer);
  // Stops. Every request that is still alive gets its terminal event first.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Starts the engine thread; it first runs a warm-up round. Tests that call Step do not call it.
  void Start();
  // Ends what is left with FinishReason::kShutdown and joins the thread. Idempotent.
  void Stop();
  // Blocks until the warm-up round is over.
  void WaitReady();

  // INVALID_ARGUMENT (field, value, bound), ALREADY_EXISTS (id), RESOURCE_EXHAUSTED (too many
  // waiting), UNAVAILABLE (draining). After OK the sink gets events, the last of which is terminal.
  absl::Status Submit(RequestSpec spec, std::shared_ptr<TokenSink> sink);
  // The request ends with kCancelled at the next round boundary. False: no such request.
  bool Cancel(const std::string& id);
  // Refuses new requests from now on; accepted ones finish. Idempotent.
  void Drain();
  // True when every accepted request has ended.
  bool WaitIdle(absl::Duration timeout);

  EngineLoad Load() const;
  std::vector<std::string> RunningIds() const;
  RequestBounds bounds() const { return bounds_; }
  const ModelConfig& config() const { return executor_->config(); }
  std::string device() const { return executor_->device(); }

  // One round on the caller's thread. False when there was nothing to do. REQUIRES: Start was not
  // called.
  bool Step();
  // Aborts unless pages, slots and sequences agree. REQUIRES: as Step.
  void CheckIntegrity() const;

 private:
  struct Emission {
    Sequence* sequence;
    TokenEvent event;
  };
  struct PendingSnapshot {
    int snapshot;
    int slot;
    int64_t position;
  };

  void Run();
  void WarmUp();
  void DrainInbox();
  void AdmitWaiting();
  // The sequence begins where another one has been, if it can; it has its slot and its pages then.
  void Place(Sequence& sequence);
  void RunRound(const Plan& plan);
  // Remembers the pages that the round completed, where a snapshot is worth it.
  void KeepPrompt(const Sequence& sequence, int64_t computed_before);
  void Keep(const Sequence& sequence, int64_t num_tokens);
  // Before any slot is used again. After Emit: nobody waits for it.
  void SaveSnapshots();
  void End(std::unique_ptr<Sequence> sequence, TokenEvent terminal);
  void EndAll(FinishReason reason);
  // Publishes load and totals, then delivers the emissions: who sees a terminal event sees the slot
  // free and the totals complete.
  void Emit();
  void ReportRound(const Plan& plan, const RoundResult& result, absl::Duration duration);
  void ReportFinish(const Sequence& sequence, const TokenEvent& event);
  EngineLoad LoadLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::unique_ptr<Executor> executor_;
  const EngineOptions options_;
  const Clock& clock_;
  EngineObserver* const observer_;
  const RequestBounds bounds_;

  // The engine thread's.
  KvCache kv_;
  PrefixCache prefixes_;
  std::vector<PendingSnapshot> pending_snapshots_;
  Scheduler scheduler_;
  Scheduler::Waiting waiting_;
  Scheduler::Running running_;
  Scheduler::Running ended_;  // kept until their emissions are delivered
  std::vector<Emission> emissions_;
  AcceptanceTotals acceptance_;
  SpeculationState drafting_{kPriorAcceptance, kFadeOfAll};  // of all sequences
  double mean_acceptance_length_ = 0;

  // What crosses threads.
  mutable absl::Mutex mutex_;
  std::deque<std::unique_ptr<Sequence>> inbox_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> live_ids_ ABSL_GUARDED_BY(mutex_);  // accepted and not ended
  std::set<std::string> cancels_ ABSL_GUARDED_BY(mutex_);   // subset of live_ids_
  std::vector<std::string> running_ids_ ABSL_GUARDED_BY(mutex_);
  EngineLoad load_ ABSL_GUARDED_BY(mutex_);
  RateMeter rate_ ABSL_GUARDED_BY(mutex_);
  bool ready_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace ultraspeed::worker
