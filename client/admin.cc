#include "client/admin.h"

#include <google/protobuf/util/json_util.h>

#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/admin_arguments.h"
#include "client/admin_money.h"
#include "client/admin_table.h"
#include "client/exit_code.h"
#include "common/grpc_status.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/support/channel_arguments.h"
#include "ultraspeed/v1/admin.grpc.pb.h"

namespace ultraspeed::client {
namespace {

constexpr int kListPageSize = 1000;

// ---- What things look like ----

std::string TierText(v1::ServiceTier tier) {
  if (tier == v1::SERVICE_TIER_UNSPECIFIED) return "";
  return tier == v1::SERVICE_TIER_ULTRASPEED ? "ultraspeed" : "standard";
}

std::string TimeText(const google::protobuf::Timestamp& stamp) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::FromUnixSeconds(stamp.seconds()),
                          absl::UTCTimeZone());
}

std::string StateText(v1::TenantState state) {
  return state == v1::TENANT_STATE_SUSPENDED ? "suspended" : "active";
}

std::string EntitlementsText(const v1::Tenant& tenant) {
  return absl::StrJoin(
      tenant.entitlements(), ",", [](std::string* out, const v1::Entitlement& entitlement) {
        absl::StrAppend(out, entitlement.model(), ":", TierText(entitlement.tier()));
        const int64_t promise = entitlement.promised_tokens_per_second();
        if (promise > 0) absl::StrAppend(out, ":", promise);
      });
}

std::string BudgetText(const v1::Tenant& tenant) {
  if (!tenant.has_monthly_budget_nanodollars()) return "none";
  return DollarsText(tenant.monthly_budget_nanodollars());
}

std::string LimitText(int64_t value) { return value == 0 ? "none" : absl::StrCat(value); }

std::string BurstText(int64_t value) { return value == 0 ? "1 min" : absl::StrCat(value); }

void PrintTenant(const v1::Tenant& tenant) {
  std::cout << "tenant        " << tenant.id() << "\nname          " << tenant.name()
            << "\nstate         " << StateText(tenant.state()) << "\nentitlements  "
            << EntitlementsText(tenant) << "\nbudget        " << BudgetText(tenant)
            << "\ncreated       " << TimeText(tenant.created()) << "\n\n";
  Table limits({"limits", "requests/min", "burst", "tokens/min", "burst", "streams"});
  for (const v1::TierLimits& one : tenant.limits()) {
    limits.Add({TierText(one.tier()), LimitText(one.requests_per_minute()),
                BurstText(one.requests_burst()), LimitText(one.tokens_per_minute()),
                BurstText(one.tokens_burst()), LimitText(one.concurrent_streams())});
  }
  std::cout << limits.Text();
}

void PrintJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string json;
  (void)google::protobuf::util::MessageToJsonString(message, &json, options);  // a message we read
  std::cout << json << "\n";
}

// ---- Calls ----

class Session {
 public:
  static absl::StatusOr<Session> Create(const AdminArguments& arguments) {
    ASSIGN_OR_RETURN(std::string token, ReadAdminToken(arguments.token_file));
    ASSIGN_OR_RETURN(const auto credentials,
                     CreateChannelCredentials(arguments.tls, arguments.server));
    grpc::ChannelArguments channel_arguments;
    channel_arguments.SetMaxReceiveMessageSize(limits::kGrpcMessageBytesMax);
    return Session(arguments, std::move(token),
                   v1::Admin::NewStub(grpc::CreateCustomChannel(arguments.server, credentials,
                                                                channel_arguments)));
  }

  const AdminArguments& arguments() const { return arguments_; }
  const std::vector<std::string>& words() const { return arguments_.words; }

  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::Admin::Stub::*method)(grpc::ClientContext*,
                                                                        const Request&, Response*),
                                const Request& request) const {
    grpc::ClientContext context;
    Prepare(&context);
    Response response;
    RETURN_IF_ERROR(FromGrpcStatus((stub_.get()->*method)(&context, request, &response)));
    return response;
  }

  // Writes the file to standard output as it comes.
  absl::Status Export(const v1::ExportUsageRequest& request) const {
    grpc::ClientContext context;
    Prepare(&context);
    const auto reader = stub_->ExportUsage(&context, request);
    v1::ExportUsageChunk chunk;
    while (reader->Read(&chunk)) std::cout << chunk.data();
    std::cout.flush();
    return FromGrpcStatus(reader->Finish());
  }

 private:
  Session(AdminArguments arguments, std::string token, std::unique_ptr<v1::Admin::Stub> stub)
      : arguments_(std::move(arguments)), token_(std::move(token)), stub_(std::move(stub)) {}

  void Prepare(grpc::ClientContext* context) const {
    context->AddMetadata("authorization", absl::StrCat("Bearer ", token_));
    if (arguments_.deadline > absl::ZeroDuration()) {
      context->set_deadline(absl::ToChronoTime(absl::Now() + arguments_.deadline));
    }
  }

  AdminArguments arguments_;
  std::string token_;
  std::unique_ptr<v1::Admin::Stub> stub_;
};

