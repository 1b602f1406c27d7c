#include "router/http/reasoning_splitter.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "router/partial_match.h"

namespace ultraspeed::router {
namespace {

constexpr absl::string_view kBegin = "<think>";
constexpr absl::string_view kEnd = "</think>";

}  // namespace

ReasoningSplitter::Parts ReasoningSplitter::Append(absl::string_view text) {
  Parts parts;
  std::string joined = absl::StrCat(std::exchange(held_, {}), text);
  if (state_ == State::kStart) {
    if (absl::StartsWith(joined, kBegin)) {
      joined.erase(0, kBegin.size());
      state_ = State::kReasoning;
    } else if (absl::StartsWith(kBegin, joined)) {
      held_ = std::move(joined);
      return parts;
    } else {
      state_ = State::kContent;
    }
  }
  if (state_ == State::kReasoning) {
    const size_t end = joined.find(kEnd.data(), 0, kEnd.size());
    if (end == std::string::npos) {
      const size_t held_bytes = BegunBytes(joined, kEnd);
      held_ = joined.substr(joined.size() - held_bytes);
      joined.resize(joined.size() - held_bytes);
      parts.reasoning = std::move(joined);
      return parts;
    }
    parts.reasoning = joined.substr(0, end);
    joined.erase(0, end + kEnd.size());
    state_ = State::kContent;
  }
  parts.content = std::move(joined);
  return parts;
}

ReasoningSplitter::Parts ReasoningSplitter::Take(absl::string_view text, bool is_last) {
  Parts parts = Append(text);
  if (!is_last) return parts;
  const Parts rest = Finish();
  absl::StrAppend(&parts.reasoning, rest.reasoning);
  absl::StrAppend(&parts.content, rest.content);
  return parts;
}

ReasoningSplitter::Parts ReasoningSplitter::Finish() {
  Parts parts;
  (state_ == State::kReasoning ? parts.reasoning : parts.content) = std::exchange(held_, {});
  return parts;
}

}  // namespace ultraspeed::router
