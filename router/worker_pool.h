// The workers this router was given: their connections, states, load, and the models they serve.
// Called by InferenceService (models) and StreamRelay (leases). One control thread per worker asks
// for model facts, fetches the tokenizer, then asks for the load about every 100 ms; when the
// worker goes away it tries again for ever, with back-off.
//
// A model is what the first ready worker of that name says it is; a worker of the same name with
// other weights or another tokenizer is refused until no ready or draining worker of the old kind
// is left.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/tls.h"
#include "router/chat_template.h"
#include "router/fair_queue.h"
#include "router/reasoning_counter.h"
#include "router/tokenizer.h"
#include "router/validation.h"
#include "ultraspeed/v1/worker.grpc.pb.h"

namespace ultraspeed::router {

// What a request needs to know of a model. Immutable and shared; outlives the workers that serve
// it.
struct ServedModel {
  ModelFacts facts;
  int32_t draft_block_size = 1;
  std::vector<int32_t> eos_token_ids;
  std::shared_ptr<const Tokenizer> tokenizer;  // never null
  ReasoningMarks reasoning_marks;              // of the tokenizer
  absl::StatusOr<ChatTemplate> chat_template =
      absl::UnknownError("");  // the reason if the model cannot chat
  std::string tokenizer_sha256;
  std::string weights_sha256;
};

enum class WorkerState : uint8_t { kConnecting, kReady, kDraining, kLost, kRefused };
inline constexpr int kNumWorkerStates = 5;
absl::string_view WorkerStateName(WorkerState state);

// Thread contract: every method may be called from any thread.
class WorkerPool {
 private:
  struct Worker;

 public:
  struct Options {
    std::vector<std::string>
        addresses;  // host:port or a gRPC name; 1..limits::kWorkersMax, no doubles
    TlsOptions tls;
    absl::Duration load_interval = absl::Milliseconds(100);
    absl::Duration load_stale_after = absl::Milliseconds(500);
    absl::Duration call_timeout = absl::Seconds(1);  // of one control call
    int timeouts_until_lost = 3;  // control calls in a row that a silent worker may miss
    absl::Duration backoff_min = absl::Milliseconds(50);
    absl::Duration backoff_max = absl::Seconds(2);
    const Clock* clock = &RealClock();
    // Told how many requests the ready workers of a model may hold, whenever that may have changed:
    // from control threads, without locks, in any order between models. May be null.
    std::function<void(const std::string& model, const QueueCapacity&)> on_capacity;

    absl::Status Validate() const;
  };

  // One request's place on one worker; its end frees the place, exactly once. Movable.
  class Lease {
   public:
    Lease() = default;
    Lease(Lease&& other) noexcept;
    Lease& operator=(Lease&& other) noexcept;
    ~Lease() { Release(); }
    void Release();

    // REQUIRES for the rest: not empty.
    v1::Worker::Stub* stub() const;
    const std::string& address() const;
    int worker_idx() const;
    // Calls `callback`, at most once, if the worker is found lost while the lease is held: from a
    // control thread, without locks. It may still be running when Release returns, so it must own
    // what it touches.
    void OnLost(std::function<void()> callback);

   private:
    friend class WorkerPool;
    WorkerPool* pool_ = nullptr;
    Worker* worker_ = nullptr;
    uint64_t id_ = 0;
  };

  struct ModelStatus {
    std::shared_ptr<const ServedModel> model;
    int workers_ready = 0;
  };

  static absl::StatusOr<std::unique_ptr<WorkerPool>> Create(Options options);
  // Waits until no lease is left: end every stream first.
  ~WorkerPool();

  // NOT_FOUND names the model and those there are.
  absl::StatusOr<std::shared_ptr<const ServedModel>> FindModel(absl::string_view name) const;
  std::vector<ModelStatus> Models() const;
  // The best worker of the model that is not in `excluded` (worker_idx); of equals the one that
  // `preferred` names (routing_policy.h). UNAVAILABLE if there is none.
  absl::StatusOr<Lease> Acquire(const ServedModel& model, const absl::flat_hash_set<int>& excluded,
                                uint64_t preferred);
  // A stream there has just broken: until the worker answers a control call it gets no requests and
  // has no places.
  void Doubt(const Lease& lease);
  std::array<int, kNumWorkerStates> CountStates() const;
  bool AnyReady() const;
  // That Acquire might choose.
  bool AnyReady(const ServedModel& model) const;
  struct WorkerRecords {
    std::string address;
    v1::ListRecordsResponse response;
  };
  // What every reachable worker knows of these requests. Blocks, up to call_timeout a worker; an id
  // that no answer names is known to none that could be asked.
  std::vector<WorkerRecords> ListRecords(const std::vector<std::string>& request_ids) const;

 private:
  explicit WorkerPool(Options options);
  absl::Status Start();

  void RunControl(Worker* worker);
  absl::Status Handshake(Worker* worker);
  absl::Status CheckModelUnchanged(Worker* worker);
  // Polls until the worker is lost, changed, or the pool closes.
  void PollLoad(Worker* worker);
  absl::StatusOr<std::shared_ptr<const Tokenizer>> FetchTokenizer(Worker* worker,
                                                                  const std::string& sha256);
  absl::Status Admit(Worker* worker, std::shared_ptr<const ServedModel> model);
  void SetState(Worker* worker, WorkerState state, const absl::Status& reason);
  // Runs one control call that the destructor can cancel. `call` gets a context with the deadline
  // set.
  absl::Status ControlCall(Worker* worker, absl::Duration timeout,
                           const std::function<grpc::Status(grpc::ClientContext*)>& call);
  // False when the pool closes.
  bool Sleep(absl::Duration duration) const;
  void ReleaseLease(Worker* worker, uint64_t lease_id);
  void ReportCapacity(const Worker* worker);

  const Options options_;
  absl::Mutex capacity_mutex_;  // reports in the order of their counting; held over on_capacity
  mutable absl::Mutex mutex_ ABSL_ACQUIRED_AFTER(capacity_mutex_);
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t next_lease_id_ ABSL_GUARDED_BY(mutex_) = 1;
  int64_t num_leases_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::string, std::shared_ptr<const ServedModel>, std::less<>> models_
      ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::weak_ptr<const Tokenizer>> tokenizers_
      ABSL_GUARDED_BY(mutex_);  // by sha256
  std::vector<std::unique_ptr<Worker>>
      workers_;  // fixed after Start; mutable fields guarded by mutex_
};

}  // namespace ultraspeed::router
