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
#include "absl/time/time.h"
#include "ultraspeed/v1/worker.grpc.pb.h"
#include "worker/engine.h"
#include "worker/output_formats.h"
#include "worker/terminal_records.h"

namespace ultraspeed::worker {

v1::FinishReason FinishReasonToProto(FinishReason reason);  // UNSPECIFIED for kNone and kShutdown
v1::Usage UsageToProto(const UsageCounts& counts);

class GenerateStream : public grpc::ServerWriteReactor<v1::WorkerGenerateChunk>, public TokenSink {
 public:
  // Submits the request. The result belongs to gRPC. `records` gets the terminal record.
  static GenerateStream* Start(Engine& engine, OutputFormats& formats, TerminalRecords& records,
                               const v1::WorkerGenerateRequest& request);

  void OnTokens(TokenEvent event) override;  // engine thread
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  enum class Action : uint8_t { kNone, kWrite, kWriteLast, kFinish };

  GenerateStream(Engine& engine, TerminalRecords& records, std::string request_id)
      : engine_(engine), records_(records), request_id_(std::move(request_id)) {}
  void Record(const TokenEvent& event);  // engine thread
  void Merge(TokenEvent event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What to start now, already noted as started.
  Action Next() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Perform(Action action);
  void Refuse(const grpc::Status& status);

  Engine& engine_;
  TerminalRecords& records_;
  const std::string request_id_;
  bool with_logprobs_ = false;            // set before Submit
  int64_t resumed_tokens_ = 0;            // likewise
  std::shared_ptr<GenerateStream> self_;  // until OnDone

  // The engine thread's: when tokens came.
  absl::Duration first_tokens_at_;
  absl::Duration last_tokens_at_;
  int64_t num_first_tokens_ = 0;

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
