// gRPC status to HTTP status and error body, in OpenAI's and in Anthropic's words. Pure; any
// thread.
//
// Sources: RFC 9110 section 15, OpenAI API reference "Error codes", Anthropic API reference
// "Errors". Surprising: RESOURCE_EXHAUSTED is the caller's limit (429) or a full house (503, in
// Anthropic's words 529); x-service-tier in the call's metadata, which only an admitted request
// has, tells which.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace ultraspeed::router {

// kResponses: OpenAI's, but for events of a stream.
enum class Dialect : uint8_t { kOpenAi, kResponses, kAnthropic };

enum class ErrorKind : uint8_t {
  kInvalidRequest,
  kContextTooLong,
  kUnauthenticated,
  kNoBudget,
  kForbidden,
  kModelNotFound,
  kPathNotFound,
  kMethodNotAllowed,
  kRequestTimeout,
  kBodyTooLarge,
  kUnsupportedMediaType,
  kExpectationFailed,
  kHeaderTooLarge,
  kRateLimited,
  kCancelled,
  kInternal,
  kNotImplemented,
  kOverloaded,
  kUnavailable,
  kDeadlineExceeded,
};

struct HttpError {
  ErrorKind kind = ErrorKind::kInternal;
  std::string message;
  std::string param = {};  // the request's field at fault; empty = none
};

// How the caller's body calls what the gRPC API calls otherwise.
struct FieldNames {
  // Prefix of a gRPC field -> what stands for it; the first that matches.
  std::vector<std::pair<std::string, std::string>> renames = {};
  // Path of the caller's field that messages[i] was made of; empty: messages[i] of the caller.
  std::vector<std::string> messages = {};
  // Then: what stands for parts of the path, wherever they are.
  std::vector<std::pair<std::string, std::string>> parts = {};
};

// Translates the field that a message of the gRPC API begins with, if it begins with one.
// `request_id` stands in for what an internal error said. `admitted`: see above.
HttpError ErrorOfStatus(const absl::Status& status, bool admitted, const FieldNames& names,
                        absl::string_view request_id);

// 400..599.
int HttpStatusOf(ErrorKind kind, Dialect dialect);
// {"error":{..}} or {"type":"error",..}, without a line break.
std::string ErrorBody(const HttpError& error, Dialect dialect, absl::string_view request_id);
// The same as the last event of a stream.
std::string ErrorEvent(const HttpError& error, Dialect dialect, absl::string_view request_id);

}  // namespace ultraspeed::router
