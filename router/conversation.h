// The messages and tools of a chat request, checked, as the chat template takes them. Called by
// ValidateChat; pure.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "router/chat_template.h"
#include "router/tool_call.h"
#include "ultraspeed/v1/inference.pb.h"

namespace ultraspeed::router {

struct Conversation {
  std::vector<ChatTurn> turns;
  ToolPrompt tools;  // no functions with TOOL_CHOICE_NONE
  bool parallel_tool_calls = true;
};

// INVALID_ARGUMENT names field, value and bound. Results of calls stand in the order of the calls.
absl::StatusOr<Conversation> ValidateConversation(const v1::ChatRequest& request);

}  // namespace ultraspeed::router
