// Which endpoint a request line means. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "router/http/http_error.h"

namespace ultraspeed::router {

enum class Route : uint8_t {
  kChatCompletions,
  kCompletions,
  kResponses,
  kMessages,
  kCountTokens,
  kModels,
  kModel,
  kUsage,
  kHealth,
  kReady,
  kNone,
};

struct Target {
  Route route = Route::kNone;
  std::string model = {};                              // of kModel
  std::multimap<std::string, std::string> query = {};  // decoded
};

// Of a request target in origin-form (RFC 9112, 3.2.1). Anything else, and what is not
// percent-encoded properly, is kNone.
Target ParseTarget(absl::string_view target);

absl::string_view RouteName(Route route);      // label of metrics
absl::string_view AllowedMethod(Route route);  // "GET" or "POST"; GET stands for HEAD too
// Whose words errors of this endpoint use.
Dialect DialectOf(Route route);

}  // namespace ultraspeed::router
