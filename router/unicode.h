// UTF-8 validity and NFC. Called by tokenizer and detokenizer; pure functions, any thread.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace ultraspeed::router {

// Bytes of the well-formed character at the head of `bytes` (1..4), 0 if it is not well-formed, -1
// if `bytes` ends inside a character that is well-formed so far. REQUIRES: bytes is not empty.
int CharacterBytes(absl::string_view bytes);
// Bytes of the ill-formed part at the head: the longest beginning of a character, at least 1.
// REQUIRES: CharacterBytes(bytes) <= 0.
int InvalidBytes(absl::string_view bytes);
// Offset of the first byte that does not belong to a well-formed character; text.size() if there is
// none.
size_t FirstInvalidByte(absl::string_view text);
// True if the text is in NFC by a glance at its bytes; false says nothing.
bool IsQuicklyNfc(absl::string_view text);
// NFC of well-formed UTF-8 in O(n log n), whatever the runs of combining marks.
std::string ToNfc(absl::string_view text);

}  // namespace ultraspeed::router
