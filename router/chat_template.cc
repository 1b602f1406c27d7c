#include "router/chat_template.h"

#include <algorithm>
#include <boost/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "router/json_text.h"
#include "router/tokenizer.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

constexpr absl::string_view kId = "mimo_v2";
constexpr absl::string_view kDefaultSystem =
    "You are MiMo, a helpful AI assistant engineered by Xiaomi.";
constexpr absl::string_view kTurnBegin = "<|im_start|>";
constexpr absl::string_view kTurnEnd = "<|im_end|>";
constexpr absl::string_view kThinkBegin = "<think>";
constexpr absl::string_view kThinkEnd = "</think>";
constexpr absl::string_view kToolBegin = "<tool_response>";
constexpr absl::string_view kToolEnd = "</tool_response>";
constexpr absl::string_view kMarkers[] = {kTurnBegin, kTurnEnd, kThinkBegin,    kThinkEnd,
                                          kToolBegin, kToolEnd, kToolCallBegin, kToolCallEnd};

class SegmentList {
 public:
  void Marker(absl::string_view text) {
    segments_.push_back({PromptSegment::Kind::kMarker, std::string(text)});
  }

  // Joins the text before it, so that merges and NFC see what they would see in the rendered
  // prompt.
  void Text(absl::string_view text) {
    if (text.empty()) return;
    if (!segments_.empty() && segments_.back().kind == PromptSegment::Kind::kText) {
      absl::StrAppend(&segments_.back().text, text);
    } else {
      segments_.push_back({PromptSegment::Kind::kText, std::string(text)});
    }
  }

  std::vector<PromptSegment> Take() { return std::move(segments_); }

 private:
  std::vector<PromptSegment> segments_;
};

// Members of a schema but those in `handled`, each in an element of its name.
void AddOtherMembers(const json::object& schema, std::initializer_list<json::string_view> handled,
                     SegmentList* list) {
  for (const auto& [key, value] : schema) {
    if (std::find(handled.begin(), handled.end(), key) != handled.end()) continue;
    const std::string text = value.is_structured() ? PythonDumps(value) : PythonStr(value);
    list->Text(absl::StrCat("\n<", absl::string_view(key.data(), key.size()), ">", text, "</",
                            absl::string_view(key.data(), key.size()), ">"));
  }
}

void AddParameter(absl::string_view name, const json::value& schema, SegmentList* list) {
  list->Text(absl::StrCat("\n<parameter>\n<name>", name, "</name>"));
  if (const json::object* object = schema.if_object()) {
    if (const json::value* type = object->if_contains("type")) {
      list->Text(absl::StrCat("\n<type>", PythonStr(*type), "</type>"));
    }
    if (const json::value* description = object->if_contains("description")) {
      list->Text(absl::StrCat("\n<description>",
                              absl::StripAsciiWhitespace(PythonStr(*description)),
                              "</description>"));
    }
    AddOtherMembers(*object, {"name", "type", "description"}, list);
  }
  list->Text("\n</parameter>");
}

void AddFunction(const ToolFunction& function, SegmentList* list) {
  list->Text(absl::StrCat("\n<function>\n<name>", function.name, "</name>"));
  if (function.description) {
    list->Text(absl::StrCat("\n<description>", absl::StripAsciiWhitespace(*function.description),
                            "</description>"));
  }
  list->Text("\n<parameters>");
  if (const auto schema = ParseJsonObject(function.parameters, "parameters"); schema.ok()) {
    const json::value* properties = schema->if_contains("properties");
    if (properties != nullptr && properties->is_object()) {
      for (const auto& [name, property] : properties->get_object()) {
        AddParameter({name.data(), name.size()}, property, list);
      }
    }
    AddOtherMembers(*schema, {"type", "properties"}, list);
  }
  list->Text("\n</parameters>\n</function>");
}

// What the model was told of tools in its training, word for word.
void AddFunctions(absl::Span<const ToolFunction> functions, SegmentList* list) {
  list->Text(
      "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou "
      "have "
      "access to the following functions:\n\n<tools>");
  for (const ToolFunction& function : functions) AddFunction(function, list);
  list->Text(
      "\n</tools>\n\nFor each function call, output the function name and arguments in the "
      "following format:\n");
  list->Marker(kToolCallBegin);
  list->Text(
      "\n<function=example_function_name>\n<parameter=example_parameter_1>value_1</parameter>\n"
      "<parameter=example_parameter_2>This is the value for the second parameter\nthat can span\n"
      "multiple lines</parameter>\n</function>\n");
  list->Marker(kToolCallEnd);
  list->Text(
      "\n\n<IMPORTANT>\n- Function calls MUST follow the specified format: an inner <function=...>"
      "</function> block must be nested within ");
  list->Marker(kToolCallBegin);
  list->Marker(kToolCallEnd);
  list->Text(" XML tags\n- DO NOT use function calls inside ");
  list->Marker(kThinkBegin);
  list->Marker(kThinkEnd);
  list->Text(
      " tags.\n- The value enclosed between parameter tags is preserved exactly as-is, including "
      "newlines and spaces.\n</IMPORTANT>");
}

void AddCall(const ToolCallTurn& call, SegmentList* list) {
  list->Marker(kToolCallBegin);
  list->Text(absl::StrCat("\n<function=", call.name, ">\n"));
  if (const auto arguments = ParseJsonObject(call.arguments, "arguments"); arguments.ok()) {
    for (const auto& [name, value] : *arguments) {
      list->Text(absl::StrCat("<parameter=", absl::string_view(name.data(), name.size()), ">",
                              value.is_structured() ? PythonDumps(value) : PythonStr(value),
                              "</parameter>\n"));
    }
  }
  list->Text("</function>\n");
  list->Marker(kToolCallEnd);
}

