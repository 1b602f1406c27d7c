#include "router/inference_service.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/grpc_status.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "grpcpp/support/proto_buffer_writer.h"
#include "router/api_key.h"
#include "router/request_decoder.h"
#include "router/usage_query.h"

namespace ultraspeed::router {
namespace {

constexpr absl::string_view kUltraspeedSuffix = "-ultraspeed";

absl::string_view Header(const grpc::CallbackServerContext& context, const char* name) {
  const auto found = context.client_metadata().find(name);
  if (found == context.client_metadata().end()) return {};
  return {found->second.data(), found->second.size()};
}

// 53 bits, so that a seed that was reported survives programs that keep numbers as doubles.
uint64_t DrawSeed() {
  std::random_device device;
  return ((static_cast<uint64_t>(device()) << 32) | device()) >> 11;
}

void Serialize(const google::protobuf::Message& message, grpc::ByteBuffer* bytes) {
  bool own_buffer = false;
  // Cannot fail: our own message, far below 2 GiB.
  (void)grpc::GenericSerialize<grpc::ProtoBufferWriter, google::protobuf::Message>(message, bytes,
                                                                                   &own_buffer);
}

// A caller that names no max_tokens gets a huge one; what it will use is closer to a constant.
int64_t LikelyTokens(const GenerationParams& params, int32_t max_tokens) {
  return params.max_tokens ? max_tokens : std::min(max_tokens, limits::kLikelyCompletionTokens);
}

// REQUIRES: there are tools.
ToolUse ToolUseOf(const Conversation& conversation) {
  ToolUse use;
  use.parallel_calls = conversation.parallel_tool_calls;
  for (const ToolFunction& function : conversation.tools.functions)
    use.types[function.name] = ParameterTypesOf(function.parameters);
  if (conversation.tools.call_required)
    use.opening = ChatTemplate::CallOpening(conversation.tools.required_name);
  return use;
}

// What calls are held to, if one of the tools is strict. A call that the prompt requires begins in
// it. REQUIRES: the model has a template, and so its marks.
void SetToolCalls(const ServedModel& model, const ToolPrompt& tools,
                  v1::WorkerGenerateRequest* request) {
  if (!tools.any_strict()) return;
  v1::ToolCallFormat* calls = request->mutable_tool_calls();
  for (const ToolFunction& function : tools.functions) {
    v1::Tool* tool = calls->add_tools();
    tool->set_name(function.name);
    tool->set_strict(function.is_strict);
    if (function.is_strict) tool->set_parameters_json(function.parameters);
  }
  calls->set_begin_token_id(*model.tokenizer->TokenId(kToolCallBegin));
  calls->set_end_token_id(*model.tokenizer->TokenId(kToolCallEnd));
  calls->set_thought_begin_token_id(model.reasoning_marks.begin);
  calls->set_thought_end_token_id(model.reasoning_marks.end);
  if (!tools.call_required) return;
  const auto& prompt = request->prompt_token_ids();
  const auto begin = std::find(prompt.rbegin(), prompt.rend(), calls->begin_token_id());
  calls->set_begun_tokens(static_cast<int32_t>(begin - prompt.rbegin()) + 1);
}

// An answer is held to its format behind its thoughts. The prompt opens them, so that none can do
// without and be held to nothing.
bool PromptOpensThought(const ChatParams& params) {
  return params.generation.output_format.has_value() && params.enable_thinking;
}

absl::Status BlockingPoolFull() {
  return absl::ResourceExhaustedError(
      absl::StrCat("too many calls wait for the store, at most ", limits::kBlockingQueue));
}

}  // namespace

InferenceService::InferenceService(const Options& options)
    : options_(options),
      tokenize_pool_(limits::kTokenizeThreads, limits::kTokenizeQueue),
      blocking_pool_(limits::kBlockingThreads, limits::kBlockingQueue) {}

absl::StatusOr<AuthenticatedTenant> InferenceService::Authenticate(
    const grpc::CallbackServerContext& context) const {
  if (options_.keys == nullptr) return AuthenticatedTenant{.tenant = "anonymous", .key_id = ""};
  return options_.keys->Authenticate(
      ApiKeyFromHeaders(Header(context, "authorization"), Header(context, "api-key")));
}

absl::StatusOr<InferenceService::ResolvedModel> InferenceService::ResolveModel(
    const std::string& name) const {
  auto exact = options_.pool->FindModel(name);
  if (exact.ok()) return ResolvedModel{.model = *std::move(exact), .by_ultraspeed_alias = false};
  absl::string_view stem = name;
  if (absl::ConsumeSuffix(&stem, kUltraspeedSuffix)) {
    auto aliased = options_.pool->FindModel(stem);
    if (aliased.ok())
      return ResolvedModel{.model = *std::move(aliased), .by_ultraspeed_alias = true};
  }
  return exact.status();
}

absl::StatusOr<std::vector<Tier>> InferenceService::ResolveTiers(v1::ServiceTier asked,
                                                                 const ResolvedModel& resolved,
                                                                 const TenantTerms& terms) const {
  const std::string& model = resolved.model->facts.name;
  const auto may_use = [&](Tier tier) { return terms.Find(model, tier) != nullptr; };
  std::optional<Tier> named;
  if (asked == v1::SERVICE_TIER_STANDARD) named = Tier::kStandard;
  if (asked == v1::SERVICE_TIER_ULTRASPEED ||
      (asked == v1::SERVICE_TIER_AUTO && resolved.by_ultraspeed_alias)) {
    named = Tier::kUltraspeed;
  }
  std::vector<Tier> tiers;
  if (named) {
    if (may_use(*named)) tiers.push_back(*named);
  } else {
    const bool try_ultraspeed = may_use(Tier::kUltraspeed) && options_.auto_may_be_ultraspeed &&
                                options_.queue->HasFreePlace(model, Tier::kUltraspeed);
    if (try_ultraspeed) tiers.push_back(Tier::kUltraspeed);
    if (may_use(Tier::kStandard)) tiers.push_back(Tier::kStandard);
    if (tiers.empty() && may_use(Tier::kUltraspeed)) tiers.push_back(Tier::kUltraspeed);
  }
  if (!tiers.empty()) return tiers;
  return absl::InvalidArgumentError(absl::StrCat("service_tier=", named ? TierName(*named) : "auto",
                                                 ": this tenant may not use it for model ", model));
}

// ---- Streams ----

template <typename Request>
grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::StartStream(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer& bytes, absl::string_view method) {
  auto relay = StreamRelay::Create({.context = context,
                                    .pool = options_.pool,
                                    .queue = options_.queue,
                                    .metrics = options_.metrics,
                                    .clock = options_.clock,
                                    .method = method,
                                    .worker_wait = options_.worker_wait});
  auto tenant = Authenticate(*context);
  if (!tenant.ok()) {
    relay->Fail(tenant.status());
    return relay.get();
  }
  auto request = std::make_shared<Request>();
  if (const absl::Status status = DecodeRequest(bytes, request.get()); !status.ok()) {
    relay->Fail(status);
    return relay.get();
  }
  relay->SetCaller(
      tenant->tenant, tenant->key_id,
      request->options().client_request_id().substr(0, limits::kClientRequestIdBytesMax));
  auto run = [this, relay, request, tenant = *std::move(tenant)] {
    auto prepared = Prepare(*request, tenant, relay->request_id());
    if (prepared.ok()) {
      Admit(relay, *std::move(prepared));
    } else {
      relay->Fail(prepared.status());
    }
  };
  if (bytes.Length() <= limits::kInlineTokenizeBytes) {
    run();
  } else if (!tokenize_pool_.TrySubmit(run)) {
    relay->Fail(absl::ResourceExhaustedError(absl::StrCat(
        "too many long prompts wait to be tokenized, at most ", limits::kTokenizeQueue)));
  }
  return relay.get();
}

void InferenceService::Admit(std::shared_ptr<StreamRelay> relay, Prepared prepared) {
  const bool may_block = options_.admission->MayBlock(prepared.admission);
  auto request = std::make_shared<Prepared>(std::move(prepared));
  const auto run = [this, relay, request] {
    AdmissionResult result = options_.admission->Admit(request->admission);
    if (result.settlement.ok()) {
      relay->Begin(std::move(request->relay), *std::move(result.settlement), result.metadata);
    } else {
      relay->Fail(result.settlement.status(), result.metadata);
    }
  };
  if (!may_block) {
    run();
  } else if (!blocking_pool_.TrySubmit(run)) {
    relay->Fail(BlockingPoolFull(), {{"retry-after", "1"}});
  }
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes) {
  return StartStream<v1::GenerateRequest>(context, *bytes, "Generate");
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::Chat(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes) {
  return StartStream<v1::ChatRequest>(context, *bytes, "Chat");
}

absl::StatusOr<InferenceService::Prepared> InferenceService::Prepare(
    const v1::GenerateRequest& request, const AuthenticatedTenant& tenant,
    const std::string& request_id) const {
  ASSIGN_OR_RETURN(const ResolvedModel resolved, ResolveModel(request.model()));
  ASSIGN_OR_RETURN(const GenerationParams params, ValidateGenerate(request, resolved.model->facts));
  ASSIGN_OR_RETURN(std::vector<int32_t> prompt,
                   resolved.model->tokenizer->Encode(request.prompt(), SpecialTokens::kAsText));
  return Assemble(resolved, params, std::move(prompt), tenant, request_id);
}

absl::StatusOr<InferenceService::Prepared> InferenceService::Prepare(
    const v1::ChatRequest& request, const AuthenticatedTenant& tenant,
    const std::string& request_id) const {
  ASSIGN_OR_RETURN(const ResolvedModel resolved, ResolveModel(request.model()));
  ASSIGN_OR_RETURN(const ChatParams params, ValidateChat(request, resolved.model->facts));
  ASSIGN_OR_RETURN(std::vector<int32_t> prompt, PromptOf(*resolved.model, params));
  ASSIGN_OR_RETURN(Prepared prepared,
                   Assemble(resolved, params.generation, std::move(prompt), tenant, request_id));
  if (!params.conversation.tools.functions.empty())
    prepared.relay.tools = ToolUseOf(params.conversation);
  SetToolCalls(*resolved.model, params.conversation.tools, &prepared.relay.worker_request);
  if (PromptOpensThought(params)) {
    const ReasoningMarks& marks = resolved.model->reasoning_marks;
    prepared.relay.opening = std::string(resolved.model->tokenizer->TokenBytes(marks.begin));
    prepared.relay.worker_request.set_output_format_after_token_id(marks.end);
  }
  return prepared;
}

absl::StatusOr<std::vector<int32_t>> InferenceService::PromptOf(const ServedModel& model,
                                                                const ChatParams& params) const {
  if (!model.chat_template.ok()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "model=", model.facts.name, ": cannot chat: ", model.chat_template.status().message()));
  }
  const Conversation& conversation = params.conversation;
  ASSIGN_OR_RETURN(std::vector<int32_t> prompt,
                   EncodeSegments(*model.tokenizer, model.chat_template->Segments(
                                                        conversation.turns, params.enable_thinking,
                                                        conversation.tools)));
  // A template has both marks.
  if (PromptOpensThought(params)) prompt.push_back(model.reasoning_marks.begin);
  return prompt;
}

