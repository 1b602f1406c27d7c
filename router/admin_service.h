// The Admin service: checks what operators ask, changes the store, writes the audit log. Every call
// goes through Run, which knows the operator and leaves exactly one audit row.
//
// Synchronous: each call holds a gRPC thread while the store works; operators are few.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/clock.h"
#include "common/tls.h"
#include "grpcpp/server.h"
#include "router/admin_tokens.h"
#include "router/store.h"
#include "ultraspeed/v1/admin.grpc.pb.h"

namespace ultraspeed::router {

// Thread contract: methods are called by gRPC, from many threads. Must outlive the server.
class AdminService : public v1::Admin::Service {
 public:
  struct Options {
    Store* store = nullptr;
    AdminTokens tokens = {};
    std::string pepper = {};  // of the API keys
    const Clock* clock = &RealClock();
  };

  explicit AdminService(Options options) : options_(std::move(options)) {}

  grpc::Status CreateTenant(grpc::ServerContext* context, const v1::CreateTenantRequest* request,
                            v1::Tenant* response) override;
  grpc::Status GetTenant(grpc::ServerContext* context, const v1::GetTenantRequest* request,
                         v1::TenantStatus* response) override;
  grpc::Status ListTenants(grpc::ServerContext* context, const v1::ListTenantsRequest* request,
                           v1::ListTenantsResponse* response) override;
  grpc::Status UpdateTenant(grpc::ServerContext* context, const v1::UpdateTenantRequest* request,
                            v1::Tenant* response) override;
  grpc::Status CreateKey(grpc::ServerContext* context, const v1::CreateKeyRequest* request,
                         v1::CreateKeyResponse* response) override;
  grpc::Status ListKeys(grpc::ServerContext* context, const v1::ListKeysRequest* request,
                        v1::ListKeysResponse* response) override;
  grpc::Status RevokeKey(grpc::ServerContext* context, const v1::RevokeKeyRequest* request,
                         v1::RevokeKeyResponse* response) override;
  grpc::Status AddPrice(grpc::ServerContext* context, const v1::AddPriceRequest* request,
                        v1::Price* response) override;
  grpc::Status ListPrices(grpc::ServerContext* context, const v1::ListPricesRequest* request,
                          v1::ListPricesResponse* response) override;
  grpc::Status QueryUsage(grpc::ServerContext* context, const v1::QueryUsageRequest* request,
                          v1::GetUsageResponse* response) override;
  grpc::Status ExportUsage(grpc::ServerContext* context, const v1::ExportUsageRequest* request,
                           grpc::ServerWriter<v1::ExportUsageChunk>* writer) override;
  grpc::Status ListAudit(grpc::ServerContext* context, const v1::ListAuditRequest* request,
                         v1::ListAuditResponse* response) override;

 private:
  // Who writes the audit row of a call that succeeds.
  enum class AuditedBy { kStore, kService };

  // Authenticates, runs `body`, audits: what the store has not written with a change, this writes.
  grpc::Status Run(const grpc::ServerContext& context, absl::string_view what,
                   absl::string_view target, AuditedBy audited_by,
                   absl::FunctionRef<absl::Status(const Act& act)> body);

  // Makes a key for `record`, which has everything else, and keeps its hash.
  absl::Status StoreNewKey(ApiKeyRecord record, const Act& act, v1::CreateKeyResponse* response);
  absl::Status WriteEntries(const UsageQuery& query, v1::ExportUsageRequest::Format format,
                            grpc::ServerWriter<v1::ExportUsageChunk>* writer);

  const Options options_;
};

// A gRPC server of its own for the service. `listen` is host:port; port 0 takes a free one.
class AdminServer {
 public:
  // FAILED_PRECONDITION: off loopback without TLS; UNAVAILABLE: cannot bind.
  static absl::StatusOr<std::unique_ptr<AdminServer>> Start(const std::string& listen,
                                                            const TlsOptions& tls,
                                                            AdminService::Options options);
  // Ends running calls.
  ~AdminServer();

  int port() const { return port_; }

 private:
  explicit AdminServer(AdminService::Options options) : service_(std::move(options)) {}

  AdminService service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace ultraspeed::router
