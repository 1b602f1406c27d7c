#include "router/admin_service.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/grpc_status.h"
#include "common/limits.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "grpcpp/server_builder.h"
#include "router/admin_messages.h"
#include "router/api_key.h"
#include "router/ledger_export.h"
#include "router/usage_query.h"

namespace ultraspeed::router {
namespace {

constexpr int kPageSizeDefault = 100;
constexpr int kPageSizeMax = 1000;
constexpr int kExportPageEntries = 500;
constexpr int kKeyIdAttemptsMax = 3;  // ids have 40 random bits, so a second one is hardly needed
constexpr size_t kAuditTextBytesMax = 256;

absl::string_view Header(const grpc::ServerContext& context, const char* name) {
  const auto found = context.client_metadata().find(name);
  if (found == context.client_metadata().end()) return {};
  return {found->second.data(), found->second.size()};
}

// What an unchecked field may put into the audit log: at most kAuditTextBytesMax printable bytes.
std::string Printable(absl::string_view text) {
  std::string out(text.substr(0, kAuditTextBytesMax));
  std::replace_if(
      out.begin(), out.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return out;
}

absl::Status CheckName(absl::string_view field, absl::string_view name) {
  if (IsAccountName(name)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, "=", Printable(name), ": must be 1..64 of A-Z a-z 0-9 . _ -"));
}

template <typename Request>
absl::StatusOr<int> PageSize(const Request& request) {
  if (!request.has_page_size()) return kPageSizeDefault;
  if (request.page_size() < 1 || request.page_size() > kPageSizeMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_size=", request.page_size(), ": must be in 1..", kPageSizeMax));
  }
  return request.page_size();
}

absl::StatusOr<UsageQuery> ExportQuery(const v1::ExportUsageRequest& request, absl::Time now) {
  v1::GetUsageRequest range;
  if (request.has_start()) *range.mutable_start() = request.start();
  if (request.has_end()) *range.mutable_end() = request.end();
  return ToUsageQuery(range, request.tenant_id(), now);
}

// Times that ToUsageQuery would take as they are.
template <typename Range>
absl::Status CheckTimes(const Range& range) {
  if (range.has_start()) RETURN_IF_ERROR(TimeFrom("start", range.start()).status());
  if (range.has_end()) RETURN_IF_ERROR(TimeFrom("end", range.end()).status());
  return absl::OkStatus();
}

}  // namespace

grpc::Status AdminService::Run(const grpc::ServerContext& context, absl::string_view what,
                               absl::string_view target, AuditedBy audited_by,
                               absl::FunctionRef<absl::Status(const Act& act)> body) {
  const auto who = options_.tokens.Authenticate(
      ApiKeyFromHeaders(Header(context, "authorization"), Header(context, "api-key")));
  if (!who.ok()) {
    Log(LogLevel::kWarning, "admin.refused", {{"what", what}, {"peer", context.peer()}});
    return ToGrpcStatus(who.status());
  }
  const Act act = {.who = *who,
                   .what = std::string(what),
                   .target = Printable(target),
                   .time = options_.clock->Now()};
  absl::Status status = body(act);
  if (!status.ok() || audited_by == AuditedBy::kService) {
    const std::string result = status.ok() ? "OK"
                                           : absl::StrCat(absl::StatusCodeToString(status.code()),
                                                          ": ", Printable(status.message()));
    const absl::Status audited = options_.store->AppendAudit({.act = act, .result = result});
    if (status.ok()) status = audited;  // what cannot be audited is not answered
  }
  Log(LogLevel::kInfo, "admin.act",
      {{"who", act.who},
       {"what", act.what},
       {"target", act.target},
       {"result", absl::StatusCodeToString(status.code())}});
  return ToGrpcStatus(status);
}

// ---- Tenants ----

grpc::Status AdminService::CreateTenant(grpc::ServerContext* context,
                                        const v1::CreateTenantRequest* request,
                                        v1::Tenant* response) {
  return Run(*context, "tenants.create", request->id(), AuditedBy::kStore,
             [&](const Act& act) -> absl::Status {
               ASSIGN_OR_RETURN(const Tenant tenant, NewTenantFrom(*request, act.time));
               RETURN_IF_ERROR(options_.store->CreateTenant(tenant, act));
               *response = ToMessage(tenant);
               return absl::OkStatus();
             });
}

grpc::Status AdminService::GetTenant(grpc::ServerContext* context,
                                     const v1::GetTenantRequest* request,
                                     v1::TenantStatus* response) {
  return Run(*context, "tenants.get", request->id(), AuditedBy::kService,
             [&](const Act& act) -> absl::Status {
               RETURN_IF_ERROR(CheckName("id", request->id()));
               ASSIGN_OR_RETURN(const Tenant tenant, options_.store->GetTenant(request->id()));
               ASSIGN_OR_RETURN(const Spend spend,
                                options_.store->GetSpend(tenant.id, MonthOf(act.time)));
               *response->mutable_tenant() = ToMessage(tenant);
               response->set_spent_nanodollars(spend.spent_nanodollars);
               response->set_reserved_nanodollars(spend.reserved_nanodollars);
               return absl::OkStatus();
             });
}

grpc::Status AdminService::ListTenants(grpc::ServerContext* context,
                                       const v1::ListTenantsRequest* request,
                                       v1::ListTenantsResponse* response) {
  return Run(*context, "tenants.list", request->after_id(), AuditedBy::kService,
             [&](const Act&) -> absl::Status {
               if (!request->after_id().empty()) {
                 RETURN_IF_ERROR(CheckName("after_id", request->after_id()));
               }
               ASSIGN_OR_RETURN(const int num_max, PageSize(*request));
               ASSIGN_OR_RETURN(const std::vector<Tenant> tenants,
                                options_.store->ListTenants(request->after_id(), num_max));
               for (const Tenant& tenant : tenants) *response->add_tenants() = ToMessage(tenant);
               return absl::OkStatus();
             });
}

grpc::Status AdminService::UpdateTenant(grpc::ServerContext* context,
                                        const v1::UpdateTenantRequest* request,
                                        v1::Tenant* response) {
  return Run(*context, "tenants.update", request->id(), AuditedBy::kStore,
             [&](const Act& act) -> absl::Status {
               RETURN_IF_ERROR(CheckName("id", request->id()));
               ASSIGN_OR_RETURN(Tenant tenant, options_.store->GetTenant(request->id()));
               RETURN_IF_ERROR(ApplyUpdate(*request, &tenant));
               RETURN_IF_ERROR(options_.store->UpdateTenant(tenant, act));
               *response = ToMessage(tenant);
               return absl::OkStatus();
             });
}

// ---- Keys ----

grpc::Status AdminService::CreateKey(grpc::ServerContext* context,
                                     const v1::CreateKeyRequest* request,
                                     v1::CreateKeyResponse* response) {
  return Run(*context, "keys.create", request->tenant_id(), AuditedBy::kStore,
             [&](const Act& act) -> absl::Status {
               RETURN_IF_ERROR(CheckName("tenant_id", request->tenant_id()));
               RETURN_IF_ERROR(ValidateLabel("label", request->label()));
               ApiKeyRecord record;
               record.tenant_id = request->tenant_id();
               record.label = request->label();
               record.created = act.time;
               if (request->has_expires()) {
                 ASSIGN_OR_RETURN(record.expires, TimeFrom("expires", request->expires()));
                 if (*record.expires <= act.time) {
                   return absl::InvalidArgumentError(absl::StrCat(
                       "expires=", absl::FormatTime(*record.expires), ": must be after now"));
                 }
               }
               return StoreNewKey(std::move(record), act, response);
             });
}

absl::Status AdminService::StoreNewKey(ApiKeyRecord record, const Act& act,
                                       v1::CreateKeyResponse* response) {
  for (int attempt = 1;; ++attempt) {
    ASSIGN_OR_RETURN(const NewApiKey made, GenerateApiKey());
    record.id = made.id;
    record.digest_hex = HashApiKey(made.key, options_.pepper);
    Act of_key = act;
    of_key.target = absl::StrCat(record.tenant_id, "/", record.id);
    const absl::Status status = options_.store->CreateKey(record, of_key);
    if (absl::IsAlreadyExists(status) && attempt < kKeyIdAttemptsMax) continue;
    RETURN_IF_ERROR(status);
    *response->mutable_key() = ToMessage(record);
    response->set_secret(made.key);
    return absl::OkStatus();
  }
}

grpc::Status AdminService::ListKeys(grpc::ServerContext* context,
                                    const v1::ListKeysRequest* request,
                                    v1::ListKeysResponse* response) {
  return Run(*context, "keys.list", request->tenant_id(), AuditedBy::kService,
             [&](const Act&) -> absl::Status {
               RETURN_IF_ERROR(CheckName("tenant_id", request->tenant_id()));
               ASSIGN_OR_RETURN(const std::vector<ApiKeyRecord> keys,
                                options_.store->ListKeys(request->tenant_id()));
               for (const ApiKeyRecord& key : keys) *response->add_keys() = ToMessage(key);
               return absl::OkStatus();
             });
}

grpc::Status AdminService::RevokeKey(grpc::ServerContext* context,
                                     const v1::RevokeKeyRequest* request, v1::RevokeKeyResponse*) {
  // A key that is pasted by mistake must not reach the audit log, not even in part.
  const bool is_id = IsAccountName(request->id()) && request->id().size() == kApiKeyIdBytes;
  return Run(*context, "keys.revoke", is_id ? request->id() : "", AuditedBy::kStore,
             [&](const Act& act) -> absl::Status {
               if (!is_id) {
                 return absl::InvalidArgumentError(
                     absl::StrCat("id: must be the ", kApiKeyIdBytes, " characters of a key's id"));
               }
               return options_.store->RevokeKey(request->id(), act);
             });
}

// ---- Prices ----

grpc::Status AdminService::AddPrice(grpc::ServerContext* context,
                                    const v1::AddPriceRequest* request, v1::Price* response) {
  return Run(*context, "prices.add", request->model(), AuditedBy::kStore,
             [&](const Act& act) -> absl::Status {
               ASSIGN_OR_RETURN(Price price, NewPriceFrom(*request, act.time));
               ASSIGN_OR_RETURN(price.version, options_.store->AddPrice(price, act));
               *response = ToMessage(price);
               return absl::OkStatus();
             });
}

grpc::Status AdminService::ListPrices(grpc::ServerContext* context, const v1::ListPricesRequest*,
                                      v1::ListPricesResponse* response) {
  return Run(*context, "prices.list", "", AuditedBy::kService, [&](const Act&) -> absl::Status {
    ASSIGN_OR_RETURN(const std::vector<Price> prices, options_.store->ListPrices());
    for (const Price& price : prices) *response->add_prices() = ToMessage(price);
    return absl::OkStatus();
  });
}

// ---- Usage ----

grpc::Status AdminService::QueryUsage(grpc::ServerContext* context,
                                      const v1::QueryUsageRequest* request,
                                      v1::GetUsageResponse* response) {
  return Run(*context, "usage.query", request->tenant_id(), AuditedBy::kService,
             [&](const Act& act) -> absl::Status {
               if (!request->tenant_id().empty()) {
                 RETURN_IF_ERROR(CheckName("tenant_id", request->tenant_id()));
               }
               RETURN_IF_ERROR(CheckTimes(request->query()));
               ASSIGN_OR_RETURN(const UsageQuery query,
                                ToUsageQuery(request->query(), request->tenant_id(), act.time));
               ASSIGN_OR_RETURN(const std::vector<UsageBucket> buckets,
                                options_.store->QueryUsage(query));
               *response = ToUsageResponse(buckets);
               return absl::OkStatus();
             });
}

grpc::Status AdminService::ExportUsage(grpc::ServerContext* context,
                                       const v1::ExportUsageRequest* request,
                                       grpc::ServerWriter<v1::ExportUsageChunk>* writer) {
  return Run(*context, "usage.export", request->tenant_id(), AuditedBy::kService,
             [&](const Act& act) -> absl::Status {
               if (!request->tenant_id().empty()) {
                 RETURN_IF_ERROR(CheckName("tenant_id", request->tenant_id()));
               }
               if (request->format() != v1::ExportUsageRequest::FORMAT_CSV &&
                   request->format() != v1::ExportUsageRequest::FORMAT_JSON) {
                 return absl::InvalidArgumentError(
                     absl::StrCat("format=", static_cast<int>(request->format()),
                                  ": must be FORMAT_CSV or FORMAT_JSON"));
               }
               RETURN_IF_ERROR(CheckTimes(*request));
               ASSIGN_OR_RETURN(const UsageQuery query, ExportQuery(*request, act.time));
               return WriteEntries(query, request->format(), writer);
             });
}

absl::Status AdminService::WriteEntries(const UsageQuery& query,
                                        v1::ExportUsageRequest::Format format,
                                        grpc::ServerWriter<v1::ExportUsageChunk>* writer) {
  LedgerExport file(format == v1::ExportUsageRequest::FORMAT_CSV ? ExportFormat::kCsv
                                                                 : ExportFormat::kJson);
  v1::ExportUsageChunk chunk;
  chunk.set_data(file.Head());
  std::optional<LedgerEntry> last;
  for (;;) {
    ASSIGN_OR_RETURN(const std::vector<LedgerEntry> page,
                     options_.store->ListClosed(query, last, kExportPageEntries));
    for (const LedgerEntry& entry : page) chunk.mutable_data()->append(file.Row(entry));
    const bool is_last = page.size() < kExportPageEntries;
    if (is_last) chunk.mutable_data()->append(file.Tail());
    if (!writer->Write(chunk)) return absl::CancelledError("the caller left");
    if (is_last) return absl::OkStatus();
    last = page.back();
    chunk.clear_data();
  }
}

// ---- Audit ----

grpc::Status AdminService::ListAudit(grpc::ServerContext* context,
                                     const v1::ListAuditRequest* request,
                                     v1::ListAuditResponse* response) {
  return Run(*context, "audit.list", "", AuditedBy::kService, [&](const Act&) -> absl::Status {
    ASSIGN_OR_RETURN(const int num_max, PageSize(*request));
    ASSIGN_OR_RETURN(
        const std::vector<AuditEntry> entries,
        options_.store->ListAudit(
            request->has_before_id() ? std::optional<int64_t>(request->before_id()) : std::nullopt,
            num_max));
    for (const AuditEntry& entry : entries) *response->add_entries() = ToMessage(entry);
    return absl::OkStatus();
  });
}

// ---- Server ----

absl::StatusOr<std::unique_ptr<AdminServer>> AdminServer::Start(const std::string& listen,
                                                                const TlsOptions& tls,
                                                                AdminService::Options options) {
  ASSIGN_OR_RETURN(const auto credentials, CreateServerCredentials(tls, listen));
  auto server = std::unique_ptr<AdminServer>(new AdminServer(std::move(options)));
  grpc::ServerBuilder builder;
  builder.AddListeningPort(listen, credentials, &server->port_);
  builder.RegisterService(&server->service_);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, limits::kGrpcMetadataBytesMax);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 2);
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr || server->port_ == 0) {
    return absl::UnavailableError(absl::StrCat("admin-listen=", listen, ": cannot bind"));
  }
  return server;
}

AdminServer::~AdminServer() {
  if (server_ != nullptr) server_->Shutdown(absl::ToChronoTime(absl::Now()));
}

}  // namespace ultraspeed::router
