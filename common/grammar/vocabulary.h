// The tokens of a model, prepared for masks (mask_builder.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/grammar/token_mask.h"
#include "common/grammar/token_trie.h"

namespace ultraspeed::grammar {

// Immutable, for any number of threads.
class Vocabulary {
 public:
  // [V] the bytes of every token; empty: never allowed. `end_tokens` end a text whatever their
  // bytes are. REQUIRES: 0 <= end token < V.
  Vocabulary(std::vector<std::string> tokens, std::vector<int32_t> end_tokens);

  int num_tokens() const { return static_cast<int>(tokens_.size()); }
  absl::string_view bytes(int32_t token) const { return tokens_[token]; }  // none for end tokens
  bool is_end(int32_t token) const { return end_mask_.Allows(token); }

  // Tokens of plain characters (utf8.h), which all of free text allows alike; those of them with
  // more than so many characters (one that is cut counts); and all other tokens.
  const TokenMask& plain_mask() const { return plain_mask_; }
  absl::Span<const int32_t> plain_longer_than(uint32_t num_characters) const;
  const TokenTrie& all() const { return all_; }
  const TokenTrie& not_plain() const { return not_plain_; }
  const TokenMask& end_mask() const { return end_mask_; }
  uint32_t token_bytes_max() const { return token_bytes_max_; }

 private:
  std::vector<std::string> tokens_;
  TokenMask end_mask_;
  TokenMask plain_mask_;
  std::vector<int32_t> plain_;            // the longest first
  std::vector<size_t> num_plain_longer_;  // by number of characters
  TokenTrie all_;
  TokenTrie not_plain_;
  uint32_t token_bytes_max_ = 0;
};

}  // namespace ultraspeed::grammar