// ---- Tenants ----

absl::Status ShowTenant(const Session& session, const v1::Tenant& tenant) {
  if (session.arguments().json) {
    PrintJson(tenant);
  } else {
    PrintTenant(tenant);
  }
  return absl::OkStatus();
}

absl::Status TenantsCreate(const Session& session) {
  const AdminArguments& arguments = session.arguments();
  v1::CreateTenantRequest request;
  request.set_id(session.words()[0]);
  request.set_name(arguments.name);
  ASSIGN_OR_RETURN(const auto entitlements, ParseEntitlements(arguments.entitlements));
  for (const v1::Entitlement& one : entitlements) *request.add_entitlements() = one;
  ASSIGN_OR_RETURN(const auto limits, ParseLimits(arguments.limits));
  for (const v1::TierLimits& one : limits) *request.add_limits() = one;
  if (!arguments.budget.empty() && arguments.budget != "none") {
    ASSIGN_OR_RETURN(const int64_t budget, ParseDollars("monthly-budget", arguments.budget));
    request.set_monthly_budget_nanodollars(budget);
  }
  ASSIGN_OR_RETURN(const v1::Tenant tenant, session.Call(&v1::Admin::Stub::CreateTenant, request));
  return ShowTenant(session, tenant);
}

absl::Status TenantsUpdate(const Session& session) {
  const AdminArguments& arguments = session.arguments();
  v1::UpdateTenantRequest request;
  request.set_id(session.words()[0]);
  if (!arguments.name.empty()) request.set_name(arguments.name);
  if (!arguments.entitlements.empty()) {
    ASSIGN_OR_RETURN(const auto entitlements, ParseEntitlements(arguments.entitlements));
    v1::EntitlementList* const list = request.mutable_entitlements();
    for (const v1::Entitlement& one : entitlements) *list->add_entitlements() = one;
  }
  ASSIGN_OR_RETURN(const auto limits, ParseLimits(arguments.limits));
  for (const v1::TierLimits& one : limits) *request.add_limits() = one;
  if (arguments.budget == "none") {
    request.set_remove_monthly_budget(true);
  } else if (!arguments.budget.empty()) {
    ASSIGN_OR_RETURN(const int64_t budget, ParseDollars("monthly-budget", arguments.budget));
    request.set_monthly_budget_nanodollars(budget);
  }
  ASSIGN_OR_RETURN(const v1::Tenant tenant, session.Call(&v1::Admin::Stub::UpdateTenant, request));
  return ShowTenant(session, tenant);
}

absl::Status SetState(const Session& session, v1::TenantState state) {
  v1::UpdateTenantRequest request;
  request.set_id(session.words()[0]);
  request.set_state(state);
  ASSIGN_OR_RETURN(const v1::Tenant tenant, session.Call(&v1::Admin::Stub::UpdateTenant, request));
  return ShowTenant(session, tenant);
}

absl::Status TenantsSuspend(const Session& session) {
  return SetState(session, v1::TENANT_STATE_SUSPENDED);
}

absl::Status TenantsResume(const Session& session) {
  return SetState(session, v1::TENANT_STATE_ACTIVE);
}

absl::Status TenantsShow(const Session& session) {
  v1::GetTenantRequest request;
  request.set_id(session.words()[0]);
  ASSIGN_OR_RETURN(const v1::TenantStatus status,
                   session.Call(&v1::Admin::Stub::GetTenant, request));
  if (session.arguments().json) {
    PrintJson(status);
    return absl::OkStatus();
  }
  PrintTenant(status.tenant());
  std::cout << "\nthis month    " << DollarsText(status.spent_nanodollars()) << " spent, "
            << DollarsText(status.reserved_nanodollars()) << " reserved\n";
  return absl::OkStatus();
}

