#include "router/http/anthropic_request.h"

#include <boost/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "router/http/anthropic_reply.h"
#include "router/http/format_fields.h"
#include "router/http/request_fields.h"
#include "router/http/request_parts.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

void AppendBlock(absl::string_view block, std::string* text) {
  absl::StrAppend(text, text->empty() ? "" : "\n", block);
}

// A string, or blocks for each of which `visit` is called with its type, one of `allowed`.
absl::Status ForEachBlock(
    RequestFields& fields, absl::string_view name, const std::vector<absl::string_view>& allowed,
    absl::FunctionRef<absl::Status(const std::string& type, RequestFields& block)> visit,
    std::string* text) {
  const json::value* value = fields.Find(name);
  if (value != nullptr && value->is_string()) {
    *text = std::string(value->get_string());
    return absl::OkStatus();
  }
  const json::array* blocks = value == nullptr ? nullptr : value->if_array();
  if (blocks == nullptr) {
    fields.Refuse(name, "a string or an array of blocks");
    return fields.status();
  }
  return ForEachObject(*blocks, fields.PathOf(name), "a block", [&](RequestFields& block) {
    const std::string type = block.Choice("type", allowed);
    if (type.empty()) block.Refuse("type", "the type of a block");
    RETURN_IF_ERROR(block.status());
    return visit(type, block);
  });
}

std::string ReadText(RequestFields& block, absl::string_view field) {
  const auto text = block.String(field);
  if (!text) block.Refuse(field, "a string");
  return text.value_or("");
}

// A message of the assistant's: thoughts, text, and the calls that it made.
absl::Status AddAssistantMessage(RequestFields& message, v1::ChatRequest* request) {
  v1::ChatMessage* out = request->add_messages();
  out->set_role(v1::ROLE_ASSISTANT);
  return ForEachBlock(
      message, "content", {"text", "thinking", "tool_use"},
      [out](const std::string& type, RequestFields& block) {
        if (type == "text") {
          AppendBlock(ReadText(block, "text"), out->mutable_content());
        } else if (type == "thinking") {
          AppendBlock(ReadText(block, "thinking"), out->mutable_reasoning_content());
        } else {
          v1::ToolCall* call = out->add_tool_calls();
          call->set_id(block.String("id").value_or(""));
          call->set_name(block.String("name").value_or(""));
          const json::object* input = block.Object("input");
          if (input == nullptr) block.Refuse("input", "an object");
          if (input != nullptr) call->set_arguments_json(json::serialize(*input));
        }
        return block.status();
      },
      out->mutable_content());
}

// A message of the user's: results of calls become tool messages, what is left one of the user's.
absl::Status AddUserMessage(RequestFields& message, v1::ChatRequest* request) {
  std::string text;
  bool has_results = false;
  RETURN_IF_ERROR(ForEachBlock(
      message, "content", {"text", "tool_result"},
      [&](const std::string& type, RequestFields& block) -> absl::Status {
        if (type == "text") {
          AppendBlock(ReadText(block, "text"), &text);
          return block.status();
        }
        has_results = true;
        v1::ChatMessage* result = request->add_messages();
        result->set_role(v1::ROLE_TOOL);
        result->set_tool_call_id(block.String("tool_use_id").value_or(""));
        if (block.Find("content") != nullptr) {
          ASSIGN_OR_RETURN(*result->mutable_content(),
                           ReadTexts(block, "content", {"text"}, "block"));
        }
        return block.status();
      },
      &text));
  if (has_results && text.empty()) return absl::OkStatus();
  v1::ChatMessage* out = request->add_messages();
  out->set_role(v1::ROLE_USER);
  out->set_content(std::move(text));
  return absl::OkStatus();
}

// One message may become several; `origins` says of each of them which it was made of.
absl::Status AddMessages(RequestFields& fields, v1::ChatRequest* request,
                         std::vector<std::string>* origins) {
  const json::array* messages = fields.Array("messages");
  if (messages == nullptr) fields.Refuse("messages", "an array");
  RETURN_IF_ERROR(fields.status());
  int idx = 0;
  return ForEachObject(*messages, "messages", "one", [&](RequestFields& message) {
    const std::string role = message.Choice("role", {"user", "assistant"});
    if (role.empty()) message.Refuse("role", "user or assistant");
    RETURN_IF_ERROR(message.status());
    RETURN_IF_ERROR(role == "assistant" ? AddAssistantMessage(message, request)
                                        : AddUserMessage(message, request));
    origins->resize(request->messages_size(), absl::StrCat("messages[", idx++, "]"));
    return absl::OkStatus();
  });
}

absl::Status AddTool(RequestFields& tool, v1::ChatRequest* request) {
  tool.Choice("type", {"custom"});
  RETURN_IF_ERROR(tool.status());
  return AddFunction(tool, "input_schema", request);
}

