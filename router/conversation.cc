#include "router/conversation.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/grammar/tool_calls.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "router/field_checks.h"
#include "router/json_text.h"

namespace ultraspeed::router {
namespace {

absl::StatusOr<ChatRole> RoleOf(const v1::ChatMessage& message, absl::string_view field) {
  switch (message.role()) {
    case v1::ROLE_SYSTEM:
      return ChatRole::kSystem;
    case v1::ROLE_USER:
      return ChatRole::kUser;
    case v1::ROLE_ASSISTANT:
      return ChatRole::kAssistant;
    case v1::ROLE_TOOL:
      return ChatRole::kTool;
    default:
      return OutOfBounds(absl::StrCat(field, ".role"), static_cast<int>(message.role()),
                         "1..4 (system, user, assistant, tool)");
  }
}

// Empty, or an object.
absl::Status CheckObject(const std::string& field, const std::string& text) {
  if (text.empty()) return absl::OkStatus();
  return ParseJsonObject(text, field).status();
}

// A name that the model wrote; anything that can be written back as it was.
absl::Status CheckCalledName(const std::string& field, const std::string& name) {
  RETURN_IF_ERROR(CheckBytes(field, name, 1, limits::kToolNameBytesMax));
  RETURN_IF_ERROR(CheckUtf8(field, name));
  if (name.find_first_of("<>\n") == std::string::npos) return absl::OkStatus();
  return OutOfBounds(field, absl::StrCat("\"", name, "\""), "without <, > and line breaks");
}

absl::Status CheckToolName(const std::string& field, const std::string& name) {
  RETURN_IF_ERROR(CheckBytes(field, name, 1, limits::kToolNameBytesMax));
  const bool is_plain = std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-';
  });
  if (is_plain) return absl::OkStatus();
  return OutOfBounds(field, absl::StrCat("\"", name, "\""), "of a-z, A-Z, 0-9, _ and -");
}

absl::StatusOr<ToolCallTurn> ValidateCall(const v1::ToolCall& call, const std::string& field) {
  RETURN_IF_ERROR(CheckBytes(field + ".id", call.id(), 0, limits::kToolCallIdBytesMax));
  RETURN_IF_ERROR(CheckCalledName(field + ".name", call.name()));
  RETURN_IF_ERROR(CheckObject(field + ".arguments_json", call.arguments_json()));
  return ToolCallTurn{call.id(), call.name(), call.arguments_json()};
}

absl::StatusOr<ChatTurn> ValidateMessage(const v1::ChatMessage& message, const std::string& field) {
  ASSIGN_OR_RETURN(const ChatRole role, RoleOf(message, field));
  if (role != ChatRole::kAssistant && !message.reasoning_content().empty()) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".reasoning_content has ",
                                                   message.reasoning_content().size(),
                                                   " bytes; only assistant messages may have any"));
  }
  if (role != ChatRole::kAssistant && message.tool_calls_size() > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".tool_calls has ", message.tool_calls_size(),
                     " entries; only assistant messages may have any"));
  }
  if (role != ChatRole::kTool && !message.tool_call_id().empty()) {
    return OutOfBounds(absl::StrCat(field, ".tool_call_id"),
                       absl::StrCat("\"", message.tool_call_id(), "\""),
                       "empty but in tool messages");
  }
  if (role == ChatRole::kUser && message.content().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".content has 0 bytes; a user message must have at least 1"));
  }
  RETURN_IF_ERROR(CheckUtf8(field + ".content", message.content()));
  RETURN_IF_ERROR(CheckUtf8(field + ".reasoning_content", message.reasoning_content()));
  RETURN_IF_ERROR(
      CheckBytes(field + ".tool_call_id", message.tool_call_id(), 0, limits::kToolCallIdBytesMax));
  RETURN_IF_ERROR(CheckCount(field + ".tool_calls", message.tool_calls_size(), 0,
                             limits::kToolCallsMax, "entries"));
  ChatTurn turn{role, message.content(), message.reasoning_content()};
  for (int i = 0; i < message.tool_calls_size(); ++i) {
    ASSIGN_OR_RETURN(ToolCallTurn call, ValidateCall(message.tool_calls(i),
                                                     absl::StrCat(field, ".tool_calls[", i, "]")));
    turn.tool_calls.push_back(std::move(call));
  }
  return turn;
}

