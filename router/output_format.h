// The checks of GenerateOptions.output_format, which an answer's text is held to by the worker.
// Called by ValidateGenerate and ValidateChat; pure. A schema is compiled to be checked, which
// takes 0.04 ms for a few properties and 4 ms for 16 KiB of them; requests that are longer are not
// checked on gRPC's threads (InferenceService).
#pragma once

#include "absl/status/status.h"
#include "ultraspeed/v1/inference.pb.h"

namespace ultraspeed::router {

// INVALID_ARGUMENT names field, value and bound; of a schema the place in it, as
// common/grammar/json_schema.h says. OK without a format.
absl::Status CheckOutputFormat(const v1::GenerateOptions& options);
// Whether a chat leaves room for its format: not with tools that may be called, nor with an answer
// that has begun. REQUIRES: ValidateConversation accepts the request.
absl::Status CheckFormatFits(const v1::ChatRequest& request);

}  // namespace ultraspeed::router
