#include "router/http/openai_request.h"

#include <boost/json.hpp>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "router/http/format_fields.h"
#include "router/http/openai_reply.h"
#include "router/http/openai_tools.h"
#include "router/http/request_fields.h"
#include "router/http/request_parts.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

// OpenAI's default for completions, far below the gRPC API's.
constexpr int32_t kDefaultCompletionTokens = 16;

// Empty if absent, as of messages that only call.
absl::StatusOr<std::string> ContentOf(RequestFields& message) {
  if (message.Find("content") == nullptr) return std::string();
  return ReadTexts(message, "content", {"text"}, "text part");
}

v1::Role RoleOf(const std::string& role) {
  if (role == "system" || role == "developer") return v1::ROLE_SYSTEM;
  if (role == "user") return v1::ROLE_USER;
  if (role == "assistant") return v1::ROLE_ASSISTANT;
  return v1::ROLE_TOOL;
}

absl::Status AddCall(RequestFields& call, v1::ChatMessage* message) {
  call.Choice("type", {"function"});
  v1::ToolCall* out = message->add_tool_calls();
  out->set_id(call.String("id").value_or(""));
  const json::object* function = call.Object("function");
  if (function == nullptr) call.Refuse("function", "an object");
  RETURN_IF_ERROR(call.status());
  RequestFields inner(*function, call.PathOf("function."));
  out->set_name(inner.String("name").value_or(""));
  out->set_arguments_json(inner.String("arguments").value_or(""));
  return inner.status();
}

absl::Status AddMessage(RequestFields& message, v1::ChatRequest* request) {
  const std::string role =
      message.Choice("role", {"system", "developer", "user", "assistant", "tool"});
  if (role.empty()) message.Refuse("role", "one of system, developer, user, assistant, tool");
  for (const char* name : {"function_call", "audio", "refusal"}) message.RefuseUnlessEmpty(name);
  ASSIGN_OR_RETURN(std::string content, ContentOf(message));
  const std::string reasoning = message.String("reasoning_content").value_or("");
  const std::string call_id = message.String("tool_call_id").value_or("");
  const json::array* calls = message.Array("tool_calls");
  RETURN_IF_ERROR(message.status());
  v1::ChatMessage* out = request->add_messages();
  out->set_role(RoleOf(role));
  out->set_content(std::move(content));
  out->set_reasoning_content(reasoning);
  out->set_tool_call_id(call_id);
  if (calls == nullptr) return absl::OkStatus();
  return ForEachObject(*calls, message.PathOf("tool_calls"), "a call",
                       [out](RequestFields& call) { return AddCall(call, out); });
}

absl::Status AddMessages(RequestFields& fields, v1::ChatRequest* request) {
  const json::array* messages = fields.Array("messages");
  if (messages == nullptr) fields.Refuse("messages", "an array");
  RETURN_IF_ERROR(fields.status());
  return ForEachObject(*messages, "messages", "one",
                       [request](RequestFields& message) { return AddMessage(message, request); });
}

void RefuseWhatCannotBeHonoured(RequestFields& fields) {
  for (const char* name :
       {"functions", "function_call", "audio", "frequency_penalty", "presence_penalty",
        "logit_bias", "echo", "suffix", "web_search_options", "use_beam_search"}) {
    fields.RefuseUnlessEmpty(name);
  }
  fields.Whole("n", 1, 1);
  fields.Whole("best_of", 1, 1);
  for (const std::string& modality : fields.Strings("modalities")) {
    if (modality != "text") fields.Refuse("modalities", "[\"text\"]");
  }
}

// What both endpoints share. `max_tokens` is the name that the caller used for it.
void ReadOptions(RequestFields& fields, absl::string_view max_tokens, v1::GenerateOptions* options,
                 OpenAiReplyOptions* reply) {
  if (const auto count = fields.Int32(max_tokens)) options->set_max_tokens(*count);
  ReadSampling(fields, options->mutable_sampling());
  for (std::string& stop : fields.Strings("stop")) options->add_stop(std::move(stop));
  if (const auto user = fields.String("user")) options->set_client_request_id(*user);
  ReadSpeculation(fields, options);
  ReadResponseFormat(fields, options);
  reply->own_tier_names = ReadOpenAiTier(fields, options);
  if (const json::object* stream_options = fields.Object("stream_options")) {
    RequestFields inner(*stream_options, "stream_options.");
    reply->include_usage = inner.Bool("include_usage").value_or(false);
    reply->continuous_usage = inner.Bool("continuous_usage_stats").value_or(false);
    fields.Merge(inner.status());
  }
}

