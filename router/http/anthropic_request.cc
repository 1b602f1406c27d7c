#include "router/http/anthropic_request.h"

#include <boost/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "router/http/anthropic_reply.h"
#include "router/http/request_fields.h"
#include "router/http/request_parts.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

struct Content {
  std::string text;      // text blocks, joined with line breaks
  std::string thinking;  // likewise
};

void AppendBlock(absl::string_view block, std::string* text) {
  absl::StrAppend(text, text->empty() ? "" : "\n", block);
}

// A string, or blocks of the types in `allowed`.
absl::StatusOr<Content> ReadContent(RequestFields& fields, absl::string_view name,
                                    const std::vector<absl::string_view>& allowed) {
  Content content;
  const json::value* value = fields.Find(name);
  if (value != nullptr && value->is_string()) {
    content.text = std::string(value->get_string());
    return content;
  }
  const json::array* blocks = value == nullptr ? nullptr : value->if_array();
  if (blocks == nullptr) {
    fields.Refuse(name, "a string or an array of blocks");
    return fields.status();
  }
  RETURN_IF_ERROR(ForEachObject(*blocks, fields.PathOf(name), "a block", [&](RequestFields& block) {
    const std::string type = block.Choice("type", allowed);
    if (type.empty()) block.Refuse("type", "the type of a block");
    const char* field = type == "thinking" ? "thinking" : "text";
    const auto text = block.String(field);
    if (!text) block.Refuse(field, "a string");
    AppendBlock(text.value_or(""), type == "thinking" ? &content.thinking : &content.text);
    return block.status();
  }));
  return content;
}

absl::Status AddMessage(RequestFields& message, v1::ChatRequest* request) {
  const std::string role = message.Choice("role", {"user", "assistant"});
  if (role.empty()) message.Refuse("role", "user or assistant");
  RETURN_IF_ERROR(message.status());
  const bool is_assistant = role == "assistant";
  ASSIGN_OR_RETURN(Content content,
                   ReadContent(message, "content",
                               is_assistant ? std::vector<absl::string_view>{"text", "thinking"}
                                            : std::vector<absl::string_view>{"text"}));
  v1::ChatMessage* out = request->add_messages();
  out->set_role(is_assistant ? v1::ROLE_ASSISTANT : v1::ROLE_USER);
  out->set_content(std::move(content.text));
  out->set_reasoning_content(std::move(content.thinking));
  return absl::OkStatus();
}

absl::Status AddMessages(RequestFields& fields, v1::ChatRequest* request) {
  const json::array* messages = fields.Array("messages");
  if (messages == nullptr) fields.Refuse("messages", "an array");
  RETURN_IF_ERROR(fields.status());
  return ForEachObject(*messages, "messages", "one",
                       [request](RequestFields& message) { return AddMessage(message, request); });
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

bool ReadThinking(RequestFields& fields) {
  const json::object* thinking = fields.Object("thinking");
  if (thinking == nullptr) return false;
  RequestFields inner(*thinking, "thinking.");
  const std::string type = inner.Choice("type", {"enabled", "disabled"});
  if (type.empty()) inner.Refuse("type", "enabled or disabled");
  fields.Merge(inner.status());
  return type == "enabled";
}

}  // namespace

absl::StatusOr<TranslatedCall> ParseMessages(absl::string_view body) {
  ASSIGN_OR_RETURN(const json::object object, ParseJsonBody(body));
  RequestFields fields(object);
  v1::ChatRequest request;
  v1::GenerateOptions* options = request.mutable_options();
  TranslatedCall call;

  request.set_model(ReadModel(fields));
  for (const char* name : {"tools", "mcp_servers", "container"}) fields.RefuseUnlessEmpty(name);
  if (const json::object* choice = fields.Object("tool_choice")) {
    RequestFields inner(*choice, "tool_choice.");
    inner.Choice("type", {"none", "auto"});
    fields.Merge(inner.status());
  }
  if (const auto count = fields.Int32("max_tokens")) options->set_max_tokens(*count);
  if (fields.Find("max_tokens") == nullptr) fields.Refuse("max_tokens", "a whole number");
  ReadSampling(fields, options->mutable_sampling());
  std::vector<std::string> stops = fields.Strings("stop_sequences");
  for (const std::string& stop : stops) options->add_stop(stop);
  if (const auto value = fields.Bool("speculation")) options->set_speculation(*value);
  if (const auto value = fields.Bool("ignore_eos")) options->set_ignore_eos(*value);
  if (const json::object* metadata = fields.Object("metadata")) {
    RequestFields inner(*metadata, "metadata.");
    if (const auto user = inner.String("user_id")) options->set_client_request_id(*user);
    fields.Merge(inner.status());
  }
  ReadTier(fields, options);
  request.set_enable_thinking(ReadThinking(fields));
  call.stream = fields.Bool("stream").value_or(false);
  if (fields.Find("system") != nullptr) {
    ASSIGN_OR_RETURN(Content system, ReadContent(fields, "system", {"text"}));
    v1::ChatMessage* message = request.add_messages();
    message->set_role(v1::ROLE_SYSTEM);
    message->set_content(std::move(system.text));
    call.names.leading_messages = 1;
  }
  RETURN_IF_ERROR(AddMessages(fields, &request));

  call.request = std::move(request);
  call.names.renames = {{"options.sampling.", ""},
                        {"options.stop", "stop_sequences"},
                        {"options.client_request_id", "metadata.user_id"},
                        {"options.", ""}};
  call.reply = NewMessageWriter(std::move(stops));
  return call;
}

}  // namespace ultraspeed::router
