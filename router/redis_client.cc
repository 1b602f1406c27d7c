#include "router/redis_client.h"

#include <hiredis/hiredis.h>
#include <openssl/evp.h>

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace ultraspeed::router {
namespace {

constexpr size_t kKeptConnectionsMax = 16;
constexpr int kDatabaseMax = 1023;

struct FreeReply {
  void operator()(redisReply* reply) const { freeReplyObject(reply); }
};
using Reply = std::unique_ptr<redisReply, FreeReply>;

absl::string_view Text(const redisReply& reply) { return {reply.str, reply.len}; }

absl::Status ConnectionError(const redisContext& context) {
  return absl::UnavailableError(absl::StrCat("redis: ", context.errstr));
}

// UNAVAILABLE if no reply came; error replies are replies.
absl::StatusOr<Reply> Call(redisContext* context, const std::vector<absl::string_view>& command) {
  std::vector<const char*> words;
  std::vector<size_t> lengths;
  for (const absl::string_view word : command) {
    words.push_back(word.data());
    lengths.push_back(word.size());
  }
  Reply reply(static_cast<redisReply*>(
      redisCommandArgv(context, static_cast<int>(command.size()), words.data(), lengths.data())));
  if (reply == nullptr) return ConnectionError(*context);
  return reply;
}

}  // namespace

absl::StatusOr<RedisAddress> RedisAddress::Parse(absl::string_view url) {
  RedisAddress address;
  absl::string_view rest = url;
  if (!absl::ConsumePrefix(&rest, "redis://"))
    return absl::InvalidArgumentError("redis: must be redis://[:password@]host[:port][/database]");
  if (const size_t at = rest.rfind('@'); at != absl::string_view::npos) {
    absl::string_view password = rest.substr(0, at);
    if (!absl::ConsumePrefix(&password, ":"))
      return absl::InvalidArgumentError(
          "redis: user names are not supported; write :password@host");
    address.password = std::string(password);
    rest = rest.substr(at + 1);
  }
  if (const size_t slash = rest.find('/'); slash != absl::string_view::npos) {
    const absl::string_view database = rest.substr(slash + 1);
    rest = rest.substr(0, slash);
    if (!absl::SimpleAtoi(database, &address.database) || address.database < 0 ||
        address.database > kDatabaseMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("redis: database=", database, ": must be 0..", kDatabaseMax));
    }
  }
  if (const size_t colon = rest.rfind(':'); colon != absl::string_view::npos) {
    const absl::string_view port = rest.substr(colon + 1);
    rest = rest.substr(0, colon);
    if (!absl::SimpleAtoi(port, &address.port) || address.port < 1 || address.port > 65535)
      return absl::InvalidArgumentError(absl::StrCat("redis: port=", port, ": must be 1..65535"));
  }
  if (rest.empty()) return absl::InvalidArgumentError("redis: the host is empty");
  address.host = std::string(rest);
  return address;
}

std::string RedisAddress::HostPort() const { return absl::StrCat(host, ":", port); }

RedisScript::RedisScript(std::string source) : source_(std::move(source)) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int digest_bytes = 0;
  EVP_Digest(source_.data(), source_.size(), digest, &digest_bytes, EVP_sha1(), nullptr);
  sha1_ = absl::BytesToHexString({reinterpret_cast<char*>(digest), digest_bytes});
}

// ---- One connection ----

absl::StatusOr<std::unique_ptr<RedisConnection>> RedisConnection::Connect(
    const RedisAddress& address, absl::Duration timeout) {
  const timeval limit = absl::ToTimeval(timeout);
  redisContext* context = redisConnectWithTimeout(address.host.c_str(), address.port, limit);
  if (context == nullptr) return absl::UnavailableError("redis: no memory for a connection");
  std::unique_ptr<RedisConnection> connection(new RedisConnection(context));
  if (context->err != 0) return ConnectionError(*context);
  redisSetTimeout(context, limit);
  std::vector<std::vector<absl::string_view>> greetings;
  const std::string database = absl::StrCat(address.database);
  if (!address.password.empty()) greetings.push_back({"AUTH", address.password});
  if (address.database != 0) greetings.push_back({"SELECT", database});
  for (const auto& greeting : greetings) {
    auto reply = Call(context, greeting);
    if (!reply.ok()) return reply.status();
    if ((*reply)->type == REDIS_REPLY_ERROR) {
      return absl::PermissionDeniedError(
          absl::StrCat("redis ", address.HostPort(), ": ", greeting[0], ": ", Text(**reply)));
    }
  }
  return connection;
}

RedisConnection::~RedisConnection() { redisFree(context_); }

absl::StatusOr<std::vector<int64_t>> RedisConnection::Run(
    const RedisScript& script, const std::vector<std::string>& keys,
    const std::vector<std::string>& arguments) {
  const std::string num_keys = absl::StrCat(keys.size());
  std::vector<absl::string_view> command = {"EVALSHA", script.sha1(), num_keys};
  command.insert(command.end(), keys.begin(), keys.end());
  command.insert(command.end(), arguments.begin(), arguments.end());
  auto reply = Call(context_, command);
  if (!reply.ok()) return reply.status();
  const auto is_error = [&](absl::string_view prefix) {
    return (*reply)->type == REDIS_REPLY_ERROR && absl::StartsWith(Text(**reply), prefix);
  };
  if (is_error("NOSCRIPT")) {  // new or restarted server: EVAL teaches it
    command[0] = "EVAL";
    command[1] = script.source();
    reply = Call(context_, command);
    if (!reply.ok()) return reply.status();
  }
  if (is_error("")) return absl::InternalError(absl::StrCat("redis: ", Text(**reply)));
  std::vector<int64_t> numbers;
  for (size_t i = 0; (*reply)->type == REDIS_REPLY_ARRAY && i < (*reply)->elements; ++i) {
    const redisReply& element = *(*reply)->element[i];
    if (element.type != REDIS_REPLY_INTEGER)
      return absl::InternalError("redis: the script answered with something not an integer");
    numbers.push_back(element.integer);
  }
  return numbers;
}

// ---- Kept connections ----

RedisConnectionPool::RedisConnectionPool(RedisAddress address, absl::Duration timeout)
    : address_(std::move(address)), timeout_(timeout) {}

absl::StatusOr<std::unique_ptr<RedisConnection>> RedisConnectionPool::Take() {
  {
    absl::MutexLock lock(&mutex_);
    if (!kept_.empty()) {
      std::unique_ptr<RedisConnection> connection = std::move(kept_.back());
      kept_.pop_back();
      return connection;
    }
  }
  return RedisConnection::Connect(address_, timeout_);
}

void RedisConnectionPool::GiveBack(std::unique_ptr<RedisConnection> connection) {
  absl::MutexLock lock(&mutex_);
  if (kept_.size() < kKeptConnectionsMax) kept_.push_back(std::move(connection));
}

void RedisConnectionPool::Clear() {
  std::vector<std::unique_ptr<RedisConnection>> dead;  // closed without the lock
  absl::MutexLock lock(&mutex_);
  dead.swap(kept_);
}

}  // namespace ultraspeed::router
