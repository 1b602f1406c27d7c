// A model's tokens for grammars, as its worker has them.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/grammar/vocabulary.h"
#include "worker/model/config.h"

namespace ultraspeed::bench {

// From `model_folder`/tokenizer.json. INVALID_ARGUMENT if it is not byte-level.
absl::StatusOr<std::shared_ptr<const grammar::Vocabulary>> LoadVocabulary(
    const std::string& model_folder, const worker::ModelConfig& config);

}  // namespace ultraspeed::bench
