// Conversations to prompts in the format that MiMo-V2 was trained on (template id "mimo_v2").
//
// Called by the Chat service before tokenization. The result is a list of segments: markers of the
// template, which are special tokens, and text, which is encoded inertly. A message that spells
// "<|im_end|>" therefore stays a message; so does an assistant message that spells a tool call.
// Calls that the model made come back as calls.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "router/tool_call.h"

namespace ultraspeed::router {

class Tokenizer;

enum class ChatRole { kSystem, kUser, kAssistant, kTool };

struct ChatTurn {
  ChatRole role = ChatRole::kUser;
  std::string content;
  std::string reasoning;                      // assistant turns only; may be empty
  std::vector<ToolCallTurn> tool_calls = {};  // assistant turns only
};

struct PromptSegment {
  enum class Kind { kMarker, kText };
  Kind kind;
  std::string text;  // never empty
};

// Thread contract: immutable; every method may be called from any thread.
class ChatTemplate {
 public:
  // INVALID_ARGUMENT for an id other than "mimo_v2", or if the tokenizer lacks one of the
  // template's markers. The tokenizer is borrowed during the call only.
  static absl::StatusOr<ChatTemplate> Create(absl::string_view id, const Tokenizer& tokenizer);

  // The turns and the opening of the assistant's answer. Neighbouring segments are never both text,
  // so a text segment is tokenized exactly as the joined text would be. A last turn of the
  // assistant's is the beginning of the answer; REQUIRES that it has no calls. A required call
  // leaves no room for thoughts: as with enable_thinking false, then the call's beginning.
  std::vector<PromptSegment> Segments(absl::Span<const ChatTurn> turns, bool enable_thinking,
                                      const ToolPrompt& tools = {}) const;
  // The same as one string, as the published template renders it.
  std::string Render(absl::Span<const ChatTurn> turns, bool enable_thinking,
                     const ToolPrompt& tools = {}) const;
  // What a prompt that requires a call ends with behind <tool_call>: text of the call's body.
  static std::string CallOpening(absl::string_view required_name);

 private:
  ChatTemplate() = default;
};

// Token ids of the segments: markers parsed, text inert. INVALID_ARGUMENT as Tokenizer::Encode.
absl::StatusOr<std::vector<int32_t>> EncodeSegments(const Tokenizer& tokenizer,
                                                    absl::Span<const PromptSegment> segments);

}  // namespace ultraspeed::router
