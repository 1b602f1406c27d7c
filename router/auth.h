// The Authenticator of a router without an accounts store: API keys against a file that holds only
// their hashes. Key file: UTF-8, one key a line,
//   <tenant> <key-id> <hex HMAC-SHA-256 of the key with the pepper>
// blank lines and lines that begin with # are ignored. The pepper lives elsewhere, so a stolen key
// file opens nothing. Every failure reads the same to the caller: which part was wrong is nobody's
// business.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "router/api_key.h"
#include "router/authenticator.h"

namespace ultraspeed::router {

// Thread contract: every method may be called from any thread; Authenticate shares a read lock with
// no file access under it.
class ApiKeys : public Authenticator {
 public:
  struct Options {
    std::string path;
    std::string pepper;  // at least 16 bytes

    absl::Status Validate() const;
  };

  // INVALID_ARGUMENT names file, line and fault; NOT_FOUND the file.
  static absl::StatusOr<std::unique_ptr<ApiKeys>> Create(Options options);

  // Every tenant of the file has UnrestrictedTerms().
  absl::StatusOr<AuthenticatedTenant> Authenticate(absl::string_view key) const override;
  // Reads the file again if it changed. On an error the old keys stay in force. Meant for a timer
  // of about a second.
  absl::Status ReloadIfChanged();
  int num_keys() const;

 private:
  struct Entry {
    ApiKeyDigest digest;
    AuthenticatedTenant tenant;
  };
  using Table = absl::flat_hash_map<uint64_t, Entry>;  // by the first 8 bytes of the digest
  // What says that a file is another one: written in place (time, size) or renamed over (inode).
  struct FileVersion {
    int64_t mtime_ns = 0;
    int64_t size_bytes = 0;
    uint64_t inode = 0;
    bool operator==(const FileVersion&) const = default;
  };

  struct Contents {
    Table table;
    FileVersion version;
  };

  ApiKeys(Options options, Contents contents);
  static absl::StatusOr<Contents> Read(const std::string& path);
  static absl::StatusOr<Table> Parse(const std::string& path, absl::string_view text);

  const Options options_;
  mutable absl::Mutex mutex_;
  Table table_ ABSL_GUARDED_BY(mutex_);
  FileVersion version_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ultraspeed::router
