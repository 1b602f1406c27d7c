#include "router/http/routes.h"

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace ultraspeed::router {
namespace {

constexpr absl::string_view kModelPrefix = "/v1/models/";

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  c = absl::ascii_tolower(static_cast<unsigned char>(c));
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// `plus_is_blank`: in a query, as forms write it.
std::optional<std::string> PercentDecode(absl::string_view text, bool plus_is_blank) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '+' && plus_is_blank) {
      decoded += ' ';
    } else if (text[i] != '%') {
      decoded += text[i];
    } else {
      const int high = i + 2 < text.size() ? HexDigit(text[i + 1]) : -1;
      const int low = i + 2 < text.size() ? HexDigit(text[i + 2]) : -1;
      if (high < 0 || low < 0) return std::nullopt;
      decoded += static_cast<char>(high * 16 + low);
      i += 2;
    }
  }
  return decoded;
}

Route RouteOf(absl::string_view path) {
  if (path == "/v1/chat/completions") return Route::kChatCompletions;
  if (path == "/v1/completions") return Route::kCompletions;
  if (path == "/v1/responses") return Route::kResponses;
  if (path == "/v1/messages") return Route::kMessages;
  if (path == "/v1/messages/count_tokens") return Route::kCountTokens;
  if (path == "/v1/models") return Route::kModels;
  if (path == "/v1/usage") return Route::kUsage;
  if (path == "/healthz") return Route::kHealth;
  if (path == "/readyz") return Route::kReady;
  if (path.size() > kModelPrefix.size() && absl::StartsWith(path, kModelPrefix)) {
    return Route::kModel;
  }
  return Route::kNone;
}

}  // namespace

Target ParseTarget(absl::string_view target) {
  Target parsed;
  const size_t question = target.find('?');
  const auto path = PercentDecode(target.substr(0, question), false);
  if (!path) return parsed;
  if (question != absl::string_view::npos) {
    const absl::string_view query = target.substr(question + 1);
    for (const absl::string_view pair : absl::StrSplit(query, '&', absl::SkipEmpty())) {
      const std::pair<absl::string_view, absl::string_view> halves =
          absl::StrSplit(pair, absl::MaxSplits('=', 1));
      const auto name = PercentDecode(halves.first, true);
      const auto value = PercentDecode(halves.second, true);
      if (!name || !value) return parsed;
      parsed.query.emplace(*name, *value);
    }
  }
  parsed.route = RouteOf(*path);
  if (parsed.route == Route::kModel) parsed.model = path->substr(kModelPrefix.size());
  return parsed;
}

absl::string_view RouteName(Route route) {
  switch (route) {
    case Route::kChatCompletions:
      return "chat_completions";
    case Route::kCompletions:
      return "completions";
    case Route::kResponses:
      return "responses";
    case Route::kMessages:
      return "messages";
    case Route::kCountTokens:
      return "count_tokens";
    case Route::kModels:
      return "models";
    case Route::kModel:
      return "model";
    case Route::kUsage:
      return "usage";
    case Route::kHealth:
      return "healthz";
    case Route::kReady:
      return "readyz";
    case Route::kNone:
      break;
  }
  return "none";
}

absl::string_view AllowedMethod(Route route) {
  switch (route) {
    case Route::kChatCompletions:
    case Route::kCompletions:
    case Route::kResponses:
    case Route::kMessages:
    case Route::kCountTokens:
      return "POST";
    default:
      return "GET";
  }
}

Dialect DialectOf(Route route) {
  const bool is_anthropic = route == Route::kMessages || route == Route::kCountTokens;
  if (is_anthropic) return Dialect::kAnthropic;
  return route == Route::kResponses ? Dialect::kResponses : Dialect::kOpenAi;
}

}  // namespace ultraspeed::router
