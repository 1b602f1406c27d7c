// Marks in text that comes in pieces. Pure.
#pragma once

#include <algorithm>
#include <cstddef>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"

namespace ultraspeed::router {

// Bytes at the end of `text` that may be the beginning of `mark`, which is not empty. A whole mark
// does not count.
inline size_t BegunBytes(absl::string_view text, absl::string_view mark) {
  for (size_t count = std::min(text.size(), mark.size() - 1); count > 0; --count) {
    if (absl::StartsWith(mark, text.substr(text.size() - count))) return count;
  }
  return 0;
}

}  // namespace ultraspeed::router
