// worker.proto over gRPC: messages to RequestSpec and token events to chunks. Holds no request
// state but the streams' buffers.
//
// A stream has one write in flight; what the engine commits meanwhile is merged into the next
// chunk, so a slow reader costs memory for its own tokens (at most max_tokens) and nothing else.
// The stop token is the last of token_ids and is counted; it is for the router to leave it out of
// the text. A cancelled request's terminal chunk is followed by status CANCELLED; a request that
// the worker's shutdown ends has no terminal chunk but status UNAVAILABLE, so that the router
// continues it elsewhere. Thread: gRPC's callback threads; everything here is either const or the
// engine's thread-safe interface.
#pragma once

#include <functional>

#include "common/limits.h"
#include "ultraspeed/v1/worker.grpc.pb.h"
#include "worker/engine.h"
#include "worker/identity.h"
#include "worker/output_formats.h"
#include "worker/terminal_records.h"

namespace ultraspeed::worker {

class WorkerService final : public v1::Worker::CallbackService {
 public:
  // `engine` and `identity` are not owned. `on_drain` is called by the first Drain.
  WorkerService(Engine& engine, const ModelIdentity& identity, std::function<void()> on_drain);

  grpc::ServerWriteReactor<v1::WorkerGenerateChunk>* Generate(
      grpc::CallbackServerContext* context, const v1::WorkerGenerateRequest* request) override;
  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const v1::AbortRequest* request,
                                  v1::AbortResponse* response) override;
  grpc::ServerUnaryReactor* GetLoad(grpc::CallbackServerContext* context,
                                    const v1::GetLoadRequest* request,
                                    v1::GetLoadResponse* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const v1::GetModelInfoRequest* request,
                                         v1::ModelInfo* response) override;
  grpc::ServerWriteReactor<v1::TokenizerPart>* GetTokenizer(
      grpc::CallbackServerContext* context, const v1::GetTokenizerRequest* request) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;
  grpc::ServerUnaryReactor* ListRecords(grpc::CallbackServerContext* context,
                                        const v1::ListRecordsRequest* request,
                                        v1::ListRecordsResponse* response) override;

 private:
  Engine& engine_;
  const ModelIdentity& identity_;
  const std::function<void()> on_drain_;
  OutputFormats formats_;
  TerminalRecords records_{limits::kTerminalRecordsMax};
};

}  // namespace ultraspeed::worker
