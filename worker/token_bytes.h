// The bytes that a model's tokens stand for, for grammars.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ultraspeed::worker {

// [num_tokens] from a byte-level tokenizer.json. Empty: added tokens, which are not text although
// some of them are spelled, and ids that no token has. INVALID_ARGUMENT names what is malformed.
absl::StatusOr<std::vector<std::string>> ReadTokenBytes(absl::string_view tokenizer_json,
                                                        int num_tokens);

}  // namespace ultraspeed::worker
