// One client stream from acceptance to its last chunk: waits for its turn, places the request on a
// worker, turns token ids into text, watches stop strings, writes chunks, and ends. Created by
// InferenceService; keeps itself alive until gRPC and its worker call are done with it.
//
// Surprising:
//   * A StreamRelay is the guard of its request: it owns the settlement (limits, ledger entry), the
//     ticket in the queue, and the worker call, which owns the worker's lease and the place that
//     the queue gave. It settles in OnDone, which gRPC calls exactly once however the stream ended.
//   * Sent is what gRPC said it had written. A chunk that was handed over but not written when the
//     client left is not billed.
//   * One write is in flight at most; what arrives meanwhile is merged into one chunk. If the
//     client is so slow that limits::kUnsentTextBytesMax wait, the worker's stream is not read
//     until it caught up.
//   * When a stop string matches, completion_tokens counts the tokens up to and including the one
//     that completed the match. Later tokens of the same round are dropped, and the worker call is
//     cancelled.
//   * A worker that fails is replaced: before the first token the request begins again elsewhere,
//     after it another worker goes on behind the tokens so far (generation.h). The caller sees a
//     pause, and UNAVAILABLE only if there is nobody to go on; with worker_wait only if nobody
//     comes within that time, for which the request goes back to the queue.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "router/answer_text.h"
#include "router/generation.h"
#include "router/request_queue.h"
#include "router/router_metrics.h"
#include "router/settlement.h"
#include "router/speed_promise.h"
#include "router/worker_pool.h"

namespace ultraspeed::router {

// A request that passed every check and is ready to be placed.
struct RelayRequest {
  std::shared_ptr<const ServedModel> model;
  v1::WorkerGenerateRequest worker_request;  // complete but for the tier, with request_id
  std::vector<std::string> stop;
  std::optional<ToolUse> tools;
  std::string opening = {};  // the end of the prompt, where that is the beginning of the text
};

// Goes out with the first response, refusals included.
using ResponseMetadata = std::vector<std::pair<std::string, std::string>>;

// Thread contract: Begin and Fail once, from any thread, one of the two; the rest is called by
// gRPC and by the queue.
class StreamRelay : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                    public std::enable_shared_from_this<StreamRelay> {
 public:
  struct Options {
    grpc::CallbackServerContext* context = nullptr;  // outlives OnDone
    WorkerPool* pool = nullptr;
    RequestQueue* queue = nullptr;
    RouterMetrics* metrics = nullptr;
    const Clock* clock = nullptr;
    absl::string_view method;  // static storage
    // For a worker, where the model has none that takes requests.
    absl::Duration worker_wait = absl::ZeroDuration();
  };

  // Starts the clock of the request, mints its id and announces it as initial metadata
  // x-request-id.
  static std::shared_ptr<StreamRelay> Create(const Options& options);

  const std::string& request_id() const { return request_id_; }
  // For the log line only.
  void SetCaller(std::string tenant, std::string key_id, std::string client_request_id);

  void Begin(RelayRequest request, Settlement settlement, const ResponseMetadata& metadata);
  void Fail(const absl::Status& status, const ResponseMetadata& metadata = {});

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  class WorkerCall;

  explicit StreamRelay(const Options& options);

  // From WorkerCall. OnWorkerChunk returns whether to read on now; if not, ResumeReading comes
  // later or the call is over.
  bool OnWorkerChunk(WorkerCall* call, const v1::WorkerGenerateChunk& chunk);
  void OnWorkerDone(WorkerCall* call, const WorkerPool::Lease& lease, RequestQueue::Place place,
                    const absl::Status& status);