absl::Status TenantsList(const Session& session) {
  v1::ListTenantsResponse all;
  v1::ListTenantsRequest request;
  request.set_page_size(kListPageSize);
  for (;;) {
    ASSIGN_OR_RETURN(const v1::ListTenantsResponse page,
                     session.Call(&v1::Admin::Stub::ListTenants, request));
    all.MergeFrom(page);
    if (page.tenants_size() < kListPageSize) break;
    request.set_after_id(page.tenants(page.tenants_size() - 1).id());
  }
  if (session.arguments().json) {
    PrintJson(all);
    return absl::OkStatus();
  }
  Table table({"tenant", "state", "budget", "entitlements", "name"});
  for (const v1::Tenant& tenant : all.tenants()) {
    table.Add({tenant.id(), StateText(tenant.state()), BudgetText(tenant), EntitlementsText(tenant),
               tenant.name()});
  }
  std::cout << table.Text();
  return absl::OkStatus();
}

// ---- Keys ----

absl::Status KeysCreate(const Session& session) {
  const AdminArguments& arguments = session.arguments();
  v1::CreateKeyRequest request;
  request.set_tenant_id(session.words()[0]);
  request.set_label(arguments.label);
  if (arguments.expires_in > absl::ZeroDuration()) {
    request.mutable_expires()->set_seconds(absl::ToUnixSeconds(absl::Now() + arguments.expires_in));
  }
  ASSIGN_OR_RETURN(const v1::CreateKeyResponse response,
                   session.Call(&v1::Admin::Stub::CreateKey, request));
  if (arguments.json) {
    PrintJson(response);
  } else {
    std::cerr << "Shown this once; only its hash is kept:\n";
    std::cout << response.secret() << "\n";
  }
  return absl::OkStatus();
}

absl::Status KeysList(const Session& session) {
  v1::ListKeysRequest request;
  request.set_tenant_id(session.words()[0]);
  ASSIGN_OR_RETURN(const v1::ListKeysResponse response,
                   session.Call(&v1::Admin::Stub::ListKeys, request));
  if (session.arguments().json) {
    PrintJson(response);
    return absl::OkStatus();
  }
  Table table({"key", "created", "expires", "revoked", "label"});
  for (const v1::ApiKey& key : response.keys()) {
    table.Add({key.id(), TimeText(key.created()),
               key.has_expires() ? TimeText(key.expires()) : "never",
               key.has_revoked() ? TimeText(key.revoked()) : "no", key.label()});
  }
  std::cout << table.Text();
  return absl::OkStatus();
}

absl::Status KeysRevoke(const Session& session) {
  v1::RevokeKeyRequest request;
  request.set_id(session.words()[0]);
  ASSIGN_OR_RETURN(const v1::RevokeKeyResponse response,
                   session.Call(&v1::Admin::Stub::RevokeKey, request));
  if (session.arguments().json) PrintJson(response);
  return absl::OkStatus();
}

// ---- Prices ----

void AddPriceRow(const v1::Price& price, Table* table) {
  table->Add({absl::StrCat(price.version()), price.model(), TierText(price.tier()),
              DollarsText(price.input()), DollarsText(price.cached_input()),
              DollarsText(price.output()), TimeText(price.effective_from())});
}

Table PriceTable() {
  return Table({"version", "model", "tier", "input/M", "cached/M", "output/M", "from"});
}

absl::Status PricesList(const Session& session) {
  ASSIGN_OR_RETURN(const v1::ListPricesResponse response,
                   session.Call(&v1::Admin::Stub::ListPrices, v1::ListPricesRequest()));
  if (session.arguments().json) {
    PrintJson(response);
    return absl::OkStatus();
  }
  Table table = PriceTable();
  for (const v1::Price& price : response.prices()) AddPriceRow(price, &table);
  std::cout << table.Text();
  return absl::OkStatus();
}

absl::Status PricesAdd(const Session& session) {
  const AdminArguments& arguments = session.arguments();
  v1::AddPriceRequest request;
  request.set_model(arguments.model);
  ASSIGN_OR_RETURN(const v1::ServiceTier tier, ParseTierName("tier", arguments.tier));
  request.set_tier(tier);
  ASSIGN_OR_RETURN(const int64_t input, ParseDollars("input", arguments.input));
  ASSIGN_OR_RETURN(const int64_t cached, ParseDollars("cached-input", arguments.cached_input));
  ASSIGN_OR_RETURN(const int64_t output, ParseDollars("output", arguments.output));
  request.set_input(input);
  request.set_cached_input(cached);
  request.set_output(output);
  if (!arguments.effective_from.empty()) {
    ASSIGN_OR_RETURN(*request.mutable_effective_from(),
                     ParseTime("effective-from", arguments.effective_from));
  }
  ASSIGN_OR_RETURN(const v1::Price price, session.Call(&v1::Admin::Stub::AddPrice, request));
  if (arguments.json) {
    PrintJson(price);
    return absl::OkStatus();
  }
  Table table = PriceTable();
  AddPriceRow(price, &table);
  std::cout << table.Text();
  return absl::OkStatus();
}

