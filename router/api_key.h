// The text of an API key: making one, hashing it, finding it in a request. `us-<id>-<secret>`: the
// id is 8 public characters that logs and usage show, the secret 128 random bits in 32 hex digits.
// Only the HMAC of a key is ever stored.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ultraspeed::router {

inline constexpr size_t kPepperBytesMin = 16;
inline constexpr size_t kApiKeyIdBytes = 8;

struct NewApiKey {
  std::string id;   // 8 of a-z 2-7
  std::string key;  // the whole text; shown once
};

// INTERNAL if OpenSSL's generator has no randomness.
absl::StatusOr<NewApiKey> GenerateApiKey();

// HMAC-SHA-256 of a key under the pepper.
using ApiKeyDigest = std::array<uint8_t, 32>;
ApiKeyDigest DigestApiKey(absl::string_view key, absl::string_view pepper);
// In hex, as key files and the store keep it.
std::string HashApiKey(absl::string_view key, absl::string_view pepper);

// The id within a key's text; empty if it has not the form above.
absl::string_view ApiKeyIdOf(absl::string_view key);

// The pepper in a file, without trailing line ends. FAILED_PRECONDITION names the file when it is
// missing or shorter than 16 bytes.
absl::StatusOr<std::string> ReadPepper(const std::string& path);

// The key of a request: from `authorization: Bearer <key>`, else from `api-key: <key>`; empty if
// there is none.
absl::string_view ApiKeyFromHeaders(absl::string_view authorization, absl::string_view api_key);

// What every caller with a missing, wrong, expired or revoked key hears: which, is nobody's
// business.
absl::Status InvalidApiKeyError();

}  // namespace ultraspeed::router
