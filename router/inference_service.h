// The public Inference service: authenticates, decodes, checks, tokenizes, resolves model and tier,
// and hands the request to a StreamRelay. Runs on gRPC threads (short texts) and a small TaskPool
// (long ones).
//
// Surprising: requests come as raw bytes, because gRPC answers a string that is not UTF-8 with a
// bare UNIMPLEMENTED; see request_decoder.h. The alias `<model>-ultraspeed` means tier ultraspeed
// unless service_tier says otherwise.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/clock.h"
#include "router/auth.h"
#include "router/relay.h"
#include "router/router_metrics.h"
#include "router/task_pool.h"
#include "router/worker_pool.h"
#include "ultraspeed/v1/inference.grpc.pb.h"

namespace ultraspeed::router {

using RawInference = v1::Inference::WithRawCallbackMethod_Generate<
    v1::Inference::WithRawCallbackMethod_Chat<v1::Inference::WithRawCallbackMethod_Tokenize<
        v1::Inference::WithRawCallbackMethod_ListModels<
            v1::Inference::WithRawCallbackMethod_GetUsage<v1::Inference::Service>>>>>;

// Thread contract: methods are called by gRPC, from many threads. Must outlive the server.
class InferenceService : public RawInference {
 public:
  struct Options {
    WorkerPool* pool = nullptr;
    const ApiKeys* keys = nullptr;  // null: every caller is tenant "anonymous" (--no-auth)
    RouterMetrics* metrics = nullptr;
    const Clock* clock = &RealClock();
    // What AUTO and an absent service_tier mean.
    v1::ServiceTier auto_tier = v1::SERVICE_TIER_STANDARD;
  };

  explicit InferenceService(const Options& options);

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* bytes) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Chat(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* bytes) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* bytes,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* bytes,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetUsage(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* bytes,
                                     grpc::ByteBuffer* response) override;

 private:
  struct ResolvedModel {
    std::shared_ptr<const ServedModel> model;
    bool by_ultraspeed_alias = false;
  };

  absl::StatusOr<AuthenticatedTenant> Authenticate(
      const grpc::CallbackServerContext& context) const;
  absl::StatusOr<ResolvedModel> ResolveModel(const std::string& name) const;
  v1::ServiceTier ResolveTier(v1::ServiceTier asked, bool by_ultraspeed_alias) const;
  // Request -> `prepare` -> relay, on this thread or, when `num_bytes` is large, on the pool.
  template <typename Request>
  grpc::ServerWriteReactor<grpc::ByteBuffer>* StartStream(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer& bytes, absl::string_view method,
      absl::StatusOr<RelayRequest> (InferenceService::*prepare)(const Request&, const std::string&)
          const);
  absl::StatusOr<RelayRequest> PrepareGenerate(const v1::GenerateRequest& request,
                                               const std::string& request_id) const;
  absl::StatusOr<RelayRequest> PrepareChat(const v1::ChatRequest& request,
                                           const std::string& request_id) const;
  absl::StatusOr<RelayRequest> Prepare(const ResolvedModel& resolved,
                                       const GenerationParams& params, std::vector<int32_t> prompt,
                                       const std::string& request_id) const;
  absl::StatusOr<v1::TokenizeResponse> RunTokenize(const grpc::ByteBuffer& bytes) const;
  grpc::ServerUnaryReactor* FinishUnary(grpc::CallbackServerContext* context,
                                        absl::string_view method, const absl::Status& status);

  const Options options_;
  TaskPool tokenize_pool_;
};

}  // namespace ultraspeed::router