// ---- Usage ----

template <typename Range>
absl::Status SetRange(const AdminArguments& arguments, Range* range) {
  if (!arguments.start.empty()) {
    ASSIGN_OR_RETURN(*range->mutable_start(), ParseTime("start", arguments.start));
  }
  if (!arguments.end.empty()) {
    ASSIGN_OR_RETURN(*range->mutable_end(), ParseTime("end", arguments.end));
  }
  return absl::OkStatus();
}

absl::Status UsageQuery(const Session& session) {
  const AdminArguments& arguments = session.arguments();
  v1::QueryUsageRequest request;
  request.set_tenant_id(arguments.tenant);
  v1::GetUsageRequest* const query = request.mutable_query();
  RETURN_IF_ERROR(SetRange(arguments, query));
  query->set_bucket_width(arguments.bucket);
  for (const std::string& group : arguments.group_by) query->add_group_by(group);
  ASSIGN_OR_RETURN(const v1::GetUsageResponse response,
                   session.Call(&v1::Admin::Stub::QueryUsage, request));
  if (arguments.json) {
    PrintJson(response);
    return absl::OkStatus();
  }
  Table table(
      {"from", "key", "model", "tier", "requests", "prompt", "cached", "completion", "cost"});
  v1::GetUsageResponse::Bucket total;
  const auto AddRow = [&table](const std::string& from, const v1::GetUsageResponse::Bucket& one) {
    table.Add({from, one.api_key_id(), one.model(), TierText(one.service_tier()),
               absl::StrCat(one.requests()), absl::StrCat(one.usage().prompt_tokens()),
               absl::StrCat(one.usage().cached_tokens()),
               absl::StrCat(one.usage().completion_tokens()), DollarsText(one.cost_nanodollars())});
  };
  for (const v1::GetUsageResponse::Bucket& one : response.buckets()) {
    AddRow(TimeText(one.start()), one);
    v1::Usage* const sum = total.mutable_usage();
    total.set_requests(total.requests() + one.requests());
    total.set_cost_nanodollars(total.cost_nanodollars() + one.cost_nanodollars());
    sum->set_prompt_tokens(sum->prompt_tokens() + one.usage().prompt_tokens());
    sum->set_cached_tokens(sum->cached_tokens() + one.usage().cached_tokens());
    sum->set_completion_tokens(sum->completion_tokens() + one.usage().completion_tokens());
  }
  AddRow("total", total);
  std::cout << table.Text();
  return absl::OkStatus();
}

absl::Status UsageExport(const Session& session) {
  const AdminArguments& arguments = session.arguments();
  v1::ExportUsageRequest request;
  request.set_tenant_id(arguments.tenant);
  RETURN_IF_ERROR(SetRange(arguments, &request));
  request.set_format(arguments.format == "json" ? v1::ExportUsageRequest::FORMAT_JSON
                                                : v1::ExportUsageRequest::FORMAT_CSV);
  return session.Export(request);
}

// ---- Audit ----

absl::Status AuditList(const Session& session) {
  v1::ListAuditRequest request;
  request.set_page_size(session.arguments().limit);
  ASSIGN_OR_RETURN(const v1::ListAuditResponse response,
                   session.Call(&v1::Admin::Stub::ListAudit, request));
  if (session.arguments().json) {
    PrintJson(response);
    return absl::OkStatus();
  }
  Table table({"id", "time", "who", "what", "target", "result"});
  for (const v1::AuditEntry& entry : response.entries()) {
    table.Add({absl::StrCat(entry.id()), TimeText(entry.time()), entry.who(), entry.what(),
               entry.target(), entry.result()});
  }
  std::cout << table.Text();
  return absl::OkStatus();
}

// ---- The commands ----

using AddFlags = void (*)(FlagTable&, AdminArguments*);

void AddNoFlags(FlagTable&, AdminArguments*) {}

void AddKeyFlags(FlagTable& table, AdminArguments* arguments) {
  table.String("label", &arguments->label, "text", "For people");
  table.Duration("expires-in", &arguments->expires_in, "From now, e.g. 2160h; 0 = never");
}

void AddUsageFlags(FlagTable& table, AdminArguments* arguments) {
  AddRangeFlags(table, arguments);
  table.Choice("bucket", &arguments->bucket, {"1m", "1h", "1d"}, "Sums over so much time");
  table.StringList("group-by", &arguments->group_by, "column",
                   "Sums by api_key, model, service_tier");
}

void AddExportFlags(FlagTable& table, AdminArguments* arguments) {
  AddRangeFlags(table, arguments);
  table.Choice("format", &arguments->format, {"csv", "json"}, "Of the file on standard output");
}

