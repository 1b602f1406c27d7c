// What the router needs of Redis: blocking calls with a short timeout over a few kept connections,
// and scripts by their hash. The only file pair that includes hiredis.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

struct redisContext;

namespace ultraspeed::router {

struct RedisAddress {
  std::string host = "127.0.0.1";
  int port = 6379;
  std::string password;  // empty = no AUTH
  int database = 0;

  // "redis://[:password@]host[:port][/database]". INVALID_ARGUMENT says what is wrong and never
  // repeats the password.
  static absl::StatusOr<RedisAddress> Parse(absl::string_view url);
  std::string HostPort() const;
};

// A Lua script and its hash.
class RedisScript {
 public:
  explicit RedisScript(std::string source);
  const std::string& source() const { return source_; }
  const std::string& sha1() const { return sha1_; }

 private:
  std::string source_;
  std::string sha1_;  // hexadecimal
};

// One connection. After an UNAVAILABLE it is of no more use. Thread contract: one thread at a time.
class RedisConnection {
 public:
  // UNAVAILABLE, or PERMISSION_DENIED if the password is refused.
  static absl::StatusOr<std::unique_ptr<RedisConnection>> Connect(const RedisAddress& address,
                                                                  absl::Duration timeout);
  ~RedisConnection();
  RedisConnection(const RedisConnection&) = delete;
  RedisConnection& operator=(const RedisConnection&) = delete;

  // The script's reply, an array of integers. Sends the source only if the server does not know the
  // script. UNAVAILABLE: no answer in time or connection lost (whether the script ran is unknown);
  // INTERNAL: the script failed.
  absl::StatusOr<std::vector<int64_t>> Run(const RedisScript& script,
                                           const std::vector<std::string>& keys,
                                           const std::vector<std::string>& arguments);

 private:
  explicit RedisConnection(redisContext* context) : context_(context) {}

  redisContext* const context_;
};

// Keeps connections that are not in use. Thread contract: every method from any thread.
class RedisConnectionPool {
 public:
  RedisConnectionPool(RedisAddress address, absl::Duration timeout);

  // A kept one or a new one. Give it back only if its last call went well.
  absl::StatusOr<std::unique_ptr<RedisConnection>> Take();
  void GiveBack(std::unique_ptr<RedisConnection> connection);
  // Closes the kept ones: the server went away, they are dead.
  void Clear();

 private:
  const RedisAddress address_;
  const absl::Duration timeout_;
  absl::Mutex mutex_;
  std::vector<std::unique_ptr<RedisConnection>> kept_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ultraspeed::router
