#include "common/grammar/vocabulary.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/grammar/utf8.h"

namespace ultraspeed::grammar {
namespace {

bool IsPlainText(absl::string_view text) {
  Utf8State state = Utf8State::kBoundary;
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    state = IsPlain(byte) ? Utf8Next(state, byte) : Utf8State::kInvalid;
    if (state == Utf8State::kInvalid) return false;
  }
  return true;
}

enum class Kind { kAll, kPlain, kNotPlain };

std::vector<int32_t> TokensOf(absl::Span<const std::string> tokens, Kind kind) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i].empty()) continue;
    if (kind != Kind::kAll && IsPlainText(tokens[i]) != (kind == Kind::kPlain)) continue;
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
      all_(tokens_, TokensOf(tokens_, Kind::kAll)),
      not_plain_(tokens_, TokensOf(tokens_, Kind::kNotPlain)) {
  for (const std::string& token : tokens_) {
    token_bytes_max_ = std::max(token_bytes_max_, static_cast<uint32_t>(token.size()));
  }
}

}  // namespace ultraspeed::grammar
