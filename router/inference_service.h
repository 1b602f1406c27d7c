// The public Inference service: authenticates, decodes, checks, tokenizes, resolves model and tier,
// has the request admitted (limits, budget, ledger) and hands it to a StreamRelay. Runs on gRPC
// threads (short texts and schemas), a small TaskPool (long ones) and the blocking pool (what asks
// the store).
//
// Surprising: requests come as raw bytes, because gRPC answers a string that is not UTF-8 with a
// bare UNIMPLEMENTED; see request_decoder.h. The alias `<model>-ultraspeed` means tier ultraspeed
// unless service_tier says otherwise.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/clock.h"
#include "router/admission.h"
#include "router/authenticator.h"
#include "router/relay.h"
#include "router/request_queue.h"
#include "router/router_metrics.h"
#include "router/store.h"
#include "router/task_pool.h"
#include "router/worker_pool.h"
#include "ultraspeed/v1/inference.grpc.pb.h"

namespace ultraspeed::router {

using RawInference = v1::Inference::WithRawCallbackMethod_Generate<
    v1::Inference::WithRawCallbackMethod_Chat<v1::Inference::WithRawCallbackMethod_Tokenize<
        v1::Inference::WithRawCallbackMethod_TokenizeChat<
            v1::Inference::WithRawCallbackMethod_ListModels<
                v1::Inference::WithRawCallbackMethod_GetUsage<v1::Inference::Service>>>>>>;

// Thread contract: methods are called by gRPC, from many threads. Must outlive the server.
class InferenceService : public RawInference {
 public:
  struct Options {
    WorkerPool* pool = nullptr;
    RequestQueue* queue = nullptr;
    const Admission* admission = nullptr;
    const Authenticator* keys = nullptr;  // null: every caller is tenant "anonymous" (--no-auth)
    RouterMetrics* metrics = nullptr;
    Store* store = nullptr;  // null: GetUsage is UNIMPLEMENTED
    const Clock* clock = &RealClock();
    // AUTO and an absent service_tier may be served at ultraspeed, if the tenant may and there is
    // room. False: at standard.
    bool auto_may_be_ultraspeed = false;
    absl::Duration worker_wait = absl::ZeroDuration();  // see StreamRelay::Options
  };

  explicit InferenceService(const Options& options);

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* bytes) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Chat(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* bytes) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* bytes,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* TokenizeChat(grpc::CallbackServerContext* context,
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
  // The tiers that the request may be served at, best first; never empty. INVALID_ARGUMENT names
  // service_tier when the tenant may use none of them.
  absl::StatusOr<std::vector<Tier>> ResolveTiers(v1::ServiceTier asked,
                                                 const ResolvedModel& resolved,
                                                 const TenantTerms& terms) const;
  // A request whose text is checked and tokenized.
  struct Prepared {
    RelayRequest relay;
    AdmissionRequest admission;
  };
  // Request -> Prepare -> admission -> relay; tokenizes on this thread or, when there are many
  // bytes, on the pool.
  template <typename Request>
  grpc::ServerWriteReactor<grpc::ByteBuffer>* StartStream(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer& bytes,
                                                          absl::string_view method);
  void Admit(std::shared_ptr<StreamRelay> relay, Prepared prepared);
  absl::StatusOr<Prepared> Prepare(const v1::GenerateRequest& request,
                                   const AuthenticatedTenant& tenant,
                                   const std::string& request_id) const;
  absl::StatusOr<Prepared> Prepare(const v1::ChatRequest& request,
                                   const AuthenticatedTenant& tenant,
                                   const std::string& request_id) const;
  absl::StatusOr<Prepared> Assemble(const ResolvedModel& resolved, const GenerationParams& params,
                                    std::vector<int32_t> prompt, const AuthenticatedTenant& tenant,
                                    const std::string& request_id) const;
  absl::StatusOr<std::vector<int32_t>> PromptOf(const v1::TokenizeRequest& request) const;
  absl::StatusOr<std::vector<int32_t>> PromptOf(const v1::ChatRequest& request) const;
  absl::StatusOr<std::vector<int32_t>> PromptOf(const ServedModel& model,
                                                const ChatParams& params) const;
  template <typename Request>
  grpc::ServerUnaryReactor* StartTokenize(grpc::CallbackServerContext* context,
                                          absl::string_view method, const grpc::ByteBuffer* bytes,
                                          grpc::ByteBuffer* response);
  grpc::ServerUnaryReactor* FinishUnary(grpc::CallbackServerContext* context,
                                        absl::string_view method, const absl::Status& status);

  const Options options_;
  TaskPool tokenize_pool_;
  TaskPool blocking_pool_;  // waits for the store and the shared limiter
};

}  // namespace ultraspeed::router