absl::StatusOr<InferenceService::Prepared> InferenceService::Assemble(
    const ResolvedModel& resolved, const GenerationParams& params, std::vector<int32_t> prompt,
    const AuthenticatedTenant& tenant, const std::string& request_id) const {
  const ServedModel& model = *resolved.model;
  ASSIGN_OR_RETURN(const int32_t max_tokens,
                   MaxTokens(params, static_cast<int64_t>(prompt.size()), model.facts));
  ASSIGN_OR_RETURN(std::vector<Tier> tiers,
                   ResolveTiers(params.service_tier, resolved, *tenant.terms));
  Prepared prepared;
  prepared.admission = {.request_id = request_id,
                        .tenant = tenant,
                        .model = model.facts.name,
                        .prompt_tokens = static_cast<int64_t>(prompt.size()),
                        .max_tokens = max_tokens,
                        .likely_tokens = LikelyTokens(params, max_tokens),
                        .tiers = std::move(tiers)};
  prepared.relay.model = resolved.model;
  prepared.relay.stop = params.stop;
  v1::WorkerGenerateRequest& out = prepared.relay.worker_request;
  out.set_request_id(request_id);
  out.mutable_prompt_token_ids()->Add(prompt.begin(), prompt.end());
  out.set_max_tokens(max_tokens);
  out.set_temperature(params.temperature);
  out.set_top_k(params.top_k);
  out.set_top_p(params.top_p);
  out.set_seed(params.seed ? *params.seed : DrawSeed());
  if (!params.ignore_eos)
    out.mutable_stop_token_ids()->Add(model.eos_token_ids.begin(), model.eos_token_ids.end());
  out.set_speculation(params.speculation);
  out.set_logprobs(params.logprobs);
  out.set_priority(params.priority);
  out.set_cache_scope(tenant.tenant);
  if (params.output_format) *out.mutable_output_format() = *params.output_format;
  return prepared;
}