FieldNames NamesOf(absl::string_view max_tokens, absl::string_view logprobs) {
  return {.renames = {{"options.sampling.", ""},
                      {"options.max_tokens", std::string(max_tokens)},
                      {"options.logprobs", std::string(logprobs)},
                      {"options.client_request_id", "user"},
                      {"options.output_format.json_schema", "response_format.json_schema.schema"},
                      {"options.output_format", "response_format"},
                      {"options.", ""},
                      {"required_tool", "tool_choice.function.name"},
                      {"enable_thinking", "chat_template_kwargs.enable_thinking"}},
          .parts = {{"].name", "].function.name"},
                    {"].description", "].function.description"},
                    {"].parameters_json", "].function.parameters"},
                    {"].arguments_json", "].function.arguments"}}};
}

absl::StatusOr<std::string> PromptOf(RequestFields& fields) {
  std::vector<std::string> prompts = fields.Strings("prompt");
  if (fields.Find("prompt") == nullptr) fields.Refuse("prompt", "a string");
  RETURN_IF_ERROR(fields.status());
  if (prompts.size() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt has ", prompts.size(), " strings; it must have 1"));
  }
  return std::move(prompts.front());
}

}  // namespace

absl::StatusOr<TranslatedCall> ParseChatCompletion(absl::string_view body, ReplyContext context) {
  ASSIGN_OR_RETURN(const json::object object, ParseJsonBody(body));
  RequestFields fields(object);
  v1::ChatRequest request;
  OpenAiReplyOptions reply;
  TranslatedCall call;

  request.set_model(ReadModel(fields));
  RefuseWhatCannotBeHonoured(fields);
  const bool new_name = fields.Find("max_completion_tokens") != nullptr;
  if (new_name && fields.Find("max_tokens") != nullptr) {
    fields.Refuse("max_tokens", "absent where max_completion_tokens is given");
  }
  const absl::string_view max_tokens = new_name ? "max_completion_tokens" : "max_tokens";
  ReadOptions(fields, max_tokens, request.mutable_options(), &reply);
  const auto top_logprobs = fields.Int32("top_logprobs");
  if (fields.Bool("logprobs").value_or(false)) {
    request.mutable_options()->set_logprobs(top_logprobs.value_or(0));
  } else if (top_logprobs) {
    fields.Refuse("top_logprobs", "absent unless logprobs is true");
  }
  if (const auto thinking = ReadThinking(fields)) request.set_enable_thinking(*thinking);
  if (const json::object* kwargs = fields.Object("chat_template_kwargs")) {
    RequestFields inner(*kwargs, "chat_template_kwargs.");
    if (const auto thinking = inner.Bool("enable_thinking")) request.set_enable_thinking(*thinking);
    fields.Merge(inner.status());
  }
  RETURN_IF_ERROR(AddMessages(fields, &request));
  RETURN_IF_ERROR(ReadOpenAiTools(fields, FunctionShape::kNested, &request));
  call.stream = fields.Bool("stream").value_or(false);
  RETURN_IF_ERROR(fields.status());

  call.request = std::move(request);
  call.names = NamesOf(max_tokens, "top_logprobs");
  call.reply = NewChatCompletionWriter(reply, std::move(context));
  return call;
}

absl::StatusOr<TranslatedCall> ParseCompletion(absl::string_view body, ReplyContext context) {
  ASSIGN_OR_RETURN(const json::object object, ParseJsonBody(body));
  RequestFields fields(object);
  v1::GenerateRequest request;
  OpenAiReplyOptions reply;
  TranslatedCall call;

  request.set_model(ReadModel(fields));
  RefuseWhatCannotBeHonoured(fields);
  request.mutable_options()->set_max_tokens(kDefaultCompletionTokens);
  ReadOptions(fields, "max_tokens", request.mutable_options(), &reply);
  if (const auto count = fields.Int32("logprobs")) request.mutable_options()->set_logprobs(*count);
  call.stream = fields.Bool("stream").value_or(false);
  ASSIGN_OR_RETURN(*request.mutable_prompt(), PromptOf(fields));

  call.request = std::move(request);
  call.names = NamesOf("max_tokens", "logprobs");
  call.reply = NewCompletionWriter(reply, std::move(context));
  return call;
}

}  // namespace ultraspeed::router
