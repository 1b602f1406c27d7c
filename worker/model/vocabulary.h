// Which token ids exist: tokenizer.json usually names fewer than the embedding has rows.
//
// Callers: the executors and the worker at start-up. The rest of the tokenizer is the router's
// business.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "worker/reasoning.h"

namespace ultraspeed::worker {

// Highest id in `folder`/tokenizer.json plus one. INVALID_ARGUMENT if that exceeds `vocabulary`
// (the embedding's rows).
absl::StatusOr<int> CountUsedTokens(const std::string& folder, int vocabulary);

// The added tokens <think> and </think>; none of both if one is missing.
absl::StatusOr<ReasoningMarks> FindReasoningMarks(const std::string& folder);

}  // namespace ultraspeed::worker
