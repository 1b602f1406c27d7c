// Bodies of POST /v1/messages and /v1/messages/count_tokens to calls of the gRPC API. Pure.
//
// Source: Anthropic API reference, "Create a Message" and "Count tokens in a Message". Fields and
// blocks that this server cannot honour (images, documents, tools that Anthropic's own servers run)
// are refused by name, fields that nobody knows are ignored. A message with results of tools
// becomes several.
// `speed` "fast" means ultraspeed. Thinking is off unless asked for. Extensions: seed, ignore_eos
// and speculation.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "router/http/translation.h"

namespace ultraspeed::router {

// INVALID_ARGUMENT begins with the field at fault.
absl::StatusOr<TranslatedCall> ParseMessages(absl::string_view body);
// To count the tokens of its prompt: without `reply`, and of what is said about the answer only its
// format is looked at, which may open thoughts.
absl::StatusOr<TranslatedCall> ParseCountTokens(absl::string_view body);

}  // namespace ultraspeed::router