  void AwaitTurn() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether there is time left to wait for a worker; the first call begins the time.
  bool MayAwaitWorker() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnTurn(absl::StatusOr<RequestQueue::Place> place);  // from the queue
  void FailQueued(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Place(absl::StatusOr<WorkerPool::Lease> lease, RequestQueue::Place place)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void GoOnOrFail(const WorkerPool::Lease& lease, RequestQueue::Place place,
                  const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AppendTokens(const v1::WorkerGenerateChunk& chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CompareCounts(const v1::Usage& worker_usage) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndOfText(v1::FinishReason reason, int32_t stop_token_id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Flush() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FailLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FillTiming(v1::Timing* timing) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddMetadata(const ResponseMetadata& metadata) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  RequestOutcome Outcome(absl::StatusCode code) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool is_over() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return terminal_ || failure_.has_value();
  }

  grpc::CallbackServerContext* const context_;
  WorkerPool* const pool_;
  RequestQueue* const queue_;
  RouterMetrics* const metrics_;
  const Clock* const clock_;
  const absl::string_view method_;
  const absl::Duration worker_wait_;
  const std::string request_id_;
  const absl::Duration arrival_;
  const std::chrono::system_clock::time_point deadline_;

  absl::Mutex mutex_;
  std::shared_ptr<StreamRelay> self_ ABSL_GUARDED_BY(mutex_);  // until OnDone
  std::string tenant_ ABSL_GUARDED_BY(mutex_);
  std::string key_id_ ABSL_GUARDED_BY(mutex_);
  std::string client_request_id_ ABSL_GUARDED_BY(mutex_);

  std::shared_ptr<const ServedModel> model_ ABSL_GUARDED_BY(mutex_);  // null until Begin
  Generation generation_ ABSL_GUARDED_BY(mutex_);
  Settlement settlement_ ABSL_GUARDED_BY(mutex_);
  uint64_t queue_ticket_ ABSL_GUARDED_BY(mutex_) = 0;  // 0: does not wait
  // Of the wait for a worker since the last token; absent: none began.
  std::optional<absl::Duration> worker_deadline_ ABSL_GUARDED_BY(mutex_);
  std::optional<AnswerText> answer_ ABSL_GUARDED_BY(mutex_);  // absent until Begin

  std::shared_ptr<WorkerCall> call_
      ABSL_GUARDED_BY(mutex_);  // null between placements and after the end
  absl::flat_hash_set<int> tried_workers_ ABSL_GUARDED_BY(mutex_);  // since the last token
  uint64_t preferred_worker_ ABSL_GUARDED_BY(mutex_) = 0;
  int num_failures_ ABSL_GUARDED_BY(mutex_) = 0;  // of workers
  std::string worker_address_ ABSL_GUARDED_BY(mutex_);

  v1::GenerateChunk pending_ ABSL_GUARDED_BY(mutex_);  // not written yet
  bool has_pending_ ABSL_GUARDED_BY(mutex_) = false;
  // What gRPC writes now. It keeps the address, not a copy, when the call is not bound yet.
  grpc::ByteBuffer write_bytes_ ABSL_GUARDED_BY(mutex_);
  bool write_in_flight_ ABSL_GUARDED_BY(mutex_) = false;
  bool reading_paused_ ABSL_GUARDED_BY(mutex_) = false;
  bool terminal_ ABSL_GUARDED_BY(mutex_) = false;  // pending_ holds (or held) the terminal chunk
  std::optional<absl::Status> failure_ ABSL_GUARDED_BY(mutex_);
  v1::FinishReason finish_reason_ ABSL_GUARDED_BY(mutex_) =
      v1::FINISH_REASON_UNSPECIFIED;               // of the terminal chunk, once it was written
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;  // Finish was called

  v1::Usage written_usage_ ABSL_GUARDED_BY(mutex_);  // of what was handed to gRPC
  v1::Usage sent_usage_ ABSL_GUARDED_BY(mutex_);     // of what gRPC has written
  DecodeSpeed speed_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Duration> dispatch_time_ ABSL_GUARDED_BY(mutex_);  // of the first placement
  std::optional<absl::Duration> first_token_time_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Duration> first_write_time_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Duration> last_token_time_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ultraspeed::router
