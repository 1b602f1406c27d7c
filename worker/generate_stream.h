// One Generate call: the engine's TokenSink on one side, gRPC's write reactor on the other.
//
// Lives until gRPC is done with the call (OnDone) and the engine has dropped the sink, whichever is
// later. Thread: OnTokens comes from the engine thread, the reactions from gRPC's; mutex_ guards
// the state, and no gRPC operation starts under it.
#pragma once

#include <deque>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "ultraspeed/v1/worker.grpc.pb.h"
#include "worker/engine.h"

namespace ultraspeed::worker {

class GenerateStream : public grpc::ServerWriteReactor<v1::WorkerGenerateChunk>, public TokenSink {
 public:
  // Submits the request. The result belongs to gRPC.
  static GenerateStream* Start(Engine& engine, const v1::WorkerGenerateRequest& request);

  void OnTokens(TokenEvent event) override;  // engine thread
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  enum class Action : uint8_t { kNone, kWrite, kWriteLast, kFinish };

  GenerateStream(Engine& engine, std::string request_id)
      : engine_(engine), request_id_(std::move(request_id)) {}
  void Merge(TokenEvent event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What to start now, already noted as started.
  Action Next() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Perform(Action action);
  void Refuse(const grpc::Status& status);

  Engine& engine_;
  const std::string request_id_;
  bool with_logprobs_ = false;            // set before Submit
  std::shared_ptr<GenerateStream> self_;  // until OnDone

  absl::Mutex mutex_;
  std::deque<v1::WorkerGenerateChunk> pending_
      ABSL_GUARDED_BY(mutex_);  // not yet handed to gRPC; all but the last are full
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;      // the engine's terminal event has come
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;  // the caller has gone
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;   // Finish was started
  v1::WorkerGenerateChunk current_;                 // gRPC reads it while writing_
  grpc::Status status_;                             // written once, before Finish
};

}  // namespace ultraspeed::worker
