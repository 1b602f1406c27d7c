// How many of a request's tokens are a model's thoughts: those from <think> to </think>, both
// included. Pure.
#pragma once

#include <algorithm>
#include <cstdint>

#include "absl/types/span.h"

namespace ultraspeed::worker {

// Ids of the two marks; -1 = the tokenizer has none.
struct ReasoningMarks {
  int32_t begin = -1;
  int32_t end = -1;
};

class ReasoningCounter {
 public:
  ReasoningCounter() = default;
  // A prompt may have opened a thought that the new tokens go on with.
  ReasoningCounter(const ReasoningMarks& marks, absl::Span<const int32_t> prompt) : marks_(marks) {
    const auto is_mark = [&](int32_t token) { return token == marks.begin || token == marks.end; };
    const auto last = std::find_if(prompt.rbegin(), prompt.rend(), is_mark);
    thinking_ = last != prompt.rend() && *last == marks.begin;
  }

  void Take(int32_t token) {
    if (token == marks_.begin) thinking_ = true;
    if (thinking_) ++num_tokens_;
    if (token == marks_.end) thinking_ = false;
  }
  int64_t num_tokens() const { return num_tokens_; }

 private:
  ReasoningMarks marks_;
  bool thinking_ = false;
  int64_t num_tokens_ = 0;
};

}  // namespace ultraspeed::worker
