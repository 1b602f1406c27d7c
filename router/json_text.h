// JSON that comes as text inside of requests, and the ways in which the published chat template
// writes JSON into prompts. Those are Python's, as Jinja runs there: json.dumps and str. Pure.
#pragma once

#include <boost/json/fwd.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ultraspeed::router {

// INVALID_ARGUMENT, beginning with `name`: not UTF-8, not JSON, nested deeper than
// limits::kJsonDepthMax, or no object.
absl::StatusOr<boost::json::object> ParseJsonObject(absl::string_view text, absl::string_view name);

// Python's json.dumps(value, ensure_ascii=False): {"a": [1, 2.0]}.
std::string PythonDumps(const boost::json::value& value);
// Python's str(value): text as it is, True, None, ['string', 'null'].
std::string PythonStr(const boost::json::value& value);

}  // namespace ultraspeed::router
