#include "router/http/http_error.h"

#include <array>
#include <boost/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace ultraspeed::router {
namespace {

namespace json = boost::json;

struct ErrorWords {
  int openai_status;
  const char* openai_type;
  const char* openai_code;  // null: JSON's null
  int anthropic_status;
  const char* anthropic_type;
};

// In the order of ErrorKind.
constexpr std::array<ErrorWords, 20> kWords = {{
    {400, "invalid_request_error", nullptr, 400, "invalid_request_error"},
    {400, "invalid_request_error", "context_length_exceeded", 400, "invalid_request_error"},
    {401, "authentication_error", "invalid_api_key", 401, "authentication_error"},
    {402, "insufficient_quota", "insufficient_quota", 402, "billing_error"},
    {403, "permission_error", "permission_denied", 403, "permission_error"},
    {404, "invalid_request_error", "model_not_found", 404, "not_found_error"},
    {404, "invalid_request_error", "unknown_url", 404, "not_found_error"},
    {405, "invalid_request_error", "method_not_allowed", 405, "invalid_request_error"},
    {408, "invalid_request_error", "request_timeout", 408, "timeout_error"},
    {413, "invalid_request_error", "request_too_large", 413, "request_too_large"},
    {415, "invalid_request_error", "unsupported_media_type", 415, "invalid_request_error"},
    {417, "invalid_request_error", "expectation_failed", 417, "invalid_request_error"},
    {431, "invalid_request_error", "header_too_large", 431, "invalid_request_error"},
    {429, "rate_limit_error", "rate_limit_exceeded", 429, "rate_limit_error"},
    {499, "server_error", "cancelled", 499, "api_error"},
    {500, "server_error", "internal_error", 500, "api_error"},
    {501, "server_error", "not_implemented", 501, "api_error"},
    {503, "server_error", "server_is_overloaded", 529, "overloaded_error"},
    {503, "server_error", "service_unavailable", 529, "overloaded_error"},
    {504, "server_error", "timeout", 504, "timeout_error"},
}};
static_assert(kWords.size() == static_cast<size_t>(ErrorKind::kDeadlineExceeded) + 1);

const ErrorWords& WordsOf(ErrorKind kind) { return kWords[static_cast<size_t>(kind)]; }

size_t NumFieldCharacters(absl::string_view message) {
  size_t count = 0;
  while (count < message.size() &&
         (absl::ascii_isalnum(static_cast<unsigned char>(message[count])) ||
          absl::StrContains("_.[]", message.substr(count, 1)))) {
    ++count;
  }
  return count;
}

// "messages[2].content" of "messages[2].content has 0 bytes; ..": what refusals begin with. Empty
// if the message begins with something else.
absl::string_view LeadingField(absl::string_view message) {
  const size_t count = NumFieldCharacters(message);
  for (const absl::string_view verb : {" is ", " has ", " have ", ": ", "="}) {
    if (absl::StartsWith(message.substr(count), verb)) return message.substr(0, count);
  }
  return {};
}

// "messages[2].content" by the caller's name for messages[2].
std::string CallersMessage(absl::string_view field, const FieldNames& names) {
  constexpr absl::string_view kMessages = "messages[";
  const size_t close = field.find(']');
  size_t idx = 0;
  if (!absl::StartsWith(field, kMessages) || close == absl::string_view::npos ||
      !absl::SimpleAtoi(field.substr(kMessages.size(), close - kMessages.size()), &idx) ||
      idx >= names.messages.size()) {
    return std::string(field);
  }
  // A field that is no item of an array is a message's content, and has no fields.
  const bool is_whole = !absl::StrContains(names.messages[idx], '[');
  return absl::StrCat(names.messages[idx], is_whole ? "" : field.substr(close + 1));
}

// A place in a schema has names that are none of ours: what it lies in is the field.
absl::string_view RenamedField(absl::string_view message, const FieldNames& names) {
  for (const auto& [from, to] : names.renames) {
    if (absl::StartsWith(message, from)) return message.substr(0, from.size());
  }
  const absl::string_view field = message.substr(0, NumFieldCharacters(message));
  constexpr absl::string_view kSchema = "].parameters_json";
  const size_t schema = field.find(kSchema);
  return schema == field.npos ? field.substr(0, 0) : field.substr(0, schema + kSchema.size());
}

std::string CallersField(absl::string_view field, const FieldNames& names) {
  for (const auto& [from, to] : names.renames) {
    if (absl::StartsWith(field, from)) return absl::StrCat(to, field.substr(from.size()));
  }
  return absl::StrReplaceAll(CallersMessage(field, names), names.parts);
}

ErrorKind KindOf(const absl::Status& status, bool admitted) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return absl::StrContains(status.message(), "context of") ? ErrorKind::kContextTooLong
                                                               : ErrorKind::kInvalidRequest;
    case absl::StatusCode::kFailedPrecondition:
      return absl::StrContains(status.message(), "budget") ? ErrorKind::kNoBudget
                                                           : ErrorKind::kInvalidRequest;
    case absl::StatusCode::kUnauthenticated:
      return ErrorKind::kUnauthenticated;
    case absl::StatusCode::kPermissionDenied:
      return ErrorKind::kForbidden;
    case absl::StatusCode::kNotFound:
      return ErrorKind::kModelNotFound;
    case absl::StatusCode::kResourceExhausted:
      return admitted ? ErrorKind::kOverloaded : ErrorKind::kRateLimited;
    case absl::StatusCode::kUnavailable:
      return ErrorKind::kUnavailable;
    case absl::StatusCode::kDeadlineExceeded:
      return ErrorKind::kDeadlineExceeded;
    case absl::StatusCode::kCancelled:
      return ErrorKind::kCancelled;
    case absl::StatusCode::kUnimplemented:
      return ErrorKind::kNotImplemented;
    default:
      return ErrorKind::kInternal;
  }
}

