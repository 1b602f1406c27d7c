#include "router/reasoning_counter.h"

#include <algorithm>

namespace ultraspeed::router {

ReasoningMarks FindReasoningMarks(const Tokenizer& tokenizer) {
  const absl::StatusOr<int32_t> begin = tokenizer.TokenId("<think>");
  const absl::StatusOr<int32_t> end = tokenizer.TokenId("</think>");
  if (!begin.ok() || !end.ok()) return {};
  return {.begin = *begin, .end = *end};
}

ReasoningCounter::ReasoningCounter(const ReasoningMarks& marks, absl::Span<const int32_t> prompt)
    : marks_(marks) {
  const auto is_mark = [&](int32_t id) { return id == marks.begin || id == marks.end; };
  const auto last = std::find_if(prompt.rbegin(), prompt.rend(), is_mark);
  is_thinking_ = last != prompt.rend() && *last == marks.begin;
}

}  // namespace ultraspeed::router