void AddAuditFlags(FlagTable& table, AdminArguments* arguments) {
  table.Int("limit", &arguments->limit, {1, 1000}, "rows", "The newest so many");
}

struct AdminCommand {
  const char* resource;
  const char* action;
  const char* argument;  // what the one word after it is; empty: none
  const char* summary;
  AddFlags add_flags;
  absl::Status (*run)(const Session& session);
};

constexpr AdminCommand kCommands[] = {
    {"tenants", "create", "TENANT", "make a tenant", AddTenantFlags, TenantsCreate},
    {"tenants", "list", "", "all tenants", AddNoFlags, TenantsList},
    {"tenants", "show", "TENANT", "one, with what it spent this month", AddNoFlags, TenantsShow},
    {"tenants", "update", "TENANT", "change what is given", AddTenantFlags, TenantsUpdate},
    {"tenants", "suspend", "TENANT", "refuse its keys", AddNoFlags, TenantsSuspend},
    {"tenants", "resume", "TENANT", "take them again", AddNoFlags, TenantsResume},
    {"keys", "create", "TENANT", "make a key and print it, once", AddKeyFlags, KeysCreate},
    {"keys", "list", "TENANT", "its keys, without their secrets", AddNoFlags, KeysList},
    {"keys", "revoke", "KEY", "end a key, by its 8-character id", AddNoFlags, KeysRevoke},
    {"prices", "list", "", "all versions", AddNoFlags, PricesList},
    {"prices", "add", "", "a new version", AddPriceFlags, PricesAdd},
    {"usage", "query", "", "tokens and cost by time", AddUsageFlags, UsageQuery},
    {"usage", "export", "", "the ledger's rows as a file", AddExportFlags, UsageExport},
    {"audit", "list", "", "who did what", AddAuditFlags, AuditList},
};

std::string UsageText() {
  Table table({"ultraspeed admin ..", "", ""});
  for (const AdminCommand& command : kCommands) {
    table.Add({absl::StrCat("  ", command.resource, " ", command.action), command.argument,
               command.summary});
  }
  return absl::StrCat(table.Text(),
                      "\n`ultraspeed admin RESOURCE ACTION --help` lists the flags. Exit status as "
                      "of `ultraspeed --help`.\n");
}

const AdminCommand* FindCommand(int argc, const char* const* argv) {
  for (const AdminCommand& command : kCommands) {
    if (argc > 3 && command.resource == std::string(argv[2]) &&
        command.action == std::string(argv[3])) {
      return &command;
    }
  }
  return nullptr;
}

// OK with kHelp: help was printed.
absl::StatusOr<ParseOutcome> Parse(const AdminCommand& command, int argc, const char* const* argv,
                                   AdminArguments* arguments) {
  FlagTable table(absl::StrCat("ultraspeed admin ", command.resource, " ", command.action),
                  command.summary);
  command.add_flags(table, arguments);
  AddCommonFlags(table, arguments);
  const std::string argument = command.argument;
  if (!argument.empty()) table.Positional(argument, &arguments->words, "REQUIRED");
  ASSIGN_OR_RETURN(const ParseOutcome outcome, table.Parse(argc - 3, argv + 3));
  if (outcome == ParseOutcome::kHelp) {
    std::cout << table.Help();
  } else if (arguments->words.size() != (argument.empty() ? 0u : 1u)) {
    return absl::InvalidArgumentError(
        absl::StrCat(command.resource, " ", command.action, ": needs exactly one ", argument));
  }
  return outcome;
}

}  // namespace

int RunAdmin(int argc, const char* const* argv) {
  const AdminCommand* const command = FindCommand(argc, argv);
  if (command == nullptr) {
    const bool asks_for_help = argc == 2 || absl::StrContains(argv[argc - 1], "help");
    (asks_for_help ? std::cout : std::cerr) << UsageText();
    return asks_for_help ? 0 : kExitUsage;
  }
  AdminArguments arguments;
  const auto outcome = Parse(*command, argc, argv, &arguments);
  if (!outcome.ok()) {
    std::cerr << "ultraspeed: " << outcome.status().message() << "\n";
    return kExitUsage;
  }
  if (*outcome == ParseOutcome::kHelp) return 0;
  const auto session = Session::Create(arguments);
  const absl::Status status = session.ok() ? command->run(*session) : session.status();
  if (status.ok()) return 0;
  std::cerr << "ultraspeed: " << absl::StatusCodeToString(status.code()) << ": " << status.message()
            << "\n";
  return ExitCode(status);
}

}  // namespace ultraspeed::client