void AddTurn(absl::string_view role, absl::string_view content, SegmentList* list) {
  list->Marker(kTurnBegin);
  list->Text(role);
  list->Text("\n");
  list->Text(content);
  list->Marker(kTurnEnd);
}

void AddSystemTurn(absl::string_view content, absl::Span<const ToolFunction> functions,
                   SegmentList* list) {
  list->Marker(kTurnBegin);
  list->Text("system\n");
  list->Text(content);
  if (!functions.empty()) AddFunctions(functions, list);
  list->Marker(kTurnEnd);
}

void AddAnswer(const ChatTurn& turn, SegmentList* list) {
  list->Marker(kThinkBegin);
  list->Text(turn.reasoning);
  list->Marker(kThinkEnd);
  list->Text(turn.content);
}

void AddAssistantTurn(const ChatTurn& turn, SegmentList* list) {
  list->Marker(kTurnBegin);
  list->Text("assistant\n");
  AddAnswer(turn, list);
  for (const ToolCallTurn& call : turn.tool_calls) AddCall(call, list);
  list->Marker(kTurnEnd);
}

// One turn for neighbouring tool messages.
void AddToolTurn(absl::Span<const ChatTurn> turns, SegmentList* list) {
  list->Marker(kTurnBegin);
  list->Text("tool\n");
  for (const ChatTurn& turn : turns) {
    list->Marker(kToolBegin);
    list->Text("\n");
    list->Text(turn.content);
    list->Text("\n");
    list->Marker(kToolEnd);
    list->Text("\n");
  }
  list->Marker(kTurnEnd);
}

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Create(absl::string_view id,
                                                  const Tokenizer& tokenizer) {
  if (id != kId) {
    return absl::InvalidArgumentError(
        absl::StrCat("chat template \"", id, "\" is not supported; only \"", kId, "\" is"));
  }
  for (const absl::string_view marker : kMarkers) {
    if (!tokenizer.TokenId(marker).ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("chat template \"", kId, "\": the tokenizer has no added token ", marker));
    }
  }
  return ChatTemplate();
}

std::vector<PromptSegment> ChatTemplate::Segments(absl::Span<const ChatTurn> turns,
                                                  bool enable_thinking,
                                                  const ToolPrompt& tools) const {
  SegmentList list;
  absl::string_view system = kDefaultSystem;
  if (!turns.empty() && turns.front().role == ChatRole::kSystem) {
    system = turns.front().content;  // an empty one is the caller's choice too
    turns.remove_prefix(1);
  }
  AddSystemTurn(system, tools.functions, &list);
  const ChatTurn* begun = nullptr;  // by the caller, for the assistant
  if (!turns.empty() && turns.back().role == ChatRole::kAssistant) {
    begun = &turns.back();
    turns.remove_suffix(1);
  }
  while (!turns.empty()) {
    const ChatTurn& turn = turns.front();
    size_t num_used = 1;
    switch (turn.role) {
      case ChatRole::kSystem:
        AddTurn("system", turn.content, &list);
        break;
      case ChatRole::kUser:
        AddTurn("user", turn.content, &list);
        break;
      case ChatRole::kAssistant:
        AddAssistantTurn(turn, &list);
        break;
      case ChatRole::kTool:
        while (num_used < turns.size() && turns[num_used].role == ChatRole::kTool) ++num_used;
        AddToolTurn(turns.first(num_used), &list);
        break;
    }
    turns.remove_prefix(num_used);
  }
  list.Marker(kTurnBegin);
  list.Text("assistant\n");
  if (begun != nullptr) {
    AddAnswer(*begun, &list);
  } else if (!enable_thinking || tools.call_required) {
    list.Marker(kThinkBegin);
    list.Marker(kThinkEnd);
  }
  if (tools.call_required) {
    list.Marker(kToolCallBegin);
    list.Text(CallOpening(tools.required_name));
  }
  return list.Take();
}

std::string ChatTemplate::Render(absl::Span<const ChatTurn> turns, bool enable_thinking,
                                 const ToolPrompt& tools) const {
  std::string text;
  for (const PromptSegment& segment : Segments(turns, enable_thinking, tools)) {
    absl::StrAppend(&text, segment.text);
  }
  return text;
}

std::string ChatTemplate::CallOpening(absl::string_view required_name) {
  return required_name.empty() ? "" : absl::StrCat("\n<function=", required_name, ">\n");
}

absl::StatusOr<std::vector<int32_t>> EncodeSegments(const Tokenizer& tokenizer,
                                                    absl::Span<const PromptSegment> segments) {
  std::vector<int32_t> ids;
  for (const PromptSegment& segment : segments) {
    if (segment.kind == PromptSegment::Kind::kMarker) {
      const absl::StatusOr<int32_t> id = tokenizer.TokenId(segment.text);
      if (!id.ok()) return id.status();
      ids.push_back(*id);
      continue;
    }
    const absl::StatusOr<std::vector<int32_t>> text =
        tokenizer.Encode(segment.text, SpecialTokens::kAsText);
    if (!text.ok()) return text.status();
    ids.insert(ids.end(), text->begin(), text->end());
  }
  return ids;
}

}  // namespace ultraspeed::router
