#include "router/chat_template.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "router/tokenizer.h"

namespace ultraspeed::router {
namespace {

constexpr absl::string_view kId = "mimo_v2";
constexpr absl::string_view kDefaultSystem =
    "You are MiMo, a helpful AI assistant engineered by Xiaomi.";
constexpr absl::string_view kTurnBegin = "<|im_start|>";
constexpr absl::string_view kTurnEnd = "<|im_end|>";
constexpr absl::string_view kThinkBegin = "<think>";
constexpr absl::string_view kThinkEnd = "</think>";
constexpr absl::string_view kToolBegin = "<tool_response>";
constexpr absl::string_view kToolEnd = "</tool_response>";
constexpr absl::string_view kMarkers[] = {kTurnBegin, kTurnEnd,   kThinkBegin,
                                          kThinkEnd,  kToolBegin, kToolEnd};

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

void AddTurn(absl::string_view role, absl::string_view content, SegmentList* list) {
  list->Marker(kTurnBegin);
  list->Text(role);
  list->Text("\n");
  list->Text(content);
  list->Marker(kTurnEnd);
}

void AddAssistantTurn(const ChatTurn& turn, SegmentList* list) {
  list->Marker(kTurnBegin);
  list->Text("assistant\n");
  list->Marker(kThinkBegin);
  list->Text(turn.reasoning);
  list->Marker(kThinkEnd);
  list->Text(turn.content);
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
                                                  bool enable_thinking) const {
  SegmentList list;
  absl::string_view system = kDefaultSystem;
  if (!turns.empty() && turns.front().role == ChatRole::kSystem) {
    system = turns.front().content;  // an empty one is the caller's choice too
    turns.remove_prefix(1);
  }
  AddTurn("system", system, &list);
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
  if (!enable_thinking) {
    list.Marker(kThinkBegin);
    list.Marker(kThinkEnd);
  }
  return list.Take();
}

std::string ChatTemplate::Render(absl::Span<const ChatTurn> turns, bool enable_thinking) const {
  std::string text;
  for (const PromptSegment& segment : Segments(turns, enable_thinking)) {
    absl::StrAppend(&text, segment.text);
  }
  return text;
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
