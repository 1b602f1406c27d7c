#include "router/detokenizer.h"

#include "absl/strings/str_cat.h"
#include "router/tokenizer.h"
#include "router/unicode.h"

namespace ultraspeed::router {
namespace {

constexpr absl::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

Detokenizer::Detokenizer(const Tokenizer* tokenizer) : tokenizer_(tokenizer) {}

std::string Detokenizer::Append(absl::Span<const int32_t> token_ids) {
  std::string text;
  for (const int32_t id : token_ids) {
    if (!tokenizer_->IsSpecial(id)) AppendBytes(tokenizer_->TokenBytes(id), &text);
  }
  return text;
}

std::string Detokenizer::Finish() {
  if (held_.empty()) return "";
  held_.clear();
  return std::string(kReplacement);
}

void Detokenizer::AppendBytes(absl::string_view bytes, std::string* text) {
  const std::string joined = absl::StrCat(held_, bytes);
  held_.clear();
  for (absl::string_view rest = joined; !rest.empty();) {
    const int character_bytes = CharacterBytes(rest);
    if (character_bytes < 0) {
      held_ = std::string(rest);
      return;
    }
    if (character_bytes > 0) {
      absl::StrAppend(text, rest.substr(0, character_bytes));
      rest.remove_prefix(character_bytes);
    } else {
      absl::StrAppend(text, kReplacement);
      rest.remove_prefix(InvalidBytes(rest));
    }
  }
}

}  // namespace ultraspeed::router
