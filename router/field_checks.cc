#include "router/field_checks.h"

#include "router/unicode.h"

namespace ultraspeed::router {

absl::Status CheckCount(absl::string_view field, size_t count, size_t low, size_t high,
                        absl::string_view unit) {
  if (count >= low && count <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " has ", count, " ", unit, "; it must have ", low, "..", high));
}

absl::Status CheckUtf8(absl::string_view field, absl::string_view value) {
  const size_t offset = FirstInvalidByte(value);
  if (offset == value.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " is not UTF-8 at byte ", offset));
}

}  // namespace ultraspeed::router
