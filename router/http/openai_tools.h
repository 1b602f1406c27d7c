// `tools`, `tool_choice` and `parallel_tool_calls` in OpenAI's two spellings. Private to the
// parsers of OpenAI's shapes. Pure.
#pragma once

#include "absl/status/status.h"
#include "router/http/request_fields.h"
#include "ultraspeed/v1/inference.pb.h"

namespace ultraspeed::router {

// Chat completions nest a function in `function`, beside its type; Responses spell it beside it.
enum class FunctionShape { kNested, kFlat };

absl::Status ReadOpenAiTools(RequestFields& fields, FunctionShape shape, v1::ChatRequest* request);

}  // namespace ultraspeed::router