// ---- Unary calls ----

grpc::ServerUnaryReactor* InferenceService::FinishUnary(grpc::CallbackServerContext* context,
                                                        absl::string_view method,
                                                        const absl::Status& status) {
  options_.metrics->UnaryEnded(method, status.code());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

absl::StatusOr<std::vector<int32_t>> InferenceService::PromptOf(
    const v1::TokenizeRequest& request) const {
  ASSIGN_OR_RETURN(const ResolvedModel resolved, ResolveModel(request.model()));
  RETURN_IF_ERROR(ValidateTokenize(request));
  return resolved.model->tokenizer->Encode(
      request.text(), request.parse_special() ? SpecialTokens::kParse : SpecialTokens::kAsText);
}

absl::StatusOr<std::vector<int32_t>> InferenceService::PromptOf(
    const v1::ChatRequest& request) const {
  ASSIGN_OR_RETURN(const ResolvedModel resolved, ResolveModel(request.model()));
  ASSIGN_OR_RETURN(const ChatParams params, ValidateChat(request, resolved.model->facts));
  return PromptOf(*resolved.model, params);
}

template <typename Request>
grpc::ServerUnaryReactor* InferenceService::StartTokenize(grpc::CallbackServerContext* context,
                                                          absl::string_view method,
                                                          const grpc::ByteBuffer* bytes,
                                                          grpc::ByteBuffer* response) {
  const auto tenant = Authenticate(*context);
  if (!tenant.ok()) return FinishUnary(context, method, tenant.status());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  // bytes and response live until Finish.
  auto run = [this, reactor, method, bytes, response] {
    Request request;
    absl::Status status = DecodeRequest(*bytes, &request);
    if (status.ok()) {
      const auto ids = PromptOf(request);
      status = ids.status();
      if (ids.ok()) {
        v1::TokenizeResponse message;
        message.mutable_token_ids()->Add(ids->begin(), ids->end());
        Serialize(message, response);
      }
    }
    options_.metrics->UnaryEnded(method, status.code());
    reactor->Finish(ToGrpcStatus(status));
  };
  if (bytes->Length() <= limits::kInlineTokenizeBytes) {
    run();
  } else if (!tokenize_pool_.TrySubmit(run)) {
    return FinishUnary(
        context, method,
        absl::ResourceExhaustedError(absl::StrCat(
            "too many long texts wait to be tokenized, at most ", limits::kTokenizeQueue)));
  }
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* bytes,
                                                     grpc::ByteBuffer* response) {
  return StartTokenize<v1::TokenizeRequest>(context, "Tokenize", bytes, response);
}

grpc::ServerUnaryReactor* InferenceService::TokenizeChat(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* bytes,
                                                         grpc::ByteBuffer* response) {
  return StartTokenize<v1::ChatRequest>(context, "TokenizeChat", bytes, response);
}

grpc::ServerUnaryReactor* InferenceService::ListModels(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* bytes,
                                                       grpc::ByteBuffer* response) {
  (void)bytes;  // an empty message
  const auto tenant = Authenticate(*context);
  if (!tenant.ok()) return FinishUnary(context, "ListModels", tenant.status());
  v1::ListModelsResponse message;
  for (const WorkerPool::ModelStatus& status : options_.pool->Models()) {
    const std::string& name = status.model->facts.name;
    const bool standard = tenant->terms->Find(name, Tier::kStandard) != nullptr;
    const bool ultraspeed = tenant->terms->Find(name, Tier::kUltraspeed) != nullptr;
    if (!standard && !ultraspeed) continue;
    v1::Model* model = message.add_models();
    model->set_name(name);
    model->set_context_tokens(status.model->facts.context_tokens);
    model->set_workers_ready(status.workers_ready);
    if (standard) model->add_tiers(v1::SERVICE_TIER_STANDARD);
    if (ultraspeed) model->add_tiers(v1::SERVICE_TIER_ULTRASPEED);
    model->set_weights_sha256(status.model->weights_sha256);
  }
  Serialize(message, response);
  return FinishUnary(context, "ListModels", absl::OkStatus());
}

grpc::ServerUnaryReactor* InferenceService::GetUsage(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* bytes,
                                                     grpc::ByteBuffer* response) {
  const auto tenant = Authenticate(*context);
  if (!tenant.ok()) return FinishUnary(context, "GetUsage", tenant.status());
  if (options_.store == nullptr) {
    return FinishUnary(context, "GetUsage",
                       absl::UnimplementedError("this router has no accounts store"));
  }
  v1::GetUsageRequest request;
  absl::Status status = DecodeRequest(*bytes, &request);
  auto query = status.ok() ? ToUsageQuery(request, tenant->tenant, options_.clock->Now()) : status;
  if (!query.ok()) return FinishUnary(context, "GetUsage", query.status());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto run = [this, reactor, response,
                    query = *std::move(query)] {  // response: see StartTokenize
    const auto buckets = options_.store->QueryUsage(query);
    if (buckets.ok()) Serialize(ToUsageResponse(*buckets), response);
    options_.metrics->UnaryEnded("GetUsage", buckets.status().code());
    reactor->Finish(ToGrpcStatus(buckets.status()));
  };
  if (!blocking_pool_.TrySubmit(run)) return FinishUnary(context, "GetUsage", BlockingPoolFull());
  return reactor;
}

}  // namespace ultraspeed::router
