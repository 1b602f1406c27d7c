#include "router/http/responses_request.h"

#include <boost/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "router/http/format_fields.h"
#include "router/http/openai_tools.h"
#include "router/http/request_fields.h"
#include "router/http/request_parts.h"
#include "router/http/responses_reply.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

// The messages that the items become, and of which field each was made.
class InputReader {
 public:
  InputReader(v1::ChatRequest* request, std::vector<std::string>* origins)
      : request_(request), origins_(origins) {}

  v1::ChatMessage* Add(v1::Role role, std::string origin) {
    origins_->push_back(std::move(origin));
    v1::ChatMessage* message = request_->add_messages();
    message->set_role(role);
    return message;
  }

  absl::Status AddItem(RequestFields& item, const std::string& origin) {
    const std::string type =
        item.Choice("type", {"message", "reasoning", "function_call", "function_call_output"});
    if (type == "reasoning") return AddReasoning(item, origin);
    if (type == "function_call") return AddCall(item, origin);
    if (type == "function_call_output") {
      v1::ChatMessage* result = Add(v1::ROLE_TOOL, origin);
      result->set_tool_call_id(item.String("call_id").value_or(""));
      return SetContent(item, "output", result);
    }
    return AddMessage(item, origin);
  }

 private:
  // The assistant's turn that still goes on, unless something of that kind has come already.
  v1::ChatMessage* Assistant(bool goes_on, const std::string& origin) {
    const int count = request_->messages_size();
    v1::ChatMessage* last = count > 0 ? request_->mutable_messages(count - 1) : nullptr;
    const bool is_assistant = last != nullptr && last->role() == v1::ROLE_ASSISTANT;
    return is_assistant && goes_on ? last : Add(v1::ROLE_ASSISTANT, origin);
  }
  bool LastHasText() const {
    const int count = request_->messages_size();
    return count > 0 && (!request_->messages(count - 1).content().empty() ||
                         request_->messages(count - 1).tool_calls_size() > 0);
  }

  absl::Status AddMessage(RequestFields& item, const std::string& origin) {
    const std::string role = item.Choice("role", {"user", "assistant", "system", "developer"});
    if (role.empty()) item.Refuse("role", "one of user, assistant, system, developer");
    RETURN_IF_ERROR(item.status());
    v1::ChatMessage* message = role == "assistant" ? Assistant(!LastHasText(), origin)
                               : role == "user"    ? Add(v1::ROLE_USER, origin)
                                                   : Add(v1::ROLE_SYSTEM, origin);
    return SetContent(item, "content", message);
  }

  absl::Status AddReasoning(RequestFields& item, const std::string& origin) {
    const json::array* content = item.Array("content");
    RETURN_IF_ERROR(item.status());
    if (content == nullptr) return absl::OkStatus();  // a summary, or nothing that we can read
    v1::ChatMessage* message = Add(v1::ROLE_ASSISTANT, origin);
    return ForEachObject(*content, item.PathOf("content"), "a part", [&](RequestFields& part) {
      message->mutable_reasoning_content()->append(part.String("text").value_or(""));
      return part.status();
    });
  }

  absl::Status AddCall(RequestFields& item, const std::string& origin) {
    v1::ToolCall* call = Assistant(true, origin)->add_tool_calls();
    call->set_id(item.String("call_id").value_or(""));
    call->set_name(item.String("name").value_or(""));
    call->set_arguments_json(item.String("arguments").value_or(""));
    return item.status();
  }

  static absl::Status SetContent(RequestFields& item, absl::string_view name,
                                 v1::ChatMessage* message) {
    ASSIGN_OR_RETURN(*message->mutable_content(),
                     ReadTexts(item, name, {"input_text", "output_text", "text"}, "text part"));
    return absl::OkStatus();
  }

  v1::ChatRequest* const request_;
  std::vector<std::string>* const origins_;
};

