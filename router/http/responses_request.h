// Bodies of POST /v1/responses to calls of the gRPC API. Pure.
//
// Source: OpenAI API reference, "Create a model response". Nothing is stored: a conversation comes
// whole in `input`, and fields that would need what was stored (previous_response_id, store,
// background, ..) are refused by name, as are tools that OpenAI's own servers run; fields that
// nobody knows are ignored. Items of the assistant's that stand together (reasoning, message,
// function calls) become one message. `reasoning.effort`: "none" is without thoughts, any other
// with. Extensions: top_k, seed, ignore_eos and speculation.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "router/http/translation.h"

namespace ultraspeed::router {

// INVALID_ARGUMENT begins with the field at fault.
absl::StatusOr<TranslatedCall> ParseResponse(absl::string_view body, ReplyContext context);

}  // namespace ultraspeed::router
