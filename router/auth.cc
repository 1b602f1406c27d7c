#include "router/auth.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/limits.h"

namespace ultraspeed::router {
namespace {

constexpr size_t kKeyFileBytesMax = 16u << 20;  // about 100,000 keys
constexpr size_t kDigestBytes = std::tuple_size_v<ApiKeyDigest>;

uint64_t TableKey(const ApiKeyDigest& digest) {
  uint64_t key;
  std::memcpy(&key, digest.data(), sizeof(key));
  return key;
}

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
  if (key.empty() || key.size() > limits::kApiKeyBytesMax) return InvalidApiKeyError();
  const ApiKeyDigest digest = DigestApiKey(key, options_.pepper);
  absl::ReaderMutexLock lock(&mutex_);
  const auto found = table_.find(TableKey(digest));
  if (found == table_.end()) return InvalidApiKeyError();
  if (CRYPTO_memcmp(found->second.digest.data(), digest.data(), kDigestBytes) != 0)
    return InvalidApiKeyError();
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
    if (!IsAccountName(fields[0])) return fault("the tenant must be 1..64 of A-Z a-z 0-9 . _ -");
    if (!IsAccountName(fields[1])) return fault("the key id must be 1..64 of A-Z a-z 0-9 . _ -");
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
