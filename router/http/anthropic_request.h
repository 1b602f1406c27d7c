// Bodies of POST /v1/messages to calls of the gRPC API. Pure.
//
// Source: Anthropic API reference, "Create a Message". Fields and blocks that this server cannot
// honour (tools, images, documents, ..) are refused by name, fields that nobody knows are ignored.
// `speed` "fast" means ultraspeed. Thinking is off unless asked for. Extensions: seed, ignore_eos
// and speculation.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "router/http/translation.h"

namespace ultraspeed::router {

// INVALID_ARGUMENT begins with the field at fault.
absl::StatusOr<TranslatedCall> ParseMessages(absl::string_view body);

}  // namespace ultraspeed::router
