// Dollars as people write them and whole nano-dollars as the API keeps them; exact both ways.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ultraspeed::client {

// "0.0036" -> 3,600,000. Digits with at most nine after the point, at most 1e9 dollars.
// INVALID_ARGUMENT names `flag`.
absl::StatusOr<int64_t> ParseDollars(absl::string_view flag, absl::string_view text);

// At least two digits after the point, as many as needed: 1,300,000,000 -> "$1.30".
std::string DollarsText(int64_t nanodollars);

}  // namespace ultraspeed::client