size_t BytesOf(const v1::ChatRequest& request) {
  size_t num_bytes = 0;
  for (const v1::ChatMessage& message : request.messages()) {
    num_bytes += message.content().size() + message.reasoning_content().size();
    for (const v1::ToolCall& call : message.tool_calls())
      num_bytes += call.name().size() + call.arguments_json().size();
  }
  for (const v1::Tool& tool : request.tools())
    num_bytes += tool.name().size() + tool.description().size() + tool.parameters_json().size();
  return num_bytes;
}

// The messages [begin, end) are results, behind the calls of message begin - 1. The template writes
// no ids, so the order has to say what belongs to what.
absl::Status SortResults(const v1::ChatRequest& request, int begin, int end,
                         std::vector<ChatTurn>* turns) {
  const std::vector<ToolCallTurn>& calls = (*turns)[begin - 1].tool_calls;
  std::vector<std::pair<size_t, int>> order;  // index of the call, of its result
  for (int i = begin; i < end; ++i) {
    const std::string& id = request.messages(i).tool_call_id();
    if (id.empty()) return absl::OkStatus();
    const auto call = std::find_if(calls.begin(), calls.end(),
                                   [&](const ToolCallTurn& one) { return one.id == id; });
    if (call == calls.end()) {
      return OutOfBounds(absl::StrCat("messages[", i, "].tool_call_id"),
                         absl::StrCat("\"", id, "\""),
                         absl::StrCat("the id of a call in messages[", begin - 1, "]"));
    }
    order.emplace_back(call - calls.begin(), i);
  }
  std::sort(order.begin(), order.end());
  std::vector<ChatTurn> results;
  for (const auto& [call, result] : order) results.push_back(std::move((*turns)[result]));
  std::move(results.begin(), results.end(), turns->begin() + begin);
  return absl::OkStatus();
}

absl::Status SortAllResults(const v1::ChatRequest& request, std::vector<ChatTurn>* turns) {
  const int num_turns = static_cast<int>(turns->size());
  for (int begin = 1; begin < num_turns; ++begin) {
    if ((*turns)[begin - 1].tool_calls.empty()) continue;
    int end = begin;
    while (end < num_turns && (*turns)[end].role == ChatRole::kTool) ++end;
    RETURN_IF_ERROR(SortResults(request, begin, end, turns));
  }
  return absl::OkStatus();
}

// What is answered, or the beginning of the answer.
absl::Status CheckLast(const v1::ChatRequest& request, const ChatTurn& last) {
  const std::string field = absl::StrCat("messages[", request.messages_size() - 1, "]");
  if (last.role == ChatRole::kSystem) {
    return OutOfBounds(field + ".role", static_cast<int>(v1::ROLE_SYSTEM),
                       "2 (user), 3 (assistant) or 4 (tool) in the last message");
  }
  if (last.role != ChatRole::kAssistant) return absl::OkStatus();
  if (last.content.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".content has 0 bytes; an answer that is begun must have at least 1"));
  }
  if (!last.tool_calls.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".tool_calls has ",
                                                   last.tool_calls.size(),
                                                   " entries; their results must come last"));
  }
  if (request.tool_choice() == v1::TOOL_CHOICE_REQUIRED) {
    return OutOfBounds("tool_choice", static_cast<int>(request.tool_choice()),
                       "0..2 where the answer is begun");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ChatTurn>> ValidateMessages(const v1::ChatRequest& request) {
  const int num_messages = request.messages_size();
  RETURN_IF_ERROR(CheckCount("messages", num_messages, 1, limits::kMessagesMax, "entries"));
  const size_t num_bytes = BytesOf(request);
  if (num_bytes > limits::kPromptBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("messages have ", num_bytes, " bytes together, with tools; they must have 0..",
                     limits::kPromptBytesMax));
  }
  std::vector<ChatTurn> turns;
  for (int i = 0; i < num_messages; ++i) {
    ASSIGN_OR_RETURN(ChatTurn turn,
                     ValidateMessage(request.messages(i), absl::StrCat("messages[", i, "]")));
    turns.push_back(std::move(turn));
  }
  RETURN_IF_ERROR(CheckLast(request, turns.back()));
  RETURN_IF_ERROR(SortAllResults(request, &turns));
  return turns;
}