json::object ErrorJson(const HttpError& error, Dialect dialect, absl::string_view request_id) {
  const ErrorWords& words = WordsOf(error.kind);
  if (dialect == Dialect::kAnthropic) {
    return {{"type", "error"},
            {"error", {{"type", words.anthropic_type}, {"message", error.message}}},
            {"request_id", json::string_view(request_id.data(), request_id.size())}};
  }
  json::object body = {{"message", error.message}, {"type", words.openai_type}};
  body["param"] = error.param.empty() ? json::value(nullptr) : json::value(error.param);
  body["code"] =
      words.openai_code == nullptr ? json::value(nullptr) : json::value(words.openai_code);
  return {{"error", std::move(body)}};
}

}  // namespace

HttpError ErrorOfStatus(const absl::Status& status, bool admitted, const FieldNames& names,
                        absl::string_view request_id) {
  HttpError error;
  error.kind = KindOf(status, admitted);
  if (error.kind == ErrorKind::kInternal) {  // its text is for our log only
    error.message = absl::StrCat("internal error (request ", request_id, ")");
    return error;
  }
  error.message = std::string(status.message());
  if (error.kind != ErrorKind::kInvalidRequest && error.kind != ErrorKind::kContextTooLong) {
    return error;
  }
  absl::string_view field = LeadingField(status.message());
  if (field.empty()) field = RenamedField(status.message(), names);
  error.param = CallersField(field, names);
  error.message = absl::StrCat(error.param, status.message().substr(field.size()));
  return error;
}

int HttpStatusOf(ErrorKind kind, Dialect dialect) {
  const ErrorWords& words = WordsOf(kind);
  return dialect == Dialect::kAnthropic ? words.anthropic_status : words.openai_status;
}

std::string ErrorBody(const HttpError& error, Dialect dialect, absl::string_view request_id) {
  return json::serialize(ErrorJson(error, dialect, request_id));
}

std::string ErrorEvent(const HttpError& error, Dialect dialect, absl::string_view request_id) {
  json::object data = ErrorJson(error, dialect, request_id);
  if (dialect == Dialect::kResponses) {  // the reference's event, and what clients raise
    data["type"] = "error";
    for (const char* name : {"code", "message", "param"}) data[name] = data["error"].at(name);
  }
  return absl::StrCat(dialect == Dialect::kOpenAi ? "data: " : "event: error\ndata: ",
                      json::serialize(data), "\n\n");
}

}  // namespace ultraspeed::router
