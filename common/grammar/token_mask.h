// One bit for each token of a vocabulary: whether it may come next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace ultraspeed::grammar {

class TokenMask {
 public:
  explicit TokenMask(int num_tokens) : words_((static_cast<size_t>(num_tokens) + 31) / 32) {}

  void Allow(int32_t token) { words_[Word(token)] |= Bit(token); }
  void Allow(const TokenMask& others) {
    for (size_t i = 0; i < words_.size(); ++i) words_[i] |= others.words_[i];
  }
  void Forbid(int32_t token) { words_[Word(token)] &= ~Bit(token); }
  bool Allows(int32_t token) const { return (words_[Word(token)] & Bit(token)) != 0; }
  // [(V + 31) / 32], token t at bit t % 32 of word t / 32.
  absl::Span<const uint32_t> words() const { return words_; }

  friend bool operator==(const TokenMask&, const TokenMask&) = default;

 private:
  static size_t Word(int32_t token) { return static_cast<size_t>(token) / 32; }
  static uint32_t Bit(int32_t token) { return uint32_t{1} << (token % 32); }

  std::vector<uint32_t> words_;
};

}  // namespace ultraspeed::grammar
