#include "router/auth.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/limits.h"

namespace ultraspeed::router {
namespace {

constexpr size_t kPepperBytesMin = 16;
constexpr size_t kKeyFileBytesMax = 16u << 20;  // about 100,000 keys
constexpr size_t kNameBytesMax = 64;
constexpr size_t kDigestBytes = 32;
constexpr int kKeyRandomBytes = 16;

std::array<uint8_t, kDigestBytes> DigestOf(absl::string_view key, absl::string_view pepper) {
  std::array<uint8_t, kDigestBytes> digest{};
  unsigned int digest_bytes = 0;
  HMAC(EVP_sha256(), pepper.data(), static_cast<int>(pepper.size()),
       reinterpret_cast<const unsigned char*>(key.data()), key.size(), digest.data(),
       &digest_bytes);
  return digest;
}

uint64_t TableKey(const std::array<uint8_t, kDigestBytes>& digest) {
  uint64_t key;
  std::memcpy(&key, digest.data(), sizeof(key));
  return key;
}

bool IsName(absl::string_view name) {
  return !name.empty() && name.size() <= kNameBytesMax &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' ||
                  c == '-';
         });
}

absl::Status Unauthenticated() { return absl::UnauthenticatedError("missing or invalid API key"); }

// Closes on every way out.
class File {
 public:
  explicit File(const std::string& path) : fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fd_; }

  absl::StatusOr<std::string> Read(const std::string& path, size_t bytes_max) const {
    std::string text;
    char buffer[16384];
    for (;;) {
      const ssize_t num_read = read(fd_, buffer, sizeof(buffer));
      if (num_read < 0 && errno == EINTR) continue;
      if (num_read < 0)
        return absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(errno)));
      if (num_read == 0) return text;
      text.append(buffer, static_cast<size_t>(num_read));
      if (text.size() > bytes_max) {
        return absl::InvalidArgumentError(
            absl::StrCat(path, " has more than ", bytes_max, " bytes"));
      }
    }
  }

 private:
  const int fd_;
};

}  // namespace

std::string HashApiKey(absl::string_view key, absl::string_view pepper) {
  const auto digest = DigestOf(key, pepper);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
}

absl::StatusOr<std::string> GenerateApiKey() {
  char random[kKeyRandomBytes];
  ssize_t num_read;
  do {
    num_read = getrandom(random, sizeof(random), 0);  // never partial below 256 bytes
  } while (num_read < 0 && errno == EINTR);
  if (num_read != kKeyRandomBytes) {
    return absl::InternalError(absl::StrCat("getrandom: ", std::strerror(errno)));
  }
  return absl::StrCat("us-", absl::BytesToHexString(absl::string_view(random, sizeof(random))));
}

absl::StatusOr<std::string> ReadPepper(const std::string& path) {
  const File file(path);
  if (file.fd() < 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("pepper file ", path, ": ", std::strerror(errno)));
  }
  absl::StatusOr<std::string> pepper = file.Read(path, 4096);
  if (!pepper.ok()) return pepper.status();
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

absl::Status ApiKeys::Options::Validate() const {
  if (path.empty()) return absl::InvalidArgumentError("API key file: the path is empty");
  if (pepper.size() < kPepperBytesMin) {
    return absl::InvalidArgumentError(absl::StrCat(
        "API key pepper has ", pepper.size(), " bytes; at least ", kPepperBytesMin, " are needed"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ApiKeys>> ApiKeys::Create(Options options) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  absl::StatusOr<Contents> contents = Read(options.path);
  if (!contents.ok()) return contents.status();
  return std::unique_ptr<ApiKeys>(new ApiKeys(std::move(options), *std::move(contents)));
}

ApiKeys::ApiKeys(Options options, Contents contents)
    : options_(std::move(options)), table_(std::move(contents.table)), version_(contents.version) {}

absl::StatusOr<AuthenticatedTenant> ApiKeys::Authenticate(absl::string_view key) const {
  if (key.empty() || key.size() > limits::kApiKeyBytesMax) return Unauthenticated();
  const Digest digest = DigestOf(key, options_.pepper);
  absl::ReaderMutexLock lock(&mutex_);
  const auto found = table_.find(TableKey(digest));
  if (found == table_.end()) return Unauthenticated();
  if (CRYPTO_memcmp(found->second.digest.data(), digest.data(), kDigestBytes) != 0)
    return Unauthenticated();
  return found->second.tenant;
}

absl::Status ApiKeys::ReloadIfChanged() {
  struct stat info;
  if (stat(options_.path.c_str(), &info) != 0) {
    return absl::NotFoundError(
        absl::StrCat("API key file ", options_.path, ": ", std::strerror(errno)));
  }
  const FileVersion now{info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec, info.st_size,
                        info.st_ino};
  {
    absl::ReaderMutexLock lock(&mutex_);
    if (now == version_) return absl::OkStatus();
  }
  absl::StatusOr<Contents> contents = Read(options_.path);
  if (!contents.ok()) return contents.status();
  absl::MutexLock lock(&mutex_);
  table_ = std::move(contents->table);
  version_ = contents->version;
  return absl::OkStatus();
}

int ApiKeys::num_keys() const {
  absl::ReaderMutexLock lock(&mutex_);
  return static_cast<int>(table_.size());
}

absl::StatusOr<ApiKeys::Contents> ApiKeys::Read(const std::string& path) {
  const File file(path);
  struct stat info;
  // The version is taken before the text: a write in between shows as a change at the next reload.
  if (file.fd() < 0 || fstat(file.fd(), &info) != 0) {
    return absl::NotFoundError(absl::StrCat("API key file ", path, ": ", std::strerror(errno)));
  }
  const absl::StatusOr<std::string> text = file.Read(path, kKeyFileBytesMax);
  if (!text.ok()) return text.status();
  absl::StatusOr<Table> table = Parse(path, *text);
  if (!table.ok()) return table.status();
  return Contents{
      *std::move(table),
      {info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec, info.st_size, info.st_ino}};
}

absl::StatusOr<ApiKeys::Table> ApiKeys::Parse(const std::string& path, absl::string_view text) {
  Table table;
  int line_number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++line_number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line.front() == '#') continue;
    const auto fault = [&](absl::string_view what) {  // never quotes the line: it could hold a key
                                                      // pasted by mistake
      return absl::InvalidArgumentError(
          absl::StrCat("API key file ", path, " line ", line_number, ": ", what));
    };
    const std::vector<absl::string_view> fields =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    if (fields.size() != 3)
      return fault(absl::StrCat("has ", fields.size(), " fields; tenant, key id and hash are 3"));
    if (!IsName(fields[0])) return fault("the tenant must be 1..64 of A-Z a-z 0-9 . _ -");
    if (!IsName(fields[1])) return fault("the key id must be 1..64 of A-Z a-z 0-9 . _ -");
    const auto is_hex = [](char c) { return absl::ascii_isxdigit(static_cast<unsigned char>(c)); };
    if (fields[2].size() != 2 * kDigestBytes ||
        !std::all_of(fields[2].begin(), fields[2].end(), is_hex)) {
      return fault("the hash must be 64 hex digits");
    }
    const std::string bytes = absl::HexStringToBytes(fields[2]);
    Entry entry{{}, {std::string(fields[0]), std::string(fields[1])}};
    std::memcpy(entry.digest.data(), bytes.data(), kDigestBytes);
    const uint64_t key = TableKey(entry.digest);
    if (!table.emplace(key, std::move(entry)).second)
      return fault("repeats the hash of an earlier line");
  }
  return table;
}

}  // namespace ultraspeed::router
