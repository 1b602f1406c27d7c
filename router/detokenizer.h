// Token ids to text as they arrive: only whole UTF-8 characters leave, whatever the borders of
// tokens and chunks.
//
// One per request, fed by its relay. Bytes that can still become a character are held back (three
// at most); bytes that cannot become U+FFFD, one per maximal invalid part, as the Unicode standard
// recommends. Special tokens have no text.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace ultraspeed::router {

class Tokenizer;

// Thread contract: one thread at a time.
class Detokenizer {
 public:
  // The tokenizer is borrowed and must outlive this object.
  explicit Detokenizer(const Tokenizer* tokenizer);

  // The text that these tokens complete; may be empty.
  std::string Append(absl::Span<const int32_t> token_ids);
  // What was held back: empty, or U+FFFD for an unfinished character. Call once, at the end.
  std::string Finish();

 private:
  void AppendBytes(absl::string_view bytes, std::string* text);

  const Tokenizer* tokenizer_;
  std::string held_;  // 0..3 bytes: a valid beginning of a character
};

}  // namespace ultraspeed::router
