#include "router/relay.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "common/limits.h"
#include "common/logging.h"
#include "common/uuid.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/client_callback.h"
#include "grpcpp/support/proto_buffer_writer.h"
#include "router/finish_name.h"
#include "router/routing_policy.h"

namespace ultraspeed::router {
namespace {

// A caller whose deadline passed resets the stream; its clock started before ours, so the reset
// comes a little early.
constexpr std::chrono::milliseconds kDeadlineSlack(20);

grpc::ByteBuffer Serialize(const v1::GenerateChunk& chunk) {
  grpc::ByteBuffer bytes;
  bool own_buffer = false;
  // Cannot fail: the chunk is initialised and far below 2 GiB.
  (void)grpc::GenericSerialize<grpc::ProtoBufferWriter, v1::GenerateChunk>(chunk, &bytes,
                                                                           &own_buffer);
  return bytes;
}

size_t TextBytes(const v1::GenerateChunk& chunk) {
  size_t num_bytes = chunk.text().size();
  for (const v1::ToolCallDelta& delta : chunk.tool_calls()) num_bytes += delta.arguments().size();
  return num_bytes;
}

// The worker refused the request as it might refuse any other now: another worker may take it.
bool IsRefusal(const absl::Status& status) {
  return absl::IsResourceExhausted(status) || absl::IsUnavailable(status);
}

// The worker, not the request, is at fault.
bool IsWorkerFailure(const absl::Status& status) {
  return absl::IsInternal(status) || absl::IsUnknown(status) || absl::IsAborted(status) ||
         absl::IsDataLoss(status) || absl::IsCancelled(status);
}

}  // namespace

// One placement: the call to one worker, the lease that pays for it and the queue's place that
// allowed it. Lives until its OnDone.
class StreamRelay::WorkerCall : public grpc::ClientReadReactor<v1::WorkerGenerateChunk> {
 public:
  WorkerCall(std::shared_ptr<StreamRelay> relay, WorkerPool::Lease lease, RequestQueue::Place place)
      : relay_(std::move(relay)),
        lease_(std::move(lease)),
        place_(std::move(place)),
        context_(std::make_shared<grpc::ClientContext>()) {}

  void Start(std::shared_ptr<WorkerCall> self, const v1::WorkerGenerateRequest& request,
             std::chrono::system_clock::time_point deadline) {
    self_ = std::move(self);
    context_->set_deadline(deadline);
    context_->AddMetadata("x-request-id", request.request_id());
    lease_.OnLost([context = context_] { context->TryCancel(); });
    lease_.stub()->async()->Generate(context_.get(), &request, this);
    StartRead(&chunk_);
    StartCall();
  }

  void Cancel() { context_->TryCancel(); }
  // Once for every chunk, from any thread: at once, or when the relay has room again.
  void ResumeReading() {
    StartRead(&chunk_);
    RemoveHold();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    // With no read under way a call that is cancelled ends, and gRPC frees its stream before it
    // says so: nobody could know whether there is still something to read from.
    AddHold();
    if (relay_->OnWorkerChunk(this, chunk_)) ResumeReading();
  }

  void OnDone(const grpc::Status& status) override {
    // Locals end in reverse order: this object and its context, which holds the channel, then the
    // lease. The pool waits for the lease, so the channel always ends on the pool's thread and
    // never on one of gRPC's own, which would have to join itself.
    const WorkerPool::Lease lease = std::move(lease_);
    const std::shared_ptr<WorkerCall> self = std::move(self_);
    relay_->OnWorkerDone(this, lease, std::move(place_), FromGrpcStatus(status));
  }

