#include "router/admin_tokens.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/config.h"
#include "common/limits.h"
#include "router/accounts.h"

namespace ultraspeed::router {
namespace {

constexpr size_t kTokenFileBytesMax = 64u << 10;
constexpr size_t kTokenBytesMin = 32;

std::array<uint8_t, 32> DigestOf(absl::string_view token) {
  std::array<uint8_t, 32> digest{};
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), digest.data());
  return digest;
}

}  // namespace

absl::StatusOr<AdminTokens> AdminTokens::Read(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path, kTokenFileBytesMax, "admin-token-file");
  if (!text.ok()) return absl::FailedPreconditionError(text.status().message());
  AdminTokens tokens;
  int line_number = 0;
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    ++line_number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line.front() == '#') continue;
    const std::vector<std::string> fields =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    if (fields.size() != 2 || !IsAccountName(fields[0]) || fields[1].size() < kTokenBytesMin ||
        fields[1].size() > limits::kApiKeyBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("admin-token-file=", path, " line ", line_number,
                       ": must be a name (1..64 of A-Z a-z ", "0-9 . _ -) and a token of ",
                       kTokenBytesMin, "..", limits::kApiKeyBytesMax, " characters"));
    }
    tokens.operators_.push_back({fields[0], DigestOf(fields[1])});
  }
  if (tokens.operators_.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("admin-token-file=", path, ": holds no operator"));
  }
  return tokens;
}

absl::StatusOr<std::string> AdminTokens::Authenticate(absl::string_view token) const {
  const std::array<uint8_t, 32> digest = DigestOf(token.substr(0, limits::kApiKeyBytesMax + 1));
  const Operator* found = nullptr;
  for (const Operator& one : operators_) {  // all of them, whichever matches
    if (CRYPTO_memcmp(one.digest.data(), digest.data(), digest.size()) == 0) found = &one;
  }
  if (found == nullptr) return absl::UnauthenticatedError("missing or invalid admin token");
  return found->name;
}

}  // namespace ultraspeed::router
