// Which token ids exist: tokenizer.json usually names fewer than the embedding has rows.
//
// Caller: the executors at start-up. The rest of the tokenizer is the router's business.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace ultraspeed::worker {

// Highest id in `folder`/tokenizer.json plus one. INVALID_ARGUMENT if that exceeds `vocabulary`
// (the embedding's rows).
absl::StatusOr<int> CountUsedTokens(const std::string& folder, int vocabulary);

}  // namespace ultraspeed::worker
