#include "router/http/response_head.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace ultraspeed::router {
namespace {

absl::string_view ReasonPhrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 402:
      return "Payment Required";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return "";
  }
}

}  // namespace

std::string ValueOf(const HttpHeaders& headers, absl::string_view name) {
  const auto found = std::find_if(headers.begin(), headers.end(),
                                  [&](const auto& header) { return header.first == name; });
  return found == headers.end() ? "" : found->second;
}

std::string ResponseHead::ToString() const {
  std::string text = absl::StrCat("HTTP/1.1 ", status, " ", ReasonPhrase(status), "\r\n",
                                  "content-type: ", content_type, "\r\n");
  if (framing == BodyFraming::kLength)
    absl::StrAppend(&text, "content-length: ", body_bytes, "\r\n");
  if (framing == BodyFraming::kChunked) absl::StrAppend(&text, "transfer-encoding: chunked\r\n");
  absl::StrAppend(&text, "connection: ", keep_alive ? "keep-alive" : "close", "\r\n");
  for (const auto& [name, value] : headers) {
    if (IsPlainHeaderValue(value)) absl::StrAppend(&text, name, ": ", value, "\r\n");
  }
  return absl::StrCat(text, "\r\n");
}

void AddAnthropicHeaders(absl::Time now, HttpHeaders* headers) {
  HttpHeaders more = {{"request-id", ValueOf(*headers, "x-request-id")}};
  for (const char* unit : {"requests", "tokens"}) {
    const std::string limit = ValueOf(*headers, absl::StrCat("x-ratelimit-limit-", unit));
    absl::Duration reset;
    if (limit.empty() ||
        !absl::ParseDuration(ValueOf(*headers, absl::StrCat("x-ratelimit-reset-", unit)), &reset)) {
      continue;
    }
    const std::string prefix = absl::StrCat("anthropic-ratelimit-", unit);
    more.emplace_back(prefix + "-limit", limit);
    more.emplace_back(prefix + "-remaining",
                      ValueOf(*headers, absl::StrCat("x-ratelimit-remaining-", unit)));
    more.emplace_back(prefix + "-reset",
                      absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", now + reset, absl::UTCTimeZone()));
  }
  headers->insert(headers->end(), more.begin(), more.end());
}

std::string Chunk(absl::string_view text) {
  if (text.empty()) return "";
  return absl::StrCat(absl::Hex(text.size()), "\r\n", text, "\r\n");
}

bool IsPlainHeaderValue(absl::string_view value) {
  return std::all_of(value.begin(), value.end(),
                     [](char c) { return absl::ascii_isprint(static_cast<unsigned char>(c)); });
}

}  // namespace ultraspeed::router
