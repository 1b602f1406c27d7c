// JSON Schema's "format": what dates, addresses and the like look like, as patterns. Narrower than
// the standards where readers differ, so that what is written is valid for all of them.
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace ultraspeed::grammar {

// date-time, date, time, duration, email, hostname, ipv4, ipv6 and uuid; nullopt: another one,
// which constrains nothing.
std::optional<std::string> PatternOfFormat(absl::string_view format);

}  // namespace ultraspeed::grammar
