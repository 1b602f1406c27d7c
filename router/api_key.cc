#include "router/api_key.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/config.h"

namespace ultraspeed::router {
namespace {

constexpr absl::string_view kIntroducer = "us-";
constexpr size_t kSecretBytes = 16;
constexpr char kIdAlphabet[] = "abcdefghijklmnopqrstuvwxyz234567";  // 32, so 5 bits choose one
constexpr size_t kPepperFileBytesMax = 4096;

bool IsIdCharacter(char c) { return (c >= 'a' && c <= 'z') || (c >= '2' && c <= '7'); }

}  // namespace

absl::StatusOr<NewApiKey> GenerateApiKey() {
  unsigned char random[kApiKeyIdBytes + kSecretBytes];
  if (RAND_bytes(random, sizeof(random)) != 1) {
    return absl::InternalError("no randomness for an API key");
  }
  NewApiKey made;
  for (size_t i = 0; i < kApiKeyIdBytes; ++i) made.id += kIdAlphabet[random[i] % 32];
  const absl::string_view secret(reinterpret_cast<const char*>(random) + kApiKeyIdBytes,
                                 kSecretBytes);
  made.key = absl::StrCat(kIntroducer, made.id, "-", absl::BytesToHexString(secret));
  return made;
}

ApiKeyDigest DigestApiKey(absl::string_view key, absl::string_view pepper) {
  ApiKeyDigest digest{};
  unsigned int digest_bytes = 0;
  HMAC(EVP_sha256(), pepper.data(), static_cast<int>(pepper.size()),
       reinterpret_cast<const unsigned char*>(key.data()), key.size(), digest.data(),
       &digest_bytes);
  return digest;
}

std::string HashApiKey(absl::string_view key, absl::string_view pepper) {
  const ApiKeyDigest digest = DigestApiKey(key, pepper);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
}

absl::string_view ApiKeyIdOf(absl::string_view key) {
  constexpr size_t kIdEnd = kIntroducer.size() + kApiKeyIdBytes;
  if (key.size() != kIdEnd + 1 + 2 * kSecretBytes || !absl::StartsWith(key, kIntroducer) ||
      key[kIdEnd] != '-') {
    return {};
  }
  const absl::string_view id = key.substr(kIntroducer.size(), kApiKeyIdBytes);
  return std::all_of(id.begin(), id.end(), IsIdCharacter) ? id : absl::string_view();
}

absl::StatusOr<std::string> ReadPepper(const std::string& path) {
  absl::StatusOr<std::string> pepper = ReadFile(path, kPepperFileBytesMax, "pepper-file");
  if (!pepper.ok()) return absl::FailedPreconditionError(pepper.status().message());
  while (!pepper->empty() && (pepper->back() == '\n' || pepper->back() == '\r')) pepper->pop_back();
  if (pepper->size() < kPepperBytesMin) {
    return absl::FailedPreconditionError(absl::StrCat("pepper file ", path, " has ", pepper->size(),
                                                      " bytes; at least ", kPepperBytesMin,
                                                      " are needed"));
  }
  return pepper;
}

absl::string_view ApiKeyFromHeaders(absl::string_view authorization, absl::string_view api_key) {
  constexpr absl::string_view kBearer = "Bearer ";
  authorization = absl::StripAsciiWhitespace(authorization);
  if (absl::StartsWithIgnoreCase(authorization, kBearer)) {
    return absl::StripAsciiWhitespace(authorization.substr(kBearer.size()));
  }
  return authorization.empty() ? absl::StripAsciiWhitespace(api_key) : absl::string_view();
}

absl::Status InvalidApiKeyError() {
  return absl::UnauthenticatedError("missing or invalid API key");
}

}  // namespace ultraspeed::router
