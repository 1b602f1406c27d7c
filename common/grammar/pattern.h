// Regular expressions as JSON Schema has them (ECMA-262, read by code points), parsed.
//
// Supported: literals, ".", classes, \d \D \w \W \s \S, escapes of characters, groups (their names
// and numbers say nothing), "|", "*", "+", "?", "{m}", "{m,}", "{m,n}" (lazy ones mean the same),
// "^" and "$". Not supported, since they are no regular language or seldom asked for: references to
// groups, looking ahead or behind, \b, \B, \p, flags.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/grammar/code_points.h"

namespace ultraspeed::grammar {

struct Pattern {
  enum class Kind : uint8_t {
    kCharacters,    // one of them
    kSequence,      // of parts
    kAlternatives,  // of parts
    kRepeat,        // the only part, min to max times
    kBegin,         // nothing, where the text begins
    kEnd,           // nothing, where it ends
  };
  static constexpr uint32_t kUnbounded = std::numeric_limits<uint32_t>::max();

  Kind kind = Kind::kSequence;
  CodePoints characters;
  std::vector<Pattern> parts;
  uint32_t min = 0, max = 0;
};

// INVALID_ARGUMENT says what is wrong, and at which character. REQUIRES: UTF-8.
absl::StatusOr<Pattern> ParsePattern(absl::string_view text);

}  // namespace ultraspeed::grammar
