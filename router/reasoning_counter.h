// How many of a request's tokens are a model's thoughts: those from <think> to </think>, both
// included. The marks are found once per model, by WorkerPool; each Generation has a counter. Pure.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "router/tokenizer.h"

namespace ultraspeed::router {

// Ids of the two marks; -1 = the tokenizer has none.
struct ReasoningMarks {
  int32_t begin = -1;
  int32_t end = -1;
};

// The added tokens <think> and </think>; none of both if one is missing.
ReasoningMarks FindReasoningMarks(const Tokenizer& tokenizer);

// Thread contract: one thread at a time.
class ReasoningCounter {
 public:
  ReasoningCounter() = default;
  // A prompt may have opened a thought that the new tokens go on with.
  ReasoningCounter(const ReasoningMarks& marks, absl::Span<const int32_t> prompt);

  void Take(int32_t token_id) {
    if (token_id == marks_.begin) is_thinking_ = true;
    if (is_thinking_) ++num_tokens_;
    if (token_id == marks_.end) is_thinking_ = false;
  }
  int64_t num_tokens() const { return num_tokens_; }
  // Whether the next token belongs to a thought.
  bool is_thinking() const { return is_thinking_; }

 private:
  ReasoningMarks marks_;
  bool is_thinking_ = false;
  int64_t num_tokens_ = 0;
};

}  // namespace ultraspeed::router
