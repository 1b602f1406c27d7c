// How the latest requests of this worker ended: a bounded ring that outlives the calls, so that
// another router can settle what one that died left open (ListRecords in worker.proto). Filled by
// GenerateStream, read by WorkerService. Memory only: a worker that dies takes its records along,
// and the sweeper then charges nothing. Thread contract: any thread; every operation is O(1).
#pragma once

#include <cstddef>
#include <deque>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "worker/request.h"

namespace ultraspeed::worker {

struct TerminalRecord {
  UsageCounts usage;
  FinishReason finish = FinishReason::kNone;
  double tokens_per_second = 0;  // as TerminalRecord in worker.proto
  int64_t resumed_tokens = 0;    // of the request
};

class TerminalRecords {
 public:
  // REQUIRES: capacity >= 1.
  explicit TerminalRecords(size_t capacity) : capacity_(capacity) {}

  // The request is about to be submitted.
  void Begin(const std::string& request_id);
  // The engine did not take it.
  void Withdraw(const std::string& request_id);
  // It has ended. The oldest record goes when there are more than `capacity`; an id that comes
  // again replaces its record.
  void End(const std::string& request_id, const TerminalRecord& record);

  bool IsLive(absl::string_view request_id) const;
  std::optional<TerminalRecord> Find(absl::string_view request_id) const;

 private:
  void WithdrawLocked(const std::string& request_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const size_t capacity_;
  mutable absl::Mutex mutex_;
  // How many calls hold the id: a second one of a running id is refused, and withdraws only itself.
  absl::flat_hash_map<std::string, int> live_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<std::string, TerminalRecord> ended_ ABSL_GUARDED_BY(mutex_);
  std::deque<std::string> ids_ ABSL_GUARDED_BY(mutex_);  // of ended_, oldest first
};

}  // namespace ultraspeed::worker