 private:
  const std::shared_ptr<StreamRelay> relay_;
  WorkerPool::Lease lease_;
  RequestQueue::Place place_;
  const std::shared_ptr<grpc::ClientContext> context_;  // shared with the pool's on-lost callback
  v1::WorkerGenerateChunk chunk_;
  std::shared_ptr<WorkerCall> self_;
};

// ---- Beginning ----

StreamRelay::StreamRelay(const Options& options)
    : context_(options.context),
      pool_(options.pool),
      queue_(options.queue),
      metrics_(options.metrics),
      clock_(options.clock),
      method_(options.method),
      worker_wait_(options.worker_wait),
      request_id_(NewUuidV7(*options.clock)),
      arrival_(options.clock->Monotonic()),
      deadline_(options.context->deadline()) {}

std::shared_ptr<StreamRelay> StreamRelay::Create(const Options& options) {
  std::shared_ptr<StreamRelay> relay(new StreamRelay(options));
  options.context->AddInitialMetadata("x-request-id", relay->request_id_);
  options.metrics->StreamStarted();
  absl::MutexLock lock(&relay->mutex_);
  relay->self_ = relay;
  return relay;
}

void StreamRelay::SetCaller(std::string tenant, std::string key_id, std::string client_request_id) {
  absl::MutexLock lock(&mutex_);
  tenant_ = std::move(tenant);
  key_id_ = std::move(key_id);
  client_request_id_ = std::move(client_request_id);
}

void StreamRelay::AddMetadata(const ResponseMetadata& metadata) {
  for (const auto& [name, value] : metadata) context_->AddInitialMetadata(name, value);
}

void StreamRelay::Begin(RelayRequest request, Settlement settlement,
                        const ResponseMetadata& metadata) {
  absl::MutexLock lock(&mutex_);
  if (is_over()) {  // the client left meanwhile
    RequestOutcome outcome;
    outcome.finish_reason = kFinishCancelled;
    settlement.Settle(outcome);
    return;
  }
  AddMetadata(metadata);
  AddMetadata({{"x-service-tier", std::string(TierName(settlement.tier()))}});
  settlement_ = std::move(settlement);
  model_ = std::move(request.model);
  request.worker_request.set_service_tier(settlement_.tier() == Tier::kUltraspeed
                                              ? v1::SERVICE_TIER_ULTRASPEED
                                              : v1::SERVICE_TIER_STANDARD);
  const auto& prompt = request.worker_request.prompt_token_ids();
  preferred_worker_ = PreferredWorker(request.worker_request.cache_scope(),
                                      absl::MakeConstSpan(prompt.data(), prompt.size()));
  generation_ = Generation(std::move(request.worker_request), model_->facts.vocabulary_size,
                           model_->reasoning_marks);
  answer_.emplace(model_->tokenizer.get(), std::move(request.stop), std::move(request.tools),
                  request_id_, std::move(request.opening));
  AwaitTurn();
}

void StreamRelay::Fail(const absl::Status& status, const ResponseMetadata& metadata) {
  absl::MutexLock lock(&mutex_);
  if (is_over()) return;
  AddMetadata(metadata);
  FailLocked(status);
}

bool StreamRelay::MayAwaitWorker() {
  if (worker_wait_ == absl::ZeroDuration()) return false;
  const absl::Duration now = clock_->Monotonic();
  if (!worker_deadline_) worker_deadline_ = now + worker_wait_;
  return now < *worker_deadline_;
}

void StreamRelay::AwaitTurn() {
  const std::string& model = model_->facts.name;
  if (!pool_->AnyReady(*model_) && !MayAwaitWorker()) {
    FailLocked(absl::UnavailableError(absl::StrCat("model ", model, ": no worker is ready")));
    return;
  }
  const v1::WorkerGenerateRequest& worker_request = generation_.request();
  const int64_t prompt_tokens = worker_request.prompt_token_ids_size();
  // A caller that names no max_tokens gets a huge one; what it will use is closer to this.
  const int64_t likely_tokens =
      std::min<int64_t>(worker_request.max_tokens(), limits::kLikelyCompletionTokens);
  const auto schema_bytes = static_cast<int64_t>(worker_request.output_format().ByteSizeLong() +
                                                 worker_request.tool_calls().ByteSizeLong());
  absl::Duration deadline = absl::InfiniteDuration();
  if (deadline_ != std::chrono::system_clock::time_point::max())
    deadline = clock_->Monotonic() + (absl::FromChrono(deadline_) - clock_->Now());
  if (worker_deadline_) deadline = std::min(deadline, *worker_deadline_);
  auto entry =
      queue_->Enter(model,
                    {.tenant = tenant_,
                     .tier = settlement_.tier(),
                     .tokens = prompt_tokens + likely_tokens,
                     .bytes = prompt_tokens * static_cast<int64_t>(sizeof(int32_t)) + schema_bytes,
                     .priority = worker_request.priority(),
                     .deadline = deadline},
                    [self = shared_from_this()](auto place) { self->OnTurn(std::move(place)); });
  if (!entry.ok()) {
    FailQueued(entry.status());
  } else if (entry->place) {
    Place(pool_->Acquire(*model_, tried_workers_, preferred_worker_), *std::move(entry->place));
  } else {
    queue_ticket_ = entry->ticket;
  }
}

void StreamRelay::FailQueued(const absl::Status& status) {
  const bool caller_waits = std::chrono::system_clock::now() < deadline_;
  if (worker_deadline_ && absl::IsDeadlineExceeded(status) && caller_waits) {
    FailLocked(absl::UnavailableError(
        absl::StrCat("model ", model_->facts.name, ": no worker was ready within ",
                     absl::FormatDuration(worker_wait_), " (request ", request_id_, ")")));
    return;
  }
  if (absl::IsResourceExhausted(status)) {
    const absl::Duration wait = queue_->RetryAfter(model_->facts.name, tenant_, settlement_.tier());
    const absl::Duration whole = absl::Ceil(std::max(wait, absl::Seconds(1)), absl::Seconds(1));
    AddMetadata({{"retry-after", absl::StrCat(absl::ToInt64Seconds(whole))}});
  }
  FailLocked(status);
}

void StreamRelay::OnTurn(absl::StatusOr<RequestQueue::Place> place) {
  absl::MutexLock lock(&mutex_);
  queue_ticket_ = 0;
  if (is_over()) return;  // the place's end gives it back
  if (!place.ok()) {
    FailQueued(place.status());
    return;
  }
  Place(pool_->Acquire(*model_, tried_workers_, preferred_worker_), *std::move(place));
}

void StreamRelay::Place(absl::StatusOr<WorkerPool::Lease> lease, RequestQueue::Place place) {
  if (!lease.ok()) {
    FailLocked(lease.status());
    return;
  }
  if (!dispatch_time_) dispatch_time_ = clock_->Monotonic();
  if (generation_.request().resumed_tokens() > 0) metrics_->StreamResumed();
  worker_address_ = lease->address();
  call_ = std::make_shared<WorkerCall>(shared_from_this(), *std::move(lease), std::move(place));
  call_->Start(call_, generation_.request(), deadline_);
}

// ---- From the worker ----

bool StreamRelay::OnWorkerChunk(WorkerCall* call, const v1::WorkerGenerateChunk& chunk) {
  const absl::Duration now = clock_->Monotonic();
  absl::MutexLock lock(&mutex_);
  if (call != call_.get() || is_over()) {
    call->Cancel();  // nobody waits for this; the read that fails next ends the call
    return true;
  }
  if (const absl::Status status = generation_.Check(chunk); !status.ok()) {
    metrics_->WorkerProtocolError();
    FailLocked(absl::InternalError(absl::StrCat(status.message(), " (request ", request_id_, ")")));
    return true;
  }
  if (chunk.token_ids_size() > 0) {
    if (last_token_time_)
      metrics_->ChunkInterval(generation_.request().service_tier(), now - *last_token_time_);
    if (!first_token_time_) first_token_time_ = now;
    last_token_time_ = now;
    worker_deadline_.reset();
    speed_.OnTokens(now, chunk.token_ids_size());
  }
  generation_.TakeCounts(chunk.usage());
  AppendTokens(chunk);
  if (!terminal_ && chunk.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
    CompareCounts(chunk.usage());
    EndOfText(chunk.finish_reason(), chunk.stop_token_id());
  }
  if (terminal_ && chunk.finish_reason() == v1::FINISH_REASON_UNSPECIFIED) call_->Cancel();
  has_pending_ = has_pending_ || terminal_ || chunk.token_ids_size() > 0;
  Flush();
  reading_paused_ = !is_over() && TextBytes(pending_) > limits::kUnsentTextBytesMax;
  if (reading_paused_) speed_.OnPause();
  return !reading_paused_;
}

void StreamRelay::AppendTokens(const v1::WorkerGenerateChunk& chunk) {
  const int num_tokens = chunk.token_ids_size();
  for (int i = 0; i < num_tokens && !terminal_; ++i) {
    const int32_t id = chunk.token_ids(i);
    generation_.TakeToken(id);
    pending_.add_token_ids(id);
    if (i < chunk.logprobs_size()) *pending_.add_logprobs() = chunk.logprobs(i);
    // The token that ended generation is counted but is not text.
    const bool is_end = i + 1 == num_tokens && chunk.finish_reason() == v1::FINISH_REASON_STOP;
    terminal_ = !is_end && answer_->Append(id, generation_.is_thinking(), &pending_);
  }
}

// The caller is told, and owes, what was delivered, whatever the worker's terminal record says.
void StreamRelay::CompareCounts(const v1::Usage& worker_usage) {
  if (generation_.Agrees(worker_usage)) return;
  metrics_->WorkerProtocolError();
  Log(LogLevel::kError, "router.worker_counts_differ",
      {{"request_id", request_id_},
       {"worker", worker_address_},
       {"worker_prompt_tokens", worker_usage.prompt_tokens()},
       {"worker_completion_tokens", worker_usage.completion_tokens()},
       {"resumed_tokens", generation_.request().resumed_tokens()},
       {"prompt_tokens", generation_.usage().prompt_tokens()},
       {"completion_tokens", generation_.usage().completion_tokens()}});
}

void StreamRelay::EndOfText(v1::FinishReason reason, int32_t stop_token_id) {
  answer_->Finish(reason, stop_token_id, &pending_);
  terminal_ = true;
}

void StreamRelay::OnWorkerDone(WorkerCall* call, const WorkerPool::Lease& lease,
                               RequestQueue::Place place, const absl::Status& status) {
  std::shared_ptr<WorkerCall> ended;  // destroyed after the lock is gone
  absl::MutexLock lock(&mutex_);
  if (call != call_.get()) return;
  ended = std::move(call_);
  if (is_over()) return;
  GoOnOrFail(lease, std::move(place),
             status.ok()
                 ? absl::InternalError("the worker's stream ended without a terminal record")
                 : status);
}

void StreamRelay::GoOnOrFail(const WorkerPool::Lease& lease, RequestQueue::Place place,
                             const absl::Status& status) {
  if (absl::IsDeadlineExceeded(status)) {
    FailLocked(
        absl::DeadlineExceededError(absl::StrCat("deadline passed (request ", request_id_, ")")));
    return;
  }
  if (generation_.is_complete()) {  // only the worker's last word is missing
    EndOfText(v1::FINISH_REASON_LENGTH, 0);
    has_pending_ = true;
    Flush();
    return;
  }
  const bool resumes = generation_.has_tokens();
  const bool is_failure = generation_.placement_has_tokens() || IsWorkerFailure(status);
  if (!resumes && !is_failure && !IsRefusal(status)) {
    FailLocked(status);
    return;
  }
  if (generation_.placement_has_tokens()) {
    generation_.Resume();
    tried_workers_.clear();  // whoever refused or failed before may be well again
  }
  tried_workers_.insert(lease.worker_idx());
  if (is_failure) ++num_failures_;
  Log(LogLevel::kWarning, "router.placement_failed",
      {{"request_id", request_id_},
       {"worker", lease.address()},
       {"completion_tokens", generation_.usage().completion_tokens()},
       {"code", absl::StatusCodeToString(status.code())},
       {"message", std::string(status.message())}});
  const bool is_lost = absl::IsUnavailable(status) || absl::IsCancelled(status);
  if (is_lost && worker_wait_ > absl::ZeroDuration()) pool_->Doubt(lease);
  const int failures_max = resumes ? limits::kStreamFailuresMax : limits::kFailureRetriesMax;
  if (num_failures_ <= failures_max &&
      static_cast<int>(tried_workers_.size()) < limits::kPlacementAttemptsMax) {
    if (auto next = pool_->Acquire(*model_, tried_workers_, preferred_worker_); next.ok()) {
      if (!resumes) metrics_->PlacementRetried();
      Place(std::move(next), std::move(place));
      return;
    }
    if (is_lost && MayAwaitWorker()) {
      place.Release();
      tried_workers_.clear();  // this one may come back
      AwaitTurn();
      return;
    }
  }
  if (resumes) {
    FailLocked(absl::UnavailableError(absl::StrCat(
        "worker lost after ", generation_.usage().completion_tokens(),
        " tokens, and none to go on: ", status.message(), " (request ", request_id_, ")")));
    return;
  }
  const std::string message =
      absl::StrCat("no worker took the request; the last one said: ", status.message(),
                   " (request ", request_id_, ")");
  FailLocked(absl::IsResourceExhausted(status) ? absl::ResourceExhaustedError(message)
                                               : absl::UnavailableError(message));
}

// ---- To the client ----

void StreamRelay::FailLocked(const absl::Status& status) {
  if (is_over()) return;
  failure_ = status;
  if (queue_ticket_ != 0) queue_->Cancel(model_->facts.name, queue_ticket_);
  if (call_ != nullptr) call_->Cancel();
  Flush();
}

void StreamRelay::Flush() {
  if (write_in_flight_ || finished_) return;
  if (has_pending_) {
    has_pending_ = false;
    pending_.set_request_id(request_id_);
    pending_.set_model(model_->facts.name);
    pending_.set_service_tier(generation_.request().service_tier());
    pending_.set_seed(generation_.request().seed());
    *pending_.mutable_usage() = generation_.usage();
    written_usage_ = generation_.usage();
    if (terminal_) {
      FillTiming(pending_.mutable_timing());
      const BilledTier billed = settlement_.Judge(speed_.tokens_per_second());
      pending_.set_billed_tier(billed.tier == Tier::kUltraspeed ? v1::SERVICE_TIER_ULTRASPEED
                                                                : v1::SERVICE_TIER_STANDARD);
      pending_.set_billed_reason(std::string(billed.reason));
      finish_reason_ = pending_.finish_reason();
    }
    if (!first_write_time_) first_write_time_ = clock_->Monotonic();
    write_bytes_ = Serialize(pending_);
    pending_.Clear();
    if (terminal_) {
      finished_ = true;
      settlement_.SettleLimits(written_usage_.prompt_tokens() + written_usage_.completion_tokens());
      StartWriteAndFinish(&write_bytes_, grpc::WriteOptions(), grpc::Status::OK);
    } else {
      write_in_flight_ = true;
      StartWrite(&write_bytes_);
    }
    return;
  }
  if (failure_) {
    finished_ = true;
    const int64_t num_sent = sent_usage_.completion_tokens();
    settlement_.SettleLimits(num_sent == 0 ? 0 : sent_usage_.prompt_tokens() + num_sent);
    Finish(ToGrpcStatus(*failure_));
  }
}

void StreamRelay::FillTiming(v1::Timing* timing) const {
  if (dispatch_time_) timing->set_queue_ms(absl::ToDoubleMilliseconds(*dispatch_time_ - arrival_));
  if (!first_token_time_) return;
  timing->set_ttft_ms(absl::ToDoubleMilliseconds(*first_token_time_ - arrival_));
  const absl::Duration decode = *last_token_time_ - *first_token_time_;
  timing->set_decode_ms(absl::ToDoubleMilliseconds(decode));
  timing->set_tokens_per_second(speed_.tokens_per_second().value_or(0));
}

void StreamRelay::OnWriteDone(bool ok) {
  absl::MutexLock lock(&mutex_);
  write_in_flight_ = false;
  if (ok) {
    sent_usage_ = written_usage_;
  } else {
    has_pending_ = false;
    FailLocked(absl::CancelledError("the client left"));
  }
  Flush();
  if (reading_paused_ && call_ != nullptr) {
    reading_paused_ = false;
    call_->ResumeReading();
  }
}

void StreamRelay::OnCancel() {
  const bool deadline_passed = std::chrono::system_clock::now() + kDeadlineSlack >= deadline_;
  absl::MutexLock lock(&mutex_);
  has_pending_ = false;
  if (terminal_ && !finished_) {  // the last chunk waited behind a write that nobody reads
    terminal_ = false;
  }
  FailLocked(deadline_passed ? absl::DeadlineExceededError(
                                   absl::StrCat("deadline passed (request ", request_id_, ")"))
                             : absl::CancelledError("the client left"));
}

RequestOutcome StreamRelay::Outcome(absl::StatusCode code) const {
  RequestOutcome outcome;
  outcome.worker = worker_address_;
  switch (code) {
    case absl::StatusCode::kOk:
      outcome.finish_reason = FinishName(finish_reason_);
      break;
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kDeadlineExceeded:
      outcome.finish_reason = kFinishCancelled;
      break;
    default:
      outcome.finish_reason = kFinishError;
  }
  if (sent_usage_.completion_tokens() == 0) return outcome;
  outcome.sent = {.prompt = sent_usage_.prompt_tokens(),
                  .cached = sent_usage_.cached_tokens(),
                  .completion = sent_usage_.completion_tokens()};
  outcome.reasoning_tokens = sent_usage_.reasoning_tokens();
  outcome.draft_rounds = sent_usage_.draft_rounds();
  outcome.decode_time = speed_.decode_time();
  outcome.tokens_per_second = speed_.tokens_per_second();
  return outcome;
}

void StreamRelay::OnDone() {
  std::shared_ptr<StreamRelay> self;  // destroyed after the lock is gone
  absl::MutexLock lock(&mutex_);
  self = std::move(self_);
  // The last chunk and the status leave together; gRPC knows whether they did.
  const bool reached_end = terminal_ && !context_->IsCancelled();
  if (reached_end) sent_usage_ = written_usage_;
  const absl::StatusCode code = failure_      ? failure_->code()
                                : reached_end ? absl::StatusCode::kOk
                                              : absl::StatusCode::kCancelled;
  const RequestOutcome outcome = Outcome(code);
  const BilledTier billed = settlement_.Judge(outcome.tokens_per_second);
  settlement_.Settle(outcome);
  StreamRecord record = {.method = method_,
                         .tier = generation_.request().service_tier(),
                         .code = code,
                         .prompt_tokens = outcome.sent.prompt,
                         .completion_tokens = outcome.sent.completion,
                         .ttft = std::nullopt,
                         .time_per_output_token = std::nullopt,
                         .overhead = std::nullopt};
  if (first_token_time_) {
    record.ttft = *first_token_time_ - arrival_;
    if (first_write_time_) {
      record.overhead = (*dispatch_time_ - arrival_) + (*first_write_time_ - *first_token_time_);
    }
    if (const auto speed = speed_.tokens_per_second())
      record.time_per_output_token = absl::Seconds(1 / *speed);
  }
  metrics_->StreamEnded(record);
  Log(LogLevel::kInfo, "router.request",
      {{"request_id", request_id_},
       {"method", method_},
       {"tenant", tenant_},
       {"key_id", key_id_},
       {"client_request_id", client_request_id_},
       {"model", model_ == nullptr ? std::string() : model_->facts.name},
       {"tier", TierName(record.tier)},
       {"billed_tier", TierName(billed.tier)},
       {"billed_reason", billed.reason},
       {"worker", worker_address_},
       {"code", absl::StatusCodeToString(code)},
       {"message", failure_ ? std::string(failure_->message()) : std::string()},
       {"prompt_tokens", outcome.sent.prompt},
       {"completion_tokens", outcome.sent.completion},
       {"draft_rounds", generation_.usage().draft_rounds()},
       {"resumed_tokens", generation_.request().resumed_tokens()},
       {"ttft_ms", record.ttft ? absl::ToDoubleMilliseconds(*record.ttft) : 0.0},
       {"overhead_ms", record.overhead ? absl::ToDoubleMilliseconds(*record.overhead) : 0.0},
       {"duration_ms", absl::ToDoubleMilliseconds(clock_->Monotonic() - arrival_)}});
}

}  // namespace ultraspeed::router