absl::Status CheckToolChoice(const v1::ChatRequest& request, const ToolPrompt& tools) {
  if (!v1::ToolChoice_IsValid(request.tool_choice())) {
    return OutOfBounds("tool_choice", static_cast<int>(request.tool_choice()),
                       "0..3 (automatic, none, required)");
  }
  const bool is_required = request.tool_choice() == v1::TOOL_CHOICE_REQUIRED;
  const std::string& required = request.required_tool();
  if (is_required && tools.functions.empty()) {
    return OutOfBounds("tool_choice", static_cast<int>(request.tool_choice()),
                       "0..2 where tools has 0 entries");
  }
  if (is_required && request.enable_thinking()) {
    return OutOfBounds("enable_thinking", "true", "false or absent where a call is required");
  }
  if (required.empty()) return absl::OkStatus();
  if (!is_required) {
    return OutOfBounds("required_tool", absl::StrCat("\"", required, "\""),
                       "empty unless tool_choice is 3 (required)");
  }
  const bool is_known =
      std::any_of(tools.functions.begin(), tools.functions.end(),
                  [&](const ToolFunction& function) { return function.name == required; });
  if (is_known) return absl::OkStatus();
  return OutOfBounds("required_tool", absl::StrCat("\"", required, "\""), "the name of a tool");
}

// What the worker will be asked to hold calls to, compiled to be checked.
absl::Status CheckStrictTools(const ToolPrompt& prompt) {
  if (!prompt.any_strict()) return absl::OkStatus();
  std::vector<grammar::CallableTool> tools;
  for (const ToolFunction& one : prompt.functions)
    tools.push_back({one.name, one.is_strict, one.parameters});
  return grammar::FromTools(tools, "tools").status();
}

absl::StatusOr<ToolPrompt> ValidateTools(const v1::ChatRequest& request) {
  ToolPrompt prompt;
  RETURN_IF_ERROR(CheckCount("tools", request.tools_size(), 0, limits::kToolsMax, "entries"));
  absl::flat_hash_set<absl::string_view> names;
  for (int i = 0; i < request.tools_size(); ++i) {
    const v1::Tool& tool = request.tools(i);
    const std::string field = absl::StrCat("tools[", i, "]");
    RETURN_IF_ERROR(CheckToolName(field + ".name", tool.name()));
    if (!names.insert(tool.name()).second) {
      return OutOfBounds(field + ".name", absl::StrCat("\"", tool.name(), "\""),
                         "a name that no tool before it has");
    }
    RETURN_IF_ERROR(CheckUtf8(field + ".description", tool.description()));
    RETURN_IF_ERROR(CheckObject(field + ".parameters_json", tool.parameters_json()));
    ToolFunction function{tool.name(), std::nullopt, tool.parameters_json(), tool.strict()};
    if (tool.has_description()) function.description = tool.description();
    prompt.functions.push_back(std::move(function));
  }
  RETURN_IF_ERROR(CheckToolChoice(request, prompt));
  prompt.call_required = request.tool_choice() == v1::TOOL_CHOICE_REQUIRED;
  prompt.required_name = request.required_tool();
  if (request.tool_choice() == v1::TOOL_CHOICE_NONE) prompt.functions.clear();
  RETURN_IF_ERROR(CheckStrictTools(prompt));
  return prompt;
}

}  // namespace

absl::StatusOr<Conversation> ValidateConversation(const v1::ChatRequest& request) {
  Conversation conversation;
  ASSIGN_OR_RETURN(conversation.turns, ValidateMessages(request));
  ASSIGN_OR_RETURN(conversation.tools, ValidateTools(request));
  if (request.has_parallel_tool_calls())
    conversation.parallel_tool_calls = request.parallel_tool_calls();
  return conversation;
}

}  // namespace ultraspeed::router
