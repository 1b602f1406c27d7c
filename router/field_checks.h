// Checks of single fields. A refusal is INVALID_ARGUMENT and names field, value and bound. Pure.
#pragma once

#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace ultraspeed::router {

template <typename Value>
absl::Status OutOfBounds(absl::string_view field, Value value, absl::string_view bound) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, "; it must be ", bound));
}

template <typename Value>
absl::Status CheckRange(absl::string_view field, Value value, Value low, Value high) {
  if (value >= low && value <= high) return absl::OkStatus();  // false for NaN
  return OutOfBounds(field, value, absl::StrCat(low, "..", high));
}

// `unit`: "bytes", "entries".
absl::Status CheckCount(absl::string_view field, size_t count, size_t low, size_t high,
                        absl::string_view unit);
absl::Status CheckUtf8(absl::string_view field, absl::string_view value);

inline absl::Status CheckBytes(absl::string_view field, absl::string_view value, size_t low,
                               size_t high) {
  return CheckCount(field, value.size(), low, high, "bytes");
}

}  // namespace ultraspeed::router
