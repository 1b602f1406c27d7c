// The text of a response's status line and headers, and of chunked framing. Pure.
//
// Sources: RFC 9112 (syntax, chunked coding), OpenAI and Anthropic API references ("Rate limits"
// and "Errors": headers). Names and values that the gRPC API sent as metadata go out under the
// same names.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "router/http/http_error.h"

namespace ultraspeed::router {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;
// Of the first header of that name, in lower case; empty: there is none.
std::string ValueOf(const HttpHeaders& headers, absl::string_view name);

// How the end of the body is found.
enum class BodyFraming : uint8_t { kLength, kChunked, kUntilClose };

struct ResponseHead {
  int status = 200;
  absl::string_view content_type = "application/json";
  BodyFraming framing = BodyFraming::kLength;
  size_t body_bytes = 0;  // kLength
  bool keep_alive = true;
  HttpHeaders headers = {};

  // Up to and with the empty line. Values that could end a header are left out.
  std::string ToString() const;
};

// Adds what answers in Anthropic's dialect call otherwise: request-id, and anthropic-ratelimit-*
// with the time of the reset (`now` + the duration) in RFC 3339.
void AddAnthropicHeaders(absl::Time now, HttpHeaders* headers);

// One chunk of the chunked coding; nothing for an empty text, which would end the body.
std::string Chunk(absl::string_view text);
inline constexpr char kLastChunk[] = "0\r\n\r\n";

// A value that gRPC takes as metadata and HTTP as a header: printable ASCII and blanks.
bool IsPlainHeaderValue(absl::string_view value);

}  // namespace ultraspeed::router
