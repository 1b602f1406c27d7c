// Text to token ids and back for the Qwen2 family: NFC, the Qwen2 split pattern, byte-level BPE,
// added tokens.
//
// Built once per model from the tokenizer.json bytes that a worker hands out; called by the
// services for every request. Strict: a file that asks for anything this class does not do exactly
// is refused by name, never approximated. Surprising: in text encoded kAsText the spelling of a
// special token is ordinary text, so what a user writes can never become one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ultraspeed::router {

class BytePairEncoder;
class TextSplitter;

enum class SpecialTokens {
  kAsText,  // every byte is text
  kParse,   // spellings of added tokens become their ids, leftmost and longest first
};

// Thread contract: immutable after Create apart from an internally locked cache; every method may
// be called from any thread.
class Tokenizer {
 public:
  // INVALID_ARGUMENT names the first thing in the file that is malformed or not supported.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(absl::string_view json);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // INVALID_ARGUMENT names the byte offset of the first byte that is not UTF-8, or the bound on
  // bytes.
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, SpecialTokens special) const;

  // The bytes that a token stands for; part of a character is possible. Empty for an id that no
  // token has.
  absl::string_view TokenBytes(int32_t id) const;
  // The id of an added token by its exact spelling. NOT_FOUND names the spelling.
  absl::StatusOr<int32_t> TokenId(absl::string_view special_text) const;
  // True for added tokens marked special: they have no text of their own. Others (<think>,
  // <tool_call>) read as their spelling.
  bool IsSpecial(int32_t id) const;
  // One more than the largest id of any token.
  int vocabulary_size() const { return static_cast<int>(token_bytes_.size()); }

 private:
  struct AddedToken {
    std::string text;
    int32_t id;
  };

  Tokenizer();
  absl::Status EncodeText(absl::string_view text, std::vector<int32_t>* ids) const;
  // The longest added token that begins at `offset`; null if there is none.
  const AddedToken* AddedTokenAt(absl::string_view text, size_t offset) const;

  std::vector<std::string> token_bytes_;              // [V]
  std::vector<bool> is_special_;                      // [V]
  std::vector<AddedToken> added_by_first_byte_[256];  // longest first
  absl::flat_hash_map<std::string, int32_t> added_ids_;
  std::unique_ptr<BytePairEncoder> encoder_;
  std::unique_ptr<TextSplitter> splitter_;
};

}  // namespace ultraspeed::router
