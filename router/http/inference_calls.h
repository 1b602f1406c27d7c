// The HTTP front's calls of ultraspeed.v1.Inference, over a channel into this very process. One
// object per call; tells whoever waits that there is news, and lets itself be asked.
//
// Surprising:
//   * A streamed call reads its next chunk only when told to, so the relay learns that a chunk was
//     sent no earlier than the session had the one before it on the socket.
//   * Streamed calls use a completion queue, not gRPC's callbacks: those ask for the status from
//     the start on, and in gRPC 1.51 the channel within a process then lets a status overtake a
//     message that nobody reads yet, and the message is lost (grpc/grpc#23398).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/grpc_status.h"
#include "grpcpp/client_context.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/support/async_stream.h"
#include "router/http/response_head.h"
#include "ultraspeed/v1/inference.grpc.pb.h"

namespace ultraspeed::router {

// Counts what must be over before its owner may end. Thread contract: any thread.
class LiveCount {
 public:
  class Token {
   public:
    explicit Token(LiveCount* count) : count_(count) { count_->Add(1); }
    ~Token() { count_->Add(-1); }
    Token(const Token&) = delete;
    Token& operator=(const Token&) = delete;

   private:
    LiveCount* const count_;
  };

  // False when `timeout` passed before everything was over.
  bool AwaitNone(absl::Duration timeout);

 private:
  void Add(int difference);

  absl::Mutex mutex_;
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Called on threads of gRPC or the queue, without locks. Must not block.
using OnNews = std::function<void()>;

// Of an answer's metadata what a client is told: x-request-id, x-service-tier, x-ratelimit-*,
// retry-after.
HttpHeaders ToldMetadata(const grpc::ClientContext& context);
void AddMetadata(const HttpHeaders& metadata, grpc::ClientContext* context);

// Where streamed calls report, with a thread that passes it on.
class CallQueue {
 public:
  CallQueue();
  // REQUIRES: every call that reports here is over.
  ~CallQueue();
  CallQueue(const CallQueue&) = delete;
  CallQueue& operator=(const CallQueue&) = delete;

  grpc::CompletionQueue* get() { return &queue_; }

 private:
  grpc::CompletionQueue queue_;
  std::thread thread_;
};

// Thread contract: the session's strand; the queue's thread calls the rest. Keeps itself alive
// until it is over.
class StreamCall {
 public:
  using Request = std::variant<v1::GenerateRequest, v1::ChatRequest>;

  // REQUIRES: metadata values are IsPlainHeaderValue; gRPC aborts at any other.
  static std::shared_ptr<StreamCall> Start(v1::Inference::Stub* stub, CallQueue* queue,
                                           LiveCount* live, const Request& request,
                                           const HttpHeaders& metadata, OnNews on_news);

  // TakeChunk or status has something.
  bool HasNews() const;
  // Every chunk once; the next comes after ReadNext.
  std::optional<v1::GenerateChunk> TakeChunk();
  void ReadNext();
  // Absent as long as the call runs.
  std::optional<absl::Status> status() const;
  // REQUIRES: HasNews was true.
  HttpHeaders metadata() const;
  // No more chunks from now on. May be called at any time, more than once.
  void Cancel();

 private:
  friend class CallQueue;

  // What an operation reports to: one of the On... below.
  struct Event {
    StreamCall* call;
    void (StreamCall::*handle)(bool ok);
  };
  enum class State : uint8_t { kBusy, kHasChunk, kIdle, kOver };

  StreamCall(LiveCount* live, OnNews on_news) : token_(live), on_news_(std::move(on_news)) {}

  void OnStarted(bool ok);
  void OnRead(bool ok);
  void OnFinished(bool ok);

  // First, so that it ends last, after the context has given back the channel.
  const LiveCount::Token token_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateChunk>> reader_;
  Event started_ = {this, &StreamCall::OnStarted};
  Event read_ = {this, &StreamCall::OnRead};
  Event finished_ = {this, &StreamCall::OnFinished};
  // Of the operation under way, else of whoever takes them.
  v1::GenerateChunk chunk_;
  grpc::Status grpc_status_;
  OnNews on_news_;                    // until OnFinished
  std::shared_ptr<StreamCall> self_;  // likewise

  mutable absl::Mutex mutex_;
  State state_ ABSL_GUARDED_BY(mutex_) = State::kBusy;  // kBusy: an operation is under way
  bool is_cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  HttpHeaders metadata_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> status_ ABSL_GUARDED_BY(mutex_);  // in kOver
};

// One unary call, by callback. Thread contract: the session's strand.
template <typename Request, typename Response>
class UnaryCall : public std::enable_shared_from_this<UnaryCall<Request, Response>> {
 public:
  using Method = void (v1::Inference::Stub::async::*)(grpc::ClientContext*, const Request*,
                                                      Response*, std::function<void(grpc::Status)>);

  static std::shared_ptr<UnaryCall> Start(v1::Inference::Stub* stub, Method method, LiveCount* live,
                                          Request request, const HttpHeaders& metadata,
                                          OnNews on_news) {
    std::shared_ptr<UnaryCall> call(new UnaryCall(live, std::move(request)));
    AddMetadata(metadata, &call->context_);
    (stub->async()->*method)(
        &call->context_, &call->request_, &call->response_,
        // What the function holds ends in this order: the news first, then the call.
        [call, on_news = std::move(on_news)](const grpc::Status& status) {
          {
            absl::MutexLock lock(&call->mutex_);
            call->status_ = FromGrpcStatus(status);
          }
          on_news();
        });
    return call;
  }

  std::optional<absl::Status> status() const {
    absl::MutexLock lock(&mutex_);
    return status_;
  }
  // REQUIRES: status() is there.
  const Response& response() const { return response_; }
  HttpHeaders metadata() const { return ToldMetadata(context_); }
  void Cancel() { context_.TryCancel(); }

 private:
  UnaryCall(LiveCount* live, Request request) : token_(live), request_(std::move(request)) {}

  const LiveCount::Token token_;  // as in StreamCall
  const Request request_;
  Response response_;
  grpc::ClientContext context_;
  mutable absl::Mutex mutex_;
  std::optional<absl::Status> status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ultraspeed::router
