// The way of ledger writes to the store: in order, in batches, on one thread, so that no stream
// ever waits for the database at its end. While the store is away they wait in a local file
// (OutboxFile) and are written when it is back; every write may be repeated, the store takes it
// once.
//
//   Settlement (closings), Admission (openings while the store is away) -> Outbox -> Store
//
// Bounds: Options::writes_max. When as many wait, Admission refuses new requests; closings of
// running ones are always taken. What is in memory when a router dies is not lost either: the
// entries are still open, and another router's Sweeper settles them.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/metrics.h"
#include "router/outbox_file.h"
#include "router/store.h"

namespace ultraspeed::router {

// Thread contract: every method may be called from any thread; none blocks but Flush.
class Outbox {
 public:
  struct Options {
    Store* store = nullptr;  // must outlive the outbox
    std::string path = {};   // of the file; empty: writes wait in memory
    int64_t writes_max = 1'000'000;
    absl::Duration retry_interval = absl::Milliseconds(200);  // while the store is away
    absl::Duration close_timeout = absl::Seconds(5);  // what destruction waits for the store
    Metrics* metrics = nullptr;                       // may be null
  };

  // Begins with what an earlier process left in the file. Errors are OutboxFile's.
  static absl::StatusOr<std::unique_ptr<Outbox>> Create(Options options);
  // Writes what is left, up to close_timeout; the rest stays in the file.
  ~Outbox();

  // Taken for certain, in the order of the calls.
  void Add(LedgerWrite write);

  // True from a write that the store did not take until all that waited are written.
  bool store_is_away() const { return store_is_away_.load(std::memory_order_relaxed); }
  bool is_full() const { return depth() >= options_.writes_max; }
  int64_t depth() const { return depth_.load(std::memory_order_relaxed); }  // not written yet
  // Waits until everything added so far is in the store. False after `timeout`.
  bool Flush(absl::Duration timeout);

 private:
  explicit Outbox(Options options, std::unique_ptr<OutboxFile> file);

  // The outbox's thread.
  void Run();
  // One attempt to write everything: file first, then kept_. What is left goes to the file.
  void DeliverAll();
  absl::Status DeliverFile();
  // Writes a prefix of `writes` and returns its length; less than all: the store is away.
  size_t Deliver(absl::Span<const LedgerWrite> writes);
  size_t DeliverClosings(absl::Span<const LedgerWrite> writes);
  void Report(const std::string& request_id, const absl::StatusOr<CloseOutcome>& outcome);
  void CountWritten(size_t num_writes);

  const Options options_;
  const std::unique_ptr<OutboxFile> file_;  // null without a path; the thread's
  std::vector<LedgerWrite> kept_;           // after those in the file; the thread's
  bool file_failed_ = false;                // the last time it was written to; the thread's

  std::atomic<int64_t> depth_{0};
  std::atomic<bool> store_is_away_{false};
  absl::Mutex mutex_;
  std::deque<LedgerWrite> added_ ABSL_GUARDED_BY(mutex_);
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace ultraspeed::router
