#include "common/grammar/vocabulary.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "common/check.h"
#include "common/grammar/utf8.h"

namespace ultraspeed::grammar {
namespace {

// Nullopt if not all characters are plain.
std::optional<uint32_t> CountPlain(absl::string_view text) {
  Utf8State state = Utf8State::kBoundary;
  uint32_t num_characters = 0;
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    num_characters += state == Utf8State::kBoundary;
    state = IsPlain(byte) ? Utf8Next(state, byte) : Utf8State::kInvalid;
    if (state == Utf8State::kInvalid) return std::nullopt;
  }
  return num_characters;
}

enum class Kind { kAll, kPlain, kNotPlain };

std::vector<int32_t> TokensOf(absl::Span<const std::string> tokens, Kind kind) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i].empty()) continue;
    if (kind != Kind::kAll && CountPlain(tokens[i]).has_value() != (kind == Kind::kPlain)) continue;
    ids.push_back(static_cast<int32_t>(i));
  }
  return ids;
}

std::vector<std::string> WithoutEnds(std::vector<std::string> tokens,
                                     absl::Span<const int32_t> end_tokens) {
  for (const int32_t token : end_tokens) {
    CHECK_THAT(token, >=, 0);
    CHECK_THAT(static_cast<size_t>(token), <, tokens.size());
    tokens[token].clear();
  }
  return tokens;
}

TokenMask MaskOf(size_t num_tokens, absl::Span<const int32_t> ids) {
  TokenMask mask(static_cast<int>(num_tokens));
  for (const int32_t id : ids) mask.Allow(id);
  return mask;
}

}  // namespace

Vocabulary::Vocabulary(std::vector<std::string> tokens, std::vector<int32_t> end_tokens)
    : tokens_(WithoutEnds(std::move(tokens), end_tokens)),
      end_mask_(MaskOf(tokens_.size(), end_tokens)),
      plain_mask_(MaskOf(tokens_.size(), TokensOf(tokens_, Kind::kPlain))),
      plain_(TokensOf(tokens_, Kind::kPlain)),
      all_(tokens_, TokensOf(tokens_, Kind::kAll)),
      not_plain_(tokens_, TokensOf(tokens_, Kind::kNotPlain)) {
  for (const std::string& token : tokens_) {
    token_bytes_max_ = std::max(token_bytes_max_, static_cast<uint32_t>(token.size()));
  }
  std::vector<std::vector<int32_t>> by_length(token_bytes_max_ + 1);
  for (const int32_t token : plain_) by_length[*CountPlain(tokens_[token])].push_back(token);
  num_plain_longer_.resize(by_length.size());
  plain_.clear();
  for (size_t length = by_length.size(); length-- > 0;) {
    num_plain_longer_[length] = plain_.size();
    plain_.insert(plain_.end(), by_length[length].begin(), by_length[length].end());
  }
}

absl::Span<const int32_t> Vocabulary::plain_longer_than(uint32_t num_characters) const {
  if (num_characters >= num_plain_longer_.size()) return {};
  return absl::MakeConstSpan(plain_).subspan(0, num_plain_longer_[num_characters]);
}

}  // namespace ultraspeed::grammar
