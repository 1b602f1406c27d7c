// What a worker tells routers about its checkpoint folder: the tokenizer's bytes, and fingerprints
// of tokenizer and weights.
//
// The weights' fingerprint covers every config and index file in full, and of every safetensors
// file its size, its head and evenly spaced samples: seconds at a terabyte, yet two trainings of
// one shape differ in it. Read once at start-up, immutable afterwards.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace ultraspeed::worker {

struct ModelIdentity {
  std::string tokenizer;         // tokenizer.json
  std::string tokenizer_sha256;  // lower-case hexadecimal
  std::string weights_sha256;
};

// NOT_FOUND or INVALID_ARGUMENT names the file.
absl::StatusOr<ModelIdentity> ReadModelIdentity(const std::string& folder);

}  // namespace ultraspeed::worker