absl::Status ReadTools(RequestFields& fields, v1::ChatRequest* request) {
  if (const json::object* choice = fields.Object("tool_choice")) {
    RequestFields inner(*choice, "tool_choice.");
    const std::string type = inner.Choice("type", {"auto", "any", "tool", "none"});
    const bool is_required = type == "any" || type == "tool";
    if (type == "none") request->set_tool_choice(v1::TOOL_CHOICE_NONE);
    if (is_required) request->set_tool_choice(v1::TOOL_CHOICE_REQUIRED);
    const auto name = inner.String("name");
    if (type == "tool" && !name) inner.Refuse("name", "the name of a tool");
    if (type == "tool") request->set_required_tool(name.value_or(""));
    if (const auto value = inner.Bool("disable_parallel_tool_use"))
      request->set_parallel_tool_calls(!*value);
    fields.Merge(inner.status());
  }
  const json::array* tools = fields.Array("tools");
  RETURN_IF_ERROR(fields.status());
  if (tools == nullptr) return absl::OkStatus();
  return ForEachObject(*tools, "tools", "a tool",
                       [request](RequestFields& tool) { return AddTool(tool, request); });
}

void ReadTier(RequestFields& fields, v1::GenerateOptions* options) {
  const std::string tier = fields.Choice(
      "service_tier", {"auto", "standard_only", "standard", "priority", "ultraspeed"});
  const bool is_fast = fields.Choice("speed", {"standard", "fast"}) == "fast";
  const bool is_standard = tier == "standard_only" || tier == "standard";
  if (is_fast && is_standard) {
    fields.Refuse("speed", "standard where service_tier is standard");
  } else if (is_fast || tier == "priority" || tier == "ultraspeed") {
    options->set_service_tier(v1::SERVICE_TIER_ULTRASPEED);
  } else if (is_standard) {
    options->set_service_tier(v1::SERVICE_TIER_STANDARD);
  }
}

// What the prompt is made of.
absl::Status ReadConversation(RequestFields& fields, v1::ChatRequest* request, FieldNames* names) {
  request->set_model(ReadModel(fields));
  for (const char* name : {"mcp_servers", "container"}) fields.RefuseUnlessEmpty(name);
  request->set_enable_thinking(ReadThinking(fields).value_or(false));
  const std::string format = ReadOutputConfig(fields, request->mutable_options());
  if (fields.Find("system") != nullptr) {
    v1::ChatMessage* message = request->add_messages();
    message->set_role(v1::ROLE_SYSTEM);
    ASSIGN_OR_RETURN(*message->mutable_content(), ReadTexts(fields, "system", {"text"}, "block"));
    names->messages.push_back("system");
  }
  RETURN_IF_ERROR(AddMessages(fields, request, &names->messages));
  names->renames = {{"options.sampling.", ""},
                    {"options.stop", "stop_sequences"},
                    {"options.client_request_id", "metadata.user_id"},
                    {"options.output_format.json_schema", format + ".schema"},
                    {"options.output_format", format},
                    {"options.", ""},
                    {"required_tool", "tool_choice.name"},
                    {"enable_thinking", "thinking"}};
  names->parts = {{"].parameters_json", "].input_schema"}};
  return ReadTools(fields, request);
}

}  // namespace

absl::StatusOr<TranslatedCall> ParseMessages(absl::string_view body) {
  ASSIGN_OR_RETURN(const json::object object, ParseJsonBody(body));
  RequestFields fields(object);
  v1::ChatRequest request;
  v1::GenerateOptions* options = request.mutable_options();
  TranslatedCall call;

  if (const auto count = fields.Int32("max_tokens")) options->set_max_tokens(*count);
  if (fields.Find("max_tokens") == nullptr) fields.Refuse("max_tokens", "a whole number");
  ReadSampling(fields, options->mutable_sampling());
  std::vector<std::string> stops = fields.Strings("stop_sequences");
  for (const std::string& stop : stops) options->add_stop(stop);
  ReadSpeculation(fields, options);
  if (const json::object* metadata = fields.Object("metadata")) {
    RequestFields inner(*metadata, "metadata.");
    if (const auto user = inner.String("user_id")) options->set_client_request_id(*user);
    fields.Merge(inner.status());
  }
  ReadTier(fields, options);
  call.stream = fields.Bool("stream").value_or(false);
  RETURN_IF_ERROR(ReadConversation(fields, &request, &call.names));
  call.request = std::move(request);
  call.reply = NewMessageWriter(std::move(stops));
  return call;
}

absl::StatusOr<TranslatedCall> ParseCountTokens(absl::string_view body) {
  ASSIGN_OR_RETURN(const json::object object, ParseJsonBody(body));
  RequestFields fields(object);
  v1::ChatRequest request;
  TranslatedCall call;
  RETURN_IF_ERROR(ReadConversation(fields, &request, &call.names));
  call.request = std::move(request);
  return call;
}

}  // namespace ultraspeed::router
