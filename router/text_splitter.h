// Cuts text into the pieces inside which byte pairs merge, by the Qwen2 pattern. Owned and called
// by the tokenizer.
#pragma once

#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ultraspeed::router {

// Thread contract: immutable; Split may be called from any thread.
class TextSplitter {
 public:
  // `pattern` as tokenizer.json spells it. INVALID_ARGUMENT unless it is the Qwen2 pattern: another
  // one could mean something else to PCRE2 than to the library that the model was trained with.
  static absl::StatusOr<std::unique_ptr<TextSplitter>> Create(absl::string_view pattern);
  ~TextSplitter();
  TextSplitter(const TextSplitter&) = delete;
  TextSplitter& operator=(const TextSplitter&) = delete;

  // Calls `piece` for consecutive, non-empty pieces that together are the text. REQUIRES: text is
  // well-formed UTF-8.
  absl::Status Split(absl::string_view text,
                     absl::FunctionRef<void(absl::string_view)> piece) const;

 private:
  explicit TextSplitter(void* code) : code_(code) {}
  void* code_;  // pcre2_code, owned; its header needs a width macro that must not leak
};

}  // namespace ultraspeed::router
