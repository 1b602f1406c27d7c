// Bodies of POST /v1/chat/completions and /v1/completions to calls of the gRPC API. Pure.
//
// Source: OpenAI API reference, "Create chat completion" and "Create completion (legacy)". Fields
// that this server cannot honour (audio, penalties, n > 1, ..) are refused by name, fields that
// nobody knows are ignored. Extensions: top_k, ignore_eos, speculation, reasoning_content,
// thinking.type, chat_template_kwargs.enable_thinking, and response_format of completions.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "router/http/translation.h"

namespace ultraspeed::router {

// INVALID_ARGUMENT begins with the field at fault.
absl::StatusOr<TranslatedCall> ParseChatCompletion(absl::string_view body, ReplyContext context);
absl::StatusOr<TranslatedCall> ParseCompletion(absl::string_view body, ReplyContext context);

}  // namespace ultraspeed::router
