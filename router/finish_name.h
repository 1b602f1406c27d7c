// The ledger's words for how a stream ended. Pure.
#pragma once

#include "absl/strings/string_view.h"
#include "ultraspeed/v1/inference.pb.h"

namespace ultraspeed::router {

// stop, length, tool_calls, cancelled; error for a stream without an end of its own.
absl::string_view FinishName(v1::FinishReason reason);

}  // namespace ultraspeed::router
