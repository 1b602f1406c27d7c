#include "router/http/inference_calls.h"

#include "absl/strings/match.h"

namespace ultraspeed::router {

bool LiveCount::AwaitNone(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(
                                     +[](int* count) { return *count == 0; }, &count_),
                                 timeout);
}

void LiveCount::Add(int difference) {
  absl::MutexLock lock(&mutex_);
  count_ += difference;
}

HttpHeaders ToldMetadata(const grpc::ClientContext& context) {
  HttpHeaders headers;
  for (const auto* metadata :
       {&context.GetServerInitialMetadata(), &context.GetServerTrailingMetadata()}) {
    for (const auto& [key, value] : *metadata) {
      const absl::string_view name(key.data(), key.size());
      if (name == "x-request-id" || name == "x-service-tier" || name == "retry-after" ||
          absl::StartsWith(name, "x-ratelimit-")) {
        headers.emplace_back(name, std::string(value.data(), value.size()));
      }
    }
  }
  return headers;
}

void AddMetadata(const HttpHeaders& metadata, grpc::ClientContext* context) {
  for (const auto& [name, value] : metadata) context->AddMetadata(name, value);
}

// ---- CallQueue ----

CallQueue::CallQueue()
    : thread_([this] {
        void* tag;
        for (bool ok; queue_.Next(&tag, &ok);) {
          const auto* event = static_cast<const StreamCall::Event*>(tag);
          (event->call->*event->handle)(ok);
        }
      }) {}

CallQueue::~CallQueue() {
  queue_.Shutdown();
  thread_.join();
}

// ---- StreamCall ----

std::shared_ptr<StreamCall> StreamCall::Start(v1::Inference::Stub* stub, CallQueue* queue,
                                              LiveCount* live, const Request& request,
                                              const HttpHeaders& metadata, OnNews on_news) {
  std::shared_ptr<StreamCall> call(new StreamCall(live, std::move(on_news)));
  AddMetadata(metadata, &call->context_);
  call->self_ = call;
  const auto* chat = std::get_if<v1::ChatRequest>(&request);
  call->reader_ = chat != nullptr
                      ? stub->PrepareAsyncChat(&call->context_, *chat, queue->get())
                      : stub->PrepareAsyncGenerate(
                            &call->context_, std::get<v1::GenerateRequest>(request), queue->get());
  call->reader_->StartCall(&call->started_);
  return call;
}

bool StreamCall::HasNews() const {
  absl::MutexLock lock(&mutex_);
  return state_ == State::kHasChunk || state_ == State::kOver;
}

std::optional<v1::GenerateChunk> StreamCall::TakeChunk() {
  absl::MutexLock lock(&mutex_);
  if (state_ != State::kHasChunk) return std::nullopt;
  state_ = State::kIdle;
  return std::move(chunk_);
}

void StreamCall::ReadNext() {
  {
    absl::MutexLock lock(&mutex_);
    if (state_ != State::kIdle) return;  // cancelled meanwhile
    state_ = State::kBusy;
  }
  reader_->Read(&chunk_, &read_);
}

std::optional<absl::Status> StreamCall::status() const {
  absl::MutexLock lock(&mutex_);
  return status_;
}

HttpHeaders StreamCall::metadata() const {
  absl::MutexLock lock(&mutex_);
  return metadata_;
}

void StreamCall::Cancel() {
  bool may_finish;
  {
    absl::MutexLock lock(&mutex_);
    if (is_cancelled_ || state_ == State::kOver) return;
    is_cancelled_ = true;
    may_finish = state_ != State::kBusy;  // else the operation under way fails and finishes
    state_ = State::kBusy;
  }
  context_.TryCancel();
  if (may_finish) reader_->Finish(&grpc_status_, &finished_);
}

void StreamCall::OnStarted(bool ok) {
  if (ok) {
    reader_->Read(&chunk_, &read_);
  } else {
    reader_->Finish(&grpc_status_, &finished_);
  }
}

void StreamCall::OnRead(bool ok) {
  bool has_chunk;
  {
    absl::MutexLock lock(&mutex_);
    has_chunk = ok && !is_cancelled_;
    if (has_chunk) {
      if (metadata_.empty()) metadata_ = ToldMetadata(context_);
      state_ = State::kHasChunk;
    }
  }
  if (has_chunk) {
    on_news_();
  } else {
    reader_->Finish(&grpc_status_, &finished_);
  }
}

void StreamCall::OnFinished(bool) {
  // Locals end in reverse order: what the news holds, which may be the session, then this call.
  const std::shared_ptr<StreamCall> self = std::move(self_);
  const OnNews on_news = std::move(on_news_);
  {
    absl::MutexLock lock(&mutex_);
    metadata_ = ToldMetadata(context_);
    status_ = FromGrpcStatus(grpc_status_);
    state_ = State::kOver;
  }
  on_news();
}

}  // namespace ultraspeed::router