absl::Status ReadInput(RequestFields& fields, v1::ChatRequest* request,
                       std::vector<std::string>* origins) {
  InputReader reader(request, origins);
  if (const auto instructions = fields.String("instructions"))
    reader.Add(v1::ROLE_SYSTEM, "instructions")->set_content(*instructions);
  const json::value* input = fields.Find("input");
  if (input != nullptr && input->is_string()) {
    reader.Add(v1::ROLE_USER, "input")->set_content(std::string(input->get_string()));
    return fields.status();
  }
  const json::array* items = input == nullptr ? nullptr : input->if_array();
  if (items == nullptr) fields.Refuse("input", "a string or an array of items");
  RETURN_IF_ERROR(fields.status());
  int idx = 0;
  return ForEachObject(*items, "input", "an item", [&](RequestFields& item) {
    return reader.AddItem(item, absl::StrCat("input[", idx++, "]"));
  });
}

void RefuseWhatCannotBeHonoured(RequestFields& fields) {
  for (const char* name : {"previous_response_id", "conversation", "prompt", "store", "background",
                           "max_tool_calls", "top_logprobs", "context_management", "moderation"}) {
    fields.RefuseUnlessEmpty(name);
  }
}

// What an answer repeats of its request.
json::object Echo(const json::object& body) {
  json::object echo = {{"instructions", nullptr},
                       {"max_output_tokens", nullptr},
                       {"metadata", json::object()},
                       {"parallel_tool_calls", true},
                       {"reasoning", nullptr},
                       {"temperature", nullptr},
                       {"text", {{"format", {{"type", "text"}}}}},
                       {"tool_choice", "auto"},
                       {"tools", json::array()},
                       {"top_p", nullptr},
                       {"truncation", "disabled"},
                       {"user", nullptr}};
  for (auto& member : echo) {
    const json::value* given = body.if_contains(member.key());
    if (given != nullptr && !given->is_null()) member.value() = *given;
  }
  return echo;
}

}  // namespace

absl::StatusOr<TranslatedCall> ParseResponse(absl::string_view body, ReplyContext context) {
  ASSIGN_OR_RETURN(const json::object object, ParseJsonBody(body));
  RequestFields fields(object);
  v1::ChatRequest request;
  v1::GenerateOptions* options = request.mutable_options();
  TranslatedCall call;

  request.set_model(ReadModel(fields));
  RefuseWhatCannotBeHonoured(fields);
  if (const auto count = fields.Int32("max_output_tokens")) options->set_max_tokens(*count);
  ReadSampling(fields, options->mutable_sampling());
  ReadSpeculation(fields, options);
  ReadTextFormat(fields, options);
  const bool own_tier_names = ReadOpenAiTier(fields, options);
  for (const char* name : {"user", "safety_identifier"}) {
    if (const auto label = fields.String(name)) options->set_client_request_id(*label);
  }
  if (const json::object* reasoning = fields.Object("reasoning")) {
    RequestFields inner(*reasoning, "reasoning.");
    if (const auto effort = inner.String("effort")) request.set_enable_thinking(*effort != "none");
    fields.Merge(inner.status());
  }
  call.stream = fields.Bool("stream").value_or(false);
  RETURN_IF_ERROR(ReadInput(fields, &request, &call.names.messages));
  RETURN_IF_ERROR(ReadOpenAiTools(fields, FunctionShape::kFlat, &request));

  call.request = std::move(request);
  call.names.renames = {{"options.sampling.", ""},
                        {"options.max_tokens", "max_output_tokens"},
                        {"options.client_request_id", "user"},
                        {"options.output_format.json_schema", "text.format.schema"},
                        {"options.output_format", "text.format"},
                        {"options.", ""},
                        {"required_tool", "tool_choice.name"},
                        {"enable_thinking", "reasoning.effort"}};
  call.names.parts = {{"].parameters_json", "].parameters"}};
  call.reply = NewResponseWriter(json::serialize(Echo(object)), own_tier_names, std::move(context));
  return call;
}

}  // namespace ultraspeed::router
